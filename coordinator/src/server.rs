//! Between tonic and the driver: messages become events, after every bound and every number was checked; actions become
//! messages. Decides nothing.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use model::data::Dataset;
use model::gradients::ShardResult;
use model::loss::LossSums;
use prost::bytes::Bytes;
use proto::buffers::Buffers;
use proto::call::{self, Messages, answer};
use proto::limits::{
    CONNECTION_WINDOW_BYTES, DATASET_FILE_BYTES_MAX, FIRST_MESSAGE_WAIT_MAX, FRAME_BYTES, HEARTBEAT_INTERVAL,
    MESSAGE_OVERHEAD_BYTES_MAX, OUTBOX_MESSAGES_MAX, PIECE_BYTES, STREAM_WINDOW_BYTES, STREAMS_PER_CONNECTION_MAX,
    TEXT_BYTES_MAX, WORKERS_MAX, message_bytes_max,
};
use proto::shared::{Offer, Results, SlotError};
use proto::v1::{
    self, CoordinatorMessage, DatasetPiece, Encoding, FetchDatasetRequest, Join, SharedMemory, Welcome, WorkerMessage,
    training_server::SERVICE_NAME, worker_message::Kind,
};
use proto::values::{self, ValuesError};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, http};
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::{Code, Status};
use tracing::{Instrument, debug, info, warn};

use crate::accept::Connection;
use crate::driver::Input;
use crate::peer::Peer;
use crate::training::{BatchDone, Computed, Event, Profile, ShardDone, WorkerId};

/// How long a worker may take to hear its farewell and close its side.
const FAREWELL_WAIT_MAX: Duration = Duration::from_secs(2);

/// What every session has to know of the run.
#[derive(Debug)]
pub struct Facts {
    /// What a message has to carry to be of this run and this process.
    pub fence: v1::Fence,
    /// The recipe, as workers are told.
    pub recipe: v1::Recipe,
    /// blake3 of the data set.
    pub data_fingerprint: String,
    /// The parameter layout.
    pub layout_fingerprint: u64,
    /// How gradients travel.
    pub encoding: Encoding,
    /// Where averaged gradients lie for workers of this machine, if they do.
    pub updates: Option<v1::Region>,
    /// How long a worker may be silent.
    pub silence_max: Duration,
}

impl Facts {
    /// The greeting of a worker, with where its results can lie, if it is on this machine.
    pub fn welcome(&self, worker_id: WorkerId, results: Option<v1::Region>) -> Welcome {
        Welcome {
            worker_id: worker_id.0,
            fence: Some(self.fence.clone()),
            recipe: Some(self.recipe.clone()),
            data_fingerprint: self.data_fingerprint.clone(),
            layout_fingerprint: self.layout_fingerprint,
            encoding: self.encoding.into(),
            shared_memory: results.map(|results| SharedMemory {
                process: std::process::id(),
                results: Some(results),
                updates: self.updates.clone(),
            }),
        }
    }
}

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
    /// Where the worker's results can lie, for its welcome.
    pub results: Option<v1::Region>,
    /// How averaged gradients go to it.
    pub path: GradientPath,
    messages: mpsc::Sender<Result<CoordinatorMessage, Status>>,
    closed: CancellationToken,
}

/// A worker that takes its messages too slowly, or is gone.
#[derive(Debug, PartialEq, Eq)]
pub struct Overflow;

impl Outbox {
    /// Puts a message in, without waiting.
    ///
    /// # Errors
    /// If there are too many in it, or nobody takes them any more.
    pub fn send(&self, kind: v1::coordinator_message::Kind) -> Result<(), Overflow> {
        self.messages.try_send(Ok(CoordinatorMessage { kind: Some(kind) })).map_err(|_| Overflow)
    }

