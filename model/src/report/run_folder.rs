//! The folder of a run: `run.json`, `history.jsonl`, `steps.jsonl`, `model.safetensors`, `reconstructions/`.

use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::records::{EpochRecord, StepRecord};
use crate::files::{WriteError, write_whole};
use crate::weights::Weights;

/// A run's folder and its open files. Lines reach the disk at least once an epoch.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    history: BufWriter<File>,
    steps: BufWriter<File>,
}

impl RunFolder {
    /// Makes the folder named, or the first free one of `runs/NAME-001`, `runs/NAME-002`, …
    ///
    /// # Errors
    /// If it cannot be written, or holds a run already.
    pub fn create(path: Option<&Path>, name: &str) -> Result<Self, WriteError> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => make_next(Path::new("runs"), name)?,
        };
        let names = ["run.json", "history.jsonl", "steps.jsonl", "model.safetensors"];
        if names.iter().any(|name| path.join(name).exists()) {
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

    /// Adds a step.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add_step(&mut self, record: &StepRecord) -> Result<(), WriteError> {
        add_line(&mut self.steps, record).map_err(WriteError::at(&self.path.join("steps.jsonl")))
    }

    /// Adds an epoch with its weights and its picture, and brings all lines to the file.
    ///
    /// # Errors
    /// If something cannot be written.
    pub fn add_epoch(&mut self, record: &EpochRecord, weights: &Weights, picture: &[u8]) -> Result<(), WriteError> {
        weights.write(&self.weights_path())?;
        let name = format!("epoch-{:02}.png", record.epoch);
        write_whole(&self.path.join("reconstructions").join(name), picture)?;
        let history = add_line(&mut self.history, record).and_then(|()| bring_to_disk(&mut self.history));
        history.map_err(WriteError::at(&self.path.join("history.jsonl")))?;
        bring_to_disk(&mut self.steps).map_err(WriteError::at(&self.path.join("steps.jsonl")))
    }
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

    #[test]
    fn runs_are_numbered() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let names: Vec<_> =
            (0..3).map(|_| make_next(folder.path(), "conv").expect("the folder can be written")).collect();
        assert!(names[0].ends_with("conv-001") && names[2].ends_with("conv-003"), "{names:?}");
    }
}
