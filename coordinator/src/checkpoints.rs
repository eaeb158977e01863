//! The checkpoints of a run: a folder of files named after their steps, of which the newest stay.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use engine::files::{WriteError, create_folder, remove_unfinished, write_parts_whole};
use engine::report::RunFolder;

use crate::checkpoint::{Checkpoint, CheckpointError, FoundStates};

const FOLDER: &str = "checkpoints";

/// The checkpoints of a run: a folder of files named after their steps.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    n_kept: usize,
    /// Steps of checkpoints that are known to be damaged, or that this program cannot read.
    damaged: BTreeSet<u64>,
}

/// No checkpoint to go on from.
#[derive(Debug, thiserror::Error)]
#[error("expected a checkpoint to resume from in {}, found {found}", folder.display())]
pub struct NoCheckpoint {
    /// Where one was looked for.
    pub folder: PathBuf,
    /// What is there, and what is wrong with it.
    pub found: String,
}

impl NoCheckpoint {
    /// In the folder of a run, where these cannot be used.
    pub(crate) fn new(run_folder: &Path, skipped: &[CheckpointError]) -> Self {
        let reasons = skipped.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let found = if skipped.is_empty() {
            "none".to_owned()
        } else if skipped.iter().any(|error| matches!(error, CheckpointError::Unreadable { .. })) {
            let description = RunFolder::read_description(run_folder);
            let version = description.and_then(|description| Some(description["version"].as_str()?.to_owned()));
            let advice =
                version.map_or(String::new(), |version| format!("; resume it with version {version}, which wrote it"));
            format!("only ones that cannot be used: {reasons}{advice}")
        } else {
            format!("only damaged ones: {reasons}")
        };
        Self { folder: run_folder.join(FOLDER), found }
    }
}

impl Checkpoints {
    /// The checkpoints of the run in a folder, of which the newest `n_kept` stay.
    pub fn of(run_folder: &Path, n_kept: usize) -> Self {
        Self { folder: run_folder.join(FOLDER), n_kept, damaged: BTreeSet::new() }
    }

    /// Checks all checkpoints: damaged ones, and whole ones that are `unreadable`, do not count towards the kept ones, and are
    /// not removed.
    #[must_use]
    pub fn with_damaged_known(self, unreadable: impl Fn(&Checkpoint) -> Option<String>) -> Self {
        let is_damaged = |path: &Path| Checkpoint::read_usable(path, &unreadable).is_err();
        let damaged = self.by_age().into_iter().filter(|(_, path)| is_damaged(path)).map(|(step, _)| step).collect();
        Self { damaged, ..self }
    }

    /// Writes a checkpoint, and then removes old ones.
    ///
    /// # Errors
    /// If it cannot be written; older ones stay then.
    pub fn save(&mut self, checkpoint: &Checkpoint) -> Result<PathBuf, WriteError> {
        create_folder(&self.folder)?;
        let path = self.folder.join(file_name(checkpoint.state.step));
        write_parts_whole(&path, &checkpoint.to_parts().slices())?;
        self.damaged.remove(&checkpoint.state.step);
        let whole = self.by_age().into_iter().filter(|(step, _)| !self.damaged.contains(step));
        for (_, old) in whole.skip(self.n_kept) {
            if old != path {
                std::fs::remove_file(&old).map_err(WriteError::at(&old))?;
            }
        }
        Ok(path)
    }

    /// Removes what a process has left that was killed in the middle of a checkpoint.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove_unfinished(&self) -> Result<(), WriteError> {
        remove_unfinished(&self.folder)
    }

    /// The newest checkpoint that can be used, and what is newer: `unreadable` gives the reason why one cannot be used that is whole.
    pub fn read(&self, unreadable: impl Fn(&Checkpoint) -> Option<String>) -> FoundStates {
        let mut skipped = Vec::new();
        for (_, path) in self.by_age() {
            match Checkpoint::read_usable(&path, &unreadable) {
                Ok(checkpoint) => return FoundStates { newest: Some((path, checkpoint)), skipped },
                Err(error) => skipped.push(error),
            }
        }
        FoundStates { newest: None, skipped }
    }

    /// Whether there is no checkpoint at all.
    pub fn is_empty(&self) -> bool {
        self.by_age().is_empty()
    }

    /// Steps and files, the newest first.
    pub(crate) fn by_age(&self) -> Vec<(u64, PathBuf)> {
        let step = |path: &Path| step_of(path.file_name()?.to_str()?);
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let files = entries.map(|entry| entry.path());
        let mut found: Vec<(u64, PathBuf)> = files.filter_map(|path| Some((step(&path)?, path))).collect();
        found.sort_unstable_by(|a, b| b.cmp(a));
        found
    }
}

