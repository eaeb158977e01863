//! How a download is shown.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use engine::report::{bar, write_stderr_line};

use super::FetchProgress;

/// A bar on a terminal, a line for each file elsewhere; all on standard error.
#[derive(Debug, Default)]
pub struct DownloadBar {
    bar: Option<ProgressBar>,
}

impl FetchProgress for DownloadBar {
    fn begin(&mut self, name: &str, n_bytes: u64, already: u64) {
        if !std::io::stderr().is_terminal() {
            write_stderr_line(&format!("fetching {name}: {already} of {n_bytes} bytes are there"));
        }
        let style = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let bar = ProgressBar::new(n_bytes).with_style(ProgressStyle::with_template(style).expect("a valid template"));
        let bar = bar.with_message(name.to_owned()).with_position(already);
        bar::show(bar.clone());
        self.bar = Some(bar);
    }

    fn advance(&mut self, n_bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(n_bytes);
        }
    }

    fn end(&mut self) {
        bar::hide();
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }
}