    /// Whether nobody takes messages any more.
    pub fn is_gone(&self) -> bool {
        self.messages.is_closed()
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

/// The service, with what its sessions share.
#[derive(Debug, Clone)]
pub struct Service {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    facts: Arc<Facts>,
    data: Arc<Dataset>,
    buffers: Arc<Buffers>,
    inputs: mpsc::Sender<Input>,
    sessions: TaskTracker,
    shutdown: CancellationToken,
    last_worker_id: AtomicU64,
    places: Arc<Semaphore>,
}

impl Service {
    /// A service whose sessions speak to the driver through `inputs` and end with `shutdown`.
    pub fn new(
        facts: Arc<Facts>,
        data: Arc<Dataset>,
        buffers: Arc<Buffers>,
        inputs: mpsc::Sender<Input>,
        shutdown: CancellationToken,
    ) -> Self {
        let (sessions, last_worker_id) = (TaskTracker::new(), AtomicU64::new(0));
        let places = Arc::new(Semaphore::new(WORKERS_MAX));
        Self { shared: Arc::new(Shared { facts, data, buffers, inputs, sessions, shutdown, last_worker_id, places }) }
    }

    /// Serves the connections given until `shutdown`, and then until the last session has ended.
    ///
    /// # Errors
    /// If the server fails.
    pub async fn serve(self, connections: mpsc::Receiver<std::io::Result<Connection>>) -> anyhow::Result<()> {
        let (health_reporter, health) = tonic_health::server::health_reporter();
        health_reporter.set_serving::<Self>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let shutdown = self.shared.shutdown.clone();
        let server = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .concurrency_limit_per_connection(STREAMS_PER_CONNECTION_MAX as usize)
            .load_shed(true)
            .http2_keepalive_interval(Some(4 * HEARTBEAT_INTERVAL))
            .http2_keepalive_timeout(Some(self.shared.facts.silence_max))
            .add_service(health)
            .add_service(reflection)
            .add_service(self.clone());
        server.serve_with_incoming_shutdown(ReceiverStream::new(connections), shutdown.cancelled_owned()).await?;
        self.shared.sessions.close();
        self.shared.sessions.wait().await;
        Ok(())
    }
}

impl NamedService for Service {
    const NAME: &'static str = SERVICE_NAME;
}

impl tonic::codegen::Service<http::Request<Body>> for Service {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        let n_bytes_max = message_bytes_max(self.shared.buffers.n_params());
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            let peer = head.extensions.remove::<Peer>().expect("every connection says whose it is");
            Ok(match head.uri.path() {
                call::SESSION => answer(Ok(service.session(peer, Messages::of_request(body, n_bytes_max)))),
                call::FETCH_DATASET => {
                    answer(service.fetch_dataset(Messages::of_request(body, MESSAGE_OVERHEAD_BYTES_MAX)).await)
                }
                path => Status::unimplemented(format!("expected a method of {SERVICE_NAME}, found {path}")).into_http(),
            })
        })
    }
}

impl Service {
    fn session(
        &self,
        peer: Peer,
        inbound: Messages<WorkerMessage>,
    ) -> ReceiverStream<Result<CoordinatorMessage, Status>> {
        let (messages, stream) = mpsc::channel(OUTBOX_MESSAGES_MAX);
        let session = Session { shared: Arc::clone(&self.shared), peer, messages, closed: CancellationToken::new() };
        self.shared.sessions.spawn(session.run(inbound).in_current_span());
        ReceiverStream::new(stream)
    }

    async fn fetch_dataset(
        &self,
        mut inbound: Messages<FetchDatasetRequest>,
    ) -> Result<ReceiverStream<Result<DatasetPiece, Status>>, Status> {
        let request = timeout(FIRST_MESSAGE_WAIT_MAX, inbound.message()).await;
        let request =
            request.map_err(|_| Status::deadline_exceeded("expected a data set's fingerprint, found nothing"))??;
        let wanted = request.unwrap_or_default().data_fingerprint;
        let there = &self.shared.facts.data_fingerprint;
        if wanted != *there {
            return Err(Status::not_found(format!(
                "expected the data set {there}, found a wish for {}",
                short(wanted)
            )));
        }
        let (pieces, stream) = mpsc::channel(4);
        let shared = Arc::clone(&self.shared);
        self.shared.sessions.spawn(async move {
            tokio::select! {
                () = shared.shutdown.cancelled() => {}
                () = send_dataset(&shared.data, pieces) => {}
            }
        });
        Ok(ReceiverStream::new(stream))
    }
}

