//! What goes to standard output; beside the progress bar, if there is one.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::bar;
use crate::files::WriteError;

/// Prints a line, as `println!` does. A closed pipe, as after `| head`, is ignored and does not end the run; any
/// other error is kept for the end, see [`check_output`](crate::report::check_output).
#[macro_export]
macro_rules! say {
    ($($part:tt)*) => { $crate::report::print_line(format_args!($($part)*)) };
}

static IS_LOST: AtomicBool = AtomicBool::new(false);

/// What [`say!`](crate::say) does.
pub fn print_line(line: std::fmt::Arguments) {
    let printed = bar::beside(|| writeln!(std::io::stdout().lock(), "{line}"));
    if printed.is_err_and(|error| error.kind() != ErrorKind::BrokenPipe) {
        IS_LOST.store(true, Ordering::Relaxed);
    }
}

/// For the end of a program.
///
/// # Errors
/// If a line could not be printed for another reason than a closed pipe.
pub fn check_output() -> Result<(), WriteError> {
    if IS_LOST.load(Ordering::Relaxed) {
        return Err(WriteError::at(Path::new("standard output"))(std::io::Error::other("lines were lost")));
    }
    Ok(())
}
