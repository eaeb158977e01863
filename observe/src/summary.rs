//! What there is to show of a run, in bounded memory: made from its events as they happen, or from the files of its folder.

mod event_lines;
#[cfg(test)]
mod tests;
mod workers;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use events::{EpochRecord, PictureFile, PictureName, RecordedEvent, RunEvent, Snapshot, StepRecord};
use serde_json::Value;

pub use event_lines::{EVENT_LINES_MAX, EventKind, EventLine, RefusalKind, Refusals};
pub use workers::{LEFT_WORKERS_MAX, SNAPSHOTS_MAX, Worker};

use crate::series::Series;

/// Epochs that are kept; of a longer run the newest.
pub const EPOCHS_MAX: usize = 10_000;
/// Curves over steps that are kept: the loss and a task's first metrics.
pub const STEP_FIGURES_MAX: usize = 32;

/// A run as it is by now. A clone, such as for rendering, shares snapshots and epochs.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Goes up with each event.
    pub version: u64,
    /// The name of its folder, such as `denoising-001`.
    pub name: String,
    /// `run.json`: settings, data set, at the end the result; null before it is known.
    pub description: Value,
    /// Optimiser steps and epochs of the whole run; 0 where unknown.
    pub n_steps: u64,
    /// Epochs of the whole run; 0 where unknown.
    pub n_epochs: u32,
    /// What samples are called, in the plural.
    pub samples: String,
    /// The newest step.
    pub last_step: Option<StepRecord>,
    /// Loss, and each metric by name, over steps. In the task's order, `loss` first.
    pub step_figures: Vec<(String, Series)>,
    /// Samples per second of each step, over steps.
    pub pace: Series,
    /// Milliseconds of each step, over steps.
    pub step_milliseconds: Series,
    /// The epochs that were validated, in order.
    pub epochs: VecDeque<Arc<EpochRecord>>,
    /// All workers that take part, and the last that have left, by number.
    pub workers: BTreeMap<u64, Worker>,
    /// The newest snapshots, each with its time.
    pub snapshots: VecDeque<(f64, Arc<Snapshot>)>,
    /// What happened, each line with its time in seconds since 1970: see [`RunEvent::describe`].
    pub event_lines: VecDeque<EventLine>,
    /// Time of the newest event, in seconds since 1970; 0 before the first.
    pub time: f64,
    /// How the run ended, if it has.
    pub outcome: Option<String>,
    /// Whether the newest process of the coordinator wrote that it ends, as one that is killed does not.
    pub has_process_ended: bool,
    /// Whether the run waits for workers.
    pub is_waiting: bool,
    /// Workers that were lost and that none has replaced yet.
    pub n_lost: u64,
    /// Counts of what went wrong and was recovered from.
    pub faults: Faults,
    /// The pictures in the run's folder: of each name the epochs, in order.
    pub pictures: BTreeMap<PictureName, Vec<u32>>,
}

/// Counts of what went wrong and was recovered from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Workers that have left before the run's end.
    pub n_left: u64,
    /// Workers that were evicted.
    pub n_evicted: u64,
    /// Tasks that others computed, since their worker had left.
    pub n_reassigned: u64,
    /// Tasks that one more worker computed, since theirs was late.
    pub n_late: u64,
    /// Messages that were not used.
    pub n_refused: u64,
    /// Replicas that were sent again.
    pub n_resent: u64,
    /// Times that the run waited for workers.
    pub n_waits: u64,
    /// Processes of the coordinator that went on where one had not written its end.
    pub n_restarts: u64,
}

