//! A worker's session, from its join to its end: its messages become events for the driver. Decides nothing.

mod shared;

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::bucket::{Bucket, BucketRate};
use proto::call::Messages;
use proto::limits::{
    FIRST_MESSAGE_WAIT_MAX, RESULT_SLOTS, SMALL_MESSAGES_AT_ONCE_MAX, SMALL_MESSAGES_PER_SECOND_MAX, result_bytes_max,
};
use proto::v1::{self, WorkerMessage, worker_message::Kind};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::info;

pub(crate) use shared::Shared;

use crate::admission::ConnectionHandle;
use crate::inbox::{self, Inbox};
use crate::input::{Input, ResultTimes};
use crate::outbox::{Outbox, OutboxSender};
use crate::timeline::WorkerTimes;
use crate::training::{Event, Profile, WorkerId};

/// How long a worker may take to read the close message and close its side.
const FAREWELL_WAIT_MAX: Duration = Duration::from_secs(2);
/// Results of a worker that wait for the driver: as many as it has slots.
const RESULTS_WAITING_MAX: usize = RESULT_SLOTS as usize;
/// How often a worker may send what carries no result.
const SMALL_MESSAGES: BucketRate =
    BucketRate { n_max: SMALL_MESSAGES_AT_ONCE_MAX, per_second: SMALL_MESSAGES_PER_SECOND_MAX };

/// One worker's stream.
pub(crate) struct Session {
    shared: Arc<Shared>,
    connection: ConnectionHandle,
    outbox: OutboxSender,
    closed: CancellationToken,
}

impl Session {
    /// A session over a connection, whose messages go to `outbox`.
    pub fn new(shared: Arc<Shared>, connection: ConnectionHandle, outbox: OutboxSender) -> Self {
        Self { shared, connection, outbox, closed: CancellationToken::new() }
    }

    /// Goes on until the worker or the driver ends it. The connection is closed then, after some time for the last message:
    /// what is still on its way to a peer that does not read would stay in memory for as long as the peer likes.
    pub async fn run(self, mut inbound: Messages<WorkerMessage>) {
        let ConnectionHandle { peer, .. } = &self.connection;
        let identity = peer.identity();
        let joined = self.join(&mut inbound).await.and_then(|profile| {
            let admitted = self.connection.join();
            admitted.map(|()| profile).map_err(|error| Status::resource_exhausted(error.to_string()))
        });
        let profile = match joined {
            Ok(profile) => profile,
            Err(status) => {
                info!(%peer, %identity, reason = status.message(), "a worker was refused");
                return self.outbox.end(status);
            }
        };
        inbound.set_message_bytes_max(result_bytes_max(self.shared.buffers.n_params()));
        let worker_id = self.shared.next_worker_id();
        info!(%peer, %identity, worker = %worker_id, host = profile.host, "a worker was admitted");
        self.take_part(worker_id, profile, &mut inbound).await;
        self.connection.set_over();
        if self.outbox.has_overflowed() {
            return self.connection.close();
        }
        let rest = async { while let Ok(Some(_)) = inbound.message().await {} };
        // Who closes a connection before it has read what came loses what is still on its way to the peer.
        let _ = timeout(FAREWELL_WAIT_MAX, rest).await;
        self.connection.close();
    }

    async fn take_part(&self, worker_id: WorkerId, profile: Profile, inbound: &mut Messages<WorkerMessage>) {
        let Self { shared, connection, outbox: sender, closed } = self;
        let mut inbox = shared.inbox(connection);
        let outbox = Outbox::new(connection.peer.clone(), inbox.offered(), sender.clone(), closed.clone());
        if shared.inputs.send(Input::Joined(worker_id, profile, outbox)).await.is_err() {
            return;
        }
        let ended = tokio::select! {
            () = closed.cancelled() => return,
            () = shared.shutdown.cancelled() => return,
            ended = self.listen(worker_id, &mut inbox, inbound) => ended,
        };
        let reason = match ended {
            Ok(()) => "it closed its connection".to_owned(),
            Err(status) => {
                let reason = match status.code() {
                    Code::InvalidArgument | Code::FailedPrecondition | Code::ResourceExhausted => {
                        status.message().to_owned()
                    }
                    _ => format!("its connection broke: {}", status.message()),
                };
                let (peer, identity) = (&connection.peer, connection.peer.identity());
                info!(%peer, %identity, worker = %worker_id, reason, "a session ended");
                sender.end(status);
                reason
            }
        };
        // When the driver is gone, the run is over.
        let _ = shared.inputs.send(Input::Happened(Event::Lost(worker_id, reason))).await;
    }

    /// Turns the worker's messages into events, until its stream ends.
    async fn listen(
        &self,
        worker_id: WorkerId,
        inbox: &mut Inbox,
        inbound: &mut Messages<WorkerMessage>,
    ) -> Result<(), Status> {
        let results = Arc::new(Semaphore::new(RESULTS_WAITING_MAX));
        let mut small_messages = Bucket::new(SMALL_MESSAGES, Instant::now());
        while let Some(message) = inbound.message().await? {
            let kind =
                message.kind.ok_or_else(|| Status::invalid_argument("expected a message, found an empty one"))?;
            let is_result = matches!(kind, Kind::ShardDone(_) | Kind::BatchDone(_));
            if !is_result && !small_messages.take(Instant::now()) {
                return Err(Status::resource_exhausted(format!(
                    "expected at most {SMALL_MESSAGES_PER_SECOND_MAX} messages a second besides results, found more"
                )));
            }
            let input = match kind {
                Kind::ShardDone(done) => {
                    // Gradients of one session that wait for the driver are few, however slow that is.
                    let waits = Arc::clone(&results).acquire_owned().await.expect("the semaphore is never closed");
                    let (begun, worker) = (Instant::now(), worker_times(&done));
                    let done = inbox.shard_done(done)?;
                    Input::ShardDone(worker_id, done, ResultTimes { decode: begun.elapsed(), worker }, waits)
                }
                Kind::Ready(ready) => {
                    let path = inbox.ready(&ready)?;
                    self.connection.set_ready();
                    info!(worker = %worker_id, gradients = %path, "worker ready");
                    Input::Ready(worker_id, path)
                }
                kind => Input::Happened(inbox.event(worker_id, kind)?),
            };
            if self.shared.inputs.send(input).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The first message, which has to come soon and say who this is.
    async fn join(&self, inbound: &mut Messages<WorkerMessage>) -> Result<Profile, Status> {
        let first = timeout(FIRST_MESSAGE_WAIT_MAX, inbound.message()).await;
        let first =
            first.map_err(|_| Status::deadline_exceeded("expected a join as the first message, found none"))??;
        let Some(Kind::Join(join)) = first.and_then(|message| message.kind) else {
            return Err(Status::invalid_argument("expected a join as the first message, found another one"));
        };
        inbox::profile(self.connection.peer.identity(), join)
    }
}

/// What a worker says of a result's times.
fn worker_times(done: &v1::ShardDone) -> WorkerTimes {
    let [received, started, compute] =
        [done.received_nanoseconds, done.started_nanoseconds, done.compute_nanoseconds].map(Duration::from_nanos);
    WorkerTimes { received, started, finished: started.saturating_add(compute) }
}
