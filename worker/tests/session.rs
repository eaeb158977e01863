//! The program in a session with a coordinator that follows a script.

use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use engine::backend::reference_device;
use engine::data::Dataset;
use engine::params::params_fingerprint;
use engine::random::ShardKey;
use engine::recipe::{Recipe, RecipeArgs};
use engine::task::OpenTask;
use model::arch::Architecture;
use model::data::Garments;
use model::task::{book_task, initial_params, task_on};
use prost::bytes::Bytes;
use proto::shared::{RegionHandle, Results, Updates};
use proto::v1::coordinator_message::Kind as ToWorker;
use proto::v1::training_server::{Training, TrainingServer};
use proto::v1::worker_message::Kind as FromWorker;
use proto::v1::{
    Close, CloseReason, CoordinatorMessage, DatasetPiece, Encoding, FetchDatasetRequest, Leaving, ShardDone,
    SharedMemory, State, Update, Welcome, Work, WorkerMessage,
};
use proto::{limits, values};

/// Every wait's deadline: generous, for slow machines.
const WAIT_MAX: Duration = Duration::from_mins(1);
/// Values of denoising's parameters.
const N_PARAMS: usize = 163_814;

/// Hands each session to the test, and gives away a data set.
struct Script {
    peers: mpsc::Sender<Peer>,
    data: Arc<Garments>,
    n_fetched: Arc<AtomicUsize>,
}

/// One worker in one session.
struct Peer {
    heard: Streaming<WorkerMessage>,
    said: mpsc::Sender<Result<CoordinatorMessage, Status>>,
}

#[tonic::async_trait]
impl Training for Script {
    type SessionStream = ReceiverStream<Result<CoordinatorMessage, Status>>;
    type FetchDatasetStream = ReceiverStream<Result<DatasetPiece, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (said, saying) = mpsc::channel(16);
        let peer = Peer { heard: request.into_inner(), said };
        self.peers.send(peer).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(saying)))
    }

    async fn fetch_dataset(
        &self,
        request: Request<FetchDatasetRequest>,
    ) -> Result<Response<Self::FetchDatasetStream>, Status> {
        assert_eq!(request.into_inner().data_fingerprint, self.data.fingerprint().as_str());
        self.n_fetched.fetch_add(1, Ordering::Relaxed);
        let (giving, given) = mpsc::channel(64);
        for file in self.data.plain_files() {
            let whole = [&file.header, file.content].concat();
            for (number, content) in whole.chunks(limits::PIECE_BYTES / 8).enumerate() {
                let offset = (number * limits::PIECE_BYTES / 8) as u64;
                let (name, content) = (file.name.to_owned(), content.to_vec().into());
                let piece = DatasetPiece { name, file_bytes: whole.len() as u64, offset, content };
                giving.try_send(Ok(piece)).expect("a small data set has few pieces");
            }
        }
        Ok(Response::new(ReceiverStream::new(given)))
    }
}

/// A coordinator played by the test, and the workers that connect to it.
struct FakeCoordinator {
    folder: TempDir,
    peers: mpsc::Receiver<Peer>,
    data: Arc<Garments>,
    n_fetched: Arc<AtomicUsize>,
}

