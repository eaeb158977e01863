//! What happens in a run, as everyone outside the training core gets it: files, screen, log and programs.

use std::fmt;
use std::time::Duration;

use engine::report::{EpochRecord, StepRecord};
use serde::Serialize;

use crate::costs::StepCosts;

/// How long a checkpoint may be missing at the mirror before the mirror is called late.
pub const MIRROR_LAG_MAX: Duration = Duration::from_mins(1);

/// Something that happened in a run. As JSON it is an object whose key `event` names the variant. Workers are numbered from 1 in the
/// life of a coordinator's process; 0 is the coordinator itself.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum RunEvent {
    /// An update was applied.
    Step(StepEvent),
    /// An epoch, or what was trained of it, was validated.
    Epoch(EpochRecord),
    /// A worker takes part.
    WorkerJoined {
        /// Which.
        worker: u64,
        /// Its connection, as the system names it.
        identity: String,
        /// Its machine.
        host: String,
        /// Its process there.
        process: u32,
        /// What computes.
        backend: String,
        /// Threads that it computes with.
        n_threads: u32,
        /// Workers that take part.
        n_active: usize,
    },
    /// A worker has left.
    WorkerLeft {
        /// Which.
        worker: u64,
        /// Why.
        reason: String,
        /// Workers that take part.
        n_active: usize,
        /// Tasks that it had and that others compute now.
        n_reassigned: usize,
    },
    /// A worker is evicted, since what it computes is wrong; a `WorkerLeft` follows.
    WorkerEvicted {
        /// Which.
        worker: u64,
        /// Its connection, as the system names it.
        identity: String,
        /// Its machine.
        host: String,
        /// Its process there.
        process: u32,
        /// What was wrong.
        reason: String,
    },
    /// A task is assigned to one more worker, since the one that has it is late.
    TaskLate {
        /// Updates applied.
        step: u64,
        /// The shard, or the batch.
        task: u32,
        /// The worker that has not answered.
        worker: u64,
        /// The worker that computes it too.
        helper: u64,
        /// How long the first one was waited for.
        milliseconds: u64,
    },
    /// A worker's replica is sent again.
    ReplicaResent {
        /// Which.
        worker: u64,
        /// Why.
        reason: String,
    },
    /// A message of a worker was not used.
    ResultRefused {
        /// Which.
        worker: u64,
        /// Why.
        reason: String,
    },
    /// Another compute class takes part, so that bits may depend on who computes what.
    ComputeClassAdded {
        /// The new one.
        class: String,
        /// How many take part.
        n_classes: usize,
    },
    /// No worker is there.
    Waiting,
    /// A worker is there again.
    #[serde(rename = "going on")]
    Continuing,
    /// Something about the mirror.
    Mirror(MirrorEvent),
}

/// An update: a line of `steps.jsonl`.
#[derive(Clone, Debug, Serialize)]
pub struct StepEvent {
    /// Its figures.
    #[serde(flatten)]
    pub record: StepRecord,
    /// The worker that computed each shard.
    pub workers: Vec<u64>,
    /// Workers that take part.
    pub n_active: usize,
    /// Where its time went, in milliseconds.
    pub costs: StepCosts,
}

/// A message about the mirror.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum MirrorEvent {
    /// An upload has failed, and is tried again until it succeeds.
    Failing {
        /// What the store says.
        reason: String,
    },
    /// The newest checkpoint has been missing at the mirror for too long.
    Behind {
        /// The step of the newest checkpoint in the run folder.
        #[serde(rename = "local_step")]
        local: Option<u64>,
        /// The step of the newest one at the mirror.
        #[serde(rename = "step")]
        mirrored: Option<u64>,
    },
    /// After one of the former: the mirror is in time again.
    #[serde(rename = "caught up")]
    CaughtUp {
        /// The step of its newest checkpoint.
        #[serde(rename = "step")]
        mirrored: Option<u64>,
    },
    /// The mirror has a later checkpoint of this run than the run folder.
    Ahead {
        /// Its step.
        #[serde(rename = "step")]
        mirrored: u64,
    },
    /// Nothing is uploaded any more.
    #[serde(rename = "given up")]
    GivenUp {
        /// Why.
        reason: String,
    },
    /// The run is over, and the mirror is still missing files.
    Finishing {
        /// How many.
        n_files: usize,
    },
}

impl fmt::Display for MirrorEvent {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let checkpoint = |step: &Option<u64>| step.map_or("no checkpoint".to_owned(), |step| format!("step {step}"));
        match self {
            Self::Failing { reason } => {
                write!(out, "mirror: an upload failed, and is tried again until it succeeds: {reason}")
            }
            Self::Behind { local, mirrored } => write!(
                out,
                "mirror: behind for more than {} s: it has {}, the run folder {}",
                MIRROR_LAG_MAX.as_secs(),
                checkpoint(mirrored),
                checkpoint(local)
            ),
            Self::CaughtUp { mirrored } => write!(out, "mirror: caught up; it has {}", checkpoint(mirrored)),
            Self::Ahead { mirrored } => write!(
                out,
                "mirror: it has a later checkpoint of this run, of step {mirrored}; files are uploaded when the run is as far"
            ),
            Self::GivenUp { reason } => write!(out, "mirror: nothing more is uploaded: {reason}"),
            Self::Finishing { n_files } => write!(out, "mirror: {n_files} files to upload; Ctrl-C ends the wait"),
        }
    }
}
