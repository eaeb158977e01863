//! The events that the core handles.

use std::time::Duration;

use engine::shard::ShardResult;
use engine::sums::Sums;

use super::roster::{Profile, WorkerId};
use super::round::TaskKind;

/// What happened outside.
#[derive(Debug)]
pub enum Event {
    /// A worker introduced itself.
    Joined(WorkerId, Profile),
    /// It has the data set and wants the state.
    Ready(WorkerId),
    /// It computed a shard.
    ShardDone(WorkerId, ShardDone),
    /// It evaluated a batch.
    BatchDone(WorkerId, BatchDone),
    /// Its replica is not what it should be.
    Lagging(WorkerId, String),
    /// It wants to go.
    Leaving(WorkerId, String),
    /// A heartbeat, with how many updates its replica has.
    Heartbeat(WorkerId, u64),
    /// It is gone.
    Lost(WorkerId, String),
    /// The coordinator has computed a task, as [`Action::ComputeTask`](super::Action::ComputeTask) asks it to.
    OwnTaskDone(OwnTaskDone),
    /// The run is to end.
    Stop,
}

/// A shard's result, as it came.
#[derive(Debug)]
pub struct ShardDone {
    /// Updates applied to the parameters that it was computed on.
    pub step: u64,
    /// Position in the step.
    pub shard: u32,
    /// What came out.
    pub computed: Computed,
    /// Euclidean norm of the gradient, if it is finite.
    pub gradient_norm: f64,
    /// [`params_fingerprint`](engine::params::params_fingerprint) of the parameters that it was computed on.
    pub params_fingerprint: u64,
    /// How long the worker computed.
    pub compute: Duration,
}

/// What came out of a shard.
#[derive(Debug)]
pub enum Computed {
    /// Numbers, every one finite, as many as there are parameters.
    Finite(ShardResult),
    /// NaN or infinity, in the loss or the gradient.
    NotFinite(&'static str),
    /// A gradient that is none of these parameters.
    WrongLength {
        /// Bytes that there should be.
        expected: usize,
        /// Those that there are.
        found: usize,
    },
}

/// A batch's result, as it came.
#[derive(Debug)]
pub struct BatchDone {
    /// Updates applied to the parameters that were evaluated.
    pub step: u64,
    /// Position in the validation split.
    pub batch: u32,
    /// What came out.
    pub sums: Sums,
    /// [`params_fingerprint`](engine::params::params_fingerprint) of the parameters that it was computed on.
    pub params_fingerprint: u64,
}

/// A task's result as the coordinator itself computed it.
#[derive(Debug)]
pub struct OwnTaskDone {
    /// Updates applied to the parameters that it was computed on.
    pub step: u64,
    /// What the task is.
    pub kind: TaskKind,
    /// Its position in the step, or in the validation split.
    pub task: u32,
    /// What came out; of a batch without a gradient.
    pub result: ShardResult,
}
