//! What there is to show of a run, in bounded memory: made from its events as they happen, or from the files of its folder.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use events::{EpochRecord, MirrorEvent, RecordedEvent, RunEvent, Snapshot, StepRecord, WorkerStatus};
use serde_json::Value;

use crate::series::Series;

/// Epochs that are kept; of a longer run the newest.
pub const EPOCHS_MAX: usize = 10_000;
/// Lines of what happened that are kept; of more the newest.
pub const EVENT_LINES_MAX: usize = 500;
/// Snapshots that are kept, for the timeline: two minutes.
pub const SNAPSHOTS_MAX: usize = 120;
/// Workers that have left and are still listed; the newest.
pub const LEFT_WORKERS_MAX: usize = 32;
/// Curves over steps that are kept: the loss and a task's first metrics.
pub const STEP_FIGURES_MAX: usize = 32;

/// What [`Worker::shards_per_second`] is the mean over, in seconds.
const SHARD_RATE_SECONDS: f64 = 10.0;
/// Why a worker is listed as left whose leaving was not seen.
const NOT_IN_SNAPSHOT: &str = "it takes part no more";

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
    /// Names of the pictures in the run's folder, by epoch: `(epoch, file name)`.
    pub pictures: Vec<(u32, String)>,
}

/// A line of what happened.
#[derive(Clone, Debug, PartialEq)]
pub struct EventLine {
    /// Seconds since 1970.
    pub time: f64,
    /// How it is shown.
    pub kind: EventKind,
    /// The line.
    pub text: String,
    /// Where it is of refusals: which.
    pub refusals: Option<Refusals>,
}

/// Refusals of one kind for one worker, with none but refusals between them. They share a line, so that a flood of them leaves
/// the other lines where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusals {
    /// The worker.
    pub worker: u64,
    /// What followed.
    pub kind: RefusalKind,
    /// How many they are.
    pub n_times: u64,
}

/// What followed on a message that could not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The message was ignored.
    Refused,
    /// The worker's replica was sent again.
    Resent,
}

/// How a line of what happened is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// As it should be.
    Info,
    /// A fault.
    Fault,
    /// The recovery from one.
    Recovery,
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

