//! The one progress bar that may be on the screen, known to all that writes beside it, and the terminal that it is drawn on.

use std::io::{Result, Write, stderr};
use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, TermLike};

use super::terminal::drawing_size;

static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// How often a bar is drawn at most.
const DRAWN_PER_SECOND: u8 = 20;

/// Lets whatever is printed from now on find the bar.
pub fn show(bar: ProgressBar) {
    *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar);
}

/// The bar is gone.
pub fn hide() {
    *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// Does what prints whole lines while the bar is off the screen. `print` must not print through here itself.
pub(super) fn beside<T>(print: impl FnOnce() -> T) -> T {
    // A handle, so that the lock is not held while a slow terminal takes the lines.
    let bar = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match bar {
        Some(bar) => bar.suspend(print),
        None => print(),
    }
}

/// Where a bar is drawn: on standard error, which has to be a terminal.
pub fn draw_target() -> ProgressDrawTarget {
    ProgressDrawTarget::term_like_with_hz(Box::new(BarTerminal::default()), DRAWN_PER_SECOND)
}

/// Standard error as a terminal that may become narrower with a bar on it, and on which keys are echoed. The bar has one row: what
/// does not fit is cut by the terminal, whose width may not be known yet. The cursor waits at its beginning, where it stays if the
/// terminal breaks the row in two, and all from there on is cleared before the next one is drawn.
#[derive(Debug, Default)]
struct BarTerminal(Mutex<String>);

/// Has the terminal cut what is too long for a row, and not go on in the next one.
const CUT_ROWS: &str = "\x1b[?7l";
/// Has it go on in the next row again.
const BREAK_ROWS: &str = "\x1b[?7h";

impl BarTerminal {
    fn push(&self, text: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_str(text);
    }
}

impl TermLike for BarTerminal {
    fn width(&self) -> u16 {
        drawing_size().map_or(80, |(columns, _)| columns)
    }

    fn height(&self) -> u16 {
        drawing_size().map_or(24, |(_, rows)| rows)
    }

    // There is one row, however many the bar would take.

    fn move_cursor_up(&self, _n: usize) -> Result<()> {
        Ok(())
    }

    fn move_cursor_down(&self, _n: usize) -> Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _n: usize) -> Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _n: usize) -> Result<()> {
        Ok(())
    }

    fn write_line(&self, line: &str) -> Result<()> {
        self.push(line);
        Ok(())
    }

    fn write_str(&self, text: &str) -> Result<()> {
        self.push(text);
        Ok(())
    }

    fn clear_line(&self) -> Result<()> {
        self.push("\r\x1b[J");
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let row = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        stderr().lock().write_all(format!("{CUT_ROWS}{row}\r{BREAK_ROWS}").as_bytes())
    }
}
