//! A worker played by hand, by the client that tonic generates. What is not as a test expects it panics.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use engine::args::BackendArgs;
use engine::backend::reference_device;
use engine::data::Split;
use engine::params::{params_blake3, params_fingerprint};
use engine::random::ShardKey;
use engine::recipe::Recipe;
use engine::task::OpenTask;
use engine::training::{Continuation, initial_weights, train};
use model::task::tasks;
use prost::bytes::Bytes;
use proto::shared::{ResultSlots, UpdateSlots};
use proto::v1::coordinator_message::Kind as ToWorker;
use proto::v1::training_client::TrainingClient;
use proto::v1::worker_message::Kind;
use proto::v1::{
    BatchDone, Close, CloseReason, CoordinatorMessage, Encoding, Fence, Join, Ready, ShardDone, SharedMemory, State,
    Update, Welcome, Work, WorkerMessage,
};
use proto::values;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// Nothing that is waited for takes longer.
pub const WAIT_MAX: Duration = Duration::from_mins(1);

/// Values of denoising's parameters.
pub const N_PARAMS: usize = 163_814;

/// How a peer reaches a coordinator.
#[derive(Clone, Debug)]
pub struct Route {
    /// The coordinator's address.
    pub address: String,
    /// The address of this machine that the connection comes from; any if none.
    pub from: Option<IpAddr>,
    /// Bytes that are sent to it before it reads them (RFC 9113, section 5.2); the client's default if none.
    pub window: Option<u32>,
}

impl Route {
    /// From any address.
    pub fn to(address: &str) -> Self {
        Self { address: address.to_owned(), from: None, window: None }
    }

    /// From an address of this machine, such as `127.0.0.2`.
    #[must_use]
    pub fn from(self, address: &str) -> Self {
        Self { from: Some(address.parse().expect("an IP address")), ..self }
    }

    /// With the smallest window that HTTP/2 begins with.
    #[must_use]
    pub fn without_buffer(self) -> Self {
        Self { window: Some(65_535), ..self }
    }

    /// A new connection.
    pub async fn channel(&self) -> Channel {
        self.try_channel().await.expect("the coordinator listens")
    }

    /// A new connection, if there is one to be had.
    ///
    /// # Errors
    /// If there is no listener, or the connection is closed at once.
    pub async fn try_channel(&self) -> Result<Channel, tonic::transport::Error> {
        let endpoint = Channel::from_shared(self.address.clone()).expect("an address");
        let endpoint = endpoint.initial_stream_window_size(self.window).initial_connection_window_size(self.window);
        endpoint.local_address(self.from).connect().await
    }
}

/// How the gradients of a worker played by hand travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GradientRoute {
    /// In messages.
    Bytes,
    /// In slots of shared memory.
    Slots,
}

/// A worker played by hand.
pub struct Worker {
    /// Where its messages go.
    pub outbound: mpsc::Sender<WorkerMessage>,
    /// What it receives.
    pub inbound: Streaming<CoordinatorMessage>,
    /// How it was welcomed.
    pub welcome: Welcome,
    /// The memory that it shares with the coordinator, if it does.
    pub memory: Option<(ResultSlots, UpdateSlots)>,
}

/// Opens the memory that a welcome offers, as a worker on this machine.
pub fn open_memory(welcome: &Welcome) -> (ResultSlots, UpdateSlots) {
    let SharedMemory { process, results, updates } = welcome.shared_memory.clone().expect("an offer");
    let results = ResultSlots::open(process, &results.expect("a region"), N_PARAMS).expect("a region for results");
    let updates = UpdateSlots::open(process, &updates.expect("a region"), N_PARAMS).expect("a region for updates");
    (results, updates)
}

/// What a worker introduces itself by, as a process of this number, of the compute class that it is.
pub fn join(process: u32) -> Join {
    let (version, host) = (proto::VERSION.to_owned(), "here".to_owned());
    let backend = BackendArgs { backend: None, device: None, operations: None, threads: None };
    let compute_class = backend.open().expect("a device").compute_class();
    Join { version, host, process, numerics: engine::numerics::REVISION, compute_class, ..Join::default() }
}

/// Opens a session with a first message.
pub async fn open_session(route: &Route, first: Kind) -> (mpsc::Sender<WorkerMessage>, Streaming<CoordinatorMessage>) {
    try_open(route.channel().await, first).await.expect("a session")
}

/// Opens a session with a first message over a connection, if it is let.
///
/// # Errors
/// If it is not.
pub async fn try_open(
    channel: Channel,
    first: Kind,
) -> Result<(mpsc::Sender<WorkerMessage>, Streaming<CoordinatorMessage>), Status> {
    let (outbound, messages) = mpsc::channel(16);
    outbound.send(WorkerMessage { kind: Some(first) }).await.expect("a new queue has room");
    let inbound = TrainingClient::new(channel).session(ReceiverStream::new(messages)).await?.into_inner();
    Ok((outbound, inbound))
}

