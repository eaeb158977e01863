//! What happens in a run: a line of `events.jsonl`, unless it is a step or an epoch, which have files of their own.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::epoch::EpochRecord;
use crate::snapshot::Snapshot;
use crate::step::StepEvent;

/// How long a checkpoint may be missing at the mirror before the mirror is called late.
pub const MIRROR_LAG_MAX: Duration = Duration::from_mins(1);

/// Something that happened in a run. As JSON it is an object whose key `event` names the variant. Workers are numbered from 1 in the
/// life of a coordinator's process; 0 is the coordinator itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum RunEvent {
    /// An update was applied.
    Step(StepEvent),
    /// An epoch, or what was trained of it, was validated.
    Epoch(EpochRecord),
    /// How a step went and how the workers are, about once a second.
    Snapshot(Snapshot),
    /// A process of the run's coordinator begins.
    Started {
        /// Which process of the run this is, from 1.
        incarnation: u64,
        /// Updates applied by those before.
        step: u64,
    },
    /// It ends.
    Ended {
        /// How: `completed`, `stopped`, or what it failed with.
        outcome: String,
        /// Updates applied.
        step: u64,
    },
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

/// A message about the mirror.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// An event, and when it happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordedEvent {
    /// Seconds since 1970, in UTC, to the millisecond.
    pub time: f64,
    /// What happened.
    #[serde(flatten)]
    pub event: RunEvent,
}

/// The time now as [`RecordedEvent::time`] has it.
pub fn seconds_since_1970() -> f64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (time.as_secs_f64() * 1e3).round() / 1e3
}

impl RunEvent {
    /// One line for people, if there is something to say to them: steps, epochs and snapshots are shown otherwise.
    pub fn describe(&self) -> Option<String> {
        Some(match self {
            Self::Step(_) | Self::Epoch(_) | Self::Snapshot(_) => return None,
            Self::Started { incarnation: 1, .. } => "the run begins".to_owned(),
            Self::Started { incarnation, step } => {
                format!("the run goes on after step {step}, in its process {incarnation}")
            }
            Self::Ended { outcome, step } => format!("the run ends after step {step}: {outcome}"),
            Self::WorkerJoined { worker, host, process, backend, n_threads, n_active, .. } => {
                let threads = if *n_threads == 1 { "thread" } else { "threads" };
                format!(
                    "worker {worker} joined: {host}, process {process}, {backend}, {n_threads} {threads}; {}",
                    there_are(*n_active)
                )
            }
            Self::WorkerLeft { worker, reason, n_active, n_reassigned } => {
                let reassigned = match n_reassigned {
                    0 => String::new(),
                    1 => ", 1 task reassigned".to_owned(),
                    n => format!(", {n} tasks reassigned"),
                };
                format!("worker {worker} left: {reason}{reassigned}; {}", there_are(*n_active))
            }
            Self::WorkerEvicted { worker, host, process, reason, .. } => {
                format!("worker {worker} evicted ({host}, process {process}): {reason}")
            }
            Self::TaskLate { step, task, worker, helper, milliseconds } => format!(
                "worker {worker} is late with task {task} of step {}: worker {helper} computes it too, after {milliseconds} ms",
                step + 1
            ),
            Self::ReplicaResent { worker, reason } => format!("worker {worker} is sent its replica again: {reason}"),
            Self::ResultRefused { worker, reason } => format!("a message of worker {worker} was not used: {reason}"),
            Self::ComputeClassAdded { class, n_classes } => {
                format!("compute class {n_classes} takes part, {class}: bits may depend on which worker computes what")
            }
            Self::Waiting => "waiting: no worker is there; the run goes on when one joins".to_owned(),
            Self::Continuing => "going on: a worker is there".to_owned(),
            Self::Mirror(event) => event.to_string(),
        })
    }
}

/// As people read it: `4 workers take part`.
fn there_are(n_active: usize) -> String {
    match n_active {
        0 => "no worker takes part".to_owned(),
        1 => "1 worker takes part".to_owned(),
        n => format!("{n} workers take part"),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_line_is_read_as_it_was_written() {
        let snapshot = Snapshot { step: 3, milliseconds: 1.25, ..Snapshot::default() };
        for event in [
            RunEvent::Started { incarnation: 2, step: 40 },
            RunEvent::Snapshot(snapshot),
            RunEvent::Waiting,
            RunEvent::Mirror(MirrorEvent::Behind { local: Some(3), mirrored: None }),
            RunEvent::WorkerLeft { worker: 2, reason: "it closed".to_owned(), n_active: 1, n_reassigned: 2 },
        ] {
            let recorded = RecordedEvent { time: 1_790_000_000.125, event };
            let line = serde_json::to_string(&recorded).expect("JSON");
            assert_eq!(serde_json::from_str::<RecordedEvent>(&line).expect("an event"), recorded, "{line}");
        }
    }
}
