//! One connection's conversation: the join, the data set, then orders in and results out, until one end closes it.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::{info, warn};

use engine::args::OpenBackend;
use engine::task::Tasks;
use proto::busy_poll::BusyPoll;
use proto::call::Messages;
use proto::limits;
use proto::v1::coordinator_message::Kind as Inbound;
use proto::v1::worker_message::Kind as Outbound;
use proto::v1::{Close, CoordinatorMessage, Heartbeat, Join, Leaving, Welcome, WorkerMessage};

use crate::compute::{Compute, ComputeEnded, Order};
use crate::dataset::{DatasetCache, DatasetError};
use crate::link::{Link, LinkError};
use crate::plan::{Terms, TermsError};

/// Messages that wait to be sent: results of the size of the parameters among them.
const OUTBOUND_MESSAGES_MAX: usize = 4;
/// How long a worker that was asked to end goes on with what it has.
const LEAVING_WAIT_MAX: Duration = Duration::from_secs(5);

/// A worker that the coordinator has taken in.
#[derive(Debug)]
pub(crate) struct Session {
    /// The run.
    pub terms: Terms,
    link: Link,
    outbound: mpsc::Sender<WorkerMessage>,
    inbound: Messages<CoordinatorMessage>,
    /// Whether it waits for messages without sleep at first.
    busy_poll: bool,
}

/// The coordinator's answer to a join.
#[derive(Debug)]
pub(crate) enum Admission {
    Admitted(Box<Session>),
    Closed(Close),
}

/// How a session ended that did what it should.
#[derive(Debug)]
pub(crate) enum SessionEnd {
    /// The coordinator ended it.
    Closed(Close),
    /// This worker was asked to end, and waited long enough.
    Left,
}

/// A session that ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No connection.
    #[error("{0}")]
    Link(#[from] LinkError),
    /// The coordinator, or the connection, says so.
    #[error("{}", describe(.0))]
    Status(#[from] Status),
    /// Without a word.
    #[error("the coordinator ended the session")]
    Closed,
    /// No answer to the join.
    #[error("expected the coordinator's answer within {} s, found none", .waited.as_secs_f32())]
    Silent {
        /// How long it was waited for.
        waited: Duration,
    },
    /// A message that does not belong there.
    #[error("expected {expected}, found {found}; use a coordinator and workers of one version")]
    OutOfOrder {
        /// What belongs there.
        expected: &'static str,
        /// What came.
        found: &'static str,
    },
    /// A welcome that cannot be followed.
    #[error("{0}")]
    Terms(#[from] TermsError),
    /// No data set.
    #[error("{0}")]
    Dataset(#[from] DatasetError),
    /// The compute thread has ended.
    #[error("{0}")]
    Compute(#[from] ComputeEnded),
}

impl SessionError {
    /// Whether another session would end in the same way.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Status(status) => is_refusal(status),
            Self::Link(error) => error.is_final(),
            Self::Closed | Self::Silent { .. } => false,
            Self::Dataset(error) => !error.is_of_connection(),
            Self::OutOfOrder { .. } | Self::Terms(_) | Self::Compute(_) => true,
        }
    }
}

/// Whether the coordinator has looked at this worker and does not want it.
fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), Code::FailedPrecondition | Code::InvalidArgument)
}

fn describe(status: &Status) -> String {
    if status.message().is_empty() { status.code().description().to_owned() } else { status.message().to_owned() }
}

impl Session {
    /// Says who joins, and hears the answer.
    pub async fn join(
        link: Link,
        tasks: &Tasks,
        backend: &OpenBackend,
        wait_max: Duration,
    ) -> Result<Admission, SessionError> {
        let (outbound, messages) = mpsc::channel(OUTBOUND_MESSAGES_MAX);
        // Before the stream is opened, since a coordinator may answer the call only when it has heard who calls.
        let join = WorkerMessage { kind: Some(Outbound::Join(introduction(backend))) };
        outbound.try_send(join).expect("a new queue has room");
        let answer = async {
            let opened = link.open_session(ReceiverStream::new(messages)).await;
            let mut inbound =
                opened.map_err(|status| link.refusal(&status).map_or_else(|| status.into(), SessionError::from))?;
            let first = next(&mut inbound).await?;
            Ok::<_, SessionError>((inbound, first))
        };
        let answered = timeout(wait_max, answer).await;
        let (inbound, first) = answered.map_err(|_| SessionError::Silent { waited: wait_max })??;
        match first {
            Received::Welcome(welcome) => {
                let terms = Terms::new(welcome, tasks)?;
                Ok(Admission::Admitted(Box::new(Self { terms, link, outbound, inbound, busy_poll: false })))
            }
            Received::Close(close) => Ok(Admission::Closed(close)),
            Received::Order(_) => Err(SessionError::OutOfOrder { expected: "a welcome", found: "an order" }),
        }
    }

    /// The same, and whether it waits for messages without sleep at first.
    pub fn with_busy_poll(self, busy_poll: bool) -> Self {
        Self { busy_poll, ..self }
    }

