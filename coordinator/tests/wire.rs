//! What peers may send, and what becomes of it: the real program, spoken to by a worker that the test plays itself. What is
//! not right is answered and changes nothing: an honest worker beside it ends with the bits of a process that trains alone.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use model::backend::reference_device;
use model::data::{DataChoice, Dataset, PLAIN_NAMES, Split, open};
use model::params::{params_blake3, params_fingerprint};
use model::random::ShardKey;
use model::recipe::Recipe;
use model::replica::Replica;
use model::report::DownloadBar;
use model::training::{Next, initial_weights, train};
use prost::bytes::Bytes;
use proto::limits::RESULT_SLOTS;
use proto::shared::{FreeSlot, ResultSlots, UpdateSlots};
use proto::v1::coordinator_message::Kind as Told;
use proto::v1::training_client::TrainingClient;
use proto::v1::worker_message::Kind;
use proto::v1::{
    CoordinatorMessage, Dismissal, Encoding, Farewell, Fence, Heartbeat, Join, Ready, ShardDone, SharedMemory, State,
    Update, Welcome, Work, WorkerMessage,
};
use proto::values;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// Nothing that is waited for takes longer.
const WAIT_MAX: Duration = Duration::from_mins(1);

/// Values of denoising's parameters.
const N_PARAMS: usize = 163_814;

/// A data set of 120 images for training and validation, and 10 for the test.
fn write_data_set(folder: &Path) {
    for (names, n_images) in [&PLAIN_NAMES[..2], &PLAIN_NAMES[2..]].into_iter().zip([120_u32, 10]) {
        let pixel = |place: u32| u8::try_from(place * place / 7 % 256).expect("below 256");
        let images = (0..n_images * 784).map(pixel);
        let header = [0x803, n_images, 28, 28].map(u32::to_be_bytes).concat();
        std::fs::write(folder.join(names[0]), header.into_iter().chain(images).collect::<Vec<u8>>()).expect("a file");
        let header = [0x801, n_images].map(u32::to_be_bytes).concat();
        std::fs::write(folder.join(names[1]), [header, vec![3; n_images as usize]].concat()).expect("a file");
    }
}

/// A coordinator that waits for workers, killed when it is dropped.
struct Coordinator {
    folder: TempDir,
    process: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    address: String,
}

impl Coordinator {
    fn start() -> Self {
        Self::start_with("")
    }

    /// Four steps of denoising in two shards of four images each, with flags more.
    fn start_with(flags: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        write_data_set(folder.path());
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("coordinator"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TELAR_") || name == "RUST_LOG") {
            command.env_remove(name);
        }
        let usual =
            "--launch external --listen 127.0.0.1:0 --arch denoising --batch-size 8 --shards 2 --max-steps 4 --json";
        command
            .args(usual.split(' '))
            .args(flags.split_whitespace())
            .arg("--data")
            .arg(folder.path())
            .arg("--run-dir")
            .arg(folder.path().join("run"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("the program starts");
        let mut lines = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        let begin: Value = serde_json::from_str(&lines.next().expect("a line").expect("text")).expect("JSON");
        let address = begin["address"].as_str().expect("an address").to_owned();
        Self { folder, process, lines, address }
    }

    async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(self.address.clone()).expect("an address");
        endpoint.connect().await.expect("the coordinator listens")
    }

    /// Its exit code, and the last line that it printed, if any, or else what it said on standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let last = self.lines.by_ref().map(|line| line.expect("text")).last();
        let code = self.process.wait().expect("the program ends").code();
        let mut error = String::new();
        let stderr = self.process.stderr.take().expect("a pipe");
        BufReader::new(stderr).read_to_string(&mut error).expect("text");
        (code, last.unwrap_or(error))
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How the gradients of a worker played by hand travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Bytes,
    Slots,
}

/// A worker played by hand.
struct Worker {
    outbound: mpsc::Sender<WorkerMessage>,
    inbound: Streaming<CoordinatorMessage>,
    welcome: Welcome,
    memory: Option<(ResultSlots, UpdateSlots)>,
}

/// Opens the memory that a welcome offers, as a worker on this machine.
fn open_memory(welcome: &Welcome) -> (ResultSlots, UpdateSlots) {
    let SharedMemory { process, results, updates } = welcome.shared_memory.clone().expect("an offer");
    let results = ResultSlots::open(process, &results.expect("a region"), N_PARAMS).expect("a region for results");
    let updates = UpdateSlots::open(process, &updates.expect("a region"), N_PARAMS).expect("a region for updates");
    (results, updates)
}

fn join(process: u32) -> Join {
    Join { version: proto::VERSION.to_owned(), host: "here".to_owned(), process, ..Join::default() }
}

async fn open_session(
    coordinator: &Coordinator,
    first: Kind,
) -> (mpsc::Sender<WorkerMessage>, Streaming<CoordinatorMessage>) {
    let (outbound, messages) = mpsc::channel(16);
    outbound.send(WorkerMessage { kind: Some(first) }).await.expect("a new queue has room");
    let mut client = TrainingClient::new(coordinator.channel().await);
    let inbound = client.session(ReceiverStream::new(messages)).await.expect("a session").into_inner();
    (outbound, inbound)
}

async fn next(inbound: &mut Streaming<CoordinatorMessage>) -> Result<Told, Status> {
    let message = timeout(WAIT_MAX, inbound.message()).await.expect("an answer in time")?;
    message.and_then(|message| message.kind).ok_or_else(|| Status::ok("the stream ended"))
}

impl Worker {
    async fn join(coordinator: &Coordinator) -> Self {
        Self::join_as(coordinator, 1).await
    }

