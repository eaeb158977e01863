//! Some of a run's steps as a file that <https://ui.perfetto.dev> and `chrome://tracing` open: who computed what when, and what the
//! coordinator did meanwhile. In the [Trace Event Format](https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU),
//! as a JSON object.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use events::{RecordedEvent, RunEvent, StepCosts, StepEvent, TaskSpan};
use serde::Serialize;
use thiserror::Error;

/// Steps that a trace has at most; fewer where it is full before: with four shards a step, at some 67,000.
pub const STEPS_MAX: u64 = 100_000;
/// Events that a file has at most, some 120 bytes each: more than viewers can open. Steps after that are left out.
const EVENTS_MAX: u64 = 2_000_000;

/// Steps to be traced, counted from 1, both ends included. As text `100..200`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepRange(RangeInclusive<u64>);

/// Why a range of steps is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StepRangeError {
    /// It is no range.
    #[error("expected FIRST..LAST with two whole numbers, such as 100..200, found `{0}`")]
    Form(String),
    /// It begins before the first step.
    #[error("expected steps from 1, found 0")]
    Zero,
    /// It ends before it begins.
    #[error("expected the first step before the last one, found {first}..{last}")]
    Reversed {
        /// Its first step.
        first: u64,
        /// Its last.
        last: u64,
    },
    /// It is too long.
    #[error("expected at most {STEPS_MAX} steps, found {first}..{last}")]
    Length {
        /// Its first step.
        first: u64,
        /// Its last.
        last: u64,
    },
}

impl StepRange {
    /// The steps from `first` to `last`.
    ///
    /// # Errors
    /// A range that begins at 0, is reversed, or has more than [`STEPS_MAX`] steps.
    pub fn new(steps: RangeInclusive<u64>) -> Result<Self, StepRangeError> {
        let (first, last) = (*steps.start(), *steps.end());
        if first == 0 {
            return Err(StepRangeError::Zero);
        }
        if last < first {
            return Err(StepRangeError::Reversed { first, last });
        }
        if last - first >= STEPS_MAX {
            return Err(StepRangeError::Length { first, last });
        }
        Ok(Self(steps))
    }

    /// The first step.
    pub fn first(&self) -> u64 {
        *self.0.start()
    }

    /// The last step.
    pub fn last(&self) -> u64 {
        *self.0.end()
    }
}

impl FromStr for StepRange {
    type Err = StepRangeError;

    fn from_str(text: &str) -> Result<Self, StepRangeError> {
        let ends = text.split_once("..").and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        let (first, last) = ends.ok_or_else(|| StepRangeError::Form(text.to_owned()))?;
        Self::new(first..=last)
    }
}

impl fmt::Display for StepRange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}..{}", self.first(), self.last())
    }
}

/// Writes the trace of some steps, as they come, into a file beside its path, which gets that path when it is complete. Needs the
/// events as they happen: those read from a run's files have no spans of tasks.
///
/// The memory that it takes grows with the number of workers alone; the file by some 120 bytes an event. A step has up to 10 events,
/// and 5 more for each shard.
pub struct Trace {
    steps: StepRange,
    path: PathBuf,
    run_id: String,
    /// None when the trace is complete, or could not be written.
    writer: Option<Writer>,
    /// The newest step.
    newest: u64,
    /// The first and last step in the file.
    written: Option<(u64, u64)>,
    /// When the coordinator's process started, in seconds since 1970, by the newest event that says so.
    started: Option<f64>,
}

/// The file could not be written.
#[derive(Debug, Error)]
#[error("cannot write the trace {}: {source}", path.display())]
pub struct TraceError {
    /// Which.
    path: PathBuf,
    /// What the system says.
    source: io::Error,
}