/// [`params_fingerprint`] of a state.
pub fn params_fingerprint_of(state: &State) -> u64 {
    let mut params = vec![0.0; state.params.len() / 4];
    values::decode(Encoding::F32, &state.params, &mut params).expect("finite values");
    params_fingerprint(&params)
}

/// The next message.
///
/// # Errors
/// If the stream ends, with its status.
pub async fn next(inbound: &mut Streaming<CoordinatorMessage>) -> Result<ToWorker, Status> {
    let message = timeout(WAIT_MAX, inbound.message()).await.expect("an answer in time")?;
    message.and_then(|message| message.kind).ok_or_else(|| Status::ok("the stream ended"))
}

impl Worker {
    /// Joins as the first process.
    pub async fn join(route: &Route) -> Self {
        Self::join_as(route, 1).await
    }

    /// Joins as a process of this number.
    pub async fn join_as(route: &Route, process: u32) -> Self {
        Self::try_join(route, process).await.expect("a welcome")
    }

    /// Joins, if it is welcome.
    pub async fn try_join(route: &Route, process: u32) -> Option<Self> {
        Self::try_join_over(route, process).await.map(|(worker, _)| worker)
    }

    /// Joins, if it is welcome; gives the connection too.
    pub async fn try_join_over(route: &Route, process: u32) -> Option<(Self, Channel)> {
        let channel = timeout(WAIT_MAX, route.try_channel()).await.ok()?.ok()?;
        Some((Self::try_join_on(channel.clone(), process).await?, channel))
    }

    /// Joins over a connection that is there, if it is welcome.
    pub async fn try_join_on(channel: Channel, process: u32) -> Option<Self> {
        let opened = timeout(WAIT_MAX, try_open(channel, Kind::Join(join(process)))).await;
        let (outbound, mut inbound) = opened.ok()?.ok()?;
        match next(&mut inbound).await {
            Ok(ToWorker::Welcome(welcome)) => Some(Self { outbound, inbound, welcome, memory: None }),
            _ => None,
        }
    }

    /// Joins and gets ready; gives the state that it gets then.
    pub async fn enter(route: &Route, process: u32) -> (Self, State) {
        Self::enter_by(GradientRoute::Bytes, route, process).await
    }

    /// As [`Worker::enter`], with gradients that travel this way.
    pub async fn enter_by(gradient_route: GradientRoute, route: &Route, process: u32) -> (Self, State) {
        let mut worker = Self::join_as(route, process).await;
        worker.memory = (gradient_route == GradientRoute::Slots).then(|| open_memory(&worker.welcome));
        worker.get_ready().await.expect("a state")
    }

    /// As [`Worker::enter`], if it is welcome.
    pub async fn try_enter(route: &Route, process: u32) -> Option<(Self, State)> {
        Self::try_join(route, process).await?.get_ready().await
    }

    async fn get_ready(mut self) -> Option<(Self, State)> {
        self.outbound.send(WorkerMessage { kind: Some(Kind::Ready(self.ready())) }).await.ok()?;
        match next(&mut self.inbound).await {
            Ok(ToWorker::State(state)) => Some((self, state)),
            _ => None,
        }
    }

    /// Of the run that it joined.
    pub fn fence(&self) -> Option<Fence> {
        self.welcome.fence.clone()
    }

    /// What it says when it is ready.
    pub fn ready(&self) -> Ready {
        let Welcome { fence, layout_fingerprint, data_fingerprint, .. } = self.welcome.clone();
        Ready { fence, layout_fingerprint, data_fingerprint, shared_memory: self.memory.is_some() }
    }

    /// Says what it computed; the gradient goes the way that gradients of this worker go, if there is room.
    pub async fn say_done(&self, mut done: ShardDone) {
        if let Some(mut free) = self.memory.as_ref().and_then(|(results, _)| results.free()) {
            // As it is, finite or not.
            for (value, bytes) in free.values().iter_mut().zip(done.gradient_sum.as_chunks().0) {
                *value = f32::from_le_bytes(*bytes);
            }
            (done.gradient_sum, done.slot) = (Bytes::new(), Some(free.fill()));
        }
        self.say(Kind::ShardDone(done)).await;
    }

    /// The gradient of an update, wherever it lies.
    pub fn gradient(&self, update: &Update, gradient: &mut [f32]) {
        match (update.slot, &self.memory) {
            (Some(slot), Some((_, updates))) => {
                let read = updates.read(slot, update.step, |start, block| {
                    gradient[start..start + block.len()].copy_from_slice(block);
                });
                read.expect("a worker that keeps up");
            }
            (None, None) => {
                values::decode(Encoding::F32, &update.gradient, gradient).expect("finite values");
            }
            other => panic!("the way that was settled expected, found {other:?}"),
        }
    }

    /// Says something.
    pub async fn say(&self, kind: Kind) {
        self.outbound.send(WorkerMessage { kind: Some(kind) }).await.expect("the session is open");
    }