/// A worker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Worker {
    /// Its machine.
    pub host: String,
    /// Its process there.
    pub process: u32,
    /// What computes, such as `flex on cpu`.
    pub backend: String,
    /// Threads that it computes with.
    pub n_threads: u32,
    /// When it joined, in seconds since 1970.
    pub joined: f64,
    /// When it left and why, if it has.
    pub left: Option<(f64, String)>,
    /// Seconds since it was last heard of, at the newest snapshot.
    pub silent_seconds: f64,
    /// Shards of its that counted.
    pub n_shards: u64,
    /// Shards per second, over the snapshots of the last ten seconds.
    pub shards_per_second: f64,
    /// Tasks of its that were late.
    pub n_late: u64,
    /// Tasks of its that others computed after it had left.
    pub n_reassigned: u64,
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
            self.add_line(EventLine { refusals: refusals(event), ..EventLine::new(*time, kind, text) });
        }
    }

    /// Adds a line; a refusal takes the place of the same worker's line among the refusals at the end.
    fn add_line(&mut self, mut line: EventLine) {
        if let Some(new) = &mut line.refusals {
            let newest = self.event_lines.iter().enumerate().rev();
            let mut known = newest.map_while(|(place, known)| Some((place, known.refusals?)));
            if let Some((place, known)) = known.find(|(_, known)| (known.worker, known.kind) == (new.worker, new.kind))
            {
                new.n_times = known.n_times + 1;
                line.text = format!("{} ({} times)", line.text, new.n_times);
                self.event_lines.remove(place);
            }
        }
        push_bounded(&mut self.event_lines, line, EVENT_LINES_MAX);
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
    pub fn add_picture(&mut self, epoch: u32, name: String) {
        self.version += 1;
        match self.pictures.binary_search_by_key(&epoch, |(epoch, _)| *epoch) {
            Ok(place) => self.pictures[place].1 = name,
            Err(place) => self.pictures.insert(place, (epoch, name)),
        }
        if self.pictures.len() > EPOCHS_MAX {
            self.pictures.remove(0);
        }
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
        self.pictures.retain(|(epoch, _)| *epoch <= last);
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

    fn remove_worker(&mut self, worker: u64, time: f64, reason: &str, n_reassigned: u64) {
        self.faults.n_reassigned += n_reassigned;
        if self.outcome.is_none() {
            self.faults.n_left += 1;
            self.n_lost += 1;
        }
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.left = Some((time, reason.to_owned()));
            worker.shards_per_second = 0.0;
            worker.n_reassigned += n_reassigned;
        }
        self.bound_left_workers();
    }

    fn bound_left_workers(&mut self) {
        let left = self.workers.iter().filter_map(|(number, worker)| Some((worker.left.as_ref()?.0, *number)));
        let mut left: Vec<(f64, u64)> = left.collect();
        left.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        for (_, number) in &left[..left.len().saturating_sub(LEFT_WORKERS_MAX)] {
            self.workers.remove(number);
        }
    }

    fn add_snapshot(&mut self, time: f64, snapshot: &Snapshot) {
        for status in &snapshot.workers {
            let shards_per_second = self.shard_rate(time, status);
            // One whose joining was not seen takes part as well.
            let joined_now = || Worker { joined: time, ..Worker::default() };
            let worker = self.workers.entry(status.worker).or_insert_with(joined_now);
            worker.silent_seconds = status.silent_milliseconds / 1e3;
            worker.n_shards = status.n_shards;
            worker.n_late = status.n_late;
            worker.left = None;
            worker.shards_per_second = shards_per_second.unwrap_or(worker.shards_per_second);
        }
        // A listener that is too slow may have lost that one left. An older version names none at all.
        if !snapshot.workers.is_empty() {
            for (number, worker) in self.workers.iter_mut().filter(|(_, worker)| worker.left.is_none()) {
                if !snapshot.workers.iter().any(|status| status.worker == *number) {
                    worker.left = Some((time, NOT_IN_SNAPSHOT.to_owned()));
                    worker.shards_per_second = 0.0;
                }
            }
            self.bound_left_workers();
        }
        push_bounded(&mut self.snapshots, (time, Arc::new(snapshot.clone())), SNAPSHOTS_MAX);
    }

    /// Shards per second of a worker, since the oldest snapshot of the last ten seconds that it is in.
    fn shard_rate(&self, time: f64, status: &WorkerStatus) -> Option<f64> {
        // Half a second more, since snapshots are not a second apart to the millisecond.
        let recent = self.snapshots.iter().filter(|(then, _)| time - then <= SHARD_RATE_SECONDS + 0.5);
        let mut known = recent.filter_map(|(then, snapshot)| {
            Some((*then, snapshot.workers.iter().find(|known| known.worker == status.worker)?.n_shards))
        });
        let (then, n_shards) = known.next()?;
        let has_grown = status.n_shards >= n_shards && time > then;
        has_grown.then(|| as_f64(status.n_shards - n_shards) / (time - then))
    }

    /// How an event is shown, from what was known before it.
    fn kind(&self, event: &RunEvent) -> EventKind {
        match event {
            RunEvent::WorkerLeft { .. } if self.outcome.is_some() => EventKind::Info,
            RunEvent::Ended { outcome, .. } if matches!(outcome.as_str(), "completed" | "stopped") => EventKind::Info,
            RunEvent::WorkerLeft { .. }
            | RunEvent::WorkerEvicted { .. }
            | RunEvent::TaskLate { .. }
            | RunEvent::ReplicaResent { .. }
            | RunEvent::ResultRefused { .. }
            | RunEvent::Waiting
            | RunEvent::Ended { .. }
            | RunEvent::Mirror(
                MirrorEvent::Failing { .. } | MirrorEvent::Behind { .. } | MirrorEvent::GivenUp { .. },
            ) => EventKind::Fault,
            RunEvent::Started { incarnation, .. } if self.is_restart(*incarnation) => EventKind::Recovery,
            RunEvent::WorkerJoined { .. } if self.n_lost > 0 => EventKind::Recovery,
            RunEvent::Continuing | RunEvent::Mirror(MirrorEvent::CaughtUp { .. }) => EventKind::Recovery,
            RunEvent::Step(_)
            | RunEvent::Epoch(_)
            | RunEvent::Snapshot(_)
            | RunEvent::Started { .. }
            | RunEvent::WorkerJoined { .. }
            | RunEvent::ComputeClassAdded { .. }
            | RunEvent::Mirror(MirrorEvent::Ahead { .. } | MirrorEvent::Finishing { .. }) => EventKind::Info,
        }
    }
}

impl EventLine {
    /// A line of one event.
    pub fn new(time: f64, kind: EventKind, text: String) -> Self {
        Self { time, kind, text, refusals: None }
    }
}

