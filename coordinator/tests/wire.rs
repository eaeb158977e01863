//! What peers may send, and what becomes of it: the real program, spoken to by a worker that the test plays itself. What is
//! not right is answered and changes nothing: an honest worker beside it ends with the bits of a process that trains alone.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Lines, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::params::params_blake3;
use engine::recipe::Recipe;
use engine::task::OpenTask;
use peers::{
    GradientRoute, N_PARAMS, Route, WAIT_MAX, Worker, join, name_alone, next, open_session, task_of, try_open, work,
    work_honestly, write_data_set, zeros,
};
use prost::bytes::Bytes;
use proto::limits::RESULT_SLOTS;
use proto::shared::FreeSlot;
use proto::v1::coordinator_message::Kind as ToWorker;
use proto::v1::training_client::TrainingClient;
use proto::v1::worker_message::Kind;
use proto::v1::{CloseReason, Encoding, Fence, FetchDatasetRequest, Heartbeat, Join, Ready, ShardDone, State};
use proto::values;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::sleep;
use tonic::{Code, Status};

/// A coordinator that waits for workers, killed when it is dropped.
struct Coordinator {
    folder: TempDir,
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    route: Route,
}

impl Coordinator {
    fn start() -> Self {
        Self::start_with("")
    }

    /// Four steps of denoising in two shards of four images each, with flags more.
    fn start_with(flags: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        write_data_set(folder.path());
        let (process, lines, route) = Self::spawn(folder.path(), flags);
        Self { folder, process, lines, route }
    }

    /// Kills it, and resumes its run with another one.
    fn restart(&mut self) {
        self.process.kill().and_then(|()| self.process.wait()).expect("it is there and ends");
        (self.process, self.lines, self.route) = Self::spawn(self.folder.path(), "--resume");
    }

