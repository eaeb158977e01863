//! The folder of a run: `run.json`, `history.jsonl`, `steps.jsonl`, `events.jsonl`, `model.safetensors`, `best.safetensors`, and
//! a folder for each of a task's pictures.

mod lines;

use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};
use tracing::warn;

pub use lines::LINE_BYTES_MAX;

use self::lines::{add_line, bring_to_disk, open_lines, open_whole_lines};
use crate::early_stopping::BestEpoch;
use crate::files::{WriteError, create_folder, read_bounded, remove_unfinished, sync_folder, write_whole};
use crate::weights::{Weights, WeightsFile};
use events::{EpochRecord, PictureFile, PictureName, RecordedEvent};

/// Bytes at most of `run.json`.
pub const DESCRIPTION_BYTES_MAX: u64 = 1 << 20;

/// A run's folder and its open files. Lines reach the disk at least once an epoch.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    history: BufWriter<File>,
    steps: BufWriter<File>,
    /// Once there was an event.
    events: Option<BufWriter<File>>,
}

impl RunFolder {
    /// Makes an empty folder for a run, the first free one of `runs/NAME-001`, `runs/NAME-002`, …
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn reserve(name: &str) -> Result<PathBuf, WriteError> {
        make_next(Path::new("runs"), name)
    }

    /// Whether a folder holds any file of a run.
    pub fn holds_run(path: &Path) -> bool {
        let names = ["run.json", "history.jsonl", "steps.jsonl", "model.safetensors", "best.safetensors"];
        names.iter().any(|name| path.join(name).exists())
    }

    /// Makes the folder named, or the first free one of `runs/NAME-001`, `runs/NAME-002`, …
    ///
    /// # Errors
    /// If it cannot be written, or holds a run already.
    pub fn create(path: Option<&Path>, name: &str) -> Result<Self, WriteError> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => Self::reserve(name)?,
        };
        if Self::holds_run(&path) {
            return Err(WriteError::at(&path)(std::io::Error::new(ErrorKind::AlreadyExists, "it holds a run already")));
        }
        create_folder(&path)?;
        let open = |name| {
            let file = path.join(name);
            let file = File::create_new(&file).map_err(WriteError::at(&file))?;
            Ok(BufWriter::new(file))
        };
        Ok(Self { history: open("history.jsonl")?, steps: open("steps.jsonl")?, events: None, path })
    }

    /// Opens the folder of a run that is resumed after `step`: removes lines of later steps, lines of epochs that ended after
    /// `validated_step`, and a partial line; new lines are appended. Creates missing files, and removes unfinished ones. No
    /// other process may use the folder.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn reopen(path: &Path, step: u64, validated_step: u64) -> Result<Self, WriteError> {
        create_folder(path)?;
        remove_unfinished(path)?;
        for name in PictureName::all_in(path).map_err(WriteError::at(path))? {
            if let Err(error) = remove_unfinished(&path.join(name.as_str())) {
                warn!(%error, "unfinished pictures not removed; the run goes on");
            }
        }
        let open = |name, step| {
            let file = path.join(name);
            Ok(BufWriter::new(open_lines(&file, step).map_err(WriteError::at(&file))?))
        };
        let (history, steps) = (open("history.jsonl", validated_step)?, open("steps.jsonl", step)?);
        sync_folder(path).map_err(WriteError::at(path))?;
        Ok(Self { history, steps, events: None, path: path.to_owned() })
    }

    /// What was last written by [`RunFolder::write_description`] in a folder, if it can be read.
    pub fn read_description(path: &Path) -> Option<Value> {
        serde_json::from_slice(&read_bounded(&path.join("run.json"), DESCRIPTION_BYTES_MAX).ok()?).ok()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the weights are.
    pub fn weights_path(&self) -> PathBuf {
        self.path.join("model.safetensors")
    }

    /// Where the weights of the epoch with the lowest validation loss are.
    pub fn best_weights_path(&self) -> PathBuf {
        self.path.join("best.safetensors")
    }

    /// Writes what the run is, or is by now.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_description(&self, description: &impl Serialize) -> Result<(), WriteError> {
        let json = serde_json::to_vec_pretty(description).expect("a description has only text keys");
        write_whole(&self.path.join("run.json"), &json)
    }

    /// Adds a step: a [`StepRecord`](events::StepRecord), or one with more fields.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add_step(&mut self, record: &impl Serialize) -> Result<(), WriteError> {
        add_line(&mut self.steps, record).map_err(WriteError::at(&self.path.join("steps.jsonl")))
    }

    /// Adds something else that happened: a [`RecordedEvent`]. Such lines stay when the run is resumed from an earlier step.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add_event(&mut self, event: &RecordedEvent) -> Result<(), WriteError> {
        let path = self.path.join("events.jsonl");
        let mut events = match self.events.take() {
            Some(events) => events,
            None => BufWriter::new(open_whole_lines(&path).map_err(WriteError::at(&path))?),
        };
        // Few, and read by others while the run goes on.
        let added = add_line(&mut events, event).and_then(|()| events.flush());
        self.events = Some(events);
        added.map_err(WriteError::at(&path))
    }

    /// Adds the pictures of an epoch, before the epoch's line; returns those that were written. One that cannot be written is a
    /// warning, and does not end the run.
    pub fn add_pictures<'a>(
        &self,
        epoch: u32,
        pictures: impl IntoIterator<Item = (PictureName, &'a [u8])>,
    ) -> Vec<PictureFile> {
        let written = pictures.into_iter().filter_map(|(name, png)| {
            let file = PictureFile { name, epoch };
            let created = create_folder(&self.path.join(name.as_str()));
            match created.and_then(|()| write_whole(&self.path.join(file.path()), png)) {
                Ok(()) => Some(file),
                Err(error) => {
                    warn!(%error, "picture left out; the run goes on");
                    None
                }
            }
        });
        written.collect()
    }

    /// Adds an epoch with its weights, and brings all lines to the disk.
    ///
    /// # Errors
    /// If something cannot be written.
    pub fn add_epoch(&mut self, record: &EpochRecord, weights: &Weights) -> Result<(), WriteError> {
        let weights = &Weights { epoch: Some(record.epoch), ..weights.clone() };
        self.write_weights(weights)?;
        if record.is_best {
            weights.write(&self.best_weights_path())?;
        }
        let added = add_line(&mut self.history, record);
        added.map_err(WriteError::at(&self.path.join("history.jsonl")))?;
        self.sync_lines()
    }

    /// Writes the weights as they are by now.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write_weights(&self, weights: &Weights) -> Result<(), WriteError> {
        weights.write(&self.weights_path())
    }

    /// Writes all lines that wait to be written, so that they outlive this process.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn flush_lines(&mut self) -> Result<(), WriteError> {
        self.history.flush().map_err(WriteError::at(&self.path.join("history.jsonl")))?;
        self.steps.flush().map_err(WriteError::at(&self.path.join("steps.jsonl")))
    }

    /// Brings all lines to the disk, as before a checkpoint from which the run may go on.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn sync_lines(&mut self) -> Result<(), WriteError> {
        bring_to_disk(&mut self.history).map_err(WriteError::at(&self.path.join("history.jsonl")))?;
        bring_to_disk(&mut self.steps).map_err(WriteError::at(&self.path.join("steps.jsonl")))?;
        let Some(events) = &mut self.events else { return Ok(()) };
        bring_to_disk(events).map_err(WriteError::at(&self.path.join("events.jsonl")))
    }
}