impl FakeCoordinator {
    fn open() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (data, n_fetched) = (Arc::new(peers::data_set()), Arc::new(AtomicUsize::new(0)));
        let (sending, peers) = mpsc::channel(4);
        let script = Script { peers: sending, data: Arc::clone(&data), n_fetched: Arc::clone(&n_fetched) };
        let listener = UnixListener::bind(folder.path().join("socket")).expect("a socket");
        let (accepted, connections) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if accepted.send(Ok::<_, std::io::Error>(stream)).await.is_err() {
                    break;
                }
            }
        });
        let server =
            TrainingServer::new(script).max_encoding_message_size(limits::message_bytes_max(limits::PARAMS_MAX));
        let server = Server::builder().add_service(server);
        tokio::spawn(server.serve_with_incoming(ReceiverStream::new(connections)));
        Self { folder, peers, data, n_fetched }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn start_worker(&self) -> Child {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("worker"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TELAR_") || name == "RUST_LOG") {
            command.env_remove(name);
        }
        command.arg("--coordinator").arg(format!("unix:{}", self.path().join("socket").display()));
        // Where the user's own data sets are not found.
        command.env("XDG_CACHE_HOME", self.path().join("cache")).current_dir(self.path());
        command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        command.spawn().expect("the program starts")
    }

    /// The next worker that joins.
    async fn joined(&mut self) -> Peer {
        let mut peer = timeout(WAIT_MAX, self.peers.recv()).await.expect("a session in time").expect("a session");
        match peer.receive().await {
            FromWorker::Join(join) => {
                assert_eq!((join.version.as_str(), join.backend.is_empty()), (proto::VERSION, false));
                assert!(join.compute_class.contains(std::env::consts::ARCH), "{}", join.compute_class);
            }
            other => panic!("a join expected, found {other:?}"),
        }
        peer
    }

    /// The next worker that joins, admitted and ready.
    async fn ready(&mut self) -> Peer {
        let (peer, is_shared) = self.ready_to_share(None).await;
        assert!(!is_shared, "nothing was offered");
        peer
    }

    /// The next worker that joins, admitted with an offer of memory and ready, and whether it has opened that.
    async fn ready_to_share(&mut self, shared_memory: Option<SharedMemory>) -> (Peer, bool) {
        let mut peer = self.joined().await;
        let welcome = peers::welcome(peers::fence(), self.data.fingerprint().to_string());
        peer.say(ToWorker::Welcome(Welcome { shared_memory, ..welcome })).await;
        match peer.receive().await {
            FromWorker::Ready(ready) => {
                assert_eq!(ready.data_fingerprint, self.data.fingerprint().as_str());
                (peer, ready.shared_memory)
            }
            other => panic!("readiness expected, found {other:?}"),
        }
    }
}

/// Memory as a coordinator shares it.
struct Memory {
    results: Results,
    handle: RegionHandle,
    updates: Updates,
}

impl Memory {
    fn new() -> Self {
        let (results, handle) = Results::create(N_PARAMS).expect("shared memory");
        Self { results, handle, updates: Updates::create(N_PARAMS).expect("shared memory") }
    }

    fn message(&self) -> SharedMemory {
        let (results, updates) = (Some(self.handle.message()), Some(self.updates.message()));
        SharedMemory { process: std::process::id(), results, updates }
    }

    /// The gradient of a result that has to lie in a slot.
    fn take(&self, done: &ShardDone) -> Vec<f32> {
        assert!(done.gradient_sum.is_empty(), "it lies in a slot");
        let mut gradient = vec![0.0; N_PARAMS];
        self.results.take(done.slot.expect("a slot"), &mut gradient).expect("a full slot of finite values");
        gradient
    }
}

impl Peer {
    async fn say(&self, kind: ToWorker) {
        self.said.send(Ok(CoordinatorMessage { kind: Some(kind) })).await.expect("the worker is there");
    }

    /// The next message that is more than a heartbeat.
    async fn receive(&mut self) -> FromWorker {
        loop {
            let message = timeout(WAIT_MAX, self.heard.message()).await.expect("a message in time");
            match message.expect("the worker is there").expect("a message").kind.expect("a known kind") {
                FromWorker::Heartbeat(_) => {}
                kind => return kind,
            }
        }
    }

    async fn close(&self, close_reason: CloseReason) {
        self.say(ToWorker::Close(Close { close_reason: close_reason.into(), reason: "the script says so".to_owned() }))
            .await;
    }
}

async fn end(child: Child) -> Output {
    timeout(WAIT_MAX, child.wait_with_output()).await.expect("an end in time").expect("an end")
}

async fn terminate(child: &Child) {
    let process = child.id().expect("it runs").to_string();
    assert!(Command::new("kill").args(["-TERM", &process]).status().await.expect("kill is there").success());
}

fn check_end(output: &Output, exit_code: i32, part: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit_code), "it said: {error}");
    assert!(error.contains(part), "`{error}` does not hold `{part}`");
}

/// The task of [`peers::welcome`] on a data set.
fn task(data: &Arc<Garments>) -> Arc<dyn OpenTask> {
    task_on(Architecture::Denoising, None, Arc::clone(data)).expect("a data set with images")
}