/// The name of a step's checkpoint in its folder.
pub(crate) fn file_name(step: u64) -> String {
    format!("step-{step:08}.safetensors")
}

/// The step of a checkpoint by its name.
pub(crate) fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::tests::{checkpoint, folder};

    #[test]
    fn newest_valid_checkpoint_is_found_and_damaged_are_reported() {
        let folder = folder();
        let mut checkpoints = Checkpoints::of(folder.path(), 9);
        let error = NoCheckpoint::new(folder.path(), &checkpoints.read(|_| None).skipped).to_string();
        assert!(error.ends_with("checkpoints, found none"), "{error}");
        let paths = [9, 10, 11, 12].map(|step| checkpoints.save(&checkpoint(step, 0.0)).expect("it can be written"));
        let mut bytes = std::fs::read(&paths[2]).expect("a file");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&paths[2], &bytes).expect("it can be written");
        std::fs::write(&paths[3], &bytes[..middle]).expect("it can be written");
        assert!(paths[1].ends_with("checkpoints/step-00000010.safetensors"), "{}", paths[1].display());
        let FoundStates { newest, skipped } = checkpoints.read(|_| None);
        let (path, newest) = newest.expect("two are whole");
        assert_eq!((&path, newest.state.step), (&paths[1], 10));
        let reasons: Vec<String> = skipped.iter().map(ToString::to_string).collect();
        assert!(reasons[1].contains("some bits are others"), "{reasons:?}");
        assert!(reasons[0].contains("expected a whole checkpoint, found"), "{reasons:?}");
    }

    /// The goal: what a newer version wrote last does not keep an older one from what it can read.
    #[test]
    fn checkpoint_that_cannot_be_read_is_passed_over() {
        let folder = folder();
        let mut checkpoints = Checkpoints::of(folder.path(), 9);
        for step in [9, 10] {
            checkpoints.save(&checkpoint(step, 0.0)).expect("it can be written");
        }
        let unreadable_from =
            |step| move |found: &Checkpoint| (found.state.step >= step).then(|| "settings of another kind".to_owned());
        let FoundStates { newest, skipped } = checkpoints.read(unreadable_from(10));
        assert_eq!(newest.expect("one can be read").1.state.step, 9);
        let reason = skipped[0].to_string();
        assert!(reason.contains("can read, found settings of another kind in"), "{reason}");
        let error = |checkpoints: &Checkpoints| {
            let FoundStates { newest, skipped } = checkpoints.read(unreadable_from(9));
            assert!(newest.is_none(), "{newest:?}");
            NoCheckpoint::new(folder.path(), &skipped).to_string()
        };
        let text = error(&checkpoints);
        assert!(text.contains("only ones that cannot be used: expected a checkpoint"), "{text}");
        assert!(!text.contains("version"), "{text}");
        std::fs::write(folder.path().join("run.json"), r#"{"version": "7.1.2"}"#).expect("a file");
        let text = error(&checkpoints);
        assert!(text.ends_with("; resume it with version 7.1.2, which wrote it"), "{text}");
    }

    #[test]
    fn keep_limit_removes_oldest_checkpoints() {
        let folder = folder();
        let mut checkpoints = Checkpoints::of(folder.path(), 2);
        for step in [1, 2, 3, 100_000_000] {
            checkpoints.save(&checkpoint(step, 0.0)).expect("it can be written");
        }
        assert_eq!(steps(&checkpoints), [100_000_000, 3]);
    }

    fn steps(checkpoints: &Checkpoints) -> Vec<u64> {
        checkpoints.by_age().into_iter().map(|(step, _)| step).collect()
    }

    /// The goal: what cannot be used never pushes out what can.
    #[test]
    fn damaged_checkpoints_do_not_count_towards_keep_limit() {
        let folder = folder();
        let mut checkpoints = Checkpoints::of(folder.path(), 2);
        for step in [1, 2] {
            checkpoints.save(&checkpoint(step, 0.0)).expect("it can be written");
        }
        for step in [5, 30, 40] {
            std::fs::write(folder.path().join("checkpoints").join(file_name(step)), b"torn").expect("a file");
        }
        let mut checkpoints = checkpoints.with_damaged_known(|_| None);
        checkpoints.save(&checkpoint(3, 0.0)).expect("it can be written");
        assert_eq!(steps(&checkpoints), [40, 30, 5, 3, 2]);
        checkpoints.save(&checkpoint(5, 0.0)).expect("it can be written");
        checkpoints.save(&checkpoint(6, 0.0)).expect("it can be written");
        assert_eq!(steps(&checkpoints), [40, 30, 6, 5]);
        assert_eq!(checkpoints.read(|_| None).newest.expect("two are whole").1.state.step, 6);
    }
}