impl Trace {
    /// A trace of `steps` of the run `run_id`, to be in a file at `path`; where that exists, as an earlier process of the run wrote
    /// it, in `trace-2.json` for `trace.json`, `trace-3.json` and so on.
    ///
    /// # Errors
    /// A file that cannot be made.
    pub fn create(steps: StepRange, path: &Path, run_id: &str) -> Result<Self, TraceError> {
        let path = free_path(path);
        let writer = Writer::create(&unfinished(&path), EVENTS_MAX);
        let writer = writer.map_err(|source| TraceError { path: path.clone(), source })?;
        Ok(Self {
            steps,
            path,
            run_id: run_id.to_owned(),
            writer: Some(writer),
            newest: 0,
            written: None,
            started: None,
        })
    }

    /// Takes in what happened. The last step of the range, and the run's end, complete the file.
    ///
    /// # Errors
    /// A file that cannot be written; nothing more is written then.
    pub fn apply(&mut self, recorded: &RecordedEvent) -> Result<(), TraceError> {
        match &recorded.event {
            RunEvent::Step(event) => return self.apply_step(recorded.time, event),
            RunEvent::Started { step, .. } => {
                self.newest = *step;
                self.started = Some(recorded.time);
            }
            RunEvent::Ended { .. } => return self.finish(),
            RunEvent::WorkerJoined { worker, .. } => {
                self.write_instant(recorded.time, "joined", *worker, Args::default())?;
            }
            RunEvent::WorkerLeft { worker, reason, .. } => {
                self.write_instant(recorded.time, "left", *worker, Args { reason: Some(reason), ..Args::default() })?;
            }
            RunEvent::WorkerEvicted { worker, reason, .. } => {
                self.write_instant(
                    recorded.time,
                    "evicted",
                    *worker,
                    Args { reason: Some(reason), ..Args::default() },
                )?;
            }
            RunEvent::TaskLate { step, task, worker, helper, .. } => {
                let args = Args { step: Some(step + 1), shard: Some(*task), helper: Some(*helper), ..Args::default() };
                self.write_instant(recorded.time, "late", *worker, args)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Completes the file with the steps that there are; nothing, if it is complete. Without a step no file is left.
    ///
    /// # Errors
    /// A file that cannot be written, renamed or removed.
    pub fn finish(&mut self) -> Result<(), TraceError> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        if self.written.is_none() {
            drop(writer);
            return fs::remove_file(unfinished(&self.path)).map_err(|source| self.error(source));
        }
        let other = OtherData {
            run_id: &self.run_id,
            steps: self.steps.to_string(),
            first_step: self.written.map(|(first, _)| first),
            last_step: self.written.map(|(_, last)| last),
            is_truncated: writer.is_full() && self.newest < self.steps.last(),
        };
        let finished = writer.finish(&other).and_then(|()| fs::rename(unfinished(&self.path), &self.path));
        finished.map_err(|source| self.error(source))
    }

    fn apply_step(&mut self, time: f64, event: &StepEvent) -> Result<(), TraceError> {
        let step = event.record.step;
        self.newest = step;
        let end = event.begun + milliseconds(event.record.milliseconds);
        self.started = Some(time - end.as_secs_f64());
        if step < self.steps.first() {
            return Ok(());
        }
        if step <= self.steps.last() {
            self.write(|writer| writer.write_step(event))?;
            self.written = Some((self.written.map_or(step, |(first, _)| first), step));
        }
        let is_full = self.writer.as_ref().is_some_and(Writer::is_full);
        if step >= self.steps.last() || is_full { self.finish() } else { Ok(()) }
    }

    /// Something that happened to a worker, if it is while steps of the range are computed.
    fn write_instant(&mut self, time: f64, name: &str, worker: u64, args: Args) -> Result<(), TraceError> {
        let is_in_range = (self.steps.first()..=self.steps.last()).contains(&(self.newest + 1));
        let Some(started) = self.started.filter(|_| is_in_range) else { return Ok(()) };
        let at = Duration::try_from_secs_f64(time - started).unwrap_or_default();
        self.write(|writer| writer.write_instant(name, worker, at, args))
    }

    fn write(&mut self, write: impl FnOnce(&mut Writer) -> io::Result<()>) -> Result<(), TraceError> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        write(writer).map_err(|source| {
            self.writer = None;
            self.error(source)
        })
    }

    fn error(&self, source: io::Error) -> TraceError {
        TraceError { path: self.path.clone(), source }
    }
}

/// The path, with the first number from 2 after its stem that is free where the path itself is not.
fn free_path(path: &Path) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map_or_else(String::new, |extension| format!(".{}", extension.to_string_lossy()));
    let numbered = (2_u64..).map(|number| path.with_file_name(format!("{stem}-{number}{extension}")));
    let mut paths = [path.to_owned()].into_iter().chain(numbered);
    paths.find(|path| !path.exists()).expect("there are fewer files than numbers")
}