/// The recipe of [`peers::welcome`], from flags as one process alone has them.
fn recipe() -> Recipe {
    let args = RecipeArgs {
        epochs: Some(1),
        batch_size: Some(8),
        learning_rate: Some(0.5),
        momentum: Some(0.9),
        seed: Some(7),
        ..RecipeArgs::default()
    };
    Recipe::new(args, book_task(Architecture::Denoising).spec(), 2).expect("a recipe")
}

fn work(step: u64, shards: &[u32], batches: &[u32]) -> Work {
    let step_of_epoch = u32::try_from(step).expect("few steps");
    Work { step, epoch: 0, step_of_epoch, shards: shards.to_vec(), batches: batches.to_vec() }
}

fn state(step: u64, params: &[f32], work: Work) -> ToWorker {
    let encoded = |values: &[f32]| values::encode(Encoding::F32, values);
    let slots = encoded(&recipe().optimizer.slots(params.len()).concat());
    ToWorker::State(State { step, params: encoded(params), slots, work: Some(work) })
}

/// The goal: a whole life, with a data set that is fetched once, results that one process alone would have, a replica
/// that is loaded anew after a wrong update, and a second session after the first.
#[tokio::test]
async fn worker_fetches_dataset_computes_rejoins_and_ends() {
    let mut coordinator = FakeCoordinator::open();
    let child = coordinator.start_worker();
    let mut peer = coordinator.ready().await;

    let recipe = recipe();
    let params = initial_params(Architecture::Denoising, recipe.seed);
    let mut replica = task(&coordinator.data).replica(recipe.seed, &reference_device());
    replica.params_mut().copy_from_slice(&params);
    let sampler = recipe.sampler(0, peers::N_TRAIN);
    peer.say(state(0, &params, work(0, &[0, 1], &[]))).await;
    let mut gradient = vec![];
    for shard in 0..2 {
        let FromWorker::ShardDone(done) = peer.receive().await else { panic!("a shard's result") };
        let key = ShardKey { epoch: 0, step: 0, shard };
        let mut expected = vec![0.0; params.len()];
        let sums = replica.shard_result(key, sampler.shard(0, shard as usize), &mut expected);
        assert_eq!((done.fence, done.step, done.shard, done.n_samples), (Some(peers::fence()), 0, shard, 4));
        assert_eq!(done.loss_sum.to_bits(), sums.loss_sum.to_bits());
        assert_eq!(done.gradient_sum, values::encode(Encoding::F32, &expected));
        assert_eq!(done.params_fingerprint, params_fingerprint(&params));
        gradient = expected;
    }

    let update = |step| {
        let gradient = values::encode(Encoding::F32, &gradient);
        Update { step, gradient, work: Some(work(step, &[0], &[])), slot: None }
    };
    peer.say(ToWorker::Update(update(1))).await;
    let (mut updated, mut slots) = (params.clone(), recipe.optimizer.slots(params.len()));
    let rates = recipe.learning_rates(peers::N_TRAIN.into());
    recipe.optimizer.apply(rates.at(0), &mut updated, &mut slots, 0, &gradient);
    let FromWorker::ShardDone(done) = peer.receive().await else { panic!("a shard's result") };
    assert_eq!((done.step, done.params_fingerprint), (1, params_fingerprint(&updated)));

    peer.say(ToWorker::Update(update(3))).await;
    let FromWorker::Lagging(lagging) = peer.receive().await else { panic!("a replica that lags") };
    assert_eq!(lagging.reason, "expected the update to step 2, found that to step 3");
    peer.say(state(1, &updated, work(1, &[], &[0]))).await;
    let FromWorker::BatchDone(done) = peer.receive().await else { panic!("a batch's result") };
    assert_eq!((done.step, done.batch, done.n_samples), (1, 0, 10));
    peer.close(CloseReason::ComeBack).await;

    let peer = coordinator.ready().await;
    peer.close(CloseReason::End).await;
    check_end(&end(child).await, 0, "the script says so");
    assert_eq!(coordinator.n_fetched.load(Ordering::Relaxed), 1);

    // Another process finds what the first one kept.
    let child = coordinator.start_worker();
    coordinator.ready().await.close(CloseReason::End).await;
    check_end(&end(child).await, 0, "the script says so");
    assert_eq!(coordinator.n_fetched.load(Ordering::Relaxed), 1);
}

