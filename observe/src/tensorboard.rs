//! Files for TensorBoard: scalars and pictures in event files, and the newest codes for its projector. Two folders, `train` and
//! `validation`, which TensorBoard calls runs: it draws equal tags of several runs in one chart.

mod messages;
mod projector;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crc_fast::CrcAlgorithm;
use events::{EpochRecord, PictureName, RecordedEvent, RunEvent, StepEvent};
use prost::Message;
use thiserror::Error;

use self::messages::{
    DATA_CLASS_TENSOR, DT_STRING, Event, Image, PluginData, SESSION_START, SessionLog, Shape, Summary, SummaryMetadata,
    SummaryValue, Tensor, Value, What,
};

use crate::codes::{Codes, Labels};

/// The folder of the figures of steps.
pub const TRAIN: &str = "train";
/// The folder of what is made after epochs: figures, pictures, codes.
pub const VALIDATION: &str = "validation";

/// Event files are written out when the newest event is this many seconds after the last that caused it, and after each epoch.
const FLUSH_SECONDS: f64 = 1.0;
/// What the names of event files begin with; readers look for `tfevents`.
const FILE_PREFIX: &str = "events.out.tfevents.";

/// Writes a run's events for TensorBoard.
///
/// Each step is kept: 120 bytes or so with one metric, thus 12 MB for 100,000 steps, half of what `steps.jsonl` takes.
/// TensorBoard itself shows 1000 points of a curve, drawn at random, unless `--samples_per_plugin scalars=N` says otherwise.
pub struct TensorBoard {
    folder: PathBuf,
    train: EventFile,
    validation: EventFile,
    /// Of the newest event, in seconds since 1970.
    time: f64,
    /// The time at which the files were last written out.
    flushed: f64,
}

/// Why nothing more can be written.
#[derive(Debug, Error)]
pub enum TensorBoardError {
    /// A file or a folder could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A picture is no PNG.
    #[error("expected a PNG, found {0}")]
    Picture(&'static str),
}

impl TensorBoard {
    /// Makes new event files in `folder`, which is made if it is not there; those of the run's earlier processes stay.
    /// `host` is this machine's name, `time` the present in seconds since 1970: both become part of the files' names.
    ///
    /// # Errors
    /// A folder or a file that cannot be made.
    pub fn create(folder: &Path, host: &str, time: f64) -> Result<Self, TensorBoardError> {
        Ok(Self {
            folder: folder.to_owned(),
            train: EventFile::create(&folder.join(TRAIN), host, time)?,
            validation: EventFile::create(&folder.join(VALIDATION), host, time)?,
            time,
            flushed: time,
        })
    }

    /// Takes in what happened. A [`RunEvent::Started`] makes TensorBoard drop what an earlier process wrote after the step from
    /// which this one goes on.
    ///
    /// # Errors
    /// A file that cannot be written; what follows may then be missing.
    pub fn apply(&mut self, recorded: &RecordedEvent) -> Result<(), TensorBoardError> {
        self.time = recorded.time;
        match &recorded.event {
            RunEvent::Started { step, .. } => self.start_session(*step)?,
            RunEvent::Step(event) => self.apply_step(event)?,
            RunEvent::Epoch(record) => {
                self.apply_epoch(record)?;
                return self.flush();
            }
            RunEvent::Ended { .. } => return self.flush(),
            _ => {}
        }
        if (self.time - self.flushed).abs() >= FLUSH_SECONDS {
            self.flush()?;
        }
        Ok(())
    }

    /// Adds the run's settings, by name, as a table among the texts.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn add_settings(&mut self, settings: &[(String, String)]) -> Result<(), TensorBoardError> {
        let cell = |text: &str| text.replace('|', "\\|").replace(['\r', '\n'], " ");
        let mut table = "| setting | value |\n|---|---|\n".to_owned();
        table.extend(settings.iter().map(|(name, value)| format!("| {} | {} |\n", cell(name), cell(value))));
        let plugin_data = Some(PluginData { plugin_name: "text".to_owned() });
        let value = SummaryValue {
            tag: "settings".to_owned(),
            metadata: Some(SummaryMetadata { plugin_data, data_class: DATA_CLASS_TENSOR }),
            value: Some(Value::Tensor(Tensor {
                dtype: DT_STRING,
                // No axes: a single text. TensorBoard draws a vector of texts as a table around them.
                shape: Some(Shape {}),
                string_val: vec![table.into_bytes()],
            })),
        };
        self.train.write_summary(self.time, 0, vec![value])?;
        self.flush()
    }

