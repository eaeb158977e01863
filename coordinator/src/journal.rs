//! The journal: the newest state of a run, written after every step. Two files in turn, so that whatever ends the process
//! while it writes one of them, the other is whole; a step later than a checkpoint is so not lost with its coordinator.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::files::{WriteError, create_folder, sync_folder};
use tracing::warn;

use crate::checkpoint::{Checkpoint, CheckpointError, Checksum, FileParts, FoundStates, RunFacts};
use crate::training::State;

const FOLDER: &str = "journal";

/// The files of a journal, open for writing.
#[derive(Debug)]
pub struct Journal {
    facts: RunFacts,
    slots: [JournalFile; 2],
    /// The one that is not the newest.
    next: usize,
}

/// One of the files.
#[derive(Clone, Debug)]
pub struct JournalFile {
    path: PathBuf,
    file: Arc<File>,
}

fn paths(run_folder: &Path) -> [PathBuf; 2] {
    ["a", "b"].map(|name| run_folder.join(FOLDER).join(format!("{name}.safetensors")))
}

impl Journal {
    /// Opens the journal of the run in a folder, or begins one. What is newest in it stays until something newer is whole.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn open(run_folder: &Path, facts: RunFacts) -> Result<Self, WriteError> {
        let folder = run_folder.join(FOLDER);
        create_folder(&folder)?;
        let newest = Self::read(run_folder, |_| None).newest;
        let next = newest.map_or(0, |(path, _)| usize::from(path == paths(run_folder)[0]));
        let open = |path: PathBuf| {
            let file = File::options().write(true).create(true).truncate(false).open(&path);
            file.map_err(WriteError::at(&path)).map(|file| JournalFile { path, file: Arc::new(file) })
        };
        let [first, second] = paths(run_folder).map(open);
        let slots = [first?, second?];
        // The names have to reach the disk once, the content does each time.
        sync_folder(&folder).map_err(WriteError::at(&folder))?;
        Ok(Self { facts, slots, next })
    }

    /// The content of a file with a state.
    pub fn parts_of<'a>(&self, state: &'a State) -> FileParts<'a> {
        self.facts.to_parts(state, Checksum::Xxh3)
    }

    /// Writes a state, which from then on outlives this process; gives the file, which is not on the disk yet.
    ///
    /// # Errors
    /// If it cannot be written; the state before it stays whole.
    pub fn write(&mut self, parts: &FileParts) -> Result<JournalFile, WriteError> {
        let JournalFile { path, file } = &self.slots[self.next];
        let mut content = &**file;
        let written = content.rewind().and_then(|()| {
            parts.slices().into_iter().try_for_each(|part| content.write_all(part))?;
            let n_bytes = content.stream_position()?;
            content.set_len(n_bytes)
        });
        written.map_err(WriteError::at(path))?;
        let written = self.slots[self.next].clone();
        self.next = 1 - self.next;
        Ok(written)
    }

    /// Whether a state was written to the journal of the run in a folder, be it damaged by now. One file that is not whole,
    /// without the other, is of a process that ended while it wrote the first one.
    pub fn is_begun(run_folder: &Path) -> bool {
        let paths = paths(run_folder);
        let holds_state = |path| matches!(Checkpoint::read(path), Ok(_) | Err(CheckpointError::Unreadable { .. }));
        paths.iter().all(|path| has_bytes(path)) || paths.iter().any(|path| holds_state(path))
    }

    /// The newest state that can be used in the journal of the run in a folder, and what this program cannot read: `unreadable`
    /// gives the reason why one cannot be used that is whole.
    pub fn read(run_folder: &Path, unreadable: impl Fn(&Checkpoint) -> Option<String>) -> FoundStates {
        let paths = paths(run_folder);
        let mut found = FoundStates::default();
        for path in &paths {
            match Checkpoint::read_usable(path, &unreadable) {
                Ok(checkpoint) => {
                    let is_newer = |(_, newest): &(PathBuf, Checkpoint)| checkpoint.age() > newest.age();
                    if found.newest.as_ref().is_none_or(is_newer) {
                        found.newest = Some((path.clone(), checkpoint));
                    }
                }
                Err(error @ CheckpointError::Unreadable { .. }) => found.skipped.push(error),
                // One of them is not whole where a process has ended while it wrote.
                Err(CheckpointError::Read { .. } | CheckpointError::Damaged { .. }) => {}
            }
        }
        if found.newest.is_none() && found.skipped.is_empty() && paths.iter().all(|path| has_bytes(path)) {
            let folder = run_folder.join(FOLDER);
            warn!(folder = %folder.display(), "journal skipped: both of its files are damaged");
        }
        found
    }
}