/// What one process alone computes of the first step's shards.
fn gradients_alone(data: &Arc<Garments>, params: &[f32], step: u64) -> [Vec<f32>; 2] {
    let recipe = recipe();
    let mut replica = task(data).replica(recipe.seed, &reference_device());
    replica.params_mut().copy_from_slice(params);
    let sampler = recipe.sampler(0, peers::N_TRAIN);
    [0, 1].map(|shard| {
        let mut gradient = vec![0.0; params.len()];
        let images = sampler.shard(usize::try_from(step).expect("few steps"), shard as usize);
        replica.shard_result(ShardKey { epoch: 0, step, shard }, images, &mut gradient);
        gradient
    })
}

async fn receive_shard(peer: &mut Peer) -> ShardDone {
    match peer.receive().await {
        FromWorker::ShardDone(done) => done,
        other => panic!("a shard's result expected, found {other:?}"),
    }
}

/// The goal: in memory lies what would have been in messages, both ways; who finds no free slot does not wait for one; and
/// who comes too late for an update says so.
#[tokio::test]
async fn local_worker_uses_slots_for_results_and_updates() {
    let mut coordinator = FakeCoordinator::open();
    let mut memory = Memory::new();
    let child = coordinator.start_worker();
    let (mut peer, is_shared) = coordinator.ready_to_share(Some(memory.message())).await;
    assert!(is_shared, "it is on this machine");

    let (recipe, mut params) = (recipe(), initial_params(Architecture::Denoising, recipe().seed));
    let mut slots = recipe.optimizer.slots(params.len());
    let rates = recipe.learning_rates(peers::N_TRAIN.into());
    // One more than there are slots.
    let shards: Vec<u32> = (0..=limits::RESULT_SLOTS).map(|number| number % 2).collect();
    peer.say(state(0, &params, work(0, &shards, &[]))).await;
    let alone = gradients_alone(&coordinator.data, &params, 0);
    let mut results = Vec::new();
    for _ in &shards {
        results.push(receive_shard(&mut peer).await);
    }
    let last = results.pop().expect("there are more than slots");
    let of_last = values::encode(Encoding::F32, &alone[last.shard as usize]);
    assert_eq!((last.slot, &last.gradient_sum), (None, &of_last), "no slot is free");
    for done in &results {
        assert_eq!(memory.take(done), alone[done.shard as usize]);
    }

    let update = |step, slot| Update { step, gradient: Bytes::new(), work: Some(work(step, &[0], &[])), slot };
    let slot = memory.updates.write(1, &alone[0]);
    peer.say(ToWorker::Update(update(1, Some(slot)))).await;
    recipe.optimizer.apply(rates.at(0), &mut params, &mut slots, 0, &alone[0]);
    let done = receive_shard(&mut peer).await;
    assert_eq!((done.step, done.params_fingerprint), (1, params_fingerprint(&params)));
    assert_eq!(memory.take(&done), gradients_alone(&coordinator.data, &params, 1)[0]);

    let slot = memory.updates.write(2, &alone[0]);
    memory.updates.write(2 + u64::from(limits::UPDATE_SLOTS), &alone[1]);
    peer.say(ToWorker::Update(update(2, Some(slot)))).await;
    let FromWorker::Lagging(lagging) = peer.receive().await else { panic!("a replica that lags") };
    assert!(lagging.reason.contains("expected the update to step 2 in slot 2, found a later one"), "{lagging:?}");
    peer.say(state(2, &params, work(2, &[1], &[]))).await;
    let done = receive_shard(&mut peer).await;
    assert_eq!((done.step, done.params_fingerprint), (2, params_fingerprint(&params)));
    assert_eq!(memory.take(&done), gradients_alone(&coordinator.data, &params, 2)[1]);

    peer.close(CloseReason::End).await;
    check_end(&end(child).await, 0, "the script says so");
}

