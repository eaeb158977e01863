//! The workers that are there when the run is over: they are dismissed when its last files are on the disk, and not before.
//! A worker that is told too early ends for good, and nobody is left to compute what a failure at the end has lost.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::v1::coordinator_message::Kind;
use proto::v1::{Dismissal, Farewell};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tracing::info;

use crate::driver::Input;
use crate::server::Outbox;
use crate::training::{Event, WorkerId};

/// How long a coordinator that finds its run complete waits for workers, to tell them so: for a probe to find it ready, a
/// name to be resolved, and the longest pause of a worker between two attempts, which is 2 s.
const LATECOMER_WAIT_MAX: Duration = Duration::from_secs(15);

/// The sessions that are open when the run is over.
#[derive(Debug)]
pub struct Audience {
    inputs: mpsc::Receiver<Input>,
    outboxes: BTreeMap<WorkerId, Outbox>,
}

/// What the workers are told.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Whether they end or look for the next coordinator.
    pub farewell: Farewell,
    /// Why, for people.
    pub reason: String,
    /// Workers to wait for that have not joined yet.
    pub n_latecomers: usize,
}

impl Audience {
    /// The sessions whose workers are to be dismissed, and where all that sessions say arrives.
    pub fn new(inputs: mpsc::Receiver<Input>, outboxes: BTreeMap<WorkerId, Outbox>) -> Self {
        Self { inputs, outboxes }
    }

    /// Waits for the verdict, and dismisses everybody with it; then the latecomers, for at most 15 s or until the run is asked
    /// to end.
    pub async fn dismiss(mut self, mut verdict: oneshot::Receiver<Verdict>) {
        // Ends with the verdict, which is sent or dropped.
        let verdict = loop {
            tokio::select! {
                verdict = &mut verdict => match verdict {
                    Ok(verdict) => break verdict,
                    Err(_) => return,
                },
                Some(input) = self.inputs.recv() => match input {
                    Input::Joined(worker_id, _, outbox) => drop(self.outboxes.insert(worker_id, outbox)),
                    Input::Happened(Event::Lost(worker_id, _)) => drop(self.outboxes.remove(&worker_id)),
                    // A signal ends the wait for latecomers below; results of a run that is over are of no use.
                    Input::Ready(..) | Input::ShardDone(..) | Input::Happened(_) => {}
                },
            }
        };
        for outbox in self.outboxes.values() {
            send(outbox, &verdict);
        }
        self.outboxes.clear();
        let deadline = Instant::now() + LATECOMER_WAIT_MAX;
        let mut n_dismissed = 0;
        if verdict.n_latecomers > 0 {
            info!(seconds = LATECOMER_WAIT_MAX.as_secs(), "waiting for workers, to tell them that the run is over");
        }
        while n_dismissed < verdict.n_latecomers {
            match timeout_at(deadline, self.inputs.recv()).await {
                Ok(Some(Input::Joined(_, _, outbox))) => {
                    send(&outbox, &verdict);
                    n_dismissed += 1;
                }
                Ok(Some(Input::Happened(Event::Stop)) | None) | Err(_) => return,
                Ok(Some(Input::Ready(..) | Input::ShardDone(..) | Input::Happened(_))) => {}
            }
        }
    }
}

fn send(outbox: &Outbox, verdict: &Verdict) {
    let Verdict { farewell, reason, .. } = verdict;
    // One that does not take its messages, or is gone, finds nobody later.
    let _ = outbox.send(Kind::Dismissal(Dismissal { farewell: (*farewell).into(), reason: reason.clone() }));
}
