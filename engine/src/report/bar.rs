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

/// Standard error as a terminal on which the bar may be broken in two, where it becomes narrower, and overwritten, where keys are
/// echoed. So the cursor waits at the bar's beginning, and all from there on is cleared before the next one is drawn.
#[derive(Debug, Default)]
struct BarTerminal(Mutex<String>);

impl BarTerminal {
    fn push(&self, text: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_str(text);
    }

    fn push_move(&self, n: usize, direction: char) {
        // A sequence that moves the cursor by 0 would move it by 1.
        if n > 0 {
            self.push(&format!("\x1b[{n}{direction}"));
        }
    }
}

impl TermLike for BarTerminal {
    fn width(&self) -> u16 {
        drawing_size().map_or(80, |(columns, _)| columns)
    }

    fn height(&self) -> u16 {
        drawing_size().map_or(24, |(_, rows)| rows)
    }

    fn move_cursor_up(&self, n: usize) -> Result<()> {
        self.push_move(n, 'A');
        Ok(())
    }

    fn move_cursor_down(&self, n: usize) -> Result<()> {
        self.push_move(n, 'B');
        Ok(())
    }

    fn move_cursor_right(&self, n: usize) -> Result<()> {
        self.push_move(n, 'C');
        Ok(())
    }

    fn move_cursor_left(&self, n: usize) -> Result<()> {
        self.push_move(n, 'D');
        Ok(())
    }

    fn write_line(&self, line: &str) -> Result<()> {
        self.push(&format!("{line}\n"));
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
        let mut out = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        out.push('\r');
        stderr().lock().write_all(out.as_bytes())
    }
}
