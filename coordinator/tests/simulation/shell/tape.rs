//! What the driver works with in a simulation: a clock that stands still meanwhile, the other ends of its outboxes, and a tape of
//! all that it sends and has done, in its order.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use coordinator::driver::Environment;
use coordinator::observe::{Entry, ObserverStopped};
use coordinator::outbox::{Outbox, OutboxSender, OutboxStream, outbox};
use coordinator::peer::{Peer, PeerAddress};
use coordinator::training::{State, Work, WorkerId};
use proto::limits::OUTBOX_MESSAGES_MAX;
use proto::v1::coordinator_message::Kind;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Looks at the clock between two inputs: some for each thing that is done.
const LOOKS_MAX: u32 = 10_000;

/// The driver's environment.
#[derive(Default)]
pub struct Tape {
    now: Duration,
    n_looks: Cell<u32>,
    lines: BTreeMap<WorkerId, Line>,
    noted: Vec<Noted>,
}

/// Something that the driver did.
#[derive(Debug)]
pub enum Noted {
    Sent(WorkerId, Kind),
    /// A worker's outbox was dropped, and its session ends with that.
    Closed(WorkerId),
    /// A message was for a worker that is out.
    Dropped(WorkerId, Kind),
    Recorded(Entry),
    Checkpoint(State),
    Journal(State),
    Compute(Work, Vec<f32>),
}

/// The session's end of an outbox.
struct Line {
    sender: OutboxSender,
    /// Nothing if the connection is gone.
    stream: Option<OutboxStream>,
    /// Whether messages are not taken out.
    is_full: bool,
    closed: CancellationToken,
}

impl Tape {
    /// What happens from here on happens at this time.
    pub fn set_time(&mut self, now: Duration) {
        self.now = now;
        self.n_looks.set(0);
    }

    /// The outbox of a new session.
    pub fn open(&mut self, worker_id: WorkerId, process: u32, n_params: usize) -> Outbox {
        let (sender, stream) = outbox(n_params);
        let address = PeerAddress::Unix { process: Some(process), user: 0 };
        let (peer, closed) = (Peer { address, is_on_this_machine: true, certificate: None }, CancellationToken::new());
        let opened = Outbox::new(peer, None, sender.clone(), closed.clone());
        self.lines.insert(worker_id, Line { sender, stream: Some(stream), is_full: false, closed });
        opened
    }

    /// A session has ended by itself.
    pub fn forget(&mut self, worker_id: WorkerId) {
        self.lines.remove(&worker_id);
    }

    /// The next message to a worker finds no room.
    pub fn fill(&mut self, worker_id: WorkerId) {
        let Some(line) = self.lines.get_mut(&worker_id).filter(|line| !line.is_full) else { return };
        line.is_full = true;
        (0..OUTBOX_MESSAGES_MAX).for_each(|_| line.sender.end(Status::unavailable("it waits for nobody")));
    }

    /// The connection of a worker is gone, which the driver notices with the next message to it, if not before.
    pub fn cut(&mut self, worker_id: WorkerId) {
        if let Some(line) = self.lines.get_mut(&worker_id) {
            line.stream = None;
        }
    }

    /// What was noted since the last time.
    pub fn take(&mut self) -> Vec<Noted> {
        self.collect();
        std::mem::take(&mut self.noted)
    }

    fn note(&mut self, noted: Noted) {
        self.collect();
        self.noted.push(noted);
    }

    /// Takes what is in the outboxes.
    fn collect(&mut self) {
        let Self { lines, noted, .. } = self;
        lines.retain(|&worker_id, line| {
            let messages = std::iter::from_fn(|| line.next());
            noted.extend(messages.map(|kind| Noted::Sent(worker_id, kind)));
            let is_open = !line.closed.is_cancelled();
            if !is_open {
                noted.push(Noted::Closed(worker_id));
            }
            is_open
        });
    }
}

impl Line {
    fn next(&mut self) -> Option<Kind> {
        let stream = self.stream.as_mut().filter(|_| !self.is_full)?;
        match Pin::new(stream).poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(message)) => message.expect("only a session ends its stream").kind,
            Poll::Ready(None) | Poll::Pending => None,
        }
    }
}

impl Environment for Tape {
    fn now(&self) -> Duration {
        self.n_looks.set(self.n_looks.get() + 1);
        assert!(self.n_looks.get() < LOOKS_MAX, "the core wishes for things without end");
        self.now
    }

    fn record(&mut self, entry: Entry) -> Result<(), ObserverStopped> {
        self.note(Noted::Recorded(entry));
        Ok(())
    }

    fn checkpoint(&mut self, state: &State) -> Result<(), ObserverStopped> {
        self.note(Noted::Checkpoint(state.clone()));
        Ok(())
    }

    fn journal(&mut self, state: &State) -> Result<(), ObserverStopped> {
        self.note(Noted::Journal(state.clone()));
        Ok(())
    }

    fn compute(&mut self, work: Work, state: &State) {
        self.note(Noted::Compute(work, state.params.clone()));
    }

    fn dropped(&mut self, worker_id: WorkerId, kind: Kind) {
        self.note(Noted::Dropped(worker_id, kind));
    }
}
