//! What goes to standard output.

use std::io::Write;

/// Prints a line, as `println!` does. That nobody reads it any more, as after `| head`, is no reason to end a run: the
/// line is then lost.
macro_rules! say {
    ($($part:tt)*) => { $crate::output::print_line(format_args!($($part)*)) };
}

pub(crate) use say;

pub fn print_line(line: std::fmt::Arguments) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
