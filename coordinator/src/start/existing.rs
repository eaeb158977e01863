//! A run that is in a folder: whether one can go on from it, and from which state.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use engine::files::WriteError;
use engine::recipe::Recipe;
use engine::report::RunFolder;
use engine::task::TaskError;
use tracing::warn;

use super::ResumeError;
use crate::checkpoint::{Checkpoint, CheckpointError, FoundStates};
use crate::checkpoints::{Checkpoints, NoCheckpoint};
use crate::config::{Config, RunChoice};
use crate::journal::Journal;

/// The folder of the run to go on with, if there is one.
pub(crate) fn existing_run(config: &Config) -> Option<PathBuf> {
    match &config.run {
        RunChoice::New(_) => None,
        RunChoice::Resume(Some(folder)) | RunChoice::ResumeOrNew(Some(folder)) => {
            folder.is_dir().then(|| folder.clone())
        }
        RunChoice::Resume(None) | RunChoice::ResumeOrNew(None) => newest_run(config),
    }
}

/// Whether there is anything that a run could go on from, be it damaged.
pub(crate) fn has_state(folder: &Path, n_kept: usize) -> bool {
    !Checkpoints::of(folder, n_kept).is_empty() || Journal::is_begun(folder)
}

/// A supervisor that starts a diverged run again and again would get no further.
pub(super) fn check_can_go_on(folder: &Path) -> Result<(), ResumeError> {
    let result = RunFolder::read_description(folder).map(|description| description["result"].clone());
    match result {
        Some(result) if result["outcome"] == "diverged" => {
            let error = result["error"].as_str().unwrap_or("diverged").to_owned();
            Err(ResumeError::Diverged { folder: folder.to_owned(), error })
        }
        Some(_) | None => Ok(()),
    }
}

/// Whether a coordinator's run ended in a folder before there was a checkpoint, so that it can only be begun again: no epoch
/// and no weights can be there then.
pub(crate) fn can_begin_again(folder: &Path, n_kept: usize) -> bool {
    let has = |name| folder.join(name).exists();
    // Killed before it said what it is: there is a file for lines, and no line in it.
    let is_barely_begun = !has("run.json") && (has("history.jsonl") || has("steps.jsonl"));
    let description = RunFolder::read_description(folder);
    let is_ours = description.map_or(is_barely_begun, |description| description["program"] == "coordinator");
    let has_bytes = |name| folder.join(name).metadata().is_ok_and(|found| found.len() > 0);
    is_ours && !has_bytes("history.jsonl") && !has("model.safetensors") && !has_state(folder, n_kept)
}

/// Where checkpoints of the run in a folder are written.
pub fn checkpoints(config: &Config, folder: &Path) -> Checkpoints {
    Checkpoints::of(folder, config.n_checkpoints_kept).with_damaged_known(|checkpoint| unreadable(config, checkpoint))
}

/// Why a whole checkpoint cannot be resumed from: its settings are another version's. Any other error in the settings, or in the
/// flags, is reported for the checkpoint that is chosen.
pub(crate) fn unreadable(config: &Config, checkpoint: &Checkpoint) -> Option<String> {
    let Recipe { task, settings, .. } = &checkpoint.facts.recipe;
    match config.task.resume(task, settings) {
        Err(error @ TaskError::Stored { .. }) => Some(error.to_string()),
        Ok(_) | Err(_) => None,
    }
}

/// The newest state of a run that is whole, and where it is: a checkpoint, or what the journal has after it. One that this program
/// cannot read is an error: a run that goes on without it would come to other lines and states of the same steps, which the version
/// that wrote it could not tell from its own.
pub(super) fn newest_state(
    folder: &Path,
    n_kept: usize,
    unreadable: impl Fn(&Checkpoint) -> Option<String>,
) -> Result<(PathBuf, Checkpoint), ResumeError> {
    let FoundStates { newest: checkpoint, mut skipped } = Checkpoints::of(folder, n_kept).read(&unreadable);
    let FoundStates { newest: journaled, skipped: of_journal } = Journal::read(folder, &unreadable);
    skipped.extend(of_journal);
    if checkpoint.is_none() && journaled.is_some() {
        warn!("no checkpoint can be used; the run goes on from its journal");
    }
    let is_later = |(_, found): &(PathBuf, Checkpoint)| {
        let is_before = |(_, checkpoint): &(PathBuf, Checkpoint)| {
            found.facts.run_id == checkpoint.facts.run_id && found.age() > checkpoint.age()
        };
        checkpoint.as_ref().is_none_or(is_before)
    };
    let Some((path, checkpoint)) = journaled.filter(is_later).or(checkpoint) else {
        return Err(NoCheckpoint::new(folder, &skipped).into());
    };
    let other_versions = skipped.iter().filter(|error| matches!(error, CheckpointError::Unreadable { .. }));
    let found: Vec<String> = other_versions.map(ToString::to_string).collect();
    if !found.is_empty() {
        let version = RunFolder::read_description(folder).and_then(|run| Some(run["version"].as_str()?.to_owned()));
        return Err(ResumeError::OtherVersion { found: found.join("; "), version, step: checkpoint.state.step });
    }
    for error in &skipped {
        warn!(%error, "checkpoint skipped");
    }
    Ok((path, checkpoint))
}

/// The run in `runs/` whose newest checkpoint is the newest, of the task asked for if one is.
pub(super) fn newest_run(config: &Config) -> Option<PathBuf> {
    // A task's name may be the beginning of another one's.
    let is_wanted = |folder: &str| match (config.task.name(), folder.rsplit_once('-')) {
        (Some(name), Some((found, number))) => found == name && number.bytes().all(|byte| byte.is_ascii_digit()),
        (Some(_), None) => false,
        (None, _) => true,
    };
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    let runs = entries(Path::new("runs")).filter(|run| is_wanted(&run.file_name().to_string_lossy()));
    let changed = |path: &Path| -> Option<SystemTime> {
        let files = entries(&path.join("checkpoints")).chain(entries(&path.join("journal")));
        files.filter_map(|file| file.metadata().ok()?.modified().ok()).max()
    };
    runs.map(|run| run.path()).filter_map(|path| Some((changed(&path)?, path))).max().map(|(_, path)| path)
}

/// A folder has one coordinator at a time.
pub(crate) fn lock(folder: &Path) -> anyhow::Result<File> {
    let path = folder.join(".lock");
    let file = File::create(&path).map_err(WriteError::at(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ResumeError::InUse { folder: folder.to_owned() }.into()),
        Err(TryLockError::Error(error)) => Err(WriteError::at(&path)(error).into()),
    }
}
