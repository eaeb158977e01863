//! `data fetch`, and the progress of any download.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use model::data::{DataError, Dataset, FILES, FetchProgress, MIRRORS, cache_folder, fetch, open};

use crate::args::{DataArgs, DataCommand, FetchArgs};
use crate::output::say;

pub fn run(command: DataCommand) -> anyhow::Result<()> {
    let DataCommand::Fetch(args) = command;
    let FetchArgs { dir, mirror, json } = args;
    let folder = dir.or_else(cache_folder).ok_or(DataError::NoCacheFolder)?;
    let mirrors: Vec<String> = mirror.into_iter().chain(MIRRORS.map(str::to_owned)).collect();
    let report = fetch(&folder, &FILES, &mirrors, &mut DownloadBar::default())?;
    if json {
        let line = serde_json::json!({
            "folder": folder.display().to_string(), "fetched": report.fetched, "already_there": report.already_there,
        });
        say!("{line}");
    } else {
        let n_there = report.already_there.len();
        say!(
            "Fashion-MNIST is whole in {}: {} files fetched, {n_there} there before",
            folder.display(),
            report.fetched.len()
        );
    }
    Ok(())
}

impl DataArgs {
    /// Opens the data set asked for, showing a download if one is needed.
    pub fn open(&self) -> Result<Dataset, DataError> {
        open(&self.data, &mut DownloadBar::default())
    }
}

/// A bar on a terminal, a line for each file elsewhere.
#[derive(Default)]
struct DownloadBar {
    bar: Option<ProgressBar>,
}

impl FetchProgress for DownloadBar {
    fn begin(&mut self, name: &str, n_bytes: u64, already: u64) {
        if !std::io::stderr().is_terminal() {
            eprintln!("fetching {name}: {already} of {n_bytes} bytes are there");
        }
        let style = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let bar = ProgressBar::new(n_bytes).with_style(ProgressStyle::with_template(style).expect("a valid template"));
        self.bar = Some(bar.with_message(name.to_owned()).with_position(already));
    }

    fn advance(&mut self, n_bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(n_bytes);
        }
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }
}