    async fn join_as(coordinator: &Coordinator, process: u32) -> Self {
        let (outbound, mut inbound) = open_session(coordinator, Kind::Join(join(process))).await;
        match next(&mut inbound).await {
            Ok(Told::Welcome(welcome)) => Self { outbound, inbound, welcome, memory: None },
            other => panic!("a welcome expected, found {other:?}"),
        }
    }

    /// Joins and gets ready; gives the state that it gets then.
    async fn enter(coordinator: &Coordinator, process: u32) -> (Self, State) {
        Self::enter_by(Way::Bytes, coordinator, process).await
    }

    async fn enter_by(way: Way, coordinator: &Coordinator, process: u32) -> (Self, State) {
        let mut worker = Self::join_as(coordinator, process).await;
        worker.memory = (way == Way::Slots).then(|| open_memory(&worker.welcome));
        worker.say(Kind::Ready(worker.ready())).await;
        match next(&mut worker.inbound).await {
            Ok(Told::State(state)) => (worker, state),
            other => panic!("a state expected, found {other:?}"),
        }
    }

    fn fence(&self) -> Option<Fence> {
        self.welcome.fence.clone()
    }

    fn ready(&self) -> Ready {
        let Welcome { fence, layout_fingerprint, data_fingerprint, .. } = self.welcome.clone();
        Ready { fence, layout_fingerprint, data_fingerprint, shared_memory: self.memory.is_some() }
    }

