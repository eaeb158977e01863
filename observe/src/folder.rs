//! A run's folder as a summary, and what is added to it while the run goes on. A file that is too long to be read is sampled, or
//! read from near its end, so that a run of any length opens at once.

mod lines;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use events::{EpochRecord, PictureFile, PictureName, RecordedEvent, StepEvent, StepRecord};
use serde_json::Value;
use tracing::warn;

use crate::folder::lines::{Excerpt, Found, Lines, Stamp, WHOLE_BYTES_MAX};
use crate::summary::Summary;

/// Bytes at most of `run.json`.
const DESCRIPTION_BYTES_MAX: u64 = 1 << 20;
/// Bytes at the end of `events.jsonl` that are looked through: about a second's reading.
const EVENTS_BYTES_MAX: u64 = 512 << 20;
/// In the lines of snapshots, which are most of the bytes; of those only the last are of use.
const SNAPSHOT_KEY: &[u8] = br#""event":"snapshot""#;
/// Bytes of an event's line in which its key is: it comes after the time.
const KEY_BYTES: usize = 64;

/// Reads a run's folder, and then what is added.
#[derive(Debug)]
pub struct FolderReader {
    path: PathBuf,
    name: String,
    description: Option<Stamp>,
    events: Lines,
    history: Lines,
    steps: Lines,
    /// The folders of pictures as they were read.
    pictures: BTreeMap<PictureName, Stamp>,
    /// Whether the last reading failed, which is logged once.
    is_failing: bool,
}