    /// Adds a picture after `step` updates; its name is the tag.
    ///
    /// # Errors
    /// Bytes that are no PNG; a file that cannot be written.
    pub fn add_picture(&mut self, step: u64, name: PictureName, png: &[u8]) -> Result<(), TensorBoardError> {
        let value = Value::Image(image_of(png)?);
        let value = SummaryValue { tag: name.to_string(), metadata: None, value: Some(value) };
        self.validation.write_summary(self.time, step, vec![value])?;
        self.flush()
    }

    /// Writes codes for the projector, in the place of those before.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn add_codes(&mut self, codes: Codes<'_>, labels: Option<Labels<'_>>) -> Result<(), TensorBoardError> {
        projector::write(&self.folder.join(VALIDATION), codes, labels)
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn flush(&mut self) -> Result<(), TensorBoardError> {
        self.flushed = self.time;
        self.train.flush()?;
        self.validation.flush()
    }

    /// A new process goes on after `step` updates. Readers drop the first step that comes again, and all after it.
    fn start_session(&mut self, step: u64) -> Result<(), TensorBoardError> {
        for file in [&mut self.train, &mut self.validation] {
            file.write(self.time, step + 1, What::SessionLog(SessionLog { status: SESSION_START }))?;
        }
        Ok(())
    }

    fn apply_step(&mut self, event: &StepEvent) -> Result<(), TensorBoardError> {
        let record = &event.record;
        let mut values = vec![scalar("loss", record.loss)];
        values.extend(record.metrics.0.iter().map(|(name, value)| scalar(name, *value)));
        if record.milliseconds > 0.0 {
            #[expect(clippy::cast_precision_loss, reason = "a step has fewer than 2^53 samples")]
            values.push(scalar("samples_per_second", 1e3 * record.n_samples as f64 / record.milliseconds));
        }
        values.push(scalar("milliseconds", record.milliseconds));
        self.train.write_summary(self.time, record.step, values)
    }

    fn apply_epoch(&mut self, record: &EpochRecord) -> Result<(), TensorBoardError> {
        let mut values = vec![scalar("loss", record.val_loss)];
        // Under the same tags as the steps' figures.
        let metrics = record.val_metrics.0.iter();
        values.extend(metrics.map(|(name, value)| scalar(name.strip_prefix("val_").unwrap_or(name), *value)));
        self.validation.write_summary(self.time, record.step, values)
    }
}

fn scalar(tag: &str, value: f64) -> SummaryValue {
    #[expect(clippy::cast_possible_truncation, reason = "the format has single precision")]
    let value = value as f32;
    SummaryValue { tag: tag.to_owned(), metadata: None, value: Some(Value::Scalar(value)) }
}

/// A file of events: a sequence of records, as in `tensorflow/core/lib/io/record_writer.h`.
struct EventFile {
    path: PathBuf,
    out: BufWriter<File>,
    /// Reused for each record.
    message: Vec<u8>,
}

impl EventFile {
    fn create(folder: &Path, host: &str, time: f64) -> Result<Self, TensorBoardError> {
        let error = |path: &Path| {
            let path = path.to_owned();
            |source| TensorBoardError::Write { path, source }
        };
        fs::create_dir_all(folder).map_err(error(folder))?;
        let path = folder.join(new_file_name(folder, host, time).map_err(error(folder))?);
        let file = File::create_new(&path).map_err(error(&path))?;
        let mut file = Self { path, out: BufWriter::new(file), message: Vec::new() };
        // Version 2 tells readers that sessions are logged; without it they guess restarts from steps out of order.
        file.write(time, 0, What::FileVersion("brain.Event:2".to_owned()))?;
        Ok(file)
    }

    fn write_summary(&mut self, time: f64, step: u64, values: Vec<SummaryValue>) -> Result<(), TensorBoardError> {
        self.write(time, step, What::Summary(Summary { values }))
    }

    fn write(&mut self, time: f64, step: u64, what: What) -> Result<(), TensorBoardError> {
        let step = i64::try_from(step).unwrap_or(i64::MAX);
        self.message.clear();
        let event = Event { wall_time: time, step, what: Some(what) };
        event.encode(&mut self.message).expect("a vector grows as needed");
        let written = write_record(&mut self.out, &self.message);
        written.map_err(|source| TensorBoardError::Write { path: self.path.clone(), source })
    }

    fn flush(&mut self) -> Result<(), TensorBoardError> {
        self.out.flush().map_err(|source| TensorBoardError::Write { path: self.path.clone(), source })
    }
}