/// The best epoch as files and programs have it: counted from 1.
pub fn best_json(best: Option<BestEpoch>) -> Option<Value> {
    best.map(|BestEpoch { epoch, val_loss }| json!({ "epoch": epoch + 1, "val_loss": val_loss }))
}

/// The best epoch as rows of the table that is printed at the end of a run. `last_epoch` is the one validated last, counted
/// from 1, if one was.
pub fn best_rows(
    best: Option<BestEpoch>,
    last_epoch: Option<u32>,
    has_stopped_early: bool,
    folder: &RunFolder,
) -> Vec<(&'static str, String)> {
    let Some(best) = best.filter(|best| last_epoch != Some(best.epoch + 1)) else { return Vec::new() };
    let early = ("stopped early", format!("no lower val loss since epoch {}", best.epoch + 1));
    let path = folder.best_weights_path();
    // A run that went on from an older state, or from a mirror, may lack it or have that of another epoch.
    let is_there = WeightsFile::read(&path).is_ok_and(|file| file.epoch() == Some(best.epoch + 1));
    let weights = if is_there {
        ("best weights", format!("{} ({best})", path.display()))
    } else {
        ("best epoch", format!("{best}; its weights are not in {}", path.display()))
    };
    has_stopped_early.then_some(early).into_iter().chain([weights]).collect()
}