/// Where the file is until it is complete.
fn unfinished(path: &Path) -> PathBuf {
    path.with_added_extension("part")
}

/// From milliseconds; 0 where they are none.
fn milliseconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value / 1e3).unwrap_or_default()
}

/// The format's unit. To the nanosecond, which is what the spans are from.
fn microseconds(duration: Duration) -> f64 {
    (1e9 * duration.as_secs_f64()).round() / 1e3
}

/// The coordinator's phases after the last result of a step, in their order, each with a lane of its own.
const PHASES: [&str; 7] = ["wait", "decode", "reduce", "update", "encode", "send", "journal"];

/// A row of the picture; what is in one does not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    /// The steps.
    Steps,
    /// What the coordinator does, by the position in `PHASES`.
    Phase(usize),
    /// A worker's waiting and computing.
    Worker(u64),
    /// A worker's results on their way. Beside the former: the next shard is computed meanwhile.
    Transfer(u64),
}

impl Lane {
    const COORDINATOR: u64 = 1;
    const WORKERS: u64 = 2;

    /// The process and the thread that viewers take the lane for. Viewers sort by these, too.
    fn ids(self) -> (u64, u64) {
        match self {
            Self::Steps => (Self::COORDINATOR, 1),
            Self::Phase(position) => (Self::COORDINATOR, 2 + u64::try_from(position).expect("few phases")),
            Self::Worker(worker) => (Self::WORKERS, 1 + 2 * worker),
            Self::Transfer(worker) => (Self::WORKERS, 2 + 2 * worker),
        }
    }

    fn name(self) -> String {
        match self {
            Self::Steps => "steps".to_owned(),
            Self::Phase(position) => PHASES[position].to_owned(),
            Self::Worker(0) => "coordinator computes".to_owned(),
            Self::Transfer(0) => "coordinator transfers".to_owned(),
            Self::Worker(worker) => format!("worker {worker}"),
            Self::Transfer(worker) => format!("worker {worker} transfers"),
        }
    }
}

/// An event of the format; fields by their names in it.
#[derive(Serialize)]
struct TraceEvent<'a> {
    name: &'a str,
    cat: &'a str,
    ph: char,
    pid: u64,
    tid: u64,
    ts: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    /// `e`: an arrow ends at the slice around its time, not at the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    bp: Option<char>,
    /// How far an instant goes: `t`, its lane.
    #[serde(skip_serializing_if = "Option::is_none")]
    s: Option<char>,
    args: Args<'a>,
}

/// What a viewer shows of an event that is selected.
#[derive(Clone, Copy, Default, Serialize)]
struct Args<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sort_index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shard: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<f64>,
    /// As measured, where the picture had to shorten it.
    #[serde(skip_serializing_if = "Option::is_none")]
    milliseconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    helper: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// What is said about the trace as a whole.
#[derive(Serialize)]
struct OtherData<'a> {
    run_id: &'a str,
    /// As asked for.
    steps: String,
    first_step: Option<u64>,
    last_step: Option<u64>,
    /// Whether steps are missing, since the file would be too long.
    is_truncated: bool,
}

/// A file of events.
struct Writer {
    out: BufWriter<File>,
    /// Where each lane ends so far, from the start of the coordinator's process.
    ends: BTreeMap<Lane, Duration>,
    n_events: u64,
    n_events_max: u64,
    n_arrows: u64,
}