/// What an event refuses, if it does.
fn refusals(event: &RunEvent) -> Option<Refusals> {
    let (worker, kind) = match event {
        RunEvent::ResultRefused { worker, .. } => (*worker, RefusalKind::Refused),
        RunEvent::ReplicaResent { worker, .. } => (*worker, RefusalKind::Resent),
        _ => return None,
    };
    Some(Refusals { worker, kind, n_times: 1 })
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use events::{Figures, StepCosts, StepEvent};
    use serde_json::json;

    use super::*;

    fn record(step: u64, loss: f64) -> StepRecord {
        let metrics = Figures(vec![("accuracy".to_owned(), 0.5)]);
        StepRecord { step, epoch: 1, loss, metrics, n_samples: 32, milliseconds: 4.0, params_blake3: None }
    }

    fn step(step: u64, loss: f64) -> RunEvent {
        let costs = StepCosts::default();
        let record = record(step, loss);
        RunEvent::Step(StepEvent {
            record,
            workers: vec![1],
            n_active: 1,
            costs,
            begun: Duration::ZERO,
            tasks: Vec::new(),
        })
    }

    fn epoch(epoch: u32, step: u64, val_loss: f64) -> RunEvent {
        RunEvent::Epoch(EpochRecord {
            epoch,
            step,
            loss: 0.5,
            metrics: Figures::default(),
            val_loss,
            val_metrics: Figures::default(),
            seconds: 2.0,
            samples_per_second: 8000.0,
            samples: "images".into(),
            is_best: true,
        })
    }

    fn joined(worker: u64) -> RunEvent {
        let (identity, host, backend) = ("::1".to_owned(), "alpha".to_owned(), "flex on cpu".to_owned());
        RunEvent::WorkerJoined { worker, identity, host, process: 70, backend, n_threads: 2, n_active: 1 }
    }

    fn left(worker: u64, n_reassigned: usize) -> RunEvent {
        RunEvent::WorkerLeft { worker, reason: "it closed".to_owned(), n_active: 0, n_reassigned }
    }

    fn snapshot(workers: &[(u64, u64)]) -> RunEvent {
        let status = |&(worker, n_shards)| WorkerStatus { worker, silent_milliseconds: 250.0, n_shards, n_late: 3 };
        RunEvent::Snapshot(Snapshot { workers: workers.iter().map(status).collect(), ..Snapshot::default() })
    }

    /// A summary of events that happen a second apart, the first at second 1.
    fn summary(events: impl IntoIterator<Item = RunEvent>) -> Summary {
        let mut summary = Summary::default();
        for (place, event) in (1..).zip(events) {
            summary.apply(&RecordedEvent { time: f64::from(place), event });
        }
        summary
    }

    fn means(series: &Series) -> Vec<f64> {
        series.points().iter().map(|point| point.mean).collect()
    }

    fn xs(series: &Series) -> Vec<f64> {
        series.points().iter().map(|point| point.x).collect()
    }

    #[test]
    fn steps_become_curves_of_loss_metrics_pace_and_duration() {
        let summary = summary([step(1, 0.75), step(2, 0.25)]);
        let names: Vec<&str> = summary.step_figures.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["loss", "accuracy"]);
        assert_eq!(means(&summary.step_figures[0].1), [0.75, 0.25]);
        assert_eq!(means(&summary.step_figures[1].1), [0.5, 0.5]);
        assert_eq!(means(&summary.pace), [8000.0, 8000.0]); // 32 samples in 4 ms
        assert_eq!(means(&summary.step_milliseconds), [4.0, 4.0]);
        assert_eq!(summary.last_step, Some(record(2, 0.25)));
        assert_eq!((summary.time, summary.event_lines.len()), (2.0, 0));
    }

    #[test]
    fn repeated_step_replaces_it_and_all_later_ones() {
        let before = [step(1, 0.9), epoch(1, 1, 0.9), step(2, 0.8), step(3, 0.7), epoch(2, 3, 0.7), step(4, 0.6)];
        let summary = summary(before.into_iter().chain([step(2, 0.1)]));
        let (_, loss) = &summary.step_figures[0];
        assert_eq!((xs(loss), loss.points()[1].mean), (vec![1.0, 2.0], 0.1));
        assert_eq!(xs(&summary.pace), [1.0, 2.0]);
        assert_eq!(summary.epochs.iter().map(|epoch| epoch.epoch).collect::<Vec<_>>(), [1]);
        assert_eq!(summary.last_step.map(|last| last.step), Some(2));
    }

    #[test]
    fn epoch_replaces_record_of_same_number_and_is_bounded() {
        let again = summary([epoch(1, 10, 0.5), epoch(2, 15, 0.6), epoch(2, 20, 0.4)]);
        let found: Vec<_> = again.epochs.iter().map(|epoch| (epoch.epoch, epoch.step, epoch.val_loss)).collect();
        assert_eq!(found, [(1, 10, 0.5), (2, 20, 0.4)]);
        assert_eq!(again.samples, "images");
        let many = summary((1..=10_003).map(|number| epoch(number, number.into(), 0.5)));
        assert_eq!((many.epochs.len(), many.epochs[0].epoch), (EPOCHS_MAX, 4));
    }

    #[test]
    fn worker_that_leaves_is_listed_with_its_reason() {
        let summary = summary([joined(1), joined(2), left(1, 3)]);
        let worker = &summary.workers[&1];
        assert_eq!((worker.host.as_str(), worker.process, worker.n_threads, worker.joined), ("alpha", 70, 2, 1.0));
        assert_eq!((worker.left.clone(), worker.n_reassigned), (Some((3.0, "it closed".to_owned())), 3));
        assert_eq!(summary.workers[&2].left, None);
        assert_eq!((summary.faults.n_left, summary.faults.n_reassigned, summary.n_lost), (1, 3, 1));
    }

    #[test]
    fn only_newest_workers_that_left_are_kept() {
        let summary =
            summary([joined(1000)].into_iter().chain((1..=40).flat_map(|worker| [joined(worker), left(worker, 0)])));
        assert_eq!(summary.workers.len(), 1 + LEFT_WORKERS_MAX);
        assert!(!summary.workers.contains_key(&8) && summary.workers.contains_key(&9)); // 40 - 32 = 8
        assert_eq!(summary.faults.n_left, 40);
    }

    #[test]
    fn snapshot_gives_silence_shards_and_their_rate() {
        let mut events = vec![joined(1)];
        events.extend((0..30).map(|second| snapshot(&[(1, if second < 15 { 0 } else { 8 * (second - 15) })])));
        let summary = summary(events);
        let worker = &summary.workers[&1];
        assert_eq!((worker.silent_seconds, worker.n_shards, worker.n_late), (0.25, 112, 3)); // 8 * 14
        assert_eq!((worker.shards_per_second, worker.left.clone()), (8.0, None));
        assert_eq!(summary.snapshots.len(), 30);
        assert_eq!(summary.snapshots.back().map(|(time, _)| *time), Some(31.0));
    }

    #[test]
    fn snapshots_are_bounded() {
        let summary = summary((0..200).map(|n_shards| snapshot(&[(1, n_shards)])));
        assert_eq!((summary.snapshots.len(), summary.snapshots[0].0), (SNAPSHOTS_MAX, 81.0)); // 200 - 120 + 1
    }

    /// The goal: a listener that lost events shows the right roster after the next snapshot.
    #[test]
    fn roster_follows_snapshot_where_events_were_lost() {
        let summary = summary([joined(1), joined(2), snapshot(&[(2, 4), (3, 4)])]);
        assert_eq!(summary.workers[&1].left, Some((3.0, NOT_IN_SNAPSHOT.to_owned())));
        assert_eq!((summary.workers[&2].left.clone(), summary.workers[&3].joined), (None, 3.0));
    }

    /// The goal: worker 1 of the second process is not taken for worker 1 of the first.
    #[test]
    fn new_process_begins_with_no_workers() {
        let summary = summary([
            RunEvent::Started { incarnation: 1, step: 0 },
            joined(1),
            joined(2),
            snapshot(&[(1, 100), (2, 100)]),
            RunEvent::Started { incarnation: 2, step: 40 },
            joined(1),
            snapshot(&[(1, 2)]),
            snapshot(&[(1, 5)]),
        ]);
        assert_eq!(summary.workers.keys().collect::<Vec<_>>(), [&1]);
        assert_eq!((summary.workers[&1].joined, summary.workers[&1].shards_per_second), (6.0, 3.0));
        assert_eq!((summary.faults.n_restarts, summary.faults.n_left, summary.snapshots.len()), (1, 0, 2));
    }

    /// How a line is shown after others.
    fn check_kind(before: &[RunEvent], event: RunEvent, kind: EventKind) {
        let summary = summary(before.iter().cloned().chain([event.clone()]));
        let last = summary.event_lines.back().expect("a line");
        let time = f64::from(u32::try_from(before.len()).expect("a few") + 1);
        assert_eq!(
            (last.time, last.kind, last.text.clone()),
            (time, kind, event.describe().expect("a line")),
            "{event:?}"
        );
    }

    #[test]
    fn event_lines_are_faults_recoveries_or_neither() {
        use EventKind::{Fault, Info, Recovery};
        let ended = |outcome: &str| RunEvent::Ended { outcome: outcome.to_owned(), step: 9 };
        let reason = || "bits".to_owned();
        check_kind(&[], RunEvent::Started { incarnation: 1, step: 0 }, Info);
        check_kind(&[], RunEvent::Started { incarnation: 2, step: 7 }, Recovery);
        check_kind(&[ended("stopped")], RunEvent::Started { incarnation: 2, step: 9 }, Info);
        check_kind(&[], joined(1), Info);
        check_kind(&[joined(1)], left(1, 2), Fault);
        check_kind(&[joined(1), left(1, 2)], joined(2), Recovery);
        check_kind(&[joined(1), left(1, 2), joined(2)], joined(3), Info);
        check_kind(&[joined(1), ended("completed")], left(1, 0), Info);
        check_kind(&[joined(1), left(1, 2), RunEvent::Started { incarnation: 2, step: 1 }], joined(1), Info);
        for outcome in ["completed", "stopped"] {
            check_kind(&[], ended(outcome), Info);
        }
        for outcome in ["diverged", "nobody came", "disk full"] {
            check_kind(&[], ended(outcome), Fault);
        }
        let (identity, host) = ("::1".to_owned(), "alpha".to_owned());
        check_kind(&[], RunEvent::WorkerEvicted { worker: 1, identity, host, process: 7, reason: reason() }, Fault);
        check_kind(&[], RunEvent::TaskLate { step: 3, task: 1, worker: 1, helper: 2, milliseconds: 40 }, Fault);
        check_kind(&[], RunEvent::ReplicaResent { worker: 1, reason: reason() }, Fault);
        check_kind(&[], RunEvent::ResultRefused { worker: 1, reason: reason() }, Fault);
        check_kind(&[], RunEvent::ComputeClassAdded { class: "avx2".to_owned(), n_classes: 2 }, Info);
        check_kind(&[], RunEvent::Waiting, Fault);
        check_kind(&[RunEvent::Waiting], RunEvent::Continuing, Recovery);
        for (event, kind) in [
            (MirrorEvent::Failing { reason: reason() }, Fault),
            (MirrorEvent::Behind { local: Some(2), mirrored: None }, Fault),
            (MirrorEvent::GivenUp { reason: reason() }, Fault),
            (MirrorEvent::CaughtUp { mirrored: Some(2) }, Recovery),
            (MirrorEvent::Ahead { mirrored: 9 }, Info),
            (MirrorEvent::Finishing { n_files: 2 }, Info),
        ] {
            check_kind(&[], RunEvent::Mirror(event), kind);
        }
    }

    #[test]
    fn faults_are_counted_and_lines_bounded() {
        let late = || RunEvent::TaskLate { step: 3, task: 1, worker: 1, helper: 2, milliseconds: 40 };
        let resent = RunEvent::ReplicaResent { worker: 1, reason: "lost".to_owned() };
        let refused = RunEvent::ResultRefused { worker: 1, reason: "stale".to_owned() };
        let summary =
            summary([joined(1), resent, refused, RunEvent::Waiting].into_iter().chain((0..600).map(|_| late())));
        let Faults { n_resent, n_refused, n_waits, n_late, .. } = summary.faults;
        assert_eq!((n_resent, n_refused, n_waits, n_late), (1, 1, 1, 600));
        assert_eq!((summary.workers[&1].n_late, summary.is_waiting), (600, true));
        assert_eq!((summary.event_lines.len(), summary.event_lines[0].time), (EVENT_LINES_MAX, 105.0)); // 604 - 500 + 1
        assert_eq!(summary.version, 604);
    }

    #[test]
    fn deliberate_stop_is_no_restart() {
        let started = |incarnation: u64| RunEvent::Started { incarnation, step: 9 };
        let ended = || RunEvent::Ended { outcome: "stopped".to_owned(), step: 9 };
        let mut found = summary([started(1), ended()]);
        // As the coordinator does before it goes on: what it says then has no result any more.
        found.describe(json!({ "result": { "outcome": "stopped" } }));
        found.describe(json!({}));
        found.apply(&RecordedEvent { time: 3.0, event: started(2) });
        assert_eq!(found.faults.n_restarts, 0);
        found.apply(&RecordedEvent { time: 4.0, event: started(3) });
        assert_eq!(found.faults.n_restarts, 1, "process 2 was killed");
    }

    #[test]
    fn step_ends_waiting() {
        assert!(!summary([RunEvent::Waiting, step(1, 0.5)]).is_waiting);
    }

    #[test]
    fn repeated_refusals_share_line_with_count() {
        let refused = |worker: u64, n: u64| RunEvent::ResultRefused { worker, reason: format!("stale, of step {n}") };
        let resent = |worker: u64| RunEvent::ReplicaResent { worker, reason: "lost".to_owned() };
        let flood = (0..1000).flat_map(|n| [refused(1, n), resent(1), refused(2, n), step(n + 1, 0.5)]);
        let summary = summary([joined(1)].into_iter().chain(flood).chain([joined(3), refused(1, 7)]));
        let texts: Vec<&str> = summary.event_lines.iter().skip(1).map(|line| line.text.as_str()).collect();
        assert_eq!(
            [texts[0], texts[1], texts[2], texts[4]],
            [
                "a message of worker 1 was not used: stale, of step 999 (1000 times)",
                "worker 1 is sent its replica again: lost (1000 times)",
                "a message of worker 2 was not used: stale, of step 999 (1000 times)",
                "a message of worker 1 was not used: stale, of step 7",
            ]
        );
        assert_eq!((texts.len(), summary.faults.n_refused), (5, 2001));
    }

    #[test]
    fn resume_from_earlier_checkpoint_drops_later_pictures() {
        let mut summary = summary([epoch(1, 10, 0.5), step(11, 0.4), epoch(2, 20, 0.4), step(20, 0.4)]);
        for epoch in 1..=3 {
            summary.add_picture(epoch, format!("epoch-{epoch:02}.png"));
        }
        summary.apply(&RecordedEvent { time: 9.0, event: step(11, 0.4) });
        assert_eq!(summary.pictures, [(1, "epoch-01.png".to_owned())]);
        summary.apply(&RecordedEvent { time: 9.0, event: step(1, 0.4) });
        assert!(summary.pictures.is_empty());
    }

    #[test]
    fn clone_shares_snapshots_and_epochs() {
        let summary = summary([epoch(1, 10, 0.5), snapshot(&[(1, 4)])]);
        let clone = summary.clone();
        assert!(Arc::ptr_eq(&clone.epochs[0], &summary.epochs[0]));
        assert!(Arc::ptr_eq(&clone.snapshots[0].1, &summary.snapshots[0].1));
    }

    #[test]
    fn description_gives_sizes_names_and_outcome() {
        let mut summary = Summary::default();
        let recipe = json!({ "epochs": 20 });
        summary.describe(json!({ "program": "coordinator", "recipe": recipe }));
        assert_eq!((summary.n_steps, summary.n_epochs, summary.samples.as_str()), (0, 20, "samples"));
        summary.describe(json!({ "n_steps": 34_380, "samples": "images", "recipe": recipe }));
        assert_eq!((summary.n_steps, summary.n_epochs, summary.samples.as_str()), (34_380, 20, "images"));
        assert_eq!(summary.outcome, None);
        summary.describe(json!({ "recipe": recipe, "result": { "outcome": "completed", "error": null } }));
        assert_eq!(summary.outcome.as_deref(), Some("completed"));
        summary.describe(json!({ "recipe": recipe }));
        assert_eq!(summary.outcome, None, "the run was resumed");
        for (result, outcome) in [
            (json!({ "outcome": "diverged", "error": "step 7: the loss is NaN" }), "step 7: the loss is NaN"),
            (json!({ "step": 9, "interrupted": true }), "stopped"),
            (json!({ "step": 9, "interrupted": false }), "completed"),
            (json!({ "step": 9, "error": "disk full" }), "disk full"),
        ] {
            summary.describe(json!({ "result": result }));
            assert_eq!(summary.outcome.as_deref(), Some(outcome));
        }
    }

    #[test]
    fn pictures_are_in_order_of_epochs() {
        let mut summary = Summary::default();
        for epoch in [3, 1, 2, 3] {
            summary.add_picture(epoch, format!("epoch-{epoch:02}.png"));
        }
        let names: Vec<&str> = summary.pictures.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["epoch-01.png", "epoch-02.png", "epoch-03.png"]);
    }
}
