//! What waits to be sent to a worker: bounded in messages and in bytes, since a peer that does not read keeps all of it in
//! this process' memory.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use proto::limits::{OUTBOX_MESSAGES_MAX, outbox_bytes_max};
use proto::v1::coordinator_message::Kind;
use proto::v1::{self, CoordinatorMessage};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::peer::Peer;

/// How a worker's gradients travel, as was settled when it said that it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GradientPath {
    /// In messages.
    Bytes,
    /// In memory that it shares with this process.
    SharedMemory,
}

impl fmt::Display for GradientPath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Bytes => "over gRPC",
            Self::SharedMemory => "through shared memory",
        })
    }
}

/// Where messages for a worker go. When it is dropped, the session's stream ends after what is in it.
#[derive(Debug)]
pub struct Outbox {
    /// Who it is for.
    pub peer: Peer,
    /// Where the worker's results can lie, for its welcome.
    pub results: Option<v1::Region>,
    /// How averaged gradients go to it.
    pub path: GradientPath,
    sender: OutboxSender,
    closed: CancellationToken,
}

/// A worker that takes its messages too slowly, or is gone.
#[derive(Debug, PartialEq, Eq)]
pub struct Overflow;

/// Puts messages into an outbox.
#[derive(Clone, Debug)]
pub struct OutboxSender {
    messages: mpsc::Sender<Result<CoordinatorMessage, Status>>,
    waiting: Arc<Waiting>,
    n_bytes_max: usize,
}

/// What was put in and not taken out yet.
#[derive(Debug, Default)]
struct Waiting {
    n_bytes: AtomicUsize,
    n_states: AtomicUsize,
    has_overflowed: AtomicBool,
}

/// What is taken out of an outbox.
#[derive(Debug)]
pub struct OutboxStream {
    messages: mpsc::Receiver<Result<CoordinatorMessage, Status>>,
    waiting: Arc<Waiting>,
}

/// The two ends of an outbox for messages about a layout of `n_params` values.
pub fn outbox(n_params: usize) -> (OutboxSender, OutboxStream) {
    let (sending, receiving) = mpsc::channel(OUTBOX_MESSAGES_MAX);
    let waiting = Arc::new(Waiting::default());
    let sender =
        OutboxSender { messages: sending, waiting: Arc::clone(&waiting), n_bytes_max: outbox_bytes_max(n_params) };
    (sender, OutboxStream { messages: receiving, waiting })
}

impl Outbox {
    /// The outbox of a session, which `closed` tells when it is dropped.
    pub fn new(peer: Peer, results: Option<v1::Region>, sender: OutboxSender, closed: CancellationToken) -> Self {
        Self { peer, results, path: GradientPath::Bytes, sender, closed }
    }

    /// Puts a message in, without waiting.
    ///
    /// # Errors
    /// If it holds too many bytes or messages, or a state that the worker has not taken, or its receiver is gone.
    pub fn send(&self, kind: Kind) -> Result<(), Overflow> {
        self.sender.send(kind)
    }

    /// Whether the receiver is gone.
    pub fn is_gone(&self) -> bool {
        self.sender.messages.is_closed()
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

impl OutboxSender {
    fn send(&self, kind: Kind) -> Result<(), Overflow> {
        let (n_bytes, n_states) = size(&kind);
        let Waiting { n_bytes: n_bytes_waiting, n_states: n_states_waiting, .. } = &*self.waiting;
        // Only the driver puts messages in that have a size, so nothing is added between the look and the addition.
        let is_over = n_bytes_waiting.load(Ordering::Acquire) + n_bytes > self.n_bytes_max;
        if is_over || n_states_waiting.load(Ordering::Acquire) + n_states > 1 {
            return Err(self.overflow());
        }
        n_bytes_waiting.fetch_add(n_bytes, Ordering::AcqRel);
        n_states_waiting.fetch_add(n_states, Ordering::AcqRel);
        self.messages.try_send(Ok(CoordinatorMessage { kind: Some(kind) })).map_err(|_| self.overflow())
    }

    fn overflow(&self) -> Overflow {
        self.waiting.has_overflowed.store(true, Ordering::Release);
        Overflow
    }

    /// Whether a message found no room: what is in it will not be taken any more.
    pub fn has_overflowed(&self) -> bool {
        self.waiting.has_overflowed.load(Ordering::Acquire)
    }

    /// Ends the stream with a status, if there is room for it: the worker may be gone already.
    pub fn end(&self, status: Status) {
        let _ = self.messages.try_send(Err(status));
    }
}

/// Bytes of numbers in a message, and whether it is a state.
fn size(kind: &Kind) -> (usize, usize) {
    match kind {
        Kind::State(state) => (state.params.len() + state.slots.len(), 1),
        Kind::Update(update) => (update.gradient.len(), 0),
        Kind::Welcome(_) | Kind::Work(_) | Kind::Close(_) | Kind::Refusal(_) => (0, 0),
    }
}

impl Stream for OutboxStream {
    type Item = Result<CoordinatorMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let taken = self.messages.poll_recv(context);
        if let Poll::Ready(Some(Ok(CoordinatorMessage { kind: Some(kind) }))) = &taken {
            let (n_bytes, n_states) = size(kind);
            self.waiting.n_bytes.fetch_sub(n_bytes, Ordering::AcqRel);
            self.waiting.n_states.fetch_sub(n_states, Ordering::AcqRel);
        }
        taken
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proto::v1::{Refusal, State, Update};
    use tokio_stream::StreamExt;

    use super::*;
    use crate::peer::PeerAddress;

    const N_PARAMS: usize = 1 << 20;

    pub(crate) fn open() -> (Outbox, OutboxStream) {
        let (sender, stream) = outbox(N_PARAMS);
        let peer = Peer::at(PeerAddress::Unix { process: Some(1), user: 1 });
        (Outbox::new(peer, None, sender, CancellationToken::new()), stream)
    }

    fn update() -> Kind {
        Kind::Update(Update { gradient: vec![0; 4 * N_PARAMS].into(), ..Update::default() })
    }

    fn state() -> Kind {
        Kind::State(State { params: vec![0; 4 * N_PARAMS].into(), ..State::default() })
    }

    #[tokio::test]
    async fn outbox_overflows_at_byte_and_message_limits() {
        let (outbox, mut stream) = open();
        let n_updates = outbox_bytes_max(N_PARAMS) / (4 * N_PARAMS);
        for _ in 0..n_updates {
            assert_eq!(outbox.send(update()), Ok(()));
        }
        assert!(!outbox.sender.has_overflowed());
        assert_eq!(outbox.send(update()), Err(Overflow));
        assert!(outbox.sender.has_overflowed());
        assert_eq!(
            outbox.send(Kind::Refusal(Refusal::default())),
            Ok(()),
            "what has no numbers is counted by messages"
        );
        stream.next().await.expect("an update").expect("a message");
        assert_eq!(outbox.send(update()), Ok(()));
        for _ in n_updates + 1..OUTBOX_MESSAGES_MAX {
            assert_eq!(outbox.send(Kind::Refusal(Refusal::default())), Ok(()));
        }
        assert_eq!(outbox.send(Kind::Refusal(Refusal::default())), Err(Overflow));
    }

    #[tokio::test]
    async fn second_queued_state_overflows_outbox() {
        let (outbox, mut stream) = open();
        assert_eq!([outbox.send(state()), outbox.send(state())], [Ok(()), Err(Overflow)]);
        stream.next().await.expect("a state").expect("a message");
        assert_eq!(outbox.send(state()), Ok(()));
    }
}
