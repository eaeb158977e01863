//! How a step went and how the workers are, about once a second: enough for a timeline of a run, however long.

use serde::{Deserialize, Serialize};

use crate::costs::StepCosts;

/// One step's course, and the workers at its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Updates applied, this one included.
    pub step: u64,
    /// How long the step took.
    pub milliseconds: f64,
    /// Where its time went, in milliseconds.
    pub costs: StepCosts,
    /// When its shards were computed, by shard.
    pub tasks: Vec<TaskSpan>,
    /// The workers that take part, by number.
    pub workers: Vec<WorkerStatus>,
}

/// When a shard was computed, in milliseconds from the step's beginning by the coordinator's clock: `assigned` ≤ `started` ≤
/// `finished` ≤ `arrived`. What a worker says by its own clock is aligned by the round trips of its messages.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskSpan {
    /// The shard's position in the step, from 0.
    pub shard: u32,
    /// The worker whose result counted; 0 is the coordinator.
    pub worker: u64,
    /// The coordinator assigned it to the worker.
    pub assigned: f64,
    /// It began.
    pub started: f64,
    /// It had the result.
    pub finished: f64,
    /// The coordinator had it.
    pub arrived: f64,
}

/// How a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Which.
    pub worker: u64,
    /// Milliseconds since it was last heard of.
    pub silent_milliseconds: f64,
    /// Shards of its that counted so far.
    pub n_shards: u64,
    /// Tasks of its that were late so far.
    pub n_late: u64,
}
