//! What goes to standard output.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use model::files::WriteError;

/// Prints a line, as `println!` does. That nobody reads it any more, as after `| head`, is no reason to end a run; any
/// other fault is kept for the end, see [`check`].
macro_rules! say {
    ($($part:tt)*) => { $crate::output::print_line(format_args!($($part)*)) };
}

pub(crate) use say;

static IS_LOST: AtomicBool = AtomicBool::new(false);

pub fn print_line(line: std::fmt::Arguments) {
    let printed = writeln!(std::io::stdout().lock(), "{line}");
    if printed.is_err_and(|error| error.kind() != ErrorKind::BrokenPipe) {
        IS_LOST.store(true, Ordering::Relaxed);
    }
}

/// An error if a line could not be printed though somebody was to read it.
pub fn check() -> Result<(), WriteError> {
    if IS_LOST.load(Ordering::Relaxed) {
        return Err(WriteError::at(Path::new("standard output"))(std::io::Error::other("lines were lost")));
    }
    Ok(())
}