fn make_next(parent: &Path, name: &str) -> Result<PathBuf, WriteError> {
    create_folder(parent)?;
    // Ends: each number is tried once, and making a folder that is not there can only fail for another reason.
    for number in 1_u32.. {
        let path = parent.join(format!("{name}-{number:03}"));
        match fs::create_dir(&path) {
            Ok(()) => return sync_folder(parent).map_err(WriteError::at(parent)).map(|()| path),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(WriteError::at(&path)(error)),
        }
    }
    unreachable!("no folder holds 2^32 runs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_with_existing_run_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("run");
        RunFolder::create(Some(&path), "conv").expect("the folder can be written");
        let error = RunFolder::create(Some(&path), "conv").expect_err("the folder holds a run").to_string();
        assert!(error.contains("it holds a run already"), "{error}");
    }

    /// What a reopened folder's file of steps holds after another step, from what it held.
    fn check_reopened(before: Option<&str>, step: u64, after: &str) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (steps, history) = (folder.path().join("steps.jsonl"), folder.path().join("history.jsonl"));
        if let Some(before) = before {
            fs::write(&steps, before).expect("a file");
            fs::write(&history, before).expect("a file");
        }
        let mut run = RunFolder::reopen(folder.path(), step, step).expect("the folder can be written");
        run.add_step(&serde_json::json!({ "step": step + 1, "n_workers": 4 })).expect("the folder can be written");
        run.sync_lines().expect("the folder can be written");
        let new = format!("{{\"n_workers\":4,\"step\":{}}}\n", step + 1);
        assert_eq!(fs::read_to_string(&steps).expect("steps"), format!("{after}{new}"));
        assert_eq!(fs::read_to_string(&history).expect("epochs"), after);
    }

    #[test]
    fn reopen_drops_lines_after_step_and_torn_line() {
        let [one, two, three] = [1, 2, 3].map(|step| format!("{{\"step\":{step},\"loss\":0.5}}\n"));
        let all = format!("{one}{two}{three}");
        check_reopened(None, 2, "");
        check_reopened(Some(""), 0, "");
        check_reopened(Some(&all), 0, "");
        check_reopened(Some(&all), 2, &format!("{one}{two}"));
        check_reopened(Some(&all), 9, &all);
        for torn in 1..three.len() - 2 {
            check_reopened(Some(&format!("{one}{two}{}", &three[..torn])), 9, &format!("{one}{two}"));
        }
        check_reopened(Some(&format!("{one}{{\"epoch\":1}}\n\u{0}\u{0}")), 9, &one);
        check_reopened(Some(&format!("{one}{}", two.trim_end())), 9, &format!("{one}{two}"));
        check_reopened(Some(&"\u{0}".repeat(3 << 20)), 9, "");
        let long = format!("{one}{{\"step\":2,\"workers\":[{}]}}\n", vec!["1"; 400_000].join(","));
        check_reopened(Some(&format!("{long}{three}")), 2, &long);
    }

    #[test]
    fn reopen_drops_history_line_of_unvalidated_epoch() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [one, two] = [1, 2].map(|step| format!("{{\"step\":{step}}}\n"));
        let names = ["history.jsonl", "steps.jsonl"];
        for name in names {
            fs::write(folder.path().join(name), format!("{one}{two}")).expect("a file");
        }
        RunFolder::reopen(folder.path(), 2, 1).expect("the folder can be written");
        let found = names.map(|name| fs::read_to_string(folder.path().join(name)).expect("a file"));
        assert_eq!(found, [one.clone(), format!("{one}{two}")]);
    }

    #[test]
    fn description_is_read_if_present_and_valid() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(RunFolder::read_description(folder.path()), None);
        let run = RunFolder::reopen(folder.path(), 0, 0).expect("the folder can be written");
        run.write_description(&serde_json::json!({ "seed": 7 })).expect("the folder can be written");
        assert_eq!(RunFolder::read_description(folder.path()), Some(serde_json::json!({ "seed": 7 })));
        fs::write(folder.path().join("run.json"), "{").expect("a file");
        assert_eq!(RunFolder::read_description(folder.path()), None);
    }

    /// The goal: no picture, whatever becomes of it, ends a run.
    #[test]
    fn picture_that_cannot_be_written_is_left_out() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("run");
        let run = RunFolder::create(Some(&path), "conv").expect("the folder can be written");
        assert_eq!(PictureName::all_in(&path).expect("a folder"), [], "no folder for pictures that nobody makes");
        fs::write(path.join("taken"), "a file").expect("a file");
        let [maps, taken] = ["maps", "taken"].map(|name| PictureName::new(name).expect("a name"));
        let pictures: [(PictureName, &[u8]); 2] = [(taken, b"one"), (maps, b"two")];
        assert_eq!(run.add_pictures(3, pictures), [PictureFile { name: maps, epoch: 3 }]);
        assert_eq!(fs::read(path.join("maps/epoch-03.png")).expect("a file"), b"two");
        assert_eq!(fs::read(path.join("taken")).expect("a file"), b"a file");
    }

    #[test]
    fn reopen_removes_unfinished_pictures() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, is_kept) in [("maps/epoch-01.png", true), ("maps/.telar-x", false), ("codes/.telar-y", false)] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(&path, "").expect("a file");
            RunFolder::reopen(folder.path(), 0, 0).expect("the folder can be written");
            assert_eq!(path.exists(), is_kept, "{name}");
        }
    }

    #[test]
    fn new_run_folders_are_numbered() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let names: Vec<_> =
            (0..3).map(|_| make_next(folder.path(), "conv").expect("the folder can be written")).collect();
        assert!(names[0].ends_with("conv-001") && names[2].ends_with("conv-003"), "{names:?}");
    }
}
