//! A trace's file: events of the format, in lanes without overlaps.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use events::StepEvent;
use serde::Serialize;

use super::lane::Lane;
use crate::spans::{PhaseSpan, StepSpans, TaskTimes};

/// A file of events.
pub struct Writer {
    out: BufWriter<File>,
    /// Where each lane ends so far, from the start of the coordinator's process.
    ends: BTreeMap<Lane, Duration>,
    n_events: u64,
    /// Events that there is room for; the last step's may be more.
    pub n_events_max: u64,
    n_arrows: u64,
}

impl Writer {
    /// An empty file, with room for so many events.
    pub fn create(path: &Path, n_events_max: u64) -> io::Result<Self> {
        let mut out = BufWriter::new(File::create(path)?);
        out.write_all(b"{\"traceEvents\":[\n")?;
        let mut writer = Self { out, ends: BTreeMap::new(), n_events: 0, n_events_max, n_arrows: 0 };
        for (pid, name) in [(Lane::COORDINATOR, "coordinator"), (Lane::WORKERS, "workers")] {
            writer.write_metadata("process_name", (pid, 0), Args { name: Some(name), ..Args::default() })?;
            writer.write_metadata("process_sort_index", (pid, 0), Args { sort_index: Some(pid), ..Args::default() })?;
        }
        Ok(writer)
    }

    /// Whether there is no room for another step.
    pub fn is_full(&self) -> bool {
        self.n_events >= self.n_events_max
    }

    /// Ends the file.
    pub fn finish(mut self, other: &OtherData) -> io::Result<()> {
        self.out.write_all(b"\n],\"displayTimeUnit\":\"ms\",\"otherData\":")?;
        serde_json::to_writer(&mut self.out, other)?;
        self.out.write_all(b"}\n")?;
        self.out.flush()
    }

    /// Adds a step.
    pub fn write_step(&mut self, event: &StepEvent) -> io::Result<()> {
        let step = event.record.step;
        let spans = StepSpans::new(event);
        let loss = Some(event.record.loss).filter(|loss| loss.is_finite());
        let args = Args { step: Some(step), loss, milliseconds: Some(event.record.milliseconds), ..Args::default() };
        self.write_slice(Lane::Steps, &format!("step {step}"), spans.step.clone(), args)?;
        for task in &spans.tasks {
            self.write_task(step, task)?;
        }
        self.write_phases(step, spans)
    }

    fn write_task(&mut self, step: u64, task: &TaskTimes) -> io::Result<()> {
        let &TaskTimes { shard, worker, assigned, started, finished, arrived } = task;
        let args = Args { step: Some(step), shard: Some(shard), ..Args::default() };
        // A worker is assigned several shards at once and waits while it computes another one: that is not drawn.
        let lane = Lane::Worker(worker);
        self.write_slice(lane, "wait", assigned..started, args)?;
        if let Some(start) = self.write_slice(lane, &format!("compute shard {shard}"), started..finished, args)? {
            self.write_arrow("assigned", (Lane::Steps, assigned), (lane, start))?;
        }
        self.write_slice(Lane::Transfer(worker), "transfer", finished..arrived, args)?;
        Ok(())
    }

    fn write_phases(&mut self, step: u64, spans: StepSpans) -> io::Result<()> {
        for (position, PhaseSpan { name, span, duration }) in spans.phases.into_iter().enumerate() {
            let milliseconds = Some(microseconds(duration) / 1e3);
            let args = Args { step: Some(step), milliseconds, ..Args::default() };
            let lane = Lane::Phase(position);
            let start = self.write_slice(lane, name, span, args)?;
            // From the result that was waited for longest to what is done with it.
            if let (Some(start), Some(task), "reduce") = (start, spans.last_task, name) {
                self.write_arrow("arrived", (Lane::Transfer(task.worker), task.finished), (lane, start))?;
            }
        }
        Ok(())
    }

    /// A span in a lane, shortened at its beginning where the lane is taken; where it begins, if anything is left of it.
    fn write_slice(
        &mut self,
        lane: Lane,
        name: &str,
        span: Range<Duration>,
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

    /// Adds what happened to a worker.
    pub fn write_instant(&mut self, name: &str, worker: u64, at: Duration, args: Args) -> io::Result<()> {
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
pub struct Args<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sort_index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// As measured, where the picture had to shorten it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub milliseconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub helper: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
}

/// What is said about the trace as a whole.
#[derive(Serialize)]
pub struct OtherData<'a> {
    pub run_id: &'a str,
    /// As asked for.
    pub steps: String,
    pub first_step: Option<u64>,
    pub last_step: Option<u64>,
    /// Whether steps are missing, since the file would be too long.
    pub is_truncated: bool,
}

/// What every event has.
fn event<'a>(name: &'a str, cat: &'a str, ph: char, (pid, tid): (u64, u64), at: Duration) -> TraceEvent<'a> {
    let ts = microseconds(at);
    TraceEvent { name, cat, ph, pid, tid, ts, dur: None, id: None, bp: None, s: None, args: Args::default() }
}

/// The format's unit. To the nanosecond, which is what the spans are from.
fn microseconds(duration: Duration) -> f64 {
    (1e9 * duration.as_secs_f64()).round() / 1e3
}