/// A record: the length, its checksum, the bytes, their checksum; numbers with the lowest byte first.
fn write_record(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u64::try_from(bytes.len()).expect("a length fits").to_le_bytes();
    out.write_all(&length)?;
    out.write_all(&masked_crc(&length).to_le_bytes())?;
    out.write_all(bytes)?;
    out.write_all(&masked_crc(bytes).to_le_bytes())
}

/// CRC-32C, rotated and shifted, as `tensorflow/core/lib/hash/crc32c.h` does since a checksum of checksums is weak.
fn masked_crc(bytes: &[u8]) -> u32 {
    let crc = crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes);
    let crc = u32::try_from(crc).expect("a checksum of 32 bits");
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// `events.out.tfevents.<seconds since 1970>.<host>.<process>`. Readers take files in the order of their names, so it comes after
/// all that are there, even if the clock was set back or two processes start within a second.
fn new_file_name(folder: &Path, host: &str, time: f64) -> io::Result<String> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole seconds, and never below 0")]
    let mut seconds = time.max(0.0) as u64;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let there = name.to_str().and_then(|name| name.strip_prefix(FILE_PREFIX)?.split('.').next()?.parse().ok());
        seconds = seconds.max(there.map_or(0, |there: u64| there.saturating_add(1)));
    }
    let host = host.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "_");
    Ok(format!("{FILE_PREFIX}{seconds:010}.{host}.{}", std::process::id()))
}

