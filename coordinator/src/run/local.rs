//! The local workers of a run: how they are started, and where they find the data set.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::data::{DataFile, DataSource, write_files};
use engine::files::{PrivateFolder, WriteError, restrict};
use engine::report::LogFormat;
use engine::task::{AnyTask, OpenTask};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Workers};
use crate::launch::Launcher;

/// How local workers are started, if there are to be any.
pub(super) fn launcher(
    config: &Config,
    address: String,
    private: &PrivateFolder,
    log_format: LogFormat,
) -> Option<Launcher> {
    let Workers::Local { program, backend, busy_poll } = &config.workers else { return None };
    let private = private.path().join("data");
    let (program, backend) = (program.clone(), backend.clone());
    Some(Launcher { program, address, data: DataSource::at(&private), backend, busy_poll: *busy_poll, log_format })
}

/// Puts the data set where local workers can map it, and keeps them running.
pub(super) async fn launch(
    launcher: Launcher,
    known: Arc<dyn AnyTask>,
    task: Arc<dyn OpenTask>,
    source: DataSource,
    n_workers: u32,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let private = launcher.data.path().to_owned();
    let shared = move || match &task.files()[..] {
        // Each worker opens it as this process did.
        [] => Ok(source),
        files => shared_folder(&*known, task.fingerprint(), files, private).map(|folder| DataSource::at(&folder)),
    };
    let data = tokio::task::spawn_blocking(shared).await??;
    Ok(Launcher { data, ..launcher }.run(n_workers, shutdown).await?)
}

/// A folder with the data set as plain files, which processes share by mapping them: the user's cache, or one of this run.
fn shared_folder(
    task: &dyn AnyTask,
    fingerprint: &str,
    files: &[DataFile<'_>],
    private: PathBuf,
) -> Result<PathBuf, WriteError> {
    let is_whole = |folder: &Path| {
        let found = task.open(&DataSource::at(folder));
        found.is_ok_and(|found| found.fingerprint() == fingerprint)
    };
    if let Some(folder) = task.shared_folder(fingerprint)
        && (is_whole(&folder) || write_files(files, &folder).is_ok())
    {
        return Ok(folder);
    }
    write_files(files, &private)?;
    restrict(&private)?;
    Ok(private)
}