    /// Says what it computed; the gradient goes the way that gradients of this worker go, if there is room.
    async fn say_done(&self, mut done: ShardDone) {
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
    fn gradient(&self, update: &Update, gradient: &mut [f32]) {
        match (update.slot, &self.memory) {
            (Some(slot), Some((_, updates))) => {
                let read = updates.read(slot, update.step, |start, block| {
                    gradient[start..start + block.len()].copy_from_slice(block);
                });
                read.expect("a worker that keeps up");
            }
            (None, None) => values::decode(Encoding::F32, &update.gradient, gradient).expect("finite values"),
            other => panic!("the way that was settled expected, found {other:?}"),
        }
    }

    async fn say(&self, kind: Kind) {
        self.outbound.send(WorkerMessage { kind: Some(kind) }).await.expect("the session is open");
    }

    /// What comes next that is no update and no more work: those go on beside.
    async fn hear(&mut self) -> Result<Told, Status> {
        loop {
            match next(&mut self.inbound).await? {
                Told::Update(_) | Told::Work(_) => {}
                told => return Ok(told),
            }
        }
    }
}

/// Computes what an honest worker is asked for, until the run ends; gives the parameters at the end.
async fn work_honestly(entered: (Worker, State), recipe: &Recipe, data: &Dataset) -> Vec<f32> {
    let ended = Box::pin(work(entered, recipe, data, &|_, _| {})).await;
    ended.unwrap_or_else(|dismissal| panic!("an end expected, found {dismissal:?}"))
}

/// Computes what a worker is asked for, and sends each shard's result as it is after a change, until it is dismissed; gives
/// the parameters at the end of the run.
async fn work(
    (mut worker, state): (Worker, State),
    recipe: &Recipe,
    data: &Dataset,
    change: &dyn Fn(&Worker, &mut ShardDone),
) -> Result<Vec<f32>, Dismissal> {
    let mut first = Some(Told::State(state));
    let mut replica = Replica::new(recipe, &reference_device());
    let evaluate = |params: &[f32], batch| {
        let weights = model::weights::Weights { architecture: recipe.architecture, params: params.to_vec() };
        model::evaluation::Evaluator::new(&weights, &reference_device()).evaluate_batch(data, Split::Valid, batch)
    };
    let (mut params, mut gradient) = (Vec::new(), Vec::new());
    loop {
        let told = match first.take() {
            Some(told) => told,
            None => next(&mut worker.inbound).await.expect("a session to the end"),
        };
        let work: Work = match told {
            Told::State(state) => {
                params = vec![0.0; state.params.len() / 4];
                gradient.clone_from(&params);
                values::decode(Encoding::F32, &state.params, &mut params).expect("finite values");
                state.work.unwrap_or_default()
            }
            Told::Update(update) => {
                worker.gradient(&update, &mut gradient);
                recipe.sgd.apply(&mut params, &mut [], &gradient);
                update.work.unwrap_or_default()
            }
            Told::Work(work) => work,
            Told::Dismissal(dismissal) if dismissal.farewell() == Farewell::End => return Ok(params),
            Told::Dismissal(dismissal) => return Err(dismissal),
            Told::Refusal(_) => continue, // of what another one has computed too
            other @ Told::Welcome(_) => panic!("an order expected, found {other:?}"),
        };
        let sampler = recipe.sampler(work.epoch, 110);
        replica.load(&params);
        for shard in work.shards {
            let key = ShardKey { epoch: work.epoch, step: work.step, shard };
            let places = sampler.shard(work.step_of_epoch as usize, shard as usize);
            let mut gradient_sum = vec![0.0; params.len()];
            let sums = replica.shard_result(data, key, places, &mut gradient_sum);
            let mut done = ShardDone {
                fence: worker.fence(),
                step: work.step,
                shard,
                n_samples: sums.n_samples,
                loss_sum: sums.loss_sum,
                correct_sum: sums.correct_sum,
                gradient_sum: values::encode(Encoding::F32, &gradient_sum),
                params_fingerprint: params_fingerprint(&params),
                compute_nanoseconds: 1,
                slot: None,
            };
            change(&worker, &mut done);
            worker.say_done(done).await;
        }
        for batch in work.batches {
            let sums = evaluate(&params, batch);
            worker
                .say(Kind::BatchDone(proto::v1::BatchDone {
                    fence: worker.fence(),
                    step: work.step,
                    batch,
                    n_samples: sums.n_samples,
                    loss_sum: sums.loss_sum,
                    correct_sum: sums.correct_sum,
                    params_fingerprint: params_fingerprint(&params),
                }))
                .await;
        }
    }
}

fn small_run(coordinator: &Coordinator) -> (Recipe, Dataset) {
    let data = open(&DataChoice::Folder(coordinator.folder.path().to_owned()), &mut DownloadBar::default());
    let description = std::fs::read(coordinator.folder.path().join("run/run.json")).expect("a description");
    let description: Value = serde_json::from_slice(&description).expect("JSON");
    (serde_json::from_value(description["recipe"].clone()).expect("a recipe"), data.expect("a whole data set"))
}

/// A result as the first worker's first shard would be, all zeros.
fn zeros(worker: &Worker, state: &State) -> ShardDone {
    let mut params = vec![0.0; state.params.len() / 4];
    values::decode(Encoding::F32, &state.params, &mut params).expect("finite values");
    ShardDone {
        fence: worker.fence(),
        step: 0,
        shard: 0,
        n_samples: 4,
        loss_sum: 0.0,
        correct_sum: 0,
        gradient_sum: vec![0_u8; state.params.len()].into(),
        params_fingerprint: params_fingerprint(&params),
        compute_nanoseconds: 1,
        slot: None,
    }
}

/// The first messages of a session, each wrong in one thing.
async fn check_refused(coordinator: &Coordinator, first: Kind, code: Code, part: &str) {
    let (_outbound, mut inbound) = open_session(coordinator, first).await;
    let status = next(&mut inbound).await.expect_err(part);
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(part), "`{}` does not say `{part}`", status.message());
}

/// A message in a session that has got its state, changed in one thing, that ends the session.
async fn check_ends(coordinator: &Coordinator, change: impl FnOnce(&mut ShardDone), code: Code, part: &str) {
    let mut worker = Worker::join(coordinator).await;
    worker.say(Kind::Ready(worker.ready())).await;
    let Ok(Told::State(state)) = worker.hear().await else { panic!("a state expected") };
    let mut done = zeros(&worker, &state);
    change(&mut done);
    worker.say(Kind::ShardDone(done)).await;
    let status = worker.hear().await.expect_err(part);
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(part), "`{}` does not say `{part}`", status.message());
}