/// Reads the size from the header of a PNG (RFC 2083, 4.1.1).
fn image_of(png: &[u8]) -> Result<Image, TensorBoardError> {
    const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
    let Some(rest) = png.strip_prefix(SIGNATURE) else {
        return Err(TensorBoardError::Picture("bytes without its signature"));
    };
    // The first chunk: its length, its name, then width, height, bits and colour type.
    let header = rest.get(4..18).filter(|header| header.starts_with(b"IHDR"));
    let header = header.ok_or(TensorBoardError::Picture("no header after the signature"))?;
    let size = |at: usize| {
        let bytes = header[at..at + 4].try_into().expect("four bytes");
        i32::try_from(u32::from_be_bytes(bytes)).map_err(|_| TensorBoardError::Picture("a size above 2^31"))
    };
    let colorspace = match header[13] {
        0 => 1,
        // RGB, and a palette of RGB.
        2 | 3 => 3,
        4 => 2,
        6 => 4,
        _ => return Err(TensorBoardError::Picture("an unknown colour type")),
    };
    Ok(Image { width: size(4)?, height: size(8)?, colorspace, encoded_image_string: png.to_vec() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use events::{Figures, StepCosts, StepRecord};

    use super::*;

    const TIME: f64 = 1_790_000_000.0;

    fn step(step: u64, loss: f64) -> RecordedEvent {
        let record = StepRecord {
            step,
            epoch: 1,
            loss,
            metrics: Figures(vec![("rounded_accuracy".to_owned(), 0.75)]),
            n_samples: 32,
            milliseconds: 2.0,
            params_blake3: None,
        };
        let event = StepEvent {
            record,
            workers: vec![1],
            n_active: 1,
            costs: StepCosts::default(),
            begun: Duration::ZERO,
            tasks: Vec::new(),
        };
        RecordedEvent { time: TIME, event: RunEvent::Step(event) }
    }

    fn started(step: u64) -> RecordedEvent {
        RecordedEvent { time: TIME, event: RunEvent::Started { incarnation: 2, step } }
    }

    /// The paths of the event files of a folder, in the order of their names.
    fn files(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        let mut paths: Vec<PathBuf> = entries.filter(|path| path.to_string_lossy().contains("tfevents")).collect();
        paths.sort();
        paths
    }

    /// The messages of an event file; checks each length and checksum.
    fn read(path: &Path) -> Vec<Event> {
        let bytes = fs::read(path).expect("a file");
        let mut rest = bytes.as_slice();
        let mut events = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<8>() {
            let (length_crc, after) = after.split_first_chunk().expect("a checksum");
            assert_eq!(u32::from_le_bytes(*length_crc), masked_crc(length));
            let (message, after) = after.split_at(usize::try_from(u64::from_le_bytes(*length)).expect("a length"));
            let (crc, after) = after.split_first_chunk().expect("a checksum");
            assert_eq!(u32::from_le_bytes(*crc), masked_crc(message));
            events.push(Event::decode(message).expect("an event"));
            rest = after;
        }
        assert!(rest.is_empty());
        events
    }

    fn scalars(event: &Event) -> Vec<(&str, f32)> {
        let Some(What::Summary(summary)) = &event.what else { return Vec::new() };
        let scalar = |value: &'_ SummaryValue| match value.value {
            Some(Value::Scalar(scalar)) => Some(scalar),
            _ => None,
        };
        summary.values.iter().filter_map(|value| Some((value.tag.as_str(), scalar(value)?))).collect()
    }

    #[test]
    fn checksum_is_crc32c_masked() {
        // RFC 3720, B.4: 32 zeros.
        assert_eq!(crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, &[0; 32]), 0x8a91_36aa);
        assert_eq!(masked_crc(&[0; 32]), 0x0fd7_fffa);
        // The length 24 that a version's record has in each file of TensorFlow's.
        let mut record = Vec::new();
        write_record(&mut record, &[0; 24]).expect("a vector");
        assert_eq!(record[..12], [0x18, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22]);
    }

    #[test]
    fn figures_of_steps_and_epochs_share_tags_of_two_runs() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut board = TensorBoard::create(folder.path(), "node.1", TIME).expect("files");
        board.apply(&started(0)).expect("written");
        board.apply(&step(1, 0.5)).expect("written");
        let record = r#"{"epoch": 1, "step": 1, "loss": 0.5, "val_loss": 0.25, "val_rounded_accuracy": 0.875}"#;
        let record = serde_json::from_str(record).expect("an epoch");
        board.apply(&RecordedEvent { time: TIME + 0.5, event: RunEvent::Epoch(record) }).expect("written");

        let train = read(&files(&folder.path().join(TRAIN))[0]);
        assert_eq!(train[0].what, Some(What::FileVersion("brain.Event:2".to_owned())));
        assert_eq!((train[2].step, train[2].wall_time), (1, TIME));
        let expected =
            [("loss", 0.5), ("rounded_accuracy", 0.75), ("samples_per_second", 16_000.0), ("milliseconds", 2.0)];
        assert_eq!(scalars(&train[2]), expected);
        let validation = read(&files(&folder.path().join(VALIDATION))[0]);
        assert_eq!(scalars(&validation[2]), [("loss", 0.25), ("rounded_accuracy", 0.875)]);
        assert_eq!((validation[2].step, validation[2].wall_time), (1, TIME + 0.5));
    }

    #[test]
    fn step_takes_at_most_150_bytes() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut board = TensorBoard::create(folder.path(), "node", TIME).expect("files");
        board.flush().expect("written");
        let length = || fs::metadata(&files(&folder.path().join(TRAIN))[0]).expect("a file").len();
        let before = length();
        let n_steps = 1000;
        for i in 0..n_steps {
            board.apply(&step(1_000_000 + i, 0.5)).expect("written");
        }
        board.flush().expect("written");
        let per_step = (length() - before) / n_steps;
        assert!((100..150).contains(&per_step), "{per_step} bytes");
    }

    #[test]
    fn files_are_written_out_once_a_second_of_events() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut board = TensorBoard::create(folder.path(), "node", TIME).expect("files");
        let n_events = || read(&files(&folder.path().join(TRAIN))[0]).len();
        board.apply(&step(1, 0.5)).expect("written");
        assert_eq!(n_events(), 0);
        board.apply(&RecordedEvent { time: TIME + FLUSH_SECONDS, ..step(2, 0.5) }).expect("written");
        assert_eq!(n_events(), 3);
    }

    #[test]
    fn resumed_run_starts_session_in_file_that_sorts_last() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut first = TensorBoard::create(folder.path(), "node", TIME).expect("files");
        first.apply(&step(7, 0.5)).expect("written");
        first.flush().expect("written");
        // The clock was set back meanwhile.
        let mut second = TensorBoard::create(folder.path(), "another", TIME - 3600.0).expect("files");
        second.apply(&started(4)).expect("written");
        second.flush().expect("written");
        let paths = files(&folder.path().join(TRAIN));
        assert_eq!(paths.len(), 2);
        let resumed = read(&paths[1]);
        assert_eq!(resumed[1].step, 5);
        assert_eq!(resumed[1].what, Some(What::SessionLog(SessionLog { status: SESSION_START })));
    }

    #[test]
    fn picture_has_size_of_its_header() {
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x01\x18\0\0\0\x54\x08\x02\0\0\0".to_vec();
        let image = image_of(&png).expect("a PNG");
        assert_eq!((image.width, image.height, image.colorspace), (280, 84, 3));
        png[25] = 5;
        assert!(matches!(image_of(&png), Err(TensorBoardError::Picture(_))));
        assert!(matches!(image_of(&png[..20]), Err(TensorBoardError::Picture(_))));
        assert!(matches!(image_of(b"GIF89a"), Err(TensorBoardError::Picture(_))));
    }
}
