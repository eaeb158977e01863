//! `data fetch`.

use engine::say;
use model::data::{DataError, DownloadBar, FILES, MIRRORS, cache_folder, fetch};
use model::task::with_exit_code;

use crate::args::{DataCommand, FetchArgs};

pub fn run(command: DataCommand) -> anyhow::Result<()> {
    let DataCommand::Fetch(args) = command;
    let FetchArgs { dir, mirror, json } = args;
    let folder = dir.or_else(cache_folder).ok_or(DataError::NoCacheFolder).map_err(with_exit_code)?;
    let mirrors: Vec<String> = mirror.into_iter().chain(MIRRORS.map(str::to_owned)).collect();
    let report = fetch(&folder, &FILES, &mirrors, &mut DownloadBar::default()).map_err(DataError::from);
    let report = report.map_err(with_exit_code)?;
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
