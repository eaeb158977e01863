//! Some of a run's steps as a file that <https://ui.perfetto.dev> and `chrome://tracing` open: who computed what when, and what the
//! coordinator did meanwhile. In the [Trace Event Format](https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU),
//! as a JSON object.

mod lane;
mod range;
mod writer;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use events::{RecordedEvent, RunEvent, StepEvent};
use thiserror::Error;

pub use self::range::{STEPS_MAX, StepRange, StepRangeError};
use self::writer::{Args, OtherData, Writer};
use crate::spans::ProcessStart;

/// Events that a file has at most, some 120 bytes each: more than viewers can open. Steps after that are left out.
const EVENTS_MAX: u64 = 2_000_000;

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
    started: ProcessStart,
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
            started: ProcessStart::default(),
        })
    }

    /// Takes in what happened. The last step of the range, and the run's end, complete the file.
    ///
    /// # Errors
    /// A file that cannot be written; nothing more is written then.
    pub fn apply(&mut self, recorded: &RecordedEvent) -> Result<(), TraceError> {
        self.started.apply(recorded);
        match &recorded.event {
            RunEvent::Step(event) => return self.apply_step(event),
            RunEvent::Started { step, .. } => self.newest = *step,
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

    fn apply_step(&mut self, event: &StepEvent) -> Result<(), TraceError> {
        let step = event.record.step;
        self.newest = step;
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
        let Some(started) = self.started.seconds().filter(|_| is_in_range) else { return Ok(()) };
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

#[cfg(test)]
mod tests;