    /// What comes next that is no update and no more work: those go on beside.
    ///
    /// # Errors
    /// If the stream ends, with its status.
    pub async fn receive(&mut self) -> Result<ToWorker, Status> {
        loop {
            match next(&mut self.inbound).await? {
                ToWorker::Update(_) | ToWorker::Work(_) => {}
                other => return Ok(other),
            }
        }
    }
}

/// Computes what an honest worker is asked for, until the run ends; gives the parameters at the end.
pub async fn work_honestly(entered: (Worker, State), recipe: &Recipe, task: &Arc<dyn OpenTask>) -> Vec<f32> {
    let ended = Box::pin(work(entered, recipe, task, &|_, _| {})).await;
    ended.unwrap_or_else(|close| panic!("an end expected, found {close:?}"))
}

/// Computes what a worker is asked for, and sends each shard's result as it is after a change, until its session is closed;
/// gives the parameters at the end of the run.
///
/// # Errors
/// If the session is closed otherwise than by the run's end.
pub async fn work(
    (mut worker, state): (Worker, State),
    recipe: &Recipe,
    task: &Arc<dyn OpenTask>,
    change: &dyn Fn(&Worker, &mut ShardDone),
) -> Result<Vec<f32>, Close> {
    let mut first = Some(ToWorker::State(state));
    let mut replica = Arc::clone(task).replica(recipe.seed, &reference_device());
    let evaluate = |params: &[f32], batch| {
        Arc::clone(task).evaluator(params, &reference_device()).evaluate_batch(Split::Valid, batch)
    };
    let (mut params, mut gradient) = (Vec::new(), Vec::new());
    loop {
        let message = match first.take() {
            Some(message) => message,
            None => next(&mut worker.inbound).await.expect("a session to the end"),
        };
        let work: Work = match message {
            ToWorker::State(state) => {
                params = vec![0.0; state.params.len() / 4];
                gradient.clone_from(&params);
                values::decode(Encoding::F32, &state.params, &mut params).expect("finite values");
                state.work.unwrap_or_default()
            }
            ToWorker::Update(update) => {
                worker.gradient(&update, &mut gradient);
                let rate = recipe.learning_rates(task.n_samples(Split::Train).into()).at(update.step - 1);
                recipe.optimizer.apply(rate, &mut params, &mut [Vec::new()], 0, &gradient);
                update.work.unwrap_or_default()
            }
            ToWorker::Work(work) => work,
            ToWorker::Close(close) if close.close_reason() == CloseReason::End => return Ok(params),
            ToWorker::Close(close) => return Err(close),
            ToWorker::Refusal(_) => continue, // of what another one has computed too
            other @ ToWorker::Welcome(_) => panic!("an order expected, found {other:?}"),
        };
        let sampler = recipe.sampler(work.epoch, 110);
        replica.params_mut().copy_from_slice(&params);
        for shard in work.shards {
            let key = ShardKey { epoch: work.epoch, step: work.step, shard };
            let places = sampler.shard(work.step_of_epoch as usize, shard as usize);
            let mut gradient_sum = vec![0.0; params.len()];
            let sums = replica.shard_result(key, places, &mut gradient_sum);
            let mut done = ShardDone {
                fence: worker.fence(),
                step: work.step,
                shard,
                n_samples: sums.n_samples,
                loss_sum: sums.loss_sum,
                counts: sums.counts.to_vec(),
                gradient_sum: values::encode(Encoding::F32, &gradient_sum),
                params_fingerprint: params_fingerprint(&params),
                compute_nanoseconds: 1,
                ..ShardDone::default()
            };
            change(&worker, &mut done);
            worker.say_done(done).await;
        }
        for batch in work.batches {
            let sums = evaluate(&params, batch);
            worker
                .say(Kind::BatchDone(BatchDone {
                    fence: worker.fence(),
                    step: work.step,
                    batch,
                    n_samples: sums.n_samples,
                    loss_sum: sums.loss_sum,
                    counts: sums.counts.to_vec(),
                    params_fingerprint: params_fingerprint(&params),
                }))
                .await;
        }
    }
}

/// A result as the first worker's first shard would be, all zeros.
pub fn zeros(worker: &Worker, state: &State) -> ShardDone {
    ShardDone {
        fence: worker.fence(),
        step: 0,
        shard: 0,
        n_samples: 4,
        loss_sum: 0.0,
        counts: Vec::new(),
        gradient_sum: vec![0_u8; state.params.len()].into(),
        params_fingerprint: params_fingerprint_of(state),
        compute_nanoseconds: 1,
        ..ShardDone::default()
    }
}

/// The name of the parameters that one process gives alone.
pub fn name_alone(recipe: &Recipe, task: &Arc<dyn OpenTask>) -> String {
    let known = tasks().build(&recipe.task, &recipe.settings).expect("a task of this program");
    let (weights, _) = initial_weights(recipe, &*known).expect("weights");
    let alone = train(recipe, task, &reference_device(), weights, &mut |_| Ok(Continuation::Continue));
    params_blake3(&alone.expect("a run to the end").weights.params)
}