#[tokio::test]
async fn what_is_not_right_is_answered_and_changes_nothing() {
    let coordinator = Coordinator::start();
    let bad_join = |change: fn(&mut Join)| {
        let mut join = join(1);
        change(&mut join);
        Kind::Join(join)
    };
    check_refused(&coordinator, Kind::Heartbeat(Heartbeat { step: 0 }), Code::InvalidArgument, "expected a join").await;
    let other_version = bad_join(|join| "9.9.9".clone_into(&mut join.version));
    check_refused(&coordinator, other_version, Code::FailedPrecondition, "found 9.9.9").await;

    for (change, part) in [
        ((|ready| ready.layout_fingerprint ^= 1) as fn(&mut Ready), "expected the layout"),
        (|ready| ready.data_fingerprint = "0".repeat(64), "expected the data set"),
        (|ready| ready.fence = None, "found nothing of the kind"),
    ] {
        let mut worker = Worker::join(&coordinator).await;
        let mut ready = worker.ready();
        change(&mut ready);
        worker.say(Kind::Ready(ready)).await;
        let status = worker.hear().await.expect_err(part);
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains(part), "{status:?}");
    }

    let fenced = |run_id: &str, incarnation| Some(Fence { run_id: run_id.to_owned(), incarnation });
    let other_run = fenced("0000000000000000", 1);
    check_ends(&coordinator, |done| done.fence = other_run, Code::FailedPrecondition, "found run 0000000000000000")
        .await;
    check_ends(
        &coordinator,
        |done| done.fence.as_mut().expect("a fence").incarnation = 2,
        Code::FailedPrecondition,
        "incarnation 1, found run",
    )
    .await;

    // A session that goes on: what is stale, unknown or computed on other parameters is not used.
    let mut worker = Worker::join(&coordinator).await;
    worker.say(Kind::Ready(worker.ready())).await;
    let Ok(Told::State(state)) = worker.hear().await else { panic!("a state expected") };
    for (change, part) in [
        ((|done| done.step = 7) as fn(&mut ShardDone), "expected results of step 0, found one of step 7"),
        (|done| done.shard = 2, "found task 2"),
        (|done| done.shard = u32::MAX, "found task 4294967295"),
    ] {
        let mut done = zeros(&worker, &state);
        change(&mut done);
        worker.say(Kind::ShardDone(done)).await;
        match worker.hear().await {
            Ok(Told::Refusal(refusal)) => assert!(refusal.reason.contains(part), "{refusal:?}"),
            other => panic!("a refusal expected, found {other:?}"),
        }
    }
    let mut strayed = zeros(&worker, &state);
    strayed.params_fingerprint ^= 1;
    worker.say(Kind::ShardDone(strayed)).await;
    assert!(matches!(worker.hear().await, Ok(Told::State(_))), "a replica that strays is sent anew");
    let mut few = zeros(&worker, &state);
    few.n_samples = 3;
    worker.say(Kind::ShardDone(few)).await;
    match worker.hear().await {
        Ok(Told::Dismissal(dismissal)) => {
            assert_eq!(dismissal.farewell(), Farewell::Evicted);
            assert!(dismissal.reason.contains("expected 4 images"), "{dismissal:?}");
        }
        other => panic!("a dismissal expected, found {other:?}"),
    }

    let (recipe, data) = small_run(&coordinator);
    let params = work_honestly(Worker::enter(&coordinator, 1).await, &recipe, &data).await;
    let expected = name_alone(&recipe, &data);
    assert_eq!(params_blake3(&params), expected);
    let (code, last) = coordinator.end();
    assert_eq!(code, Some(0), "{last}");
    let end: Value = serde_json::from_str(&last).expect("JSON");
    assert_eq!(end["params_blake3"], expected);
}

