//! The folder of a run: `run.json`, `history.jsonl`, `steps.jsonl`, `model.safetensors`, `reconstructions/`.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::records::EpochRecord;
use crate::files::{WriteError, read_bounded, remove_unfinished, write_whole};
use crate::weights::Weights;

/// Bytes at most of a file that is read again: a line has some 200, so that this is millions of steps.
pub const LINES_BYTES_MAX: u64 = 1 << 30;

/// A run's folder and its open files. Lines reach the disk at least once an epoch.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    history: BufWriter<File>,
    steps: BufWriter<File>,
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
        let names = ["run.json", "history.jsonl", "steps.jsonl", "model.safetensors"];
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
        fs::create_dir_all(path.join("reconstructions")).map_err(WriteError::at(&path))?;
        let open = |name| {
            let file = path.join(name);
            let file = File::create_new(&file).map_err(WriteError::at(&file))?;
            Ok(BufWriter::new(file))
        };
        Ok(Self { history: open("history.jsonl")?, steps: open("steps.jsonl")?, path })
    }

    /// Opens the folder of a run that goes on after `step`: lines of later steps go, those of epochs that ended after
    /// `validated_step`, and a line that is not whole; new ones are added after the rest. What is not there is made, and
    /// files that were not finished go. Nobody else may be at work there.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn reopen(path: &Path, step: u64, validated_step: u64) -> Result<Self, WriteError> {
        let reconstructions = path.join("reconstructions");
        fs::create_dir_all(&reconstructions).map_err(WriteError::at(path))?;
        remove_unfinished(path)?;
        remove_unfinished(&reconstructions)?;
        let open = |name, step| {
            let file = path.join(name);
            keep_lines(&file, step)?;
            let file = OpenOptions::new().append(true).open(&file).map_err(WriteError::at(&file))?;
            Ok(BufWriter::new(file))
        };
        let (history, steps) = (open("history.jsonl", validated_step)?, open("steps.jsonl", step)?);
        Ok(Self { history, steps, path: path.to_owned() })
    }

    /// What was last written by [`RunFolder::write_description`] in a folder, if it can be read.
    pub fn read_description(path: &Path) -> Option<Value> {
        serde_json::from_slice(&read_bounded(&path.join("run.json"), LINES_BYTES_MAX).ok()?).ok()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the weights are.
    pub fn weights_path(&self) -> PathBuf {
        self.path.join("model.safetensors")
    }

    /// Writes what the run is, or is by now.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_description(&self, description: &impl Serialize) -> Result<(), WriteError> {
        let json = serde_json::to_vec_pretty(description).expect("a description has only text keys");
        write_whole(&self.path.join("run.json"), &json)
    }

    /// Adds a step: a [`StepRecord`](super::StepRecord), or one with more fields.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add_step(&mut self, record: &impl Serialize) -> Result<(), WriteError> {
        add_line(&mut self.steps, record).map_err(WriteError::at(&self.path.join("steps.jsonl")))
    }

    /// Adds an epoch with its weights and its picture, and brings all lines to the disk.
    ///
    /// # Errors
    /// If something cannot be written.
    pub fn add_epoch(&mut self, record: &EpochRecord, weights: &Weights, picture: &[u8]) -> Result<(), WriteError> {
        self.write_weights(weights)?;
        write_whole(&self.path.join("reconstructions").join(picture_name(record.epoch)), picture)?;
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
        bring_to_disk(&mut self.steps).map_err(WriteError::at(&self.path.join("steps.jsonl")))
    }
}

/// The name of an epoch's picture in its folder.
pub fn picture_name(epoch: u32) -> String {
    format!("epoch-{epoch:02}.png")
}

/// The epoch of a picture by its name.
pub fn picture_number(name: &str) -> Option<u32> {
    name.strip_prefix("epoch-")?.strip_suffix(".png")?.parse().ok()
}

/// What every line has, whatever else.
#[derive(Deserialize)]
struct Numbered {
    step: u64,
}

/// Rewrites a file with its whole lines up to a step; makes an empty one if there is none.
fn keep_lines(path: &Path, step: u64) -> Result<(), WriteError> {
    let bytes = match read_bounded(path, LINES_BYTES_MAX) {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        read => read.map_err(WriteError::at(path))?,
    };
    let is_kept = |line: &&[u8]| serde_json::from_slice(line).is_ok_and(|Numbered { step: at }| at <= step);
    let mut kept = Vec::with_capacity(bytes.len());
    for line in bytes.split(|&byte| byte == b'\n').filter(is_kept) {
        kept.extend_from_slice(line);
        kept.push(b'\n');
    }
    write_whole(path, &kept)
}

fn add_line(file: &mut BufWriter<File>, record: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    // In one piece, which the buffer keeps together: whatever ends the program, the file ends with a whole line.
    file.write_all(&line)
}

fn bring_to_disk(file: &mut BufWriter<File>) -> std::io::Result<()> {
    file.flush()?;
    file.get_ref().sync_data()
}

fn make_next(parent: &Path, name: &str) -> Result<PathBuf, WriteError> {
    fs::create_dir_all(parent).map_err(WriteError::at(parent))?;
    // Ends: each number is tried once, and making a folder that is not there can only fail for another reason.
    for number in 1_u32.. {
        let path = parent.join(format!("{name}-{number:03}"));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
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
    fn a_folder_that_holds_a_run_is_left_as_it_is() {
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
        assert!(folder.path().join("reconstructions").is_dir());
    }

    #[test]
    fn a_run_goes_on_after_its_step_and_its_last_whole_line() {
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
    }

    #[test]
    fn an_epoch_that_is_still_to_be_validated_has_no_line() {
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
    fn a_description_is_read_if_it_is_there() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(RunFolder::read_description(folder.path()), None);
        let run = RunFolder::reopen(folder.path(), 0, 0).expect("the folder can be written");
        run.write_description(&serde_json::json!({ "seed": 7 })).expect("the folder can be written");
        assert_eq!(RunFolder::read_description(folder.path()), Some(serde_json::json!({ "seed": 7 })));
        fs::write(folder.path().join("run.json"), "{").expect("a file");
        assert_eq!(RunFolder::read_description(folder.path()), None);
    }

    #[test]
    fn runs_are_numbered() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let names: Vec<_> =
            (0..3).map(|_| make_next(folder.path(), "conv").expect("the folder can be written")).collect();
        assert!(names[0].ends_with("conv-001") && names[2].ends_with("conv-003"), "{names:?}");
    }
}