/// Why a folder cannot be read as a run's.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// There is no `run.json`.
    #[error("expected a run folder, with a run.json in it, found {found}: {}", path.display())]
    NotRun {
        /// The folder.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// `run.json` cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// `run.json` is not JSON.
    #[error("expected JSON in {}, found: {source}", path.display())]
    NotJson {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

impl FolderReader {
    /// Opens a run's folder. The first [`FolderReader::poll`] reads what is there.
    ///
    /// # Errors
    /// If there is no `run.json` that can be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FolderError> {
        let path = path.as_ref().to_owned();
        let file = path.join("run.json");
        let found = match path.metadata() {
            Ok(metadata) if metadata.is_dir() && file.exists() => None,
            Ok(metadata) if metadata.is_dir() => Some("a folder without"),
            Ok(_) => Some("a file"),
            Err(_) => Some("nothing"),
        };
        if let Some(found) = found {
            return Err(FolderError::NotRun { path, found });
        }
        let bytes = read_bounded(&file).map_err(|source| FolderError::Read { path: file.clone(), source })?;
        let _: Value = serde_json::from_slice(&bytes).map_err(|source| FolderError::NotJson { path: file, source })?;
        // `.` has no name of its own.
        let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
        let name = whole.file_name().map_or_else(|| "run".to_owned(), |name| name.to_string_lossy().into_owned());
        let lines = |name, excerpt| Lines::new(&path.join(name), excerpt);
        Ok(Self {
            events: lines("events.jsonl", Excerpt::Newest(EVENTS_BYTES_MAX)),
            history: lines("history.jsonl", Excerpt::Newest(WHOLE_BYTES_MAX)),
            steps: lines("steps.jsonl", Excerpt::Samples),
            path,
            name,
            description: None,
            pictures: BTreeMap::new(),
            is_failing: false,
        })
    }

    /// The name of the folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes what is new into a summary, which has to be the same each time, and says whether it has changed. Called again about
    /// twice a second, it follows a run. What cannot be read is logged, and tried again the next time.
    pub fn poll(&mut self, summary: &mut Summary) -> bool {
        let before = summary.version;
        if summary.name.is_empty() {
            summary.name.clone_from(&self.name);
        }
        let read = self.read(summary);
        if let Err(error) = &read
            && !self.is_failing
        {
            warn!(folder = %self.path.display(), %error, "a run's folder could not be read; it is tried again");
        }
        self.is_failing = read.is_err();
        summary.version != before
    }

    /// Events come before the description, which knows best how the run ended, and steps before the epochs that end with them.
    fn read(&mut self, summary: &mut Summary) -> io::Result<()> {
        self.events.read_new(|found| match found {
            Found::Restart => summary.forget_events(),
            Found::Line(line, n_after) => add_event(summary, line, n_after),
        })?;
        self.read_description(summary)?;
        self.steps.read_new(|found| match found {
            Found::Restart => summary.forget_steps(),
            Found::Line(line, _) => {
                if let Some(record) = step_record(line) {
                    summary.add_step(&record);
                }
            }
        })?;
        let mut is_resumed = false;
        self.history.read_new(|found| match found {
            Found::Restart => {
                is_resumed = true;
                summary.forget_epochs();
            }
            Found::Line(line, _) => {
                if let Ok(record) = serde_json::from_slice::<EpochRecord>(line) {
                    summary.add_epoch(&record);
                }
            }
        })?;
        if is_resumed {
            summary.forget_later_pictures();
        }
        self.read_pictures(summary)
    }

    fn read_description(&mut self, summary: &mut Summary) -> io::Result<()> {
        let path = self.path.join("run.json");
        let stamp = Stamp::new(&path.metadata()?);
        if self.description == Some(stamp) {
            return Ok(());
        }
        let description = serde_json::from_slice(&read_bounded(&path)?)?;
        summary.describe(description);
        self.description = Some(stamp);
        Ok(())
    }

    fn read_pictures(&mut self, summary: &mut Summary) -> io::Result<()> {
        let mut read = Ok(());
        for name in PictureName::all_in(&self.path)? {
            // One that cannot be read hides no other.
            read = read.and(self.read_pictures_of(name, summary));
        }
        read
    }

    fn read_pictures_of(&mut self, name: PictureName, summary: &mut Summary) -> io::Result<()> {
        // Those of epochs that are not known yet, or that were trained before the run was resumed from an earlier checkpoint, are
        // looked for again the next time.
        let last_epoch = summary.epochs.back().map_or(u32::MAX, |last| last.epoch);
        let folder = self.path.join(name.as_str());
        let stamp = Stamp::new(&folder.metadata()?);
        if self.pictures.get(&name) == Some(&stamp) {
            return Ok(());
        }
        let mut has_later = false;
        for entry in fs::read_dir(&folder)? {
            let file_name = entry?.file_name();
            let Some(file) = PictureFile::of(name.as_str(), &file_name.to_string_lossy()) else { continue };
            if file.epoch > last_epoch {
                has_later = true;
            } else if !summary.has_picture(file) {
                summary.add_picture(file);
            }
        }
        if has_later {
            self.pictures.remove(&name);
        } else {
            self.pictures.insert(name, stamp);
        }
        Ok(())
    }
}

/// Takes a line of `events.jsonl` into a summary. Of snapshots only those are read that are near the end: others would be
/// dropped again.
fn add_event(summary: &mut Summary, line: &[u8], n_after: u64) {
    let begin = &line[..line.len().min(KEY_BYTES)];
    let is_snapshot = begin.windows(SNAPSHOT_KEY.len()).any(|key| key == SNAPSHOT_KEY);
    if is_snapshot && n_after > WHOLE_BYTES_MAX {
        return;
    }
    if let Ok(recorded) = serde_json::from_slice::<RecordedEvent>(line) {
        summary.apply(&recorded);
    }
}

/// The figures of a step, which a coordinator and a single process write, the one with more about its workers.
fn step_record(line: &[u8]) -> Option<StepRecord> {
    match serde_json::from_slice::<StepEvent>(line) {
        Ok(step) => Some(step.record),
        Err(_) => serde_json::from_slice(line).ok(),
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(DESCRIPTION_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > DESCRIPTION_BYTES_MAX {
        let text = format!("expected at most {DESCRIPTION_BYTES_MAX} bytes, found more");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::{BufWriter, Seek, SeekFrom, Write};
    use std::time::{Duration, Instant};

    use super::*;

    /// A run's folder with a `run.json` and no more.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("reconstructions")).expect("a folder");
        write(&folder, "run.json", r#"{"n_steps": 40, "samples": "images", "recipe": {"epochs": 2}}"#);
        folder
    }

    fn write(folder: &tempfile::TempDir, name: &str, text: &str) {
        fs::write(folder.path().join(name), text).expect("a file");
    }

    fn append(folder: &tempfile::TempDir, name: &str, text: &str) {
        let file = OpenOptions::new().append(true).create(true).open(folder.path().join(name));
        file.and_then(|mut file| file.write_all(text.as_bytes())).expect("a file");
    }

    fn single_step(step: u64) -> String {
        format!(
            "{{\"step\":{step},\"epoch\":1,\"loss\":0.5,\"accuracy\":0.25,\"n_samples\":32,\"milliseconds\":4.0}}\n"
        )
    }

    fn shared_step(step: u64) -> String {
        let costs = r#""workers":[1,2],"n_active":2,"costs":{"compute":1.0,"wait":0.5}"#;
        single_step(step).replace("}\n", &format!(",{costs}}}\n"))
    }

    fn epoch(epoch: u32, step: u64) -> String {
        format!(
            "{{\"epoch\":{epoch},\"step\":{step},\"loss\":0.5,\"val_loss\":0.4,\"seconds\":2.0,\"images_per_second\":8000.0,\"best\":true}}\n"
        )
    }

    fn open(folder: &tempfile::TempDir) -> (FolderReader, Summary) {
        let mut reader = FolderReader::open(folder.path()).expect("a run's folder");
        let mut summary = Summary::default();
        assert!(reader.poll(&mut summary));
        (reader, summary)
    }

    fn last_step(summary: &Summary) -> Option<u64> {
        summary.last_step.as_ref().map(|last| last.step)
    }

    fn xs(summary: &Summary) -> Vec<f64> {
        summary.step_figures[0].1.points().iter().map(|point| point.x).collect()
    }

    fn pictures(summary: &Summary) -> Vec<String> {
        let text = |(name, epochs): (&PictureName, &Vec<u32>)| {
            let epochs: Vec<String> = epochs.iter().map(u32::to_string).collect();
            format!("{name}: {}", epochs.join(" "))
        };
        summary.pictures.iter().map(text).collect()
    }

    fn epochs(summary: &Summary) -> Vec<u32> {
        summary.epochs.iter().map(|epoch| epoch.epoch).collect()
    }

    #[test]
    fn folder_without_run_is_refused_with_what_was_expected() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let error = |path: &Path| FolderReader::open(path).expect_err("no run").to_string();
        assert!(
            error(folder.path()).starts_with("expected a run folder, with a run.json in it, found a folder without: ")
        );
        assert!(error(&folder.path().join("none")).contains("found nothing"));
        write(&folder, "run.json", "{");
        assert!(error(folder.path()).starts_with("expected JSON in "));
        assert!(error(&folder.path().join("run.json")).contains("found a file"));
    }

    #[test]
    fn folder_is_read_whole() {
        let folder = folder();
        write(&folder, "steps.jsonl", &(1..=40).map(shared_step).collect::<String>());
        write(&folder, "history.jsonl", &[epoch(1, 20), epoch(2, 40)].concat());
        write(
            &folder,
            "events.jsonl",
            "{\"time\":10.5,\"event\":\"started\",\"incarnation\":1,\"step\":0}\n{\"time\":12.5,\"event\":\"waiting\"}\n",
        );
        for name in ["epoch-02.png", "epoch-01.png", "epoch-+3.png", "epoch-1.png", "other.png"] {
            write(&folder, &format!("reconstructions/{name}"), "png");
        }
        for name in ["codes", "maps", "tensorboard", "Notes", "empty"] {
            fs::create_dir(folder.path().join(name)).expect("a folder");
            if name != "empty" {
                write(&folder, &format!("{name}/epoch-02.png"), "png");
            }
        }
        let (mut reader, mut summary) = open(&folder);
        assert_eq!((last_step(&summary), xs(&summary).len()), (Some(40), 40));
        assert_eq!(
            summary.step_figures.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            ["loss", "accuracy"]
        );
        assert_eq!((epochs(&summary), summary.n_steps, summary.n_epochs), (vec![1, 2], 40, 2));
        assert_eq!((summary.event_lines.len(), summary.time, summary.is_waiting), (2, 12.5, true));
        assert_eq!(pictures(&summary), ["codes: 2", "maps: 2", "reconstructions: 1 2"]);
        assert_eq!(Some(summary.name.as_str()), folder.path().file_name().and_then(|name| name.to_str()));
        assert!(!reader.poll(&mut summary), "nothing is new");
    }

    #[test]
    fn steps_of_single_process_are_read_without_events() {
        let folder = folder();
        write(&folder, "steps.jsonl", &(1..=3).map(single_step).collect::<String>());
        let (_, summary) = open(&folder);
        assert_eq!((xs(&summary), summary.time), (vec![1.0, 2.0, 3.0], 0.0));
    }

    #[test]
    fn reader_follows_what_is_added() {
        let folder = folder();
        write(&folder, "steps.jsonl", &shared_step(1));
        let (mut reader, mut summary) = open(&folder);
        let (whole, torn) = (shared_step(2), shared_step(3));
        append(&folder, "steps.jsonl", &format!("{whole}{}", &torn[..20]));
        assert!(reader.poll(&mut summary));
        assert_eq!(last_step(&summary), Some(2));
        append(&folder, "steps.jsonl", &torn[20..]);
        append(&folder, "history.jsonl", &epoch(1, 3));
        append(
            &folder,
            "events.jsonl",
            "{\"time\":12.5,\"event\":\"waiting\"}\nno event\n{\"time\":13.5,\"event\":\"going on\"}\n",
        );
        write(&folder, "reconstructions/epoch-01.png", "png");
        write(&folder, "run.json", r#"{"recipe": {"epochs": 2}, "result": {"outcome": "completed"}}"#);
        assert!(reader.poll(&mut summary));
        assert_eq!((xs(&summary), epochs(&summary)), (vec![1.0, 2.0, 3.0], vec![1]));
        assert_eq!((summary.event_lines.len(), summary.outcome.as_deref()), (2, Some("completed")));
        assert_eq!(pictures(&summary), ["reconstructions: 1"]);
    }

    #[test]
    fn history_cut_by_resume_drops_later_pictures_until_trained_again() {
        let folder = folder();
        write(&folder, "history.jsonl", &[epoch(1, 10), epoch(2, 20)].concat());
        for epoch in 1..=2 {
            write(&folder, &format!("reconstructions/epoch-{epoch:02}.png"), "png");
        }
        let (mut reader, mut summary) = open(&folder);
        assert_eq!(pictures(&summary), ["reconstructions: 1 2"]);
        write(&folder, "history.jsonl", &epoch(1, 10));
        write(&folder, "reconstructions/other.png", "png");
        reader.poll(&mut summary);
        assert_eq!(pictures(&summary), ["reconstructions: 1"]);
        append(&folder, "history.jsonl", &epoch(2, 20));
        reader.poll(&mut summary);
        assert_eq!(pictures(&summary), ["reconstructions: 1 2"]);
    }

    /// The goal: a run that goes on from a checkpoint is shown without what it does anew, however much it has done by then.
    #[test]
    fn file_that_was_cut_short_is_read_anew() {
        let folder = folder();
        write(&folder, "steps.jsonl", &(1..=30).map(shared_step).collect::<String>());
        write(&folder, "history.jsonl", &[epoch(1, 10), epoch(2, 20), epoch(3, 30)].concat());
        let (mut reader, mut summary) = open(&folder);
        let steps = folder.path().join("steps.jsonl");
        let again = |step| shared_step(step).replace("0.5", "0.125");
        for n_again in [40, 2] {
            let file = OpenOptions::new().write(true).open(&steps).expect("a file");
            file.set_len((1..=10).map(|step| shared_step(step).len() as u64).sum()).expect("a file");
            append(&folder, "steps.jsonl", &(11..=10 + n_again).map(again).collect::<String>());
            write(&folder, "history.jsonl", &epoch(1, 10));
            assert!(reader.poll(&mut summary));
            assert_eq!((last_step(&summary), xs(&summary).len() as u64), (Some(10 + n_again), 10 + n_again));
            assert_eq!(summary.step_figures[0].1.points().get(10).map(|point| point.mean), Some(0.125));
            assert_eq!(epochs(&summary), [1]);
        }
        fs::rename(&steps, folder.path().join("old")).expect("a file");
        write(&folder, "steps.jsonl", &shared_step(1));
        assert!(reader.poll(&mut summary));
        assert_eq!(xs(&summary), [1.0]);
    }

    /// The goal: the first look at a run of any length is there in less than two seconds.
    #[test]
    fn huge_file_is_sampled_evenly_and_exact_at_its_end() {
        const N_STEPS: u64 = 200_000;
        let folder = folder();
        let mut file = BufWriter::new(File::create(folder.path().join("steps.jsonl")).expect("a file"));
        for step in 1..=N_STEPS {
            file.write_all(shared_step(step).as_bytes()).expect("a file");
        }
        // 5 GiB without a line in the middle, which a sparse file has at once.
        let n_bytes = file.seek(SeekFrom::Current(5 << 30)).expect("a file");
        for step in N_STEPS + 1..=2 * N_STEPS {
            file.write_all(format!("\n{}", shared_step(step)).as_bytes()).expect("a file");
        }
        file.flush().expect("a file");
        drop(file);
        assert!(n_bytes > 5 << 30);
        let begun = Instant::now();
        let (mut reader, mut summary) = open(&folder);
        let seconds = begun.elapsed();
        assert!(seconds < Duration::from_secs(20), "{seconds:?}"); // a machine may be busy
        assert_eq!(last_step(&summary), Some(2 * N_STEPS));
        append(&folder, "steps.jsonl", &shared_step(2 * N_STEPS + 1));
        assert!(reader.poll(&mut summary));
        assert_eq!(last_step(&summary), Some(2 * N_STEPS + 1));
    }

    #[test]
    fn samples_of_long_file_are_evenly_spaced() {
        const N_STEPS: u64 = 100_000;
        let folder = folder();
        let lines: String = (1..=N_STEPS).map(shared_step).collect();
        assert!(lines.len() as u64 > 3 * WHOLE_BYTES_MAX);
        write(&folder, "steps.jsonl", &lines);
        let (_, summary) = open(&folder);
        let xs = xs(&summary);
        assert!(xs.len() > 500, "{} points", xs.len());
        let distance = xs.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
        assert!(distance < 500.0, "{distance} steps between two points"); // 100,000 / 2,048, up to 8 in a point
        assert!(xs[0] < 500.0);
    }

    #[test]
    fn long_line_is_left_out() {
        let folder = folder();
        let long = format!("{{\"step\":2,\"workers\":[{}]}}\n", vec!["1"; 1_500_000].join(","));
        write(&folder, "steps.jsonl", &[single_step(1), long.clone(), single_step(3)].concat());
        let (_, summary) = open(&folder);
        assert_eq!(xs(&summary), [1.0, 3.0]);
        write(&folder, "steps.jsonl", &[single_step(1), long.trim_end().to_owned()].concat());
        let (mut reader, mut summary) = open(&folder);
        append(&folder, "steps.jsonl", &format!("1\n{}", single_step(3)));
        assert!(reader.poll(&mut summary));
        assert_eq!(xs(&summary), [1.0, 3.0]);
    }

    #[test]
    fn only_snapshots_near_end_of_events_are_read() {
        let folder = folder();
        let padding = "7".repeat(1000);
        let lines = (0..10_000).map(|time| {
            format!(
                "{{\"time\":{time},\"event\":\"snapshot\",\"step\":1,\"milliseconds\":1.0,\"costs\":{{}},\"tasks\":[],\"workers\":[],\"pad\":\"{padding}\"}}\n"
            )
        });
        let joined = "{\"time\":1.0,\"event\":\"worker_joined\",\"worker\":1,\"identity\":\"\",\"host\":\"alpha\",\"process\":7,\"backend\":\"flex on cpu\",\"n_threads\":1,\"n_active\":1}\n";
        write(&folder, "events.jsonl", &[joined.to_owned()].into_iter().chain(lines).collect::<String>());
        let (_, summary) = open(&folder);
        assert_eq!(summary.workers[&1].host, "alpha");
        assert_eq!((summary.snapshots.len(), summary.time), (120, 9999.0));
        assert!(summary.version < 5_000, "{}", summary.version); // 4 MiB / 1.1 kB, and one
    }
}