/// Sends all files, piece by piece, until the receiver has them or is gone.
async fn send_dataset(data: &Dataset, pieces: mpsc::Sender<Result<DatasetPiece, Status>>) {
    for file in data.plain_files() {
        let file_bytes = (file.header.len() + file.content.len()) as u64;
        assert!(file_bytes <= DATASET_FILE_BYTES_MAX, "a data set that was opened is within the bounds of its reader");
        let mut offset = 0;
        for content in std::iter::once(file.header.as_slice()).chain(file.content.chunks(PIECE_BYTES)) {
            let piece = DatasetPiece {
                name: file.name.to_owned(),
                file_bytes,
                offset,
                content: Bytes::copy_from_slice(content),
            };
            if pieces.send(Ok(piece)).await.is_err() {
                return;
            }
            offset += content.len() as u64;
        }
    }
}

/// One worker's stream.
struct Session {
    shared: Arc<Shared>,
    peer: Peer,
    messages: mpsc::Sender<Result<CoordinatorMessage, Status>>,
    closed: CancellationToken,
}

impl Session {
    async fn run(self, mut inbound: Messages<WorkerMessage>) {
        let Ok(_place) = Arc::clone(&self.shared.places).try_acquire_owned() else {
            let reason = format!("expected at most {WORKERS_MAX} workers, found one more");
            // It may be gone already.
            let _ = self.messages.try_send(Err(Status::resource_exhausted(reason)));
            return;
        };
        let profile = match self.join(&mut inbound).await {
            Ok(profile) => profile,
            Err(status) => {
                info!(reason = status.message(), "a worker was refused");
                // It may be gone already.
                let _ = self.messages.try_send(Err(status));
                return;
            }
        };
        let worker_id = WorkerId(self.shared.last_worker_id.fetch_add(1, Ordering::Relaxed) + 1);
        let Self { shared, peer: _, messages, closed } = self;
        let mut memory = shared.memory();
        let results = memory.offered();
        let outbox = Outbox { results, path: GradientPath::Bytes, messages: messages.clone(), closed: closed.clone() };
        if shared.inputs.send(Input::Joined(worker_id, profile, outbox)).await.is_err() {
            return;
        }
        let reason = tokio::select! {
            () = closed.cancelled() => None,
            () = shared.shutdown.cancelled() => None,
            reason = listen(&shared, worker_id, &mut memory, &mut inbound) => Some(reason),
        };
        let Some(reason) = reason else {
            // Who closes a connection before it has read what came loses what is still on its way to the peer.
            drop(messages);
            let rest = async { while let Ok(Some(_)) = inbound.message().await {} };
            let _ = timeout(FAREWELL_WAIT_MAX, rest).await;
            return;
        };
        let reason = match reason {
            Ok(()) => "it closed its connection".to_owned(),
            Err(status) => {
                debug!(worker = %worker_id, code = ?status.code(), reason = status.message(), "a session failed");
                let reason = match status.code() {
                    Code::InvalidArgument | Code::FailedPrecondition => status.message().to_owned(),
                    _ => format!("its connection broke: {}", status.message()),
                };
                let _ = messages.try_send(Err(status));
                reason
            }
        };
        // When the driver is gone, the run is over.
        let _ = shared.inputs.send(Input::Happened(Event::Lost(worker_id, reason))).await;
    }

    /// The first message, which has to come soon and say who this is.
    async fn join(&self, inbound: &mut Messages<WorkerMessage>) -> Result<Profile, Status> {
        let first = timeout(FIRST_MESSAGE_WAIT_MAX, inbound.message()).await;
        let first =
            first.map_err(|_| Status::deadline_exceeded("expected a join as the first message, found none"))??;
        let Some(Kind::Join(join)) = first.and_then(|message| message.kind) else {
            return Err(Status::invalid_argument("expected a join as the first message, found another one"));
        };
        let Join { version, host, process, backend, compute_class, threads } = join;
        if version != proto::VERSION {
            return Err(Status::failed_precondition(format!(
                "expected a worker of version {}, found {}; start the version of the coordinator",
                proto::VERSION,
                short(version),
            )));
        }
        let [host, backend, compute_class] = [host, backend, compute_class].map(short);
        Ok(Profile { identity: self.peer.identity(), host, process, backend, compute_class, n_threads: threads })
    }
}