impl Summary {
    /// Takes in what happened. A step that is not after the last one is repeated by a run that was resumed: what is known of it
    /// and of all later ones is forgotten. With a new process of the coordinator, which numbers its workers anew, those of the
    /// process before go, with the snapshots that name them.
    pub fn apply(&mut self, recorded: &RecordedEvent) {
        let RecordedEvent { time, event } = recorded;
        self.version += 1;
        self.time = *time;
        let kind = self.kind(event);
        match event {
            RunEvent::Step(step) => {
                self.add_step(&step.record);
                self.is_waiting = false;
            }
            RunEvent::Epoch(record) => self.add_epoch(record),
            RunEvent::Snapshot(snapshot) => self.add_snapshot(*time, snapshot),
            RunEvent::Started { incarnation, .. } => self.begin_process(*incarnation),
            RunEvent::Ended { outcome, .. } => {
                self.outcome = Some(outcome.clone());
                (self.has_process_ended, self.is_waiting) = (true, false);
            }
            RunEvent::WorkerJoined { worker, host, process, backend, n_threads, .. } => {
                let (host, backend) = (host.clone(), backend.clone());
                let joined = Worker {
                    host,
                    process: *process,
                    backend,
                    n_threads: *n_threads,
                    joined: *time,
                    ..Worker::default()
                };
                self.workers.insert(*worker, joined);
                self.n_lost = self.n_lost.saturating_sub(1);
            }
            RunEvent::WorkerLeft { worker, reason, n_reassigned, .. } => {
                self.remove_worker(*worker, *time, reason, *n_reassigned as u64);
            }
            RunEvent::WorkerEvicted { .. } => self.faults.n_evicted += 1,
            RunEvent::TaskLate { worker, .. } => {
                self.faults.n_late += 1;
                if let Some(worker) = self.workers.get_mut(worker) {
                    worker.n_late += 1;
                }
            }
            RunEvent::ReplicaResent { .. } => self.faults.n_resent += 1,
            RunEvent::ResultRefused { .. } => self.faults.n_refused += 1,
            RunEvent::Waiting => {
                self.faults.n_waits += 1;
                self.is_waiting = true;
            }
            RunEvent::Continuing => self.is_waiting = false,
            RunEvent::ComputeClassAdded { .. } | RunEvent::Mirror(_) => {}
        }
        if let Some(text) = event.describe() {
            self.add_line(EventLine::of(event, *time, kind, text));
        }
    }

    /// Takes in `run.json`, as it was written at the start and, with the result, at the end.
    pub fn describe(&mut self, description: Value) {
        self.version += 1;
        self.n_steps = description["n_steps"].as_u64().unwrap_or(0);
        let n_epochs = description["recipe"]["epochs"].as_u64();
        self.n_epochs = n_epochs.and_then(|n_epochs| u32::try_from(n_epochs).ok()).unwrap_or(0);
        match description["samples"].as_str() {
            Some(samples) => samples.clone_into(&mut self.samples),
            None if self.samples.is_empty() => "samples".clone_into(&mut self.samples),
            None => {}
        }
        // What a run that was resumed says has no result, unlike what it said before.
        if !description["result"].is_null() {
            self.outcome = outcome(&description["result"]);
        } else if !self.description["result"].is_null() {
            self.outcome = None;
        }
        self.description = description;
    }

    /// Takes in a step of which the time is not known.
    pub fn add_step(&mut self, record: &StepRecord) {
        self.version += 1;
        let last_step = self.last_step.as_ref().map_or(0, |last| last.step);
        if record.step <= last_step {
            self.forget_from(record.step);
        }
        // Steps that are missing in between count as ones like this: a long file is sampled, and a listener may lose some.
        let is_next = last_step > 0 && record.step > last_step;
        let n_values = if is_next { record.step - last_step } else { 1 };
        let x = as_f64(record.step);
        let metrics = record.metrics.0.iter().map(|(name, value)| (name.as_str(), *value));
        for (name, value) in [("loss", record.loss)].into_iter().chain(metrics) {
            let series = match self.step_figures.iter().position(|(known, _)| known == name) {
                Some(place) => &mut self.step_figures[place].1,
                None if self.step_figures.len() < STEP_FIGURES_MAX => {
                    self.step_figures.push((name.to_owned(), Series::default()));
                    &mut self.step_figures.last_mut().expect("one was added").1
                }
                None => continue,
            };
            series.push_for(x, value, n_values);
        }
        // Not finite, and so left out, if a step took no time.
        self.pace.push_for(x, as_f64(record.n_samples) / (record.milliseconds / 1e3), n_values);
        self.step_milliseconds.push_for(x, record.milliseconds, n_values);
        self.last_step = Some(record.clone());
    }