/// The name of the parameters that one process gives alone.
fn name_alone(recipe: &Recipe, data: &Dataset) -> String {
    let weights = initial_weights(recipe).expect("weights");
    let alone = train(recipe, data, &reference_device(), weights, &mut |_| Ok(Next::GoOn));
    params_blake3(&alone.expect("a run to the end").params)
}

/// Two honest workers, and one who changes what it sends: it is evicted with a reason, and the run ends as if it had never
/// been there.
async fn check_evicted(flags: &str, way: Way, change: impl Fn(&mut ShardDone), part: &str) {
    let coordinator = Coordinator::start_with(flags);
    let (recipe, data) = small_run(&coordinator);
    // The one who lies joins first, so that it is dealt something, and begins when the others are there.
    let liar = Worker::enter_by(way, &coordinator, 3).await;
    let [first, second] = [Worker::enter(&coordinator, 1).await, Worker::enter_by(way, &coordinator, 2).await];
    let lying = async {
        let dismissal = Box::pin(work(liar, &recipe, &data, &|_, done| change(done))).await.expect_err("an eviction");
        assert_eq!(dismissal.farewell(), Farewell::Evicted);
        assert!(dismissal.reason.contains(part), "`{}` does not say `{part}`", dismissal.reason);
    };
    let honest = |entered| work_honestly(entered, &recipe, &data);
    let ((), first, second) = tokio::join!(lying, honest(first), honest(second));
    let expected = name_alone(&recipe, &data);
    assert_eq!([params_blake3(&first), params_blake3(&second)], [expected.clone(), expected.clone()]);
    let (code, last) = coordinator.end();
    assert_eq!(code, Some(0), "{last}");
    let end: Value = serde_json::from_str(&last).expect("JSON");
    assert_eq!(end["params_blake3"], expected);
    let evicted = end["faults"]["evicted"].as_array().expect("a list");
    assert_eq!(evicted.len(), 1, "{evicted:?}");
    let words = evicted[0].as_str().expect("words");
    assert!(words.contains("process 3 on here") && words.contains(part), "{words}");
}

#[tokio::test]
async fn a_gradient_that_is_not_finite_for_one_alone_costs_that_one() {
    let not_finite = |done: &mut ShardDone| {
        let mut bytes = done.gradient_sum.to_vec();
        bytes[400..404].copy_from_slice(&f32::NAN.to_le_bytes());
        done.gradient_sum = bytes.into();
    };
    for way in [Way::Bytes, Way::Slots] {
        check_evicted("", way, not_finite, "is not finite, unlike that of worker").await;
    }
}

#[tokio::test]
async fn a_gradient_of_another_length_costs_the_one_who_sent_it() {
    let short = |done: &mut ShardDone| done.gradient_sum.truncate(655_252);
    check_evicted("", Way::Bytes, short, "expected 655256 bytes in the gradient of shard 0, found 655252").await;
}

#[tokio::test]
async fn an_audit_finds_who_computes_other_bits() {
    let last_bit = |done: &mut ShardDone| {
        let mut bytes = done.gradient_sum.to_vec();
        bytes[400] ^= 1;
        done.gradient_sum = bytes.into();
    };
    for way in [Way::Bytes, Way::Slots] {
        check_evicted("--audit 1 --workers 3", way, last_bit, "differs from those of worker").await;
    }
}

