//! What there is to show of a run, in bounded memory: made from its events as they happen, or from the files of its folder.

use std::collections::{BTreeMap, VecDeque};

use events::{EpochRecord, RecordedEvent, RunEvent, Snapshot, StepRecord};
use serde_json::Value;

use crate::series::Series;

/// Epochs that are kept; of a longer run the newest.
pub const EPOCHS_MAX: usize = 10_000;
/// Lines of what happened that are kept; of more the newest.
pub const HAPPENINGS_MAX: usize = 500;
/// Snapshots that are kept, for the timeline: two minutes.
pub const SNAPSHOTS_MAX: usize = 120;
/// Workers that have left and are still listed; the newest.
pub const LEFT_WORKERS_MAX: usize = 32;

/// A run as it is by now.
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
    pub epochs: VecDeque<EpochRecord>,
    /// All workers that take part, and the last that have left, by number.
    pub workers: BTreeMap<u64, Worker>,
    /// The newest snapshots, each with its time.
    pub snapshots: VecDeque<(f64, Snapshot)>,
    /// What happened, each line with its time in seconds since 1970: see [`RunEvent::describe`].
    pub happenings: VecDeque<Happening>,
    /// Time of the newest event, in seconds since 1970; 0 before the first.
    pub time: f64,
    /// How the run ended, if it has.
    pub outcome: Option<String>,
    /// Whether the run waits for workers.
    pub is_waiting: bool,
    /// Counts of what went wrong and was recovered from.
    pub faults: Faults,
    /// Names of the pictures in the run's folder, by epoch: `(epoch, file name)`.
    pub pictures: Vec<(u32, String)>,
}

/// A line of what happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Happening {
    /// Seconds since 1970.
    pub time: f64,
    /// How it is shown.
    pub kind: HappeningKind,
    /// The line.
    pub text: String,
}

/// How a line of what happened is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HappeningKind {
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
    /// Processes of the coordinator before this one.
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
    /// Takes in what happened.
    pub fn apply(&mut self, recorded: &RecordedEvent) {
        let _ = (recorded, RunEvent::Waiting);
        todo!("written by whoever writes this file")
    }

    /// Takes in `run.json`, as it was written at the start and, with the result, at the end.
    pub fn describe(&mut self, _description: Value) {
        todo!("written by whoever writes this file")
    }
}