impl Writer {
    fn create(path: &Path, n_events_max: u64) -> io::Result<Self> {
        let mut out = BufWriter::new(File::create(path)?);
        out.write_all(b"{\"traceEvents\":[\n")?;
        let mut writer = Self { out, ends: BTreeMap::new(), n_events: 0, n_events_max, n_arrows: 0 };
        for (pid, name) in [(Lane::COORDINATOR, "coordinator"), (Lane::WORKERS, "workers")] {
            writer.write_metadata("process_name", (pid, 0), Args { name: Some(name), ..Args::default() })?;
            writer.write_metadata("process_sort_index", (pid, 0), Args { sort_index: Some(pid), ..Args::default() })?;
        }
        Ok(writer)
    }

    fn is_full(&self) -> bool {
        self.n_events >= self.n_events_max
    }

    fn finish(mut self, other: &OtherData) -> io::Result<()> {
        self.out.write_all(b"\n],\"displayTimeUnit\":\"ms\",\"otherData\":")?;
        serde_json::to_writer(&mut self.out, other)?;
        self.out.write_all(b"}\n")?;
        self.out.flush()
    }

    fn write_step(&mut self, event: &StepEvent) -> io::Result<()> {
        let step = event.record.step;
        let end = event.begun + milliseconds(event.record.milliseconds);
        let loss = Some(event.record.loss).filter(|loss| loss.is_finite());
        let args = Args { step: Some(step), loss, milliseconds: Some(event.record.milliseconds), ..Args::default() };
        self.write_slice(Lane::Steps, &format!("step {step}"), event.begun..end, args)?;
        let mut tasks = event.tasks.clone();
        tasks.sort_by(|a, b| a.started.total_cmp(&b.started));
        for task in &tasks {
            self.write_task(step, event.begun, task)?;
        }
        self.write_phases(event)
    }

    fn write_task(&mut self, step: u64, begun: Duration, task: &TaskSpan) -> io::Result<()> {
        let [assigned, started, finished, arrived] =
            [task.assigned, task.started, task.finished, task.arrived].map(|time| begun + milliseconds(time));
        let args = Args { step: Some(step), shard: Some(task.shard), ..Args::default() };
        // A worker is assigned several shards at once and waits while it computes another one: that is not drawn.
        let lane = Lane::Worker(task.worker);
        self.write_slice(lane, "wait", assigned..started, args)?;
        let name = format!("compute shard {}", task.shard);
        if let Some(start) = self.write_slice(lane, &name, started..finished, args)? {
            self.write_arrow("assigned", (Lane::Steps, assigned), (lane, start))?;
        }
        self.write_slice(Lane::Transfer(task.worker), "transfer", finished..arrived, args)?;
        Ok(())
    }

    /// The coordinator waits until the last result is there. Its own work is known by length alone, and is drawn after that in the
    /// order in which it is done; decoding is done while it waits, and is drawn at the end of that.
    fn write_phases(&mut self, event: &StepEvent) -> io::Result<()> {
        let StepCosts { compute: _, wait, decode, reduce, update, encode, send, journal } = event.costs;
        let last = event.tasks.iter().max_by(|a, b| a.arrived.total_cmp(&b.arrived));
        let waited = event.begun + last.map_or(wait, |task| milliseconds(task.arrived));
        let decode_start = waited.saturating_sub(decode).max(event.begun);
        let mut spans = vec![(event.begun..waited, wait), (decode_start..waited, decode)];
        let mut at = waited;
        for duration in [reduce, update, encode, send, journal] {
            spans.push((at..at + duration, duration));
            at += duration;
        }
        for (position, (span, duration)) in spans.into_iter().enumerate() {
            let args = Args {
                step: Some(event.record.step),
                milliseconds: Some(microseconds(duration) / 1e3),
                ..Args::default()
            };
            let lane = Lane::Phase(position);
            let start = self.write_slice(lane, PHASES[position], span, args)?;
            // From the result that was waited for longest to what is done with it.
            if let (Some(start), Some(task), "reduce") = (start, last, PHASES[position]) {
                let sent = event.begun + milliseconds(task.finished);
                self.write_arrow("arrived", (Lane::Transfer(task.worker), sent), (lane, start))?;
            }
        }
        Ok(())
    }