/// Who cannot open what is offered goes on with messages.
#[tokio::test]
async fn worker_without_shared_memory_falls_back_to_messages() {
    let check = async |spoil: fn(&mut SharedMemory), part: &str| {
        let mut coordinator = FakeCoordinator::open();
        let memory = Memory::new();
        let mut offered = memory.message();
        spoil(&mut offered);
        let child = coordinator.start_worker();
        let (mut peer, is_shared) = coordinator.ready_to_share(Some(offered)).await;
        assert!(!is_shared, "{part}");
        let params = initial_params(Architecture::Denoising, recipe().seed);
        peer.say(state(0, &params, work(0, &[0], &[]))).await;
        let (done, alone) = (receive_shard(&mut peer).await, gradients_alone(&coordinator.data, &params, 0));
        assert_eq!((done.slot, done.gradient_sum), (None, values::encode(Encoding::F32, &alone[0])), "{part}");

        let slot = Some(0);
        peer.say(ToWorker::Update(Update { step: 1, gradient: Bytes::new(), work: None, slot })).await;
        let FromWorker::Lagging(lagging) = peer.receive().await else { panic!("a gradient out of reach") };
        assert!(lagging.reason.contains("memory that this worker does not share"), "{lagging:?}");
        peer.close(CloseReason::End).await;
        check_end(&end(child).await, 0, part);
    };
    let results = |offered: &mut SharedMemory| offered.results.as_mut().expect("a region").token = vec![1; 16].into();
    check(results, "expected the token that was told, found another one").await;
    let updates = |offered: &mut SharedMemory| offered.updates.as_mut().expect("a region").token = Bytes::new();
    check(updates, "expected the token that was told, found another one").await;
    check(|offered| offered.process = u32::MAX, "cannot open /proc/4294967295/fd/").await;
    check(|offered| offered.updates = None, "gradients travel over the connection").await;
}

#[tokio::test]
async fn terminated_worker_announces_leave_and_finishes_work() {
    let mut coordinator = FakeCoordinator::open();
    let child = coordinator.start_worker();
    let mut peer = coordinator.ready().await;
    terminate(&child).await;
    let FromWorker::Leaving(Leaving { reason }) = peer.receive().await else { panic!("a worker that leaves") };
    assert_eq!(reason, "the worker was asked to end");
    peer.say(state(0, &initial_params(Architecture::Denoising, 7), work(0, &[1], &[]))).await;
    let FromWorker::ShardDone(done) = peer.receive().await else { panic!("a shard's result") };
    assert_eq!(done.shard, 1);
    drop(peer); // and with it the stream
    check_end(&end(child).await, 128 + 15, "asked to end");
}

#[tokio::test]
async fn second_signal_ends_worker_immediately() {
    let mut coordinator = FakeCoordinator::open();
    let child = coordinator.start_worker();
    let mut peer = coordinator.ready().await;
    terminate(&child).await;
    assert!(matches!(peer.receive().await, FromWorker::Leaving(_)));
    terminate(&child).await;
    check_end(&end(child).await, 128 + 15, ""); // so much at once that the log's last line may be lost
}

#[tokio::test]
async fn refused_worker_exits_with_reason() {
    let check = async |answer: Result<ToWorker, Status>, exit_code, part: &str| {
        let mut coordinator = FakeCoordinator::open();
        let child = coordinator.start_worker();
        let peer = coordinator.joined().await;
        let answer = answer.map(|kind| CoordinatorMessage { kind: Some(kind) });
        peer.said.send(answer).await.expect("the worker is there");
        check_end(&end(child).await, exit_code, part);
    };
    check(Err(Status::failed_precondition("expected version 9")), 64, "error: expected version 9").await;
    let mut welcome = peers::welcome(peers::fence(), "0".repeat(64));
    welcome.layout_fingerprint += 1;
    check(Ok(ToWorker::Welcome(welcome)), 64, "expected the parameter layout").await;
    let close = Close { close_reason: CloseReason::End.into(), reason: "nothing to do".to_owned() };
    check(Ok(ToWorker::Close(close)), 0, "nothing to do").await;
    check(Ok(ToWorker::Work(Work::default())), 70, "expected a welcome, found an order").await;
}
