//! Which files the mirror does not have yet, or has in an older form. A set: a file that changes twice before it is
//! uploaded is uploaded once, so the set is no larger than the run folder has files.

use std::collections::BTreeMap;

use super::RunFile;

/// The files to upload, each with the change that it waits for.
#[derive(Debug)]
pub struct Pending {
    files: BTreeMap<RunFile, Change>,
    n_changes: u64,
    n_checkpoints_kept: usize,
    /// The parts that have arrived, of each file that is not complete.
    n_parts: BTreeMap<RunFile, u64>,
}

/// A change of a file. Later changes are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change(u64);

impl Pending {
    /// Nothing to upload yet. Of the checkpoints at most the newest `n_checkpoints_kept` are.
    pub fn new(n_checkpoints_kept: usize) -> Self {
        Self { files: BTreeMap::new(), n_changes: 0, n_checkpoints_kept, n_parts: BTreeMap::new() }
    }

    /// A file is whole on the disk, or has more lines there.
    pub fn add(&mut self, file: RunFile) {
        self.n_changes += 1;
        self.files.insert(file, Change(self.n_changes));
        if file.checkpoint_step().is_some() {
            let checkpoints = self.files.keys().filter(|file| file.checkpoint_step().is_some());
            let too_old: Vec<RunFile> = checkpoints.copied().skip(self.n_checkpoints_kept).collect();
            for file in too_old {
                self.files.remove(&file);
            }
        }
    }

    /// A checkpoint is whole on the disk, after the lines that it needs.
    pub fn add_checkpoint(&mut self, step: u64) {
        self.add(RunFile::History);
        self.add(RunFile::Steps);
        self.add(RunFile::checkpoint(step));
        self.add(RunFile::Events);
    }

    /// All files in the order in which they are to be uploaded.
    pub fn batch(&self) -> Vec<(RunFile, Change)> {
        self.files.iter().map(|(file, change)| (*file, *change)).collect()
    }

    /// A file was uploaded as it was at a change. It stays if it has changed since.
    pub fn done(&mut self, file: RunFile, change: Change) {
        self.n_parts.remove(&file);
        if self.files.get(&file) == Some(&change) {
            self.files.remove(&file);
        }
    }

    /// A part of a file has arrived, counted from 1. Whether no attempt has come so far before.
    pub fn reach(&mut self, file: RunFile, part: u64) -> bool {
        let n_parts = self.n_parts.entry(file).or_default();
        let is_new = part > *n_parts;
        *n_parts = part.max(*n_parts);
        is_new
    }

    /// The files, in the same order.
    pub fn files(&self) -> impl Iterator<Item = RunFile> {
        self.files.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(pending: &Pending) -> Vec<String> {
        pending.batch().into_iter().map(|(file, _)| file.path()).collect()
    }

    #[test]
    fn repeated_change_is_one_pending_upload() {
        let mut pending = Pending::new(3);
        for _ in 0..1_000 {
            pending.add(RunFile::Steps);
        }
        assert_eq!(paths(&pending), ["steps.jsonl"]);
    }

    #[test]
    fn file_changed_during_upload_stays_pending() {
        let mut pending = Pending::new(3);
        pending.add(RunFile::Steps);
        let (file, change) = pending.batch()[0];
        pending.add(RunFile::Steps);
        pending.done(file, change);
        assert_eq!(paths(&pending), ["steps.jsonl"]);
        let (file, change) = pending.batch()[0];
        pending.done(file, change);
        assert_eq!(pending.files().next(), None);
    }

    #[test]
    fn checkpoint_upload_follows_its_line_files() {
        let mut pending = Pending::new(3);
        pending.add_checkpoint(5);
        for (file, change) in pending.batch() {
            pending.done(file, change);
        }
        pending.add(RunFile::Description);
        pending.add_checkpoint(10);
        let expected =
            ["run.json", "history.jsonl", "steps.jsonl", "checkpoints/step-00000010.safetensors", "events.jsonl"];
        assert_eq!(paths(&pending), expected);
    }

    #[test]
    fn reuploaded_part_is_not_progress() {
        let mut pending = Pending::new(3);
        let reached = [1, 2, 1, 2, 3].map(|part| pending.reach(RunFile::Steps, part));
        assert_eq!(reached, [true, true, false, false, true]);
    }

    #[test]
    fn pending_checkpoints_are_bounded_by_keep_limit() {
        let mut pending = Pending::new(2);
        for step in 1..1_000 {
            pending.add_checkpoint(step);
        }
        let waiting: Vec<u64> = pending.files().filter_map(RunFile::checkpoint_step).collect();
        assert_eq!(waiting, [999, 998]);
    }
}