    /// A span in a lane, shortened at its beginning where the lane is taken; where it begins, if anything is left of it.
    fn write_slice(
        &mut self,
        lane: Lane,
        name: &str,
        span: std::ops::Range<Duration>,
        args: Args,
    ) -> io::Result<Option<Duration>> {
        let start = span.start.max(self.enter(lane)?);
        if span.end <= start {
            return Ok(None);
        }
        self.ends.insert(lane, span.end);
        let dur = Some(microseconds(span.end.saturating_sub(start)));
        self.write(&TraceEvent { dur, args, ..event(name, "step", 'X', lane.ids(), start) })?;
        Ok(Some(start))
    }

    /// From a slice to another one.
    fn write_arrow(&mut self, name: &str, from: (Lane, Duration), to: (Lane, Duration)) -> io::Result<()> {
        self.n_arrows += 1;
        let id = Some(self.n_arrows);
        self.write(&TraceEvent { id, ..event(name, "flow", 's', from.0.ids(), from.1) })?;
        self.write(&TraceEvent { id, bp: Some('e'), ..event(name, "flow", 'f', to.0.ids(), to.1) })
    }

    fn write_instant(&mut self, name: &str, worker: u64, at: Duration, args: Args) -> io::Result<()> {
        let lane = Lane::Worker(worker);
        self.enter(lane)?;
        self.write(&TraceEvent { s: Some('t'), args, ..event(name, "worker", 'i', lane.ids(), at) })
    }

    /// Names the lane if it is new; where it ends so far.
    fn enter(&mut self, lane: Lane) -> io::Result<Duration> {
        if let Some(end) = self.ends.get(&lane) {
            return Ok(*end);
        }
        self.ends.insert(lane, Duration::ZERO);
        let (ids, name) = (lane.ids(), lane.name());
        self.write_metadata("thread_name", ids, Args { name: Some(&name), ..Args::default() })?;
        self.write_metadata("thread_sort_index", ids, Args { sort_index: Some(ids.1), ..Args::default() })?;
        Ok(Duration::ZERO)
    }

    fn write_metadata(&mut self, name: &str, ids: (u64, u64), args: Args) -> io::Result<()> {
        self.write(&TraceEvent { args, ..event(name, "__metadata", 'M', ids, Duration::ZERO) })
    }

    fn write(&mut self, event: &TraceEvent) -> io::Result<()> {
        if self.n_events > 0 {
            self.out.write_all(b",\n")?;
        }
        self.n_events += 1;
        Ok(serde_json::to_writer(&mut self.out, event)?)
    }
}

