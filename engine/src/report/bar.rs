//! The one progress bar that may be on the screen, known to all that writes beside it.

use std::sync::{Mutex, PoisonError};

use indicatif::ProgressBar;

static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

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