/// Two honest workers, each by its way, beside one that does something before it is gone: the run ends with the bits of a
/// process alone.
async fn check_undisturbed(flags: &str, disturb: impl AsyncFnOnce(Worker, State)) {
    let coordinator = Coordinator::start_with(flags);
    let (recipe, data) = small_run(&coordinator);
    let (worker, state) = Worker::enter_by(Way::Slots, &coordinator, 3).await;
    let first = Worker::enter_by(Way::Bytes, &coordinator, 1).await;
    let second = Worker::enter_by(Way::Slots, &coordinator, 2).await;
    let honest = |entered| work_honestly(entered, &recipe, &data);
    let ((), first, second) = tokio::join!(disturb(worker, state), honest(first), honest(second));
    let expected = name_alone(&recipe, &data);
    assert_eq!([params_blake3(&first), params_blake3(&second)], [expected.clone(), expected.clone()]);
    let (code, last) = coordinator.end();
    assert_eq!(code, Some(0), "{last}");
    let end: Value = serde_json::from_str(&last).expect("JSON");
    assert_eq!(end["params_blake3"], expected);
}

/// What a worker says of its results that is a lie about slots ends its session, and nothing else.
#[tokio::test]
async fn a_lie_about_a_slot_ends_the_session() {
    let check = async |change: fn(&Worker, &mut ShardDone), part: &str| {
        check_undisturbed("", async |mut worker, state| {
            let mut done = ShardDone { gradient_sum: Bytes::new(), ..zeros(&worker, &state) };
            change(&worker, &mut done);
            worker.say(Kind::ShardDone(done)).await;
            let status = worker.hear().await.expect_err(part);
            assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
            assert!(status.message().contains(part), "`{}` does not say `{part}`", status.message());
        })
        .await;
    };
    check(|_, done| done.slot = Some(RESULT_SLOTS), "expected a slot below 2, found 2").await;
    check(|_, done| done.slot = Some(u32::MAX), "found 4294967295").await;
    check(|_, done| done.slot = Some(1), "expected slot 1 to be full").await;
    let both = |worker: &Worker, done: &mut ShardDone| {
        done.slot = worker.memory.as_ref().and_then(|(results, _)| results.free()).map(FreeSlot::fill);
        done.gradient_sum = vec![0; 4 * N_PARAMS].into();
    };
    check(both, "in a slot or in the message, found both").await;
}

#[tokio::test]
async fn a_slot_of_memory_that_is_not_shared_ends_the_session() {
    let coordinator = Coordinator::start_with("--wire grpc");
    let mut worker = Worker::join(&coordinator).await;
    assert_eq!(worker.welcome.shared_memory, None, "nothing is offered");
    worker.say(Kind::Ready(Ready { shared_memory: true, ..worker.ready() })).await;
    let status = worker.hear().await.expect_err("a lie");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("expected a worker without shared memory"), "{status:?}");

    let slot = |done: &mut ShardDone| (done.gradient_sum, done.slot) = (Bytes::new(), Some(0));
    check_ends(&coordinator, slot, Code::InvalidArgument, "expected a slot below 0, found 0").await;
}

/// The goal: what was looked at is what is added, whatever a worker writes when it has given its result away.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_to_a_slot_after_it_was_read_changes_nothing() {
    let coordinator = Coordinator::start();
    let (recipe, data) = small_run(&coordinator);
    let entered = Worker::enter_by(Way::Slots, &coordinator, 1).await;
    let n_spoiled = Cell::new(0);
    // Alone, it computes both shards of a step: when the first one's slot is free, its result waits to be added.
    let spoil = |worker: &Worker, _: &mut ShardDone| {
        let (results, _) = worker.memory.as_ref().expect("memory");
        let all_free = || {
            let free: Vec<_> = std::iter::from_fn(|| results.free()).collect();
            (free.len() == RESULT_SLOTS as usize).then_some(free)
        };
        let begun = Instant::now();
        let free = loop {
            if let Some(free) = all_free() {
                break free;
            }
            assert!(begun.elapsed() < WAIT_MAX, "a slot is not freed");
            std::thread::yield_now();
        };
        for mut free in free {
            free.values().fill(f32::NAN);
            n_spoiled.set(n_spoiled.get() + 1);
        }
    };
    let params = work(entered, &recipe, &data, &spoil).await.expect("an end");
    assert_eq!(params_blake3(&params), name_alone(&recipe, &data));
    assert_eq!(n_spoiled.get(), 4 * 2 * RESULT_SLOTS, "before each shard of each step");
    let (code, last) = coordinator.end();
    assert_eq!(code, Some(0), "{last}");
}