/// Turns a worker's messages into events, until its stream ends.
async fn listen(
    shared: &Shared,
    worker_id: WorkerId,
    memory: &mut Memory,
    inbound: &mut Messages<WorkerMessage>,
) -> Result<(), Status> {
    while let Some(message) = inbound.message().await? {
        let input = shared.input(worker_id, memory, message)?;
        if shared.inputs.send(input).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
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

    fn take(&self, slot: u32, values: &mut [f32]) -> Result<(), SlotError> {
        match self {
            Self::Offered(results, _) | Self::Open(results) => results.take(slot, values),
            Self::None => Err(SlotError::Unknown { n_slots: 0, found: slot }),
        }
    }
}

impl Shared {
    /// Memory for a new worker's results, where the run shares any.
    fn memory(&self) -> Memory {
        if self.facts.updates.is_none() {
            return Memory::None;
        }
        match Results::create(self.buffers.n_params()) {
            Ok((results, offer)) => Memory::Offered(results, offer),
            Err(error) => {
                warn!(%error, "no shared memory for a worker; its gradients travel over gRPC");
                Memory::None
            }
        }
    }

    /// What a message means, if it may mean anything.
    fn input(&self, worker_id: WorkerId, memory: &mut Memory, message: WorkerMessage) -> Result<Input, Status> {
        let kind = message.kind.ok_or_else(|| Status::invalid_argument("expected a message, found an empty one"))?;
        let event = match kind {
            Kind::Join(_) => return Err(Status::invalid_argument("expected one join, found a second one")),
            Kind::Ready(ready) => {
                self.check_ready(&ready)?;
                let path = memory.settle(ready.shared_memory)?;
                info!(worker = %worker_id, gradients = %path, "worker ready");
                return Ok(Input::Ready(worker_id, path));
            }
            Kind::ShardDone(done) => {
                let begun = Instant::now();
                let done = self.shard_done(memory, done)?;
                return Ok(Input::ShardDone(worker_id, done, begun.elapsed()));
            }
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
            format!("run {}, incarnation {}", short(found.run_id.clone()), found.incarnation)
        });
        let v1::Fence { run_id, incarnation } = expected;
        Err(Status::failed_precondition(format!("expected run {run_id}, incarnation {incarnation}, found {found}")))
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
        let computed = match taken {
            Ok(()) => {
                let sums = LossSums { loss_sum, correct_sum, n_samples };
                Computed::Finite(ShardResult { gradient_sum: values, sums })
            }
            Err(error) => {
                self.buffers.give_back([values]);
                match error {
                    SlotError::Values(ValuesError::NotFinite { .. }) => Computed::NotFinite("gradient"),
                    SlotError::Values(ValuesError::Length { expected, found }) => {
                        Computed::WrongLength { expected, found }
                    }
                    SlotError::Unknown { .. } | SlotError::NotFull { .. } | SlotError::Overwritten { .. } => {
                        return Err(Status::invalid_argument(error.to_string()));
                    }
                }
            }
        };
        let compute = Duration::from_nanos(done.compute_nanoseconds);
        Ok(ShardDone { step, shard, computed, params_fingerprint: done.params_fingerprint, compute })
    }
}

/// A text of bounded length, without what could confuse a terminal.
fn short(text: String) -> String {
    let is_short_and_plain = text.len() <= TEXT_BYTES_MAX && !text.contains(char::is_control);
    if is_short_and_plain {
        return text;
    }
    text.chars().filter(|character| !character.is_control()).take(TEXT_BYTES_MAX / 4).collect()
}
