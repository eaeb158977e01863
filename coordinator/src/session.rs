//! A worker's session: its messages become events for the driver, after every bound and every number was checked. Decides
//! nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use model::bucket::{Bucket, Rate};
use model::gradients::ShardResult;
use model::loss::LossSums;
use model::numerics::REVISION;
use proto::call::Messages;
use proto::limits::{
    FIRST_MESSAGE_WAIT_MAX, RESULT_SLOTS, SMALL_MESSAGES_AT_ONCE_MAX, SMALL_MESSAGES_PER_SECOND_MAX, TEXT_BYTES_MAX,
    message_bytes_max,
};
use proto::shared::{Offer, Results, SlotError};
use proto::v1::{self, Join, WorkerMessage, worker_message::Kind};
use proto::values::{self, ValuesError};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::{info, warn};

use crate::admission::ConnectionHandle;
use crate::driver::Input;
use crate::outbox::{GradientPath, Outbox, OutboxSender};
use crate::server::Shared;
use crate::training::{BatchDone, Computed, Event, Profile, ShardDone, WorkerId};

/// How long a worker may take to hear its farewell and close its side.
const FAREWELL_WAIT_MAX: Duration = Duration::from_secs(2);
/// Results of a worker that wait for the driver: as many as it has slots, and two more.
const RESULTS_WAITING_MAX: usize = RESULT_SLOTS as usize + 2;
/// How often a worker may send what carries no result.
const SMALL_MESSAGES: Rate = Rate { n_max: SMALL_MESSAGES_AT_ONCE_MAX, per_second: SMALL_MESSAGES_PER_SECOND_MAX };

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
        inbound.set_message_bytes_max(message_bytes_max(self.shared.buffers.n_params()));
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
        let mut memory = shared.memory(connection);
        let outbox = Outbox::new(connection.peer.clone(), memory.offered(), sender.clone(), closed.clone());
        if shared.inputs.send(Input::Joined(worker_id, profile, outbox)).await.is_err() {
            return;
        }
        let ended = tokio::select! {
            () = closed.cancelled() => return,
            () = shared.shutdown.cancelled() => return,
            ended = self.listen(worker_id, &mut memory, inbound) => ended,
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
        memory: &mut Memory,
        inbound: &mut Messages<WorkerMessage>,
    ) -> Result<(), Status> {
        let results = Arc::new(Semaphore::new(RESULTS_WAITING_MAX));
        let mut small_messages = Bucket::new(SMALL_MESSAGES, Instant::now());
        while let Some(message) = inbound.message().await? {
            let is_result = matches!(message.kind, Some(Kind::ShardDone(_) | Kind::BatchDone(_)));
            if !is_result && !small_messages.take(Instant::now()) {
                return Err(Status::resource_exhausted(format!(
                    "expected at most {SMALL_MESSAGES_PER_SECOND_MAX} messages a second besides results, found more"
                )));
            }
            let input = match message.kind {
                Some(Kind::ShardDone(done)) => {
                    // Gradients of one session that wait for the driver are few, however slow that is.
                    let waits = Arc::clone(&results).acquire_owned().await.expect("the semaphore is never closed");
                    let begun = Instant::now();
                    let done = self.shared.shard_done(memory, done)?;
                    Input::ShardDone(worker_id, done, begun.elapsed(), waits)
                }
                kind => self.shared.input(worker_id, memory, kind)?,
            };
            if let Input::Ready(_, path) = &input {
                self.connection.set_ready();
                info!(worker = %worker_id, gradients = %path, "worker ready");
            }
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
        let Join { version, host, process, backend, compute_class, threads, numerics } = join;
        if version != proto::VERSION {
            return Err(Status::failed_precondition(format!(
                "expected a worker of version {}, found {}; start the version of the coordinator",
                proto::VERSION,
                short(version),
            )));
        }
        if numerics != REVISION {
            return Err(Status::failed_precondition(format!(
                "expected a worker of numerics revision {REVISION}, found {numerics}, which computes other bits; start the \
                 version of the coordinator",
            )));
        }
        let [host, backend, compute_class] = [host, backend, compute_class].map(short);
        Ok(Profile {
            identity: self.connection.peer.identity(),
            host,
            process,
            backend,
            compute_class,
            n_threads: threads,
        })
    }
}

/// The memory that a session shares with its worker.
#[derive(Debug)]
enum Memory {
    /// The worker has been told, and may open it.
    Offered(Results, Offer),
    /// The worker has it open, and nobody else can open it any more.
    Open(Results),
    None,
}

impl Memory {
    fn offered(&self) -> Option<v1::Region> {
        match self {
            Self::Offered(_, offer) => Some(offer.message()),
            Self::Open(_) | Self::None => None,
        }
    }

    /// Takes the worker's answer; what is not used is given back.
    fn settle(&mut self, is_open: bool) -> Result<GradientPath, Status> {
        match (std::mem::replace(self, Self::None), is_open) {
            (Self::Offered(results, _) | Self::Open(results), true) => {
                *self = Self::Open(results);
                Ok(GradientPath::SharedMemory)
            }
            (Self::None, true) => {
                Err(Status::invalid_argument("expected a worker without shared memory, found one that has opened it"))
            }
            (_, false) => Ok(GradientPath::Bytes),
        }
    }

