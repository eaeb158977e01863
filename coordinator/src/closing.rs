//! The sessions that are open when the run is over: they are closed when its last files are on the disk, and not before. A
//! worker whose session is closed too early ends for good, and none is left to compute what a failure at the end has lost.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::v1::coordinator_message::Kind;
use proto::v1::{Close, CloseReason};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, info};

use crate::input::Input;
use crate::outbox::Outbox;
use crate::training::{Event, Outcome, WorkerId};

/// How long a coordinator that finds its run complete waits for workers, to tell them so: for a probe to find it ready, a
/// name to be resolved, and the longest pause of a worker between two attempts, which is 2 s.
const AWAIT_MAX: Duration = Duration::from_secs(15);

/// The sessions that are open when the run is over.
#[derive(Debug)]
pub struct OpenSessions {
    inputs: mpsc::Receiver<Input>,
    outboxes: BTreeMap<WorkerId, Outbox>,
    /// Ends the wait for workers that have not joined yet.
    stop: CancellationToken,
}

/// What all sessions are closed with.
#[derive(Clone, Debug)]
pub struct EndNotice {
    close_reason: CloseReason,
    reason: &'static str,
    /// Workers to wait for that have not joined yet.
    n_awaited: usize,
}

/// The task that closes the sessions, once the notice is there.
#[derive(Debug)]
pub struct CloseTask {
    notice: Option<oneshot::Sender<EndNotice>>,
    task: JoinHandle<()>,
}

impl EndNotice {
    /// For local workers, which end with the coordinator whatever the run came to.
    pub fn of_local_workers() -> Self {
        Self { close_reason: CloseReason::End, reason: "the run is over", n_awaited: 0 }
    }

    /// For workers that others started, by how the run ended, and whether its last files were written.
    pub fn of(outcome: &Outcome, are_files_written: bool) -> Self {
        let (close_reason, reason) = match outcome {
            Outcome::Completed if are_files_written => (CloseReason::End, "the run is complete"),
            Outcome::Completed => (CloseReason::ComeBack, "the coordinator could not write the run's last files"),
            Outcome::Stopped => (CloseReason::ComeBack, "the coordinator is stopped; the run may be resumed"),
            Outcome::NobodyCame | Outcome::Diverged { .. } => (CloseReason::End, "the run has failed"),
        };
        Self { close_reason, reason, n_awaited: 0 }
    }

    /// For a run that was complete when it was resumed: so many workers may still look for it, and would for long.
    #[must_use]
    pub fn awaiting(self, n_awaited: usize) -> Self {
        let n_awaited = if self.close_reason == CloseReason::End { n_awaited } else { 0 };
        Self { n_awaited, ..self }
    }

    /// Closes a session.
    pub fn send(&self, outbox: &Outbox) {
        let Self { close_reason, reason, .. } = self;
        // Without effect on a worker that takes no messages or has left: it finds no coordinator when it connects again.
        let _ = outbox.send(Kind::Close(Close { close_reason: (*close_reason).into(), reason: (*reason).to_owned() }));
    }
}

impl CloseTask {
    /// Lets the workers go. Only the first notice counts.
    pub fn decide(&mut self, notice: EndNotice) {
        if let Some(sender) = self.notice.take() {
            // The task waits for it.
            let _ = sender.send(notice);
        }
    }

    /// Waits until every session is closed.
    ///
    /// # Errors
    /// If the task has failed.
    pub async fn finish(self) -> Result<(), JoinError> {
        drop(self.notice);
        self.task.await
    }
}

impl OpenSessions {
    /// The sessions that are to be closed, and where all that sessions say arrives.
    pub fn new(inputs: mpsc::Receiver<Input>, outboxes: BTreeMap<WorkerId, Outbox>, stop: CancellationToken) -> Self {
        Self { inputs, outboxes, stop }
    }

    /// Starts the task, which logs in `span`.
    pub fn close_when_decided(self, span: &Span) -> CloseTask {
        let (notice, decided) = oneshot::channel();
        CloseTask { notice: Some(notice), task: tokio::spawn(self.close(decided).instrument(span.clone())) }
    }

    /// Waits for the notice, and closes every session with it, then those of awaited workers as they join, for at most 15 s or until
    /// the run is asked to end.
    async fn close(mut self, mut notice: oneshot::Receiver<EndNotice>) {
        // Ends with the notice, which is sent or dropped.
        let notice = loop {
            tokio::select! {
                notice = &mut notice => match notice {
                    Ok(notice) => break notice,
                    Err(_) => return,
                },
                Some(input) = self.inputs.recv() => match input {
                    Input::Joined(worker_id, _, outbox) => drop(self.outboxes.insert(worker_id, outbox)),
                    Input::Happened(Event::Lost(worker_id, _)) => drop(self.outboxes.remove(&worker_id)),
                    // Results of a run that is over are of no use.
                    Input::Ready(..) | Input::ShardDone(..) | Input::Happened(_) => {}
                },
            }
        };
        for outbox in self.outboxes.values() {
            notice.send(outbox);
        }
        let mut n_closed = self.outboxes.len();
        self.outboxes.clear();
        let deadline = Instant::now() + AWAIT_MAX;
        if notice.n_awaited > 0 {
            info!(seconds = AWAIT_MAX.as_secs(), "waiting for workers, to tell them that the run is over");
        }
        while n_closed < notice.n_awaited {
            let input = tokio::select! {
                input = timeout_at(deadline, self.inputs.recv()) => input,
                () = self.stop.cancelled() => return,
            };
            match input {
                Ok(Some(Input::Joined(_, _, outbox))) => {
                    notice.send(&outbox);
                    n_closed += 1;
                }
                Ok(None) | Err(_) => return,
                Ok(Some(Input::Ready(..) | Input::ShardDone(..) | Input::Happened(_))) => {}
            }
        }
    }
}