    /// Follows orders until the session's end, and sends heartbeats, which wait for a shard at most while that is short.
    pub async fn run(
        mut self,
        compute: &Compute,
        datasets: &mut DatasetCache,
        shutdown: &CancellationToken,
    ) -> Result<SessionEnd, SessionError> {
        let outbound = self.outbound.clone();
        tokio::select! {
            close = self.converse(compute, datasets) => Ok(SessionEnd::Closed(close?)),
            ended = compute.ended() => Err(ended.into()),
            () = leave(&outbound, shutdown) => Ok(SessionEnd::Left),
            never = send_heartbeats(&outbound, compute) => match never {},
        }
    }

    async fn converse(&mut self, compute: &Compute, datasets: &mut DatasetCache) -> Result<Close, SessionError> {
        let recipe = &self.terms.recipe;
        info!(task = %recipe.task, step = recipe.cut(), "joined the run");
        let task = tokio::select! {
            task = datasets.open(&self.link, &self.terms.task, &self.terms.data_fingerprint) => task?,
            received = next(&mut self.inbound) => return match received? {
                Received::Close(close) => Ok(close),
                Received::Welcome(_) => Err(out_of_order("a second welcome")),
                Received::Order(_) => Err(out_of_order("an order before the data set was ready")),
            },
        };
        let plan = Arc::new(self.terms.plan(task));
        let ready = WorkerMessage { kind: Some(Outbound::Ready(plan.ready())) };
        // A closed stream is noticed when the next message is awaited.
        let _ = self.outbound.send(ready).await;
        loop {
            // Ends with the stream. A silent coordinator may have nothing to say; one that is gone is noticed by HTTP/2.
            let received =
                if self.busy_poll { next_busy_polling(&mut self.inbound).await } else { next(&mut self.inbound).await };
            match received? {
                Received::Order(order) => compute.submit(&plan, order, &self.outbound).await?,
                Received::Close(close) => return Ok(close),
                Received::Welcome(_) => return Err(out_of_order("a second welcome")),
            }
        }
    }
}

fn out_of_order(found: &'static str) -> SessionError {
    SessionError::OutOfOrder { expected: "an order or a close", found }
}

fn introduction(opened: &OpenBackend) -> Join {
    let OpenBackend { backend, device_choice, n_threads, .. } = opened;
    Join {
        version: proto::VERSION.to_owned(),
        host: host(),
        process: std::process::id(),
        backend: format!("{backend} on {device_choice}"),
        compute_class: opened.compute_class(),
        threads: u32::try_from(*n_threads).unwrap_or(u32::MAX),
        numerics: engine::numerics::REVISION,
    }
}

/// The machine's name, from a file of the system or `$HOSTNAME`, for people.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    let mut name = name.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    if let Some(name) = &mut name {
        name.truncate(name.floor_char_boundary(limits::TEXT_BYTES_MAX));
    }
    name.unwrap_or_else(|| "unknown".to_owned())
}

/// A message that something has to be done about.
#[derive(Debug)]
enum Received {
    Welcome(Welcome),
    Order(Order),
    Close(Close),
}

async fn next(inbound: &mut Messages<CoordinatorMessage>) -> Result<Received, SessionError> {
    loop {
        // Ends with the stream.
        let message = inbound.message().await?.ok_or(SessionError::Closed)?;
        return Ok(match message.kind {
            Some(Inbound::Welcome(welcome)) => Received::Welcome(welcome),
            Some(Inbound::State(state)) => Received::Order(Order::State(state)),
            Some(Inbound::Update(update)) => Received::Order(Order::Update(update)),
            Some(Inbound::Work(work)) => Received::Order(Order::Work(work)),
            Some(Inbound::Close(close)) => Received::Close(close),
            Some(Inbound::Refusal(refusal)) => {
                warn!(reason = refusal.reason, "the coordinator did not use what this worker sent");
                continue;
            }
            None => return Err(out_of_order("a message of an unknown kind")),
        });
    }
}

/// As [`next`], without sleep at first.
async fn next_busy_polling(inbound: &mut Messages<CoordinatorMessage>) -> Result<Received, SessionError> {
    let poll = BusyPoll::begin();
    let mut next = pin!(next(inbound));
    loop {
        // Ends with the message, or when the busy poll has taken long enough.
        tokio::select! {
            biased;
            received = &mut next => return received,
            () = yield_now() => if !poll.should_continue() {
                return next.await;
            }
        }
    }
}

async fn send_heartbeats(outbound: &mpsc::Sender<WorkerMessage>, compute: &Compute) -> Infallible {
    let mut ticks = interval(limits::HEARTBEAT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // If there is no room, what is in the queue shows as well that it is alive.
        let heartbeat = Heartbeat { step: compute.step() };
        let _ = outbound.try_send(WorkerMessage { kind: Some(Outbound::Heartbeat(heartbeat)) });
    }
}

/// Ends some time after this worker was asked to end: until then it finishes what it has.
async fn leave(outbound: &mpsc::Sender<WorkerMessage>, shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    let leaving = Leaving { reason: "the worker was asked to end".to_owned() };
    let tell = async {
        let _ = outbound.send(WorkerMessage { kind: Some(Outbound::Leaving(leaving)) }).await;
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        never = tell => match never {},
        () = sleep(LEAVING_WAIT_MAX) => warn!("the coordinator did not close the session in time"),
    }
}
