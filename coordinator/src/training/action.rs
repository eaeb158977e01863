//! What the core wishes.

use std::collections::BTreeMap;
use std::fmt;

use super::report::Report;
use super::roster::WorkerId;
use super::schedule::SchedulePosition;

/// What the core wishes to be done, in this order.
#[derive(Debug)]
pub enum Action {
    /// Welcome a worker that joined.
    Welcome(WorkerId),
    /// Send a worker the state, and what to compute on it.
    SendState(WorkerId, Work),
    /// Send every worker named the update that was just applied, and what to compute next.
    SendUpdate {
        /// The averaged gradient.
        gradient: Vec<f32>,
        /// What each has to compute.
        work: BTreeMap<WorkerId, Work>,
    },
    /// Send a worker more to compute.
    SendWork(WorkerId, Work),
    /// Tell a worker that something it sent was not used.
    Refuse(WorkerId, ResultRefusal),
    /// Close a worker's session.
    Close(WorkerId, CloseReason, String),
    /// Compute a task in this process, on the parameters as they are now, and say what comes out.
    ComputeTask(Work),
    /// Keep the state as it is now.
    Checkpoint,
    /// Tell those who watch.
    Report(Report),
    /// Let this be the end.
    Finish(Outcome),
}

/// Why a session is closed, and so whether its worker should come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// It should end, as soon as what the run came to is kept.
    End,
    /// It may join anew.
    ComeBack,
    /// It should end: it is of no use as it is.
    Refused,
    /// It should end: what it computes is wrong.
    Evicted,
}

/// What a worker has to compute, in order, on the parameters after `step` updates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Nothing: it stands by.
    Nothing,
    /// Shards of a step.
    Shards {
        /// Updates applied to the parameters.
        step: u64,
        /// Where the step lies.
        position: SchedulePosition,
        /// Which of them.
        shards: Vec<u32>,
    },
    /// Batches of the validation split.
    Batches {
        /// Updates applied to the parameters.
        step: u64,
        /// Which of them.
        batches: Vec<u32>,
    },
}

/// Why something a worker sent was not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResultRefusal {
    /// It is of another step.
    #[error("expected results of step {expected}, found one of step {found}")]
    Stale {
        /// The step at hand.
        expected: u64,
        /// That of the result.
        found: u64,
    },
    /// It came before.
    #[error("expected one result for task {task} of step {step}, found a second one")]
    Duplicate {
        /// The step at hand.
        step: u64,
        /// The shard, or the batch.
        task: u32,
    },
    /// The worker does not have to compute it: it was never dealt it, or has answered.
    #[error(
        "expected results of tasks that the worker has to compute, found one of task {task} of step {step}, which it has not"
    )]
    NotDealt {
        /// The step at hand.
        step: u64,
        /// The shard, or the batch.
        task: u32,
    },
    /// There is no such shard or batch now.
    #[error("expected a task of step {step}, found task {task}, which there is none")]
    NoSuchTask {
        /// The step at hand.
        step: u64,
        /// The shard, or the batch.
        task: u32,
    },
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As the recipe says.
    Completed,
    /// It was asked to.
    Stopped,
    /// No worker came in time.
    NobodyCame,
    /// A number is not finite.
    Diverged {
        /// The step, counted from 1.
        step: u64,
        /// The epoch, counted from 0.
        epoch: u32,
        /// Which number.
        what: String,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Completed => "completed",
            Self::Stopped => "stopped",
            Self::NobodyCame => "nobody came",
            Self::Diverged { .. } => "diverged",
        })
    }
}