    fn spawn(folder: &Path, flags: &str) -> (Child, Lines<BufReader<ChildStdout>>, Route) {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("coordinator"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TELAR_") || name == "RUST_LOG") {
            command.env_remove(name);
        }
        // No worker is given up for being slow: the peers of these tests send heartbeats only where they say so.
        let usual =
            "--launch external --arch denoising --batch-size 8 --shards 2 --max-steps 4 --heartbeat-timeout 600 --json";
        let listen = if flags.contains("--listen") { "" } else { "--listen 127.0.0.1:0" };
        command
            .args(usual.split(' '))
            .args(listen.split_whitespace())
            .args(flags.split_whitespace())
            .arg("--data")
            .arg(folder)
            .arg("--run-dir")
            .arg(folder.join("run"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("the program starts");
        let mut lines = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        let begin: Value = serde_json::from_str(&lines.next().expect("a line").expect("text")).expect("JSON");
        let route = Route::to(begin["address"].as_str().expect("an address"));
        (process, lines, route)
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

fn small_run(coordinator: &Coordinator) -> (Recipe, Arc<dyn OpenTask>) {
    let description = std::fs::read(coordinator.folder.path().join("run/run.json")).expect("a description");
    let description: Value = serde_json::from_slice(&description).expect("JSON");
    let recipe = serde_json::from_value(description["recipe"].clone()).expect("a recipe");
    let task = task_of(&recipe, coordinator.folder.path());
    (recipe, task)
}

/// The first messages of a session, each wrong in one thing.
async fn check_refused(coordinator: &Coordinator, first: Kind, code: Code, part: &str) {
    let (_outbound, mut inbound) = open_session(&coordinator.route, first).await;
    let status = next(&mut inbound).await.expect_err(part);
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(part), "`{}` does not say `{part}`", status.message());
}

/// A message in a session that has got its state, changed in one thing, that ends the session.
async fn check_ends(coordinator: &Coordinator, change: impl FnOnce(&mut ShardDone), code: Code, part: &str) {
    let mut worker = Worker::join(&coordinator.route).await;
    worker.say(Kind::Ready(worker.ready())).await;
    let Ok(ToWorker::State(state)) = worker.receive().await else { panic!("a state expected") };
    let mut done = zeros(&worker, &state);
    change(&mut done);
    worker.say(Kind::ShardDone(done)).await;
    let status = worker.receive().await.expect_err(part);
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(part), "`{}` does not say `{part}`", status.message());
}

/// The goal: what was computed for a coordinator that is gone counts for no later one, whatever became of `run.json`.
#[tokio::test]
async fn each_coordinator_process_has_its_own_fence() {
    let mut coordinator = Coordinator::start();
    let mut found = Vec::new();
    for _ in 0..3 {
        let fence = Worker::join(&coordinator.route).await.welcome.fence.expect("a fence");
        found.push((fence.run_id, fence.coordinator_id));
        let run = coordinator.folder.path().join("run");
        let begun = Instant::now();
        while !run.join("checkpoints/step-00000000.safetensors").exists() {
            assert!(begun.elapsed() < WAIT_MAX, "there is no checkpoint of step 0");
            sleep(Duration::from_millis(5)).await;
        }
        std::fs::remove_file(run.join("run.json")).expect("it is there");
        coordinator.restart();
    }
    assert!(found.iter().all(|(run_id, _)| *run_id == found[0].0), "{found:?}");
    let ids: BTreeSet<u64> = found.iter().map(|(_, id)| *id).collect();
    assert_eq!(ids.len(), 3, "{found:?}");
}

#[tokio::test]
async fn invalid_messages_are_refused_without_effect() {
    let coordinator = Coordinator::start();
    let bad_join = |change: fn(&mut Join)| {
        let mut join = join(1);
        change(&mut join);
        Kind::Join(join)
    };
    check_refused(&coordinator, Kind::Heartbeat(Heartbeat { step: 0 }), Code::InvalidArgument, "expected a join").await;
    let other_version = bad_join(|join| "9.9.9".clone_into(&mut join.version));
    check_refused(&coordinator, other_version, Code::FailedPrecondition, "found 9.9.9").await;
    let other_numerics = bad_join(|join| join.numerics += 1);
    let refused = "expected a worker of numerics revision 1, found 2";
    check_refused(&coordinator, other_numerics, Code::FailedPrecondition, refused).await;

    for (change, part) in [
        ((|ready| ready.layout_fingerprint ^= 1) as fn(&mut Ready), "expected the layout"),
        (|ready| ready.data_fingerprint = "0".repeat(64), "expected the data set"),
        (|ready| ready.fence = None, "found nothing of the kind"),
    ] {
        let mut worker = Worker::join(&coordinator.route).await;
        let mut ready = worker.ready();
        change(&mut ready);
        worker.say(Kind::Ready(ready)).await;
        let status = worker.receive().await.expect_err(part);
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains(part), "{status:?}");
    }

    let other_run = Some(Fence { run_id: "0000000000000000".to_owned(), coordinator_id: 1 });
    check_ends(&coordinator, |done| done.fence = other_run, Code::FailedPrecondition, "found run 0000000000000000")
        .await;
    check_ends(
        &coordinator,
        |done| done.fence.as_mut().expect("a fence").coordinator_id ^= 1,
        Code::FailedPrecondition,
        ", found run",
    )
    .await;

    // A session that goes on: what is stale, unknown or computed on other parameters is not used.
    let mut worker = Worker::join(&coordinator.route).await;
    worker.say(Kind::Ready(worker.ready())).await;
    let Ok(ToWorker::State(state)) = worker.receive().await else { panic!("a state expected") };
    for (change, part) in [
        ((|done| done.step = 7) as fn(&mut ShardDone), "expected results of step 0, found one of step 7"),
        (|done| done.shard = 2, "found task 2"),
        (|done| done.shard = u32::MAX, "found task 4294967295"),
    ] {
        let mut done = zeros(&worker, &state);
        change(&mut done);
        worker.say(Kind::ShardDone(done)).await;
        match worker.receive().await {
            Ok(ToWorker::Refusal(refusal)) => assert!(refusal.reason.contains(part), "{refusal:?}"),
            other => panic!("a refusal expected, found {other:?}"),
        }
    }
    let mut strayed = zeros(&worker, &state);
    strayed.params_fingerprint ^= 1;
    worker.say(Kind::ShardDone(strayed)).await;
    assert!(matches!(worker.receive().await, Ok(ToWorker::State(_))), "a replica that strays is sent anew");
    let mut few = zeros(&worker, &state);
    few.n_samples = 3;
    worker.say(Kind::ShardDone(few)).await;
    match worker.receive().await {
        Ok(ToWorker::Close(close)) => {
            assert_eq!(close.close_reason(), CloseReason::Evicted);
            assert!(close.reason.contains("expected 4 samples"), "{close:?}");
        }
        other => panic!("a close expected, found {other:?}"),
    }
    check_kept_out(&coordinator.route).await;

    let (recipe, data) = small_run(&coordinator);
    let params = work_honestly(Worker::enter(&coordinator.route, 1).await, &recipe, &data).await;
    let expected = name_alone(&recipe, &data);
    assert_eq!(params_blake3(&params), expected);
    let (code, last) = coordinator.end();
    assert_eq!(code, Some(0), "{last}");
    let end: Value = serde_json::from_str(&last).expect("JSON");
    assert_eq!(end["params_blake3"], expected);
}

/// A worker of an identity that was just evicted is asked to come back, and let in a second later.
async fn check_kept_out(route: &Route) {
    let begun = Instant::now();
    for n_tries in 0.. {
        assert!(begun.elapsed() < WAIT_MAX, "it is kept out for ever");
        let (_outbound, mut inbound) = open_session(route, Kind::Join(join(1))).await;
        match next(&mut inbound).await {
            Ok(ToWorker::Close(close)) => {
                assert_eq!(close.close_reason(), CloseReason::ComeBack, "{close:?}");
                let expected = "expected no worker of 127.0.0.1 for 1 s more, after 1 eviction, found one";
                assert_eq!(close.reason, expected);
            }
            Ok(ToWorker::Welcome(_)) => return assert!(n_tries > 0, "it is let in at once"),
            other => panic!("a close or a welcome expected, found {other:?}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Two honest workers, and one who changes what it sends: it is evicted with a reason, and the run ends as if it had never
/// been there.
async fn check_evicted(flags: &str, gradient_route: GradientRoute, change: impl Fn(&mut ShardDone), part: &str) {
    check_evicted_from(["127.0.0.1"; 3], flags, gradient_route, change, part).await;
}

/// The same, with the address that each one's connection comes from, the liar's first.
async fn check_evicted_from(
    addresses: [&str; 3],
    flags: &str,
    gradient_route: GradientRoute,
    change: impl Fn(&mut ShardDone),
    part: &str,
) {
    let coordinator = Coordinator::start_with(flags);
    let (recipe, data) = small_run(&coordinator);
    let [liars, firsts, seconds] = addresses.map(|address| coordinator.route.clone().from(address));
    // The one who lies joins first, so that it is dealt something, and begins when the others are there.
    let liar = Worker::enter_by(gradient_route, &liars, 3).await;
    let [first, second] = [Worker::enter(&firsts, 1).await, Worker::enter_by(gradient_route, &seconds, 2).await];
    let lying = async {
        let close = Box::pin(work(liar, &recipe, &data, &|_, done| change(done))).await.expect_err("an eviction");
        assert_eq!(close.close_reason(), CloseReason::Evicted);
        assert!(close.reason.contains(part), "`{}` does not say `{part}`", close.reason);
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
async fn lone_non_finite_gradient_evicts_sender() {
    let not_finite = |done: &mut ShardDone| {
        let mut bytes = done.gradient_sum.to_vec();
        bytes[400..404].copy_from_slice(&f32::NAN.to_le_bytes());
        done.gradient_sum = bytes.into();
    };
    for gradient_route in [GradientRoute::Bytes, GradientRoute::Slots] {
        check_evicted("", gradient_route, not_finite, "is not finite, unlike that of the coordinator").await;
    }
}

#[tokio::test]
async fn impossibly_large_gradient_evicts_sender() {
    let huge = |done: &mut ShardDone| done.gradient_sum = values::encode(Encoding::F32, &vec![3e38; N_PARAMS]);
    for gradient_route in [GradientRoute::Bytes, GradientRoute::Slots] {
        check_evicted("", gradient_route, huge, "its result of shard 0 of step 1 differs from that of the coordinator")
            .await;
    }
}

#[tokio::test]
async fn gradient_of_wrong_length_evicts_sender() {
    let short = |done: &mut ShardDone| done.gradient_sum.truncate(655_252);
    check_evicted("", GradientRoute::Bytes, short, "expected 655256 bytes in the gradient of shard 0, found 655252")
        .await;
}

#[tokio::test]
async fn audit_evicts_worker_with_different_bits() {
    let last_bit = |done: &mut ShardDone| {
        let mut bytes = done.gradient_sum.to_vec();
        bytes[400] ^= 1;
        done.gradient_sum = bytes.into();
    };
    for gradient_route in [GradientRoute::Bytes, GradientRoute::Slots] {
        let addresses = ["127.0.0.2", "127.0.0.3", "127.0.0.4"];
        check_evicted_from(
            addresses,
            "--audit 1 --workers 3",
            gradient_route,
            last_bit,
            "differs from those of worker",
        )
        .await;
        // Of one address, they have one vote, and the coordinator has the other.
        check_evicted("--audit 1 --workers 3", gradient_route, last_bit, "differs from that of the coordinator").await;
    }
}

/// The goal: however many liars of one address agree, an honest worker is not outvoted.
#[tokio::test]
async fn colluding_workers_of_one_address_have_one_vote() {
    let coordinator = Coordinator::start_with("--audit 1 --workers 3");
    let (recipe, data) = small_run(&coordinator);
    let liars = coordinator.route.clone().from("127.0.0.2");
    let [first, second] = [Worker::enter(&liars, 1).await, Worker::enter(&liars, 2).await];
    let honest = Worker::enter(&coordinator.route.clone().from("127.0.0.3"), 3).await;
    let last_bit = |_: &Worker, done: &mut ShardDone| {
        let mut bytes = done.gradient_sum.to_vec();
        bytes[400] ^= 1;
        done.gradient_sum = bytes.into();
    };
    let lie = |entered| async {
        let close = Box::pin(work(entered, &recipe, &data, &last_bit)).await.expect_err("an eviction");
        assert_eq!(close.close_reason(), CloseReason::Evicted, "{close:?}");
    };
    let ((), (), params) = tokio::join!(lie(first), lie(second), work_honestly(honest, &recipe, &data));
    assert_eq!(params_blake3(&params), name_alone(&recipe, &data));
    assert_eq!(coordinator.end().0, Some(0));
}

#[tokio::test]
async fn result_of_unassigned_task_is_refused() {
    let coordinator = Coordinator::start();
    let (recipe, data) = small_run(&coordinator);
    let honest = Worker::enter(&coordinator.route, 1).await;
    let (mut peer, state) = Worker::enter(&coordinator.route, 2).await;
    for shard in [0, 1] {
        peer.say(Kind::ShardDone(ShardDone { shard, ..zeros(&peer, &state) })).await;
        match peer.receive().await {
            Ok(ToWorker::Refusal(refusal)) => {
                assert!(refusal.reason.contains("tasks that the worker has to compute"), "{refusal:?}");
            }
            other => panic!("a refusal expected, found {other:?}"),
        }
    }
    drop(peer);
    let params = work_honestly(honest, &recipe, &data).await;
    assert_eq!(params_blake3(&params), name_alone(&recipe, &data));
    assert_eq!(coordinator.end().0, Some(0));
}

/// The goal: a worker that was dealt a fresh run's first shards, and answers nothing, does not hold it for `--join-timeout`.
#[tokio::test]
async fn heartbeat_only_worker_does_not_block_run() {
    let coordinator = Coordinator::start();
    let (recipe, data) = small_run(&coordinator);
    let (silent, _) = Worker::enter(&coordinator.route, 1).await;
    let honest = Worker::enter(&coordinator.route, 2).await;
    let signs = async {
        loop {
            silent.say(Kind::Heartbeat(Heartbeat { step: 0 })).await;
            sleep(Duration::from_millis(100)).await;
        }
    };
    let params = tokio::select! {
        () = signs => unreachable!("it sends heartbeats without end"),
        () = sleep(WAIT_MAX) => panic!("expected an end within {WAIT_MAX:?}"),
        params = work_honestly(honest, &recipe, &data) => params,
    };
    assert_eq!(params_blake3(&params), name_alone(&recipe, &data));
}

/// Two honest workers, each by its way, beside one that does something before it is gone: the run ends with the bits of a
/// process alone.
async fn check_undisturbed(flags: &str, disturb: impl AsyncFnOnce(Worker, State)) {
    let coordinator = Coordinator::start_with(flags);
    let (recipe, data) = small_run(&coordinator);
    let (worker, state) = Worker::enter_by(GradientRoute::Slots, &coordinator.route, 3).await;
    let first = Worker::enter_by(GradientRoute::Bytes, &coordinator.route, 1).await;
    let second = Worker::enter_by(GradientRoute::Slots, &coordinator.route, 2).await;
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
async fn invalid_slot_claim_ends_session() {
    let check = async |change: fn(&Worker, &mut ShardDone), part: &str| {
        check_undisturbed("", async |mut worker, state| {
            let mut done = ShardDone { gradient_sum: Bytes::new(), ..zeros(&worker, &state) };
            change(&worker, &mut done);
            worker.say(Kind::ShardDone(done)).await;
            let status = worker.receive().await.expect_err(part);
            assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
            assert!(status.message().contains(part), "`{}` does not say `{part}`", status.message());
        })
        .await;
    };
    check(|_, done| done.slot = Some(RESULT_SLOTS), "expected a slot below 4, found 4").await;
    check(|_, done| done.slot = Some(u32::MAX), "found 4294967295").await;
    check(|_, done| done.slot = Some(1), "expected slot 1 to be full").await;
    let both = |worker: &Worker, done: &mut ShardDone| {
        done.slot = worker.memory.as_ref().and_then(|(results, _)| results.free()).map(FreeSlot::fill);
        done.gradient_sum = vec![0; 4 * N_PARAMS].into();
    };
    check(both, "in a slot or in the message, found both").await;
}

#[tokio::test]
async fn slot_without_shared_memory_ends_session() {
    let coordinator = Coordinator::start_with("--wire grpc");
    let mut worker = Worker::join(&coordinator.route).await;
    assert_eq!(worker.welcome.shared_memory, None, "nothing is offered");
    worker.say(Kind::Ready(Ready { shared_memory: true, ..worker.ready() })).await;
    let status = worker.receive().await.expect_err("a lie");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("expected a worker without shared memory"), "{status:?}");

    let slot = |done: &mut ShardDone| (done.gradient_sum, done.slot) = (Bytes::new(), Some(0));
    check_ends(&coordinator, slot, Code::InvalidArgument, "expected a slot below 0, found 0").await;
}

/// The goal: what was looked at is what is added, whatever a worker writes when it has given its result away.
#[tokio::test(flavor = "multi_thread")]
async fn write_to_slot_after_read_has_no_effect() {
    let coordinator = Coordinator::start();
    let (recipe, data) = small_run(&coordinator);
    let entered = Worker::enter_by(GradientRoute::Slots, &coordinator.route, 1).await;
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
async fn worker_lost_during_slot_write_has_no_effect() {
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
async fn shared_memory_is_released_with_session() {
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
    let sharing = Worker::enter_by(GradientRoute::Slots, &coordinator.route, 1).await;
    check([1, 2]).await;
    let joined = Worker::join(&coordinator.route).await;
    check([2, 3]).await;
    let other = Worker::enter_by(GradientRoute::Bytes, &coordinator.route, 2).await;
    check([2, 3]).await;
    drop((sharing, joined, other));
    check([1, 1]).await;
    for process in 0..50 {
        Worker::enter_by(GradientRoute::Slots, &coordinator.route, process).await;
    }
    check([1, 1]).await;
}

/// The goal: liars that say NaN do not end a run, be they alone or several sessions of one peer.
#[tokio::test]
async fn nan_from_malicious_workers_does_not_end_run() {
    let coordinator = Coordinator::start();
    let (recipe, data) = small_run(&coordinator);
    let not_a_number = |_: &Worker, done: &mut ShardDone| {
        done.gradient_sum = values::encode(Encoding::F32, &vec![f32::NAN; N_PARAMS]);
    };
    let [first, second] = [Worker::enter(&coordinator.route, 1).await, Worker::enter(&coordinator.route, 2).await];
    let lie = |entered| Box::pin(work(entered, &recipe, &data, &not_a_number));
    for close in <[_; 2]>::from(tokio::join!(lie(first), lie(second))) {
        assert_eq!(close.expect_err("an eviction").close_reason(), CloseReason::Evicted);
    }
    let honest = Worker::enter(&coordinator.route.clone().from("127.0.0.2"), 3).await;
    let params = work_honestly(honest, &recipe, &data).await;
    assert_eq!(params_blake3(&params), name_alone(&recipe, &data));
    assert_eq!(coordinator.end().0, Some(0));
}

#[tokio::test]
async fn diverged_run_reports_step_and_shard() {
    let coordinator = Coordinator::start_with("--learning-rate 1e20");
    let (recipe, data) = small_run(&coordinator);
    let _params = work_honestly(Worker::enter(&coordinator.route, 1).await, &recipe, &data).await;
    let (code, last) = coordinator.end();
    assert_eq!(code, Some(74), "{last}");
    for part in ["the run diverged: at step", "in epoch 1, the", "of shard 0 is not finite", "lower --learning-rate"] {
        assert!(last.contains(part), "`{last}` does not say `{part}`");
    }
}

/// Joined workers alone can fetch the data set, once each; asking for another one does not reveal its fingerprint.
#[tokio::test]
async fn dataset_is_sent_once_to_joined_worker() {
    let coordinator = Coordinator::start();
    let request = |worker: &Worker| FetchDatasetRequest { data_fingerprint: worker.welcome.data_fingerprint.clone() };
    let (worker, channel) = Worker::try_join_over(&coordinator.route, 1).await.expect("a welcome");
    let mut pieces =
        TrainingClient::new(channel.clone()).fetch_dataset(request(&worker)).await.expect("pieces").into_inner();
    let mut n_bytes = 0;
    while let Some(piece) = pieces.message().await.expect("a piece") {
        n_bytes += piece.content.len();
    }
    assert_eq!(n_bytes, 130 * 784 + 2 * 16 + 130 + 2 * 8);
    let refused = async |channel, request| {
        let refused = TrainingClient::new(channel).fetch_dataset(request).await;
        refused.map(|_| ()).expect_err("a refusal")
    };
    let again = refused(channel, request(&worker)).await;
    assert_eq!(again.code(), Code::PermissionDenied, "{again:?}");
    let unjoined = refused(coordinator.route.channel().await, request(&worker)).await;
    assert_eq!(unjoined.code(), Code::PermissionDenied, "{unjoined:?}");
    let (_other, channel) = Worker::try_join_over(&coordinator.route, 2).await.expect("a welcome");
    let wrong = refused(channel, FetchDatasetRequest { data_fingerprint: "0".repeat(64) }).await;
    assert_eq!(wrong.code(), Code::NotFound);
    assert!(!wrong.message().contains(&worker.welcome.data_fingerprint), "{wrong:?}");
}

/// What comes before a join is not even read to its end.
#[tokio::test]
async fn oversized_first_message_is_refused() {
    let coordinator = Coordinator::start();
    let long = ShardDone { gradient_sum: vec![0; 100_000].into(), ..ShardDone::default() };
    // The connection may be closed before the session is open.
    if let Ok((_outbound, mut inbound)) = try_open(coordinator.route.channel().await, Kind::ShardDone(long)).await {
        next(&mut inbound).await.expect_err("too long");
    }
    Worker::join(&coordinator.route).await;
}

/// The services that a coordinator describes by reflection.
async fn described_services(route: &Route) -> Result<Vec<String>, Status> {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_request, server_reflection_response};

    let list = server_reflection_request::MessageRequest::ListServices(String::new());
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut client = ServerReflectionClient::new(route.channel().await);
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await?.into_inner();
    let answer = answers.message().await?.and_then(|answer| answer.message_response);
    let Some(server_reflection_response::MessageResponse::ListServicesResponse(services)) = answer else {
        panic!("a list of services expected, found {answer:?}");
    };
    Ok(services.service.into_iter().map(|service| service.name).collect())
}

#[tokio::test]
async fn health_is_served_and_reflection_only_local_by_default() {
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

    let check = async |flags: &str, is_described: bool| {
        let coordinator = Coordinator::start_with(flags);
        // At `0.0.0.0` it tells this machine's name, which need not lead anywhere.
        let (_, port) = coordinator.route.address.rsplit_once(':').expect("a port");
        let route = Route::to(&format!("http://127.0.0.1:{port}"));
        let service = "telar.v1.Training".to_owned();
        let health = HealthClient::new(route.channel().await).check(HealthCheckRequest { service }).await;
        assert_eq!(health.expect("an answer").into_inner().status(), ServingStatus::Serving, "`{flags}`");
        match described_services(&route).await {
            Ok(names) => {
                assert!(is_described, "`{flags}`: {names:?}");
                let has = |name: &str| names.iter().any(|other| other == name);
                assert!(has("telar.v1.Training") && has("grpc.health.v1.Health"), "`{flags}`: {names:?}");
            }
            Err(status) => {
                assert_eq!((is_described, status.code()), (false, Code::Unimplemented), "`{flags}`: {status:?}");
            }
        }
    };
    check("", true).await;
    check("--listen 0.0.0.0:0 --insecure", false).await;
    check("--listen 0.0.0.0:0 --insecure --reflection", true).await;
}