impl JournalFile {
    /// Brings its state to the disk, so that it outlives the machine's end too.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn sync(&self) -> Result<(), WriteError> {
        self.file.sync_data().map_err(WriteError::at(&self.path))
    }
}

fn has_bytes(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.len() > 0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::checkpoint::tests::checkpoint;

    /// Writes a state as a coordinator does that was started anew.
    pub(crate) fn write(folder: &Path, Checkpoint { facts, state }: &Checkpoint) {
        let mut journal = Journal::open(folder, facts.clone()).expect("the folder can be written");
        let parts = journal.parts_of(state);
        journal.write(&parts).expect("a file");
    }

    fn newest_step(folder: &Path) -> Option<u64> {
        Journal::read(folder, |_| None).newest.map(|(_, checkpoint)| checkpoint.state.step)
    }

    #[test]
    fn torn_journal_write_leaves_previous_state_readable() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let folder = folder.path();
        assert_eq!(newest_step(folder), None);
        for step in 1..6 {
            write(folder, &checkpoint(step, 0.9));
            assert_eq!(newest_step(folder), Some(step));
            let (path, written) = Journal::read(folder, |_| None).newest.expect("a state");
            assert_eq!(written, checkpoint(step, 0.9));
            let whole = std::fs::read(&path).expect("a file");
            for n_bytes in [0, 1, 1_000, whole.len() / 2, whole.len() - 1] {
                std::fs::write(&path, &whole[..n_bytes]).expect("a file");
                assert_eq!(newest_step(folder), (step > 1).then(|| step - 1), "{n_bytes} bytes of step {step}");
            }
            // No bit of it counts as another one.
            for place in [1_000, whole.len() / 2, whole.len() - 1] {
                let mut decayed = whole.clone();
                decayed[place] ^= 1;
                std::fs::write(&path, &decayed).expect("a file");
                assert_eq!(newest_step(folder), (step > 1).then(|| step - 1), "another bit at {place} of step {step}");
            }
            std::fs::write(&path, &whole).expect("a file");
        }
    }

    /// The goal: what a newer version wrote hides nothing that this one can go on from.
    #[test]
    fn older_slot_is_taken_where_newer_cannot_be_read() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for step in [9, 10] {
            write(folder.path(), &checkpoint(step, 0.9));
        }
        let newest_below = |step: u64| {
            let unreadable = |found: &Checkpoint| (found.state.step >= step).then(|| "of another version".to_owned());
            let FoundStates { newest, skipped } = Journal::read(folder.path(), unreadable);
            (newest.map(|(_, found)| found.state.step), skipped.len())
        };
        assert_eq!([11, 10, 9].map(newest_below), [(Some(10), 0), (Some(9), 1), (None, 2)]);
    }

    #[test]
    fn validated_state_is_newer_than_unvalidated_of_same_step() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut validated = checkpoint(3, 0.0);
        validated.state.epoch_sums = engine::sums::Sums::default();
        for state in [checkpoint(3, 0.0), validated.clone()] {
            write(folder.path(), &state);
        }
        assert_eq!(Journal::read(folder.path(), |_| None).newest.expect("a state").1, validated);
    }
}