/// What every event has.
fn event<'a>(name: &'a str, cat: &'a str, ph: char, (pid, tid): (u64, u64), at: Duration) -> TraceEvent<'a> {
    let ts = microseconds(at);
    TraceEvent { name, cat, ph, pid, tid, ts, dur: None, id: None, bp: None, s: None, args: Args::default() }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use events::{Figures, StepRecord};
    use serde_json::Value;

    use super::*;

    const STARTED: f64 = 1_790_000_000.0;

    /// A step of 10 ms with two workers and four shards; the second shard of each is computed while the first is on its way.
    fn step(step: u64) -> RecordedEvent {
        let begun = Duration::from_micros(10_250 * (step - 1));
        let record = StepRecord {
            step,
            epoch: 1,
            loss: 0.5,
            metrics: Figures::default(),
            n_samples: 32,
            milliseconds: 10.25,
            params_blake3: None,
        };
        let task = |shard: u32, worker: u64, started: f64| TaskSpan {
            shard,
            worker,
            assigned: 0.1,
            started,
            finished: started + 3.1234,
            arrived: started + 3.7,
        };
        let tasks = vec![task(0, 1, 0.3), task(1, 2, 0.4), task(2, 1, 3.4235), task(3, 2, 3.6)];
        let costs = StepCosts {
            compute: Duration::from_micros(6247),
            wait: Duration::from_micros(7200),
            decode: Duration::from_micros(500),
            reduce: Duration::from_micros(400),
            update: Duration::from_micros(900),
            encode: Duration::from_micros(300),
            // Reaches into the next step's.
            send: Duration::from_millis(12),
            journal: Duration::ZERO,
        };
        let event = StepEvent { record, workers: vec![1, 2, 1, 2], n_active: 2, costs, begun, tasks };
        let time = STARTED + (begun + milliseconds(10.25)).as_secs_f64();
        RecordedEvent { time, event: RunEvent::Step(event) }
    }

    fn trace(folder: &Path, steps: &str) -> Trace {
        Trace::create(steps.parse().expect("a range"), &folder.join("trace.json"), "denoising-001").expect("a file")
    }

    fn read(folder: &Path) -> Value {
        serde_json::from_slice(&fs::read(folder.join("trace.json")).expect("a file")).expect("JSON")
    }

    fn events(trace: &Value) -> &[Value] {
        trace["traceEvents"].as_array().expect("events")
    }

    fn named<'a>(trace: &'a Value, name: &str) -> Vec<&'a Value> {
        events(trace).iter().filter(|event| event["name"] == name).collect()
    }

    fn number(event: &Value, field: &str) -> f64 {
        event[field].as_f64().unwrap_or_else(|| panic!("expected a number for {field}: {event}"))
    }

    fn lane(event: &Value) -> (u64, u64) {
        (event["pid"].as_u64().expect("a process"), event["tid"].as_u64().expect("a thread"))
    }

    /// Checks that a trace has the fields that the format asks for, by phase, and that viewers can draw it.
    fn check_format(trace: &Value) {
        let fields: HashMap<&str, &[&str]> = HashMap::from([
            ("M", ["args"].as_slice()),
            ("X", ["dur", "args"].as_slice()),
            ("i", ["s", "args"].as_slice()),
            ("s", ["id", "args"].as_slice()),
            ("f", ["id", "bp", "args"].as_slice()),
        ]);
        let mut names = BTreeSet::new();
        let mut slices: HashMap<_, Vec<(f64, f64)>> = HashMap::new();
        let mut arrows: HashMap<u64, Vec<&str>> = HashMap::new();
        for event in events(trace) {
            let phase = event["ph"].as_str().expect("a phase");
            let mut expected: BTreeSet<&str> = ["name", "cat", "ph", "pid", "tid", "ts"].into();
            expected.extend(fields[phase]);
            let found: BTreeSet<&str> = event.as_object().expect("an object").keys().map(String::as_str).collect();
            assert_eq!(found, expected, "{event}");
            assert!(number(event, "ts") >= 0.0, "{event}");
            match phase {
                "M" if event["name"] == "thread_name" => {
                    assert!(names.insert(lane(event)), "named twice: {event}");
                }
                "M" => {}
                _ => assert!(names.contains(&lane(event)), "a lane without a name: {event}"),
            }
            if phase == "X" {
                assert!(number(event, "dur") > 0.0, "{event}");
                let start = number(event, "ts");
                slices.entry(lane(event)).or_default().push((start, start + number(event, "dur")));
            }
            if let Some(id) = event["id"].as_u64() {
                arrows.entry(id).or_default().push(phase);
            }
        }
        for (lane, slices) in &mut slices {
            slices.sort_by(|a, b| a.0.total_cmp(&b.0));
            for pair in slices.windows(2) {
                // Half a nanosecond for the rounding of the sum.
                assert!(pair[1].0 >= pair[0].1 - 0.0005, "lane {lane:?} overlaps: {pair:?}");
            }
        }
        assert!(arrows.values().all(|phases| phases == &["s", "f"]), "{arrows:?}");
        for event in events(trace).iter().filter(|event| event["ph"] == "s" || event["ph"] == "f") {
            let at = number(event, "ts");
            let is_inside = |&(start, end): &(f64, f64)| (start - 0.0005..=end + 0.0005).contains(&at);
            assert!(slices[&lane(event)].iter().any(is_inside), "an arrow at no slice: {event}");
        }
    }

    #[test]
    fn trace_has_lanes_without_overlaps() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut trace = trace(folder.path(), "2..4");
        for i in 1..=6 {
            trace.apply(&step(i)).expect("written");
            assert_eq!(folder.path().join("trace.json").exists(), i >= 4);
        }
        let trace = read(folder.path());
        check_format(&trace);
        assert_eq!(trace["displayTimeUnit"], "ms");
        assert_eq!(trace["otherData"]["run_id"], "denoising-001");
        assert_eq!(trace["otherData"]["first_step"], 2);
        assert_eq!(trace["otherData"]["last_step"], 4);
        assert_eq!(trace["otherData"]["is_truncated"], false);
        assert_eq!(named(&trace, "step 2").len(), 1);
        assert_eq!((named(&trace, "step 1").len(), named(&trace, "step 5").len()), (0, 0));
        let lanes: BTreeSet<&str> =
            named(&trace, "thread_name").iter().map(|event| event["args"]["name"].as_str().expect("a name")).collect();
        let expected =
            PHASES.iter().copied().chain(["steps", "worker 1", "worker 1 transfers", "worker 2", "worker 2 transfers"]);
        assert_eq!(lanes, expected.collect());
        assert!(!folder.path().join("trace.json.part").exists());
    }

    #[test]
    fn spans_are_microseconds_from_the_process_start() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut trace = trace(folder.path(), "2..2");
        trace.apply(&step(2)).expect("written");
        let trace = read(folder.path());
        let check = |name: &str, ts: f64, dur: f64| {
            let events = named(&trace, name);
            let found = events
                .iter()
                .any(|event| (number(event, "ts") - ts).abs() < 0.001 && (number(event, "dur") - dur).abs() < 0.001);
            assert!(found, "{name} at {ts} of {dur}: {events:?}");
        };
        check("step 2", 10_250.0, 10_250.0);
        // Worker 1 waits from 0.1 to 0.3 ms, computes shard 0 until 3.4234, then shard 2.
        check("wait", 10_350.0, 200.0);
        check("compute shard 0", 10_550.0, 3123.4);
        check("transfer", 13_673.4, 576.6);
        check("compute shard 2", 13_673.5, 3123.4);
        // The last result arrives at 7.3 ms; the coordinator's own work follows.
        check("wait", 10_250.0, 7300.0);
        check("decode", 17_050.0, 500.0);
        check("reduce", 17_550.0, 400.0);
        check("update", 17_950.0, 900.0);
        check("send", 19_150.0, 12_000.0);
        assert!(named(&trace, "journal").iter().all(|event| event["ph"] != "X"));
    }

    #[test]
    fn what_happens_to_workers_is_in_their_lanes() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut trace = trace(folder.path(), "1..3");
        let at = |seconds: f64, event: RunEvent| RecordedEvent { time: STARTED + seconds, event };
        let left =
            |worker: u64| RunEvent::WorkerLeft { worker, reason: "it closed".to_owned(), n_active: 1, n_reassigned: 1 };
        trace.apply(&at(0.0, RunEvent::Started { incarnation: 1, step: 0 })).expect("written");
        trace.apply(&step(1)).expect("written");
        let late = RunEvent::TaskLate { step: 1, task: 3, worker: 2, helper: 1, milliseconds: 4 };
        trace.apply(&at(0.015, late)).expect("written");
        trace.apply(&at(0.016, left(3))).expect("written");
        trace.apply(&step(3)).expect("written");
        // After the range.
        trace.apply(&at(0.04, left(2))).expect("written");
        let trace = read(folder.path());
        check_format(&trace);
        let [late] = named(&trace, "late")[..] else { panic!("one") };
        assert!((number(late, "ts") - 15_000.0).abs() < 1.0, "{late}");
        assert_eq!((&late["args"]["step"], &late["args"]["helper"]), (&Value::from(2), &Value::from(1)));
        let [left] = named(&trace, "left")[..] else { panic!("one") };
        assert_eq!(lane(left), Lane::Worker(3).ids());
        assert_eq!(left["args"]["reason"], "it closed");
    }

    #[test]
    fn run_that_ends_early_has_the_steps_so_far() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut trace = trace(folder.path(), "1..100");
        trace.apply(&step(1)).expect("written");
        assert!(!folder.path().join("trace.json").exists());
        let ended = RunEvent::Ended { outcome: "stopped".to_owned(), step: 1 };
        trace.apply(&RecordedEvent { time: STARTED, event: ended }).expect("written");
        trace.finish().expect("nothing to do");
        let trace = read(folder.path());
        check_format(&trace);
        assert_eq!(trace["otherData"]["steps"], "1..100");
        assert_eq!(trace["otherData"]["last_step"], 1);
    }

    fn names(folder: &Path) -> BTreeSet<String> {
        let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
        entries.map(|name| name.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn trace_without_step_leaves_no_file() {
        let folder = tempfile::tempdir().expect("a folder");
        trace(folder.path(), "5..6").finish().expect("removed");
        assert!(names(folder.path()).is_empty(), "{:?}", names(folder.path()));
    }

    #[test]
    fn resume_after_traced_range_keeps_trace_of_earlier_process() {
        let folder = tempfile::tempdir().expect("a folder");
        trace(folder.path(), "1..1").apply(&step(1)).expect("written");
        let before = read(folder.path());
        let mut resumed = trace(folder.path(), "1..1");
        resumed.apply(&step(7)).expect("nothing to write");
        resumed.finish().expect("nothing to do");
        assert_eq!(read(folder.path()), before);
        assert_eq!(names(folder.path()), ["trace.json".to_owned()].into());
    }

    #[test]
    fn trace_of_later_process_gets_next_free_number() {
        let folder = tempfile::tempdir().expect("a folder");
        for i in 1..=3 {
            trace(folder.path(), "1..9").apply(&step(i)).expect("written");
            let mut trace = trace(folder.path(), "1..9");
            trace.apply(&step(i)).expect("written");
            trace.finish().expect("written");
        }
        let expected = ["trace-2.json", "trace-3.json", "trace.json"].map(str::to_owned);
        assert_eq!(names(folder.path()), expected.into());
    }

    #[test]
    fn too_many_events_end_the_trace() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut trace = trace(folder.path(), "1..100");
        trace.writer.as_mut().expect("a writer").n_events_max = 200;
        for i in 1..=20 {
            trace.apply(&step(i)).expect("written");
        }
        let trace = read(folder.path());
        check_format(&trace);
        assert_eq!(trace["otherData"]["is_truncated"], true);
        assert!((200..300).contains(&events(&trace).len()), "{}", events(&trace).len());
    }

    #[test]
    fn event_takes_at_most_200_bytes() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut trace = trace(folder.path(), "1..1000");
        for i in 1..=1000 {
            trace.apply(&step(i)).expect("written");
        }
        let length = fs::metadata(folder.path().join("trace.json")).expect("a file").len();
        let n_events = u64::try_from(events(&read(folder.path())).len()).expect("a number");
        assert!((100..200).contains(&(length / n_events)), "{length} bytes, {n_events} events");
    }

    #[test]
    fn range_has_both_ends_and_clear_errors() {
        let parse = |text: &str| text.parse::<StepRange>();
        let range = parse("100..200").expect("a range");
        assert_eq!((range.first(), range.last(), range.to_string()), (100, 200, "100..200".to_owned()));
        assert_eq!(parse("7..7").map(|range| range.last()), Ok(7));
        for text in ["a..b", "100", "100..", "..200", "1..2..3", "-1..4", "1.5..2", "1..=2", ""] {
            assert_eq!(parse(text), Err(StepRangeError::Form(text.to_owned())));
        }
        assert_eq!(parse("0..5"), Err(StepRangeError::Zero));
        assert_eq!(parse("9..5"), Err(StepRangeError::Reversed { first: 9, last: 5 }));
        assert_eq!(parse("1..100000").map(|range| range.last()), Ok(STEPS_MAX));
        assert_eq!(parse("1..100001"), Err(StepRangeError::Length { first: 1, last: 100_001 }));
        assert_eq!(
            parse("a..b").expect_err("no range").to_string(),
            "expected FIRST..LAST with two whole numbers, such as 100..200, found `a..b`"
        );
    }
}