#[tokio::test]
async fn a_worker_that_is_gone_in_the_middle_of_a_slot_changes_nothing() {
    check_undisturbed("", async |worker, _| {
        let (results, _) = worker.memory.as_ref().expect("memory");
        let mut slot = results.free().expect("a free slot");
        slot.values()[..N_PARAMS / 2].fill(1.0);
        // As a process that is killed, which frees nothing.
        std::mem::forget(slot);
    })
    .await;
}

/// Files and mappings of a process that are memory which it shares.
fn n_shared(process: u32) -> [usize; 2] {
    let is_shared = |name: &str| name.contains("memfd:telar");
    let files = std::fs::read_dir(format!("/proc/{process}/fd")).expect("the process is there");
    // One may be closed by the time that it is looked at.
    let names = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).expect("the process is there");
    [
        names.filter(|name| is_shared(&name.to_string_lossy())).count(),
        maps.lines().filter(|line| is_shared(line)).count(),
    ]
}

/// The goal: a session that is over leaves nothing behind, and one that goes on has nothing open that others could find.
#[tokio::test]
async fn the_memory_of_a_session_goes_with_it() {
    let coordinator = Coordinator::start();
    let process = coordinator.process.id();
    let check = async |expected: [usize; 2]| {
        let begun = Instant::now();
        while n_shared(process) != expected {
            assert!(begun.elapsed() < WAIT_MAX, "expected {expected:?}, found {:?}", n_shared(process));
            tokio::task::yield_now().await;
        }
    };
    check([1, 1]).await; // the one for updates
    let sharing = Worker::enter_by(Way::Slots, &coordinator, 1).await;
    check([1, 2]).await;
    let joined = Worker::join(&coordinator).await;
    check([2, 3]).await;
    let other = Worker::enter_by(Way::Bytes, &coordinator, 2).await;
    check([2, 3]).await;
    drop((sharing, joined, other));
    check([1, 1]).await;
    for process in 0..50 {
        Worker::enter_by(Way::Slots, &coordinator, process).await;
    }
    check([1, 1]).await;
}

#[tokio::test]
async fn a_number_that_is_not_finite_ends_the_run_with_its_place() {
    let coordinator = Coordinator::start();
    let mut worker = Worker::join(&coordinator).await;
    worker.say(Kind::Ready(worker.ready())).await;
    let Ok(Told::State(state)) = worker.hear().await else { panic!("a state expected") };
    let mut done = zeros(&worker, &state);
    let mut gradient = vec![0.0; state.params.len() / 4];
    gradient[1000] = f32::NAN;
    done.gradient_sum = values::encode(Encoding::F32, &gradient);
    worker.say(Kind::ShardDone(done)).await;
    assert!(matches!(worker.hear().await, Ok(Told::Dismissal(_))));
    let (code, last) = coordinator.end();
    assert_eq!(code, Some(74), "{last}");
    for part in ["at step 1, in epoch 1, the gradient of shard 0 is not finite", "lower --learning-rate"] {
        assert!(last.contains(part), "`{last}` does not say `{part}`");
    }
}

#[tokio::test]
async fn health_and_reflection_answer() {
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_request, server_reflection_response};

    let coordinator = Coordinator::start();
    let service = "telar.v1.Training".to_owned();
    let health = HealthClient::new(coordinator.channel().await).check(HealthCheckRequest { service }).await;
    assert_eq!(health.expect("an answer").into_inner().status(), ServingStatus::Serving);

    let list = server_reflection_request::MessageRequest::ListServices(String::new());
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut client = ServerReflectionClient::new(coordinator.channel().await);
    let answer = client.server_reflection_info(tokio_stream::once(request)).await.expect("an answer");
    let answer = answer.into_inner().message().await.expect("a message").and_then(|answer| answer.message_response);
    let Some(server_reflection_response::MessageResponse::ListServicesResponse(services)) = answer else {
        panic!("a list of services expected, found {answer:?}");
    };
    let names: Vec<&str> = services.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"telar.v1.Training") && names.contains(&"grpc.health.v1.Health"), "{names:?}");
}
