//! The folder of a run: `run.json`, `history.jsonl`, `steps.jsonl`, `events.jsonl`, `model.safetensors`, `best.safetensors`,
//! `reconstructions/`.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::early_stopping::BestEpoch;
use crate::files::{WriteError, create_folder, read_bounded, remove_unfinished, sync_folder, write_whole};
use crate::weights::{Weights, WeightsFile};
use events::{EpochRecord, RecordedEvent};

/// Bytes at most of `run.json`.
pub const DESCRIPTION_BYTES_MAX: u64 = 1 << 20;
/// Bytes at most of a line. The longest are those of steps, with a number for each shard.
pub const LINE_BYTES_MAX: u64 = 1 << 20;

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
        create_folder(&path.join("reconstructions"))?;
        let open = |name| {
            let file = path.join(name);
            let file = File::create_new(&file).map_err(WriteError::at(&file))?;
            Ok(BufWriter::new(file))
        };
        Ok(Self { history: open("history.jsonl")?, steps: open("steps.jsonl")?, events: None, path })
    }

    /// Opens the folder of a run that goes on after `step`: lines of later steps go, those of epochs that ended after
    /// `validated_step`, and a line that is not whole; new ones are added after the rest. What is not there is made, and
    /// files that were not finished go. Nobody else may be at work there.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn reopen(path: &Path, step: u64, validated_step: u64) -> Result<Self, WriteError> {
        let reconstructions = path.join("reconstructions");
        create_folder(&reconstructions)?;
        remove_unfinished(path)?;
        remove_unfinished(&reconstructions)?;
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

    /// Adds an epoch with its weights and its picture, if it has one, and brings all lines to the disk.
    ///
    /// # Errors
    /// If something cannot be written.
    pub fn add_epoch(
        &mut self,
        record: &EpochRecord,
        weights: &Weights,
        picture: Option<&[u8]>,
    ) -> Result<(), WriteError> {
        let weights = &Weights { epoch: Some(record.epoch), ..weights.clone() };
        self.write_weights(weights)?;
        if record.is_best {
            weights.write(&self.best_weights_path())?;
        }
        if let Some(picture) = picture {
            write_whole(&self.path.join("reconstructions").join(picture_name(record.epoch)), picture)?;
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

/// What people are told of the best epoch at the end of a run, as rows of a table, where `last_epoch` was validated last, counted
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

/// Opens a file to add lines after its last whole one of at most a step: what follows goes. Makes an empty one if there is
/// none.
fn open_lines(path: &Path, step: u64) -> std::io::Result<File> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let n_bytes = file.metadata()?.len();
    let end = lines_end(&mut file, n_bytes, step)?;
    if end < n_bytes {
        file.set_len(end)?;
    }
    if end > 0 {
        let mut last = [0];
        file.seek(SeekFrom::Start(end - 1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    }
    file.sync_all()?;
    Ok(file)
}

/// Opens a file to add lines after its last whole one: what follows goes. Makes an empty one if there is none.
fn open_whole_lines(path: &Path) -> std::io::Result<File> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let n_bytes = file.metadata()?.len();
    let (mut end, mut block) = (n_bytes, Vec::new());
    // Ends: each block ends where the one after it began.
    while end > 0 {
        let begin = end.saturating_sub(LINE_BYTES_MAX);
        file.seek(SeekFrom::Start(begin))?;
        block.resize(usize::try_from(end - begin).expect("a block fits into memory"), 0);
        file.read_exact(&mut block)?;
        end = begin;
        if let Some(place) = block.iter().rposition(|&byte| byte == b'\n') {
            end = begin + place as u64 + 1;
            break;
        }
    }
    if end < n_bytes {
        file.set_len(end)?;
    }
    Ok(file)
}

/// Where the last line ends that is whole and of at most a step; 0 if there is none. Lines are in the order of their steps, so
/// that it is looked for from the end, and no more is read than what goes, and a block.
fn lines_end(file: &mut (impl Read + Seek), n_bytes: u64, step: u64) -> std::io::Result<u64> {
    let is_kept = |line: &[u8]| serde_json::from_slice(line).is_ok_and(|Numbered { step: at }| at <= step);
    let mut block = Vec::new();
    let mut end = n_bytes;
    // Ends: each block ends before the one after it began, or with the line that was cut by its beginning.
    while end > 0 {
        let begin = end.saturating_sub(LINE_BYTES_MAX);
        file.seek(SeekFrom::Start(begin))?;
        block.resize(usize::try_from(end - begin).expect("a block fits into memory"), 0);
        file.read_exact(&mut block)?;
        let mut rest = &block[..];
        while let Some(start) = last_line(rest, begin) {
            if is_kept(&rest[start..]) {
                return Ok(begin + rest.len() as u64);
            }
            rest = &rest[..start];
        }
        // So many bytes without an end of a line are none.
        end = if rest.len() == block.len() { begin } else { begin + rest.len() as u64 };
    }
    Ok(0)
}

/// Where the last line of a block begins, if that is in it.
fn last_line(block: &[u8], begin: u64) -> Option<usize> {
    let (_, before_last) = block.split_last()?;
    let end_of_previous = before_last.iter().rposition(|&byte| byte == b'\n');
    end_of_previous.map(|place| place + 1).or_else(|| (begin == 0).then_some(0))
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
        assert!(folder.path().join("reconstructions").is_dir());
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

    /// A file that counts what is read of it.
    struct Counted {
        file: File,
        n_read: u64,
    }

    impl Read for Counted {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            let n_read = self.file.read(into)?;
            self.n_read += n_read as u64;
            Ok(n_read)
        }
    }

    impl Seek for Counted {
        fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
            self.file.seek(to)
        }
    }

    /// The goal: a run of any length can be resumed, at the cost of what it does anew.
    #[test]
    fn long_line_file_is_read_from_end() {
        const HOLE_BYTES: u64 = 5 << 30;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("steps.jsonl");
        let lines: Vec<String> = (1..=20_000).map(|step| format!("{{\"step\":{step},\"loss\":0.25}}\n")).collect();
        let mut file = File::create(&path).expect("a file");
        file.set_len(HOLE_BYTES).expect("a file system with sparse files");
        file.seek(SeekFrom::End(0)).expect("a file");
        file.write_all(format!("\n{}", lines.concat()).as_bytes()).expect("a file");
        let n_bytes = file.metadata().expect("a file").len();
        for step in [20_000, 19_999, 10_000, 1] {
            let n_later: u64 = lines[step..].iter().map(|line| line.len() as u64).sum();
            let mut counted = Counted { file: File::open(&path).expect("a file"), n_read: 0 };
            assert_eq!(lines_end(&mut counted, n_bytes, step as u64).expect("a file"), n_bytes - n_later);
            assert!(counted.n_read <= n_later + 2 * LINE_BYTES_MAX, "{} bytes read for step {step}", counted.n_read);
        }
        let mut run = RunFolder::reopen(folder.path(), 19_999, 0).expect("the folder can be written");
        assert_eq!(fs::metadata(&path).expect("a file").len(), n_bytes - lines[19_999].len() as u64);
        run.add_step(&serde_json::json!({ "step": 20_000 })).expect("the folder can be written");
        run.sync_lines().expect("the folder can be written");
        let mut end = [0; 15];
        let mut file = File::open(&path).expect("a file");
        file.seek(SeekFrom::End(-15)).and_then(|_| file.read_exact(&mut end)).expect("a file");
        assert_eq!(end, *b"{\"step\":20000}\n");
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

    #[test]
    fn new_run_folders_are_numbered() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let names: Vec<_> =
            (0..3).map(|_| make_next(folder.path(), "conv").expect("the folder can be written")).collect();
        assert!(names[0].ends_with("conv-001") && names[2].ends_with("conv-003"), "{names:?}");
    }
}