    fn take(&self, slot: u32, values: &mut [f32]) -> Result<f64, SlotError> {
        match self {
            Self::Offered(results, _) | Self::Open(results) => results.take(slot, values),
            Self::None => Err(SlotError::Unknown { n_slots: 0, found: slot }),
        }
    }
}

impl Shared {
    /// Memory for a new worker's results, where the run shares any with workers of this machine.
    fn memory(&self, connection: &ConnectionHandle) -> Memory {
        if self.facts.updates.is_none() || !connection.peer.is_on_this_machine {
            return Memory::None;
        }
        match Results::create(self.buffers.n_params()) {
            Ok((results, offer)) => Memory::Offered(results, offer),
            Err(error) => {
                let peer = &connection.peer;
                warn!(%peer, %error, "no shared memory for a worker; its gradients travel over gRPC");
                Memory::None
            }
        }
    }

    /// What a message means, if it may mean anything.
    fn input(&self, worker_id: WorkerId, memory: &mut Memory, kind: Option<Kind>) -> Result<Input, Status> {
        let kind = kind.ok_or_else(|| Status::invalid_argument("expected a message, found an empty one"))?;
        let event = match kind {
            Kind::Join(_) => return Err(Status::invalid_argument("expected one join, found a second one")),
            Kind::Ready(ready) => {
                self.check_ready(&ready)?;
                let path = memory.settle(ready.shared_memory)?;
                return Ok(Input::Ready(worker_id, path));
            }
            Kind::ShardDone(_) => unreachable!("a shard's result has to wait for room"),
            Kind::BatchDone(done) => {
                self.check_fence(done.fence.as_ref())?;
                let v1::BatchDone { step, batch, n_samples, loss_sum, correct_sum, params_fingerprint, .. } = done;
                let sums = LossSums { loss_sum, correct_sum, n_samples };
                Event::BatchDone(worker_id, BatchDone { step, batch, sums, params_fingerprint })
            }
            Kind::Leaving(leaving) => Event::Leaving(worker_id, short(leaving.reason)),
            Kind::Lagging(lagging) => Event::Lagging(worker_id, short(lagging.reason)),
            Kind::Heartbeat(heartbeat) => Event::Heard(worker_id, heartbeat.step),
        };
        Ok(Input::Happened(event))
    }

    fn check_fence(&self, found: Option<&v1::Fence>) -> Result<(), Status> {
        let expected = &self.facts.fence;
        if expected.is(found) {
            return Ok(());
        }
        let found = found.map_or("nothing of the kind".to_owned(), |found| {
            format!("run {}, coordinator {:016x}", short(found.run_id.clone()), found.coordinator_id)
        });
        let v1::Fence { run_id, coordinator_id } = expected;
        Err(Status::failed_precondition(format!(
            "expected run {run_id}, coordinator {coordinator_id:016x}, found {found}"
        )))
    }

    fn check_ready(&self, ready: &v1::Ready) -> Result<(), Status> {
        self.check_fence(ready.fence.as_ref())?;
        let (expected, found) = (self.facts.layout_fingerprint, ready.layout_fingerprint);
        if expected != found {
            return Err(Status::failed_precondition(format!(
                "expected the layout {expected:016x}, found {found:016x}"
            )));
        }
        let (expected, found) = (&self.facts.data_fingerprint, &ready.data_fingerprint);
        if expected != found {
            let found = short(found.clone());
            return Err(Status::failed_precondition(format!("expected the data set {expected}, found {found}")));
        }
        Ok(())
    }

    fn shard_done(&self, memory: &Memory, done: v1::ShardDone) -> Result<ShardDone, Status> {
        self.check_fence(done.fence.as_ref())?;
        let v1::ShardDone { step, shard, n_samples, loss_sum, correct_sum, gradient_sum, slot, .. } = done;
        let mut values = self.buffers.take();
        let taken = match slot {
            None => values::decode(self.facts.encoding, &gradient_sum, &mut values).map_err(SlotError::from),
            Some(slot) if gradient_sum.is_empty() => memory.take(slot, &mut values),
            Some(_) => {
                return Err(Status::invalid_argument("expected a gradient in a slot or in the message, found both"));
            }
        };
        let (computed, gradient_norm) = match taken {
            Ok(square_sum) => {
                let sums = LossSums { loss_sum, correct_sum, n_samples };
                (Computed::Finite(ShardResult { gradient_sum: values, sums }), square_sum.sqrt())
            }
            Err(error) => {
                self.buffers.give_back([values]);
                let computed = match error {
                    SlotError::Values(ValuesError::NotFinite { .. }) => Computed::NotFinite("gradient"),
                    SlotError::Values(ValuesError::Length { expected, found }) => {
                        Computed::WrongLength { expected, found }
                    }
                    SlotError::Unknown { .. } | SlotError::NotFull { .. } | SlotError::Overwritten { .. } => {
                        return Err(Status::invalid_argument(error.to_string()));
                    }
                };
                (computed, f64::INFINITY)
            }
        };
        let compute = Duration::from_nanos(done.compute_nanoseconds);
        Ok(ShardDone { step, shard, computed, gradient_norm, params_fingerprint: done.params_fingerprint, compute })
    }
}

/// A text of bounded length, without what could confuse a terminal.
pub(crate) fn short(text: String) -> String {
    let is_short_and_plain = text.len() <= TEXT_BYTES_MAX && !text.contains(char::is_control);
    if is_short_and_plain {
        return text;
    }
    text.chars().filter(|character| !character.is_control()).take(TEXT_BYTES_MAX / 4).collect()
}