    /// Takes in an epoch of which the time is not known. It takes the place of an earlier record of itself, and of later epochs.
    pub fn add_epoch(&mut self, record: &EpochRecord) {
        self.version += 1;
        while self.epochs.back().is_some_and(|last| last.epoch >= record.epoch) {
            self.epochs.pop_back();
        }
        if self.description["samples"].is_null() {
            self.samples = record.samples.to_string();
        }
        push_bounded(&mut self.epochs, Arc::new(record.clone()), EPOCHS_MAX);
    }

    /// Takes in that there is a picture of an epoch in the run's folder.
    pub fn add_picture(&mut self, file: PictureFile) {
        self.version += 1;
        let epochs = self.pictures.entry(file.name).or_default();
        if let Err(place) = epochs.binary_search(&file.epoch) {
            epochs.insert(place, file.epoch);
        }
        if epochs.len() > EPOCHS_MAX {
            epochs.remove(0);
        }
    }

    /// Whether a picture belongs to the run.
    pub fn has_picture(&self, file: PictureFile) -> bool {
        self.pictures.get(&file.name).is_some_and(|epochs| epochs.binary_search(&file.epoch).is_ok())
    }

    /// Forgets all steps, as when their file is read anew.
    pub(crate) fn forget_steps(&mut self) {
        self.version += 1;
        self.last_step = None;
        self.step_figures.clear();
        self.pace = Series::default();
        self.step_milliseconds = Series::default();
    }

    /// Forgets all epochs, as when their file is read anew.
    pub(crate) fn forget_epochs(&mut self) {
        self.version += 1;
        self.epochs.clear();
    }

    /// Forgets all that came of events other than steps and epochs, as when their file is read anew.
    pub(crate) fn forget_events(&mut self) {
        self.version += 1;
        self.workers.clear();
        self.snapshots.clear();
        self.event_lines.clear();
        self.faults = Faults::default();
        (self.time, self.n_lost, self.is_waiting, self.has_process_ended) = (0.0, 0, false, false);
    }

    /// Forgets a step and what comes after it.
    fn forget_from(&mut self, step: u64) {
        let x = as_f64(step.saturating_sub(1));
        let figures = self.step_figures.iter_mut().map(|(_, series)| series);
        for series in figures.chain([&mut self.pace, &mut self.step_milliseconds]) {
            series.truncate_after(x);
        }
        self.epochs.retain(|record| record.step < step);
        self.forget_later_pictures();
    }

    /// Forgets the pictures of epochs after the last one that is known: those of a run before it was resumed from a checkpoint.
    pub(crate) fn forget_later_pictures(&mut self) {
        let last = self.epochs.back().map_or(0, |last| last.epoch);
        self.pictures.retain(|_, epochs| {
            epochs.retain(|epoch| *epoch <= last);
            !epochs.is_empty()
        });
    }

    fn begin_process(&mut self, incarnation: u64) {
        self.workers.clear();
        self.snapshots.clear();
        self.faults.n_restarts += u64::from(self.is_restart(incarnation));
        (self.outcome, self.is_waiting, self.n_lost, self.has_process_ended) = (None, false, 0, false);
    }

    /// Whether a process of this number goes on after one that did not write its end. A deliberate stop is no fault.
    fn is_restart(&self, incarnation: u64) -> bool {
        incarnation > 1 && !self.has_process_ended
    }
}

/// How a run ended, from the `result` in its `run.json`. A single process says whether it was interrupted; whatever has failed,
/// its message is the outcome.
fn outcome(result: &Value) -> Option<String> {
    let text = result["error"].as_str().or_else(|| result["outcome"].as_str()).map(str::to_owned);
    let single = || Some(if result["interrupted"].as_bool()? { "stopped" } else { "completed" }.to_owned());
    text.or_else(single)
}

/// Adds one at the back, and drops the oldest above `n_max`.
fn push_bounded<T>(queue: &mut VecDeque<T>, value: T, n_max: usize) {
    if queue.len() == n_max {
        queue.pop_front();
    }
    queue.push_back(value);
}

/// A count, as curves have it.
#[expect(clippy::cast_precision_loss, reason = "no run counts to 2^53")]
fn as_f64(n: u64) -> f64 {
    n as f64
}
