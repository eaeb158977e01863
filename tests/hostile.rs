//! Peers that mean harm, or are merely broken: whatever they send, hold or leave unread, an honest worker is let in, the run
//! ends with the bits of one process, and the coordinator keeps no more than it should.
//!
//! Attackers come from 127.0.0.2, honest workers from 127.0.0.1: two machines, as far as the coordinator can see. A liar, whose
//! whole machine is kept out for a while once it is evicted, has one of its own.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use peers::{Attack, Harm, Route, Worker};
use proto::v1::worker_message::Kind;
use proto::v1::{Heartbeat, WorkerMessage};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Builder;
use tokio::time::sleep;

use crate::harness::{Blocked, Byte, Message, Process, Proxy, Stream, TestDir, wait_until};

/// What is trained under attack.
const RUN: &str = "--arch denoising --shards 4 --batch-size 16 --data small";
/// Nothing that is waited for takes longer.
const WAIT_MAX: Duration = Duration::from_mins(1);
/// Some times what a peer that reads nothing is given for the pieces that go into the buffers between.
const FETCH_WAIT_MAX: Duration = Duration::from_mins(2);

fn reference_flags() -> String {
    format!("{RUN} --epochs 4")
}

/// A coordinator under attack, and who attacks it.
struct Siege<'a> {
    dir: &'a TestDir,
    coordinator: Process,
    address: String,
}

impl<'a> Siege<'a> {
    fn begin(dir: &'a TestDir, n_epochs: u32, flags: &str) -> Self {
        // Attackers and the test are one process.
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("the hard limit is allowed");
        let (coordinator, address) = dir.external(&format!("{RUN} --run-dir run --epochs {n_epochs} {flags}"));
        Self { dir, coordinator, address }
    }

    /// A coordinator that may have 300 file descriptors, thus 86 connections.
    fn begin_narrow(dir: &'a TestDir, n_epochs: u32, flags: &str) -> Self {
        let flags =
            format!("{RUN} --run-dir run --epochs {n_epochs} {flags} --launch external --listen 127.0.0.1:0 --json");
        let command = dir.command("coordinator", &flags);
        let mut limited = Command::new("sh");
        limited.args(["-c", "ulimit -n 300 && exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
        limited.current_dir(dir.path("."));
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => limited.env(name, value),
                None => limited.env_remove(name),
            };
        }
        let coordinator = dir.start("coordinator", limited);
        let address = coordinator.begin()["address"].as_str().expect("an address").to_owned();
        Self { dir, coordinator, address }
    }

    fn attack(&self, harms: &[(Harm, usize)]) -> Attack {
        self.attack_from("127.0.0.2", harms)
    }

    fn attack_from(&self, machine: &str, harms: &[(Harm, usize)]) -> Attack {
        Attack::begin(&Route::to(&self.address).from(machine), harms)
    }

    /// An honest worker is let in, and the run ends with the bits of one process.
    fn check_end(&self) {
        let worker = self.dir.worker("honest", &self.address);
        let end = self.coordinator.end();
        self.dir.run("run", &end).assert_same_bits(&self.dir.reference(&reference_flags()));
        worker.succeed();
    }

    /// Megabytes that the coordinator has in memory.
    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.coordinator.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1000
    }

    /// Sockets that the coordinator has open.
    fn n_sockets(&self) -> usize {
        let files = fs::read_dir(format!("/proc/{}/fd", self.coordinator.id())).expect("it runs");
        let links = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    }

    fn wait_for_fetches(&self, n_fetches: usize) {
        let begun = || self.coordinator.lines(Stream::Err, "the data set is sent").len();
        wait_until(&format!("{n_fetches} data sets are on their way"), WAIT_MAX, || begun() >= n_fetches);
    }

    fn wait_for_sockets(&self, n_sockets: usize) {
        wait_until(&format!("{n_sockets} sockets are open"), WAIT_MAX, || self.n_sockets() >= n_sockets);
    }
}

/// While peers keep the coordinator busy, the clock goes on for one that is silent.
#[test]
fn silent_worker_is_closed_while_others_flood() {
    let dir = TestDir::new();
    let siege = Siege::begin(&dir, 4, "--heartbeat-timeout 1");
    let attack = siege.attack(&[(Harm::Heartbeats, 3)]);
    siege.coordinator.wait_for_line(Stream::Err, "a session ended");
    let silent = dir.worker("silent", &siege.address);
    let line = siege.coordinator.wait_for_line(Stream::Err, &format!("process={}", silent.id()));
    let number = crate::harness::field(&line, "worker");
    silent.signal("STOP");
    siege.coordinator.wait_for_line(Stream::Err, &format!("worker={number} reason=\"silent for 1000 ms\""));
    silent.signal("KILL");
    siege.check_end();
    drop(attack);
}

#[test]
fn non_reading_peers_use_bounded_memory() {
    let dir = TestDir::new();
    let siege = Siege::begin(&dir, 200, "");
    let honest = dir.worker("honest", &siege.address);
    // What a run needs by itself it has by then.
    siege.coordinator.wait_for_checkpoint(500);
    let before = siege.resident();
    let attack = siege.attack(&[(Harm::Unread, 84), (Harm::States, 16), (Harm::FetchUnread, 50)]);
    siege.coordinator.wait_for_nth_line(Stream::Err, "it does not take its messages", 5);
    let under_attack = siege.resident();
    drop(attack);
    eprintln!("{before} MB before, {under_attack} MB under attack");
    assert!(under_attack <= before + 100, "{before} MB before, {under_attack} MB under attack");
    wait_until("the memory is given back", WAIT_MAX, || siege.resident() <= before + 20);
    siege.coordinator.terminate();
    honest.signal("KILL");
}

/// Peers that stop reading their sockets once they have their state, so that no ping is answered either: the coordinator closes
/// each connection, and frees what waited for it.
#[test]
fn connection_with_unread_socket_is_closed() {
    const N_PEERS: u32 = 8;
    let dir = TestDir::new();
    let siege = Siege::begin(&dir, 1_000_000, "");
    let honest = dir.worker("honest", &siege.address);
    // What a run needs by itself it has by then.
    siege.coordinator.wait_for_checkpoint(500);
    let (resident, n_sockets) = (siege.resident(), siege.n_sockets());
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a thread");
    let proxies: Vec<Proxy> = (0..N_PEERS).map(|_| Proxy::start(&siege.address)).collect();
    for (process, proxy) in (1..).zip(&proxies) {
        proxy.stop_at(Message::State, 1, Byte::Last, Blocked::OneWay);
        let route = Route::to(&proxy.address());
        // Sends heartbeats, and closes nothing by itself.
        runtime.spawn(async move {
            let (worker, _) = Worker::enter(&route, process).await;
            loop {
                let _ =
                    worker.outbound.send(WorkerMessage { kind: Some(Kind::Heartbeat(Heartbeat { step: 0 })) }).await;
                sleep(Duration::from_millis(400)).await;
            }
        });
        proxy.wait_until_stopped();
    }
    siege.coordinator.wait_for_nth_line(Stream::Err, "it does not take its messages", N_PEERS as usize);
    wait_until("the connections are closed", WAIT_MAX, || siege.n_sockets() <= n_sockets);
    eprintln!("{resident} MB before, {} MB when all are closed", siege.resident());
    wait_until("the memory is given back", WAIT_MAX, || siege.resident() <= resident + 20);
    siege.coordinator.terminate();
    honest.signal("KILL");
}

/// More connections than there are file descriptors, where the system allows no more.
#[test]
fn connections_beyond_descriptor_limit_do_not_end_run() {
    let dir = TestDir::new();
    let siege = Siege::begin_narrow(&dir, 4, "");
    let attack = siege.attack(&[(Harm::SilentTcp, 300), (Harm::JoinedSilent, 100)]);
    siege.wait_for_sockets(40);
    siege.check_end();
    drop(attack);
}

/// Everything at once, for as many minutes as `TELAR_SIEGE_MINUTES` says, or some seconds: the run goes on to the bits that
/// one process gives, and costs no more than it should.
#[test]
fn run_under_attack_has_bits_of_one_process() {
    const SHORT_TIME: Duration = Duration::from_secs(15);
    let minutes =
        std::env::var("TELAR_SIEGE_MINUTES").ok().map(|text| text.parse::<f64>().expect("a number of minutes"));
    let time = minutes.map_or(SHORT_TIME, |minutes| Duration::from_secs_f64(60.0 * minutes));
    let dir = TestDir::new();
    let siege = Siege::begin(&dir, 1_000_000, "--audit 1 --checkpoint-every 1000");
    let workers = ["first", "second"].map(|name| dir.worker(name, &siege.address));
    siege.coordinator.wait_for_nth_line(Stream::Err, "worker joined", 2);
    let attack = siege.attack(&[
        (Harm::SilentTcp, 1_000),
        (Harm::IdleHttp2, 200),
        (Harm::JoinedSilent, 60),
        (Harm::Unread, 40),
        (Harm::Heartbeats, 3),
        (Harm::Results, 2),
        (Harm::States, 4),
        (Harm::FetchUnjoined, 10),
        (Harm::FetchUnread, 20),
    ]);
    let liar = siege.attack_from("127.0.0.3", &[(Harm::Liar, 1)]);
    let begun = Instant::now();
    let mut resident_max = 0;
    while begun.elapsed() < time {
        assert!(!siege.coordinator.ends_within(Duration::from_millis(500)), "the run goes on");
        resident_max = resident_max.max(siege.resident());
    }
    drop((attack, liar));
    let end = siege.coordinator.terminated();
    let n_steps = end["step"].as_u64().expect("a step");
    assert!(n_steps > 0, "the run has come to something");
    let run = dir.run("run", &end);
    let expected = dir.reference(&format!("{RUN} --epochs 1000000 --max-steps {n_steps}"));
    assert_eq!(run.params_blake3, expected.params_blake3, "after {n_steps} steps");
    let log_bytes: usize = siege.coordinator.lines(Stream::Err, "").iter().map(|line| line.len() + 1).sum();
    eprintln!("{n_steps} steps in {time:?}, {resident_max} MB at most, {log_bytes} bytes of log");
    assert!(resident_max <= 300, "{resident_max} MB");
    assert!(log_bytes < 5_000_000, "{log_bytes} bytes of log");
    assert!(siege.coordinator.lines(Stream::Err, "panicked").is_empty());
    for worker in workers {
        worker.signal("KILL");
    }
}

/// An honest worker from another address is let in as soon as it comes, whatever others hold.
fn check_let_in(harm: Harm, n_attackers: usize, begin: impl FnOnce(&TestDir) -> Siege<'_>) {
    let dir = TestDir::new();
    let siege = begin(&dir);
    let join_time = |name: &str| {
        let begun = Instant::now();
        let worker = dir.worker(name, &siege.address);
        siege.coordinator.wait_for_line(Stream::Err, &format!("process={} backend", worker.id()));
        worker.kill();
        begun.elapsed()
    };
    let undisturbed = join_time("undisturbed");
    let attack = siege.attack(&[(harm, n_attackers)]);
    wait_until("all attackers are there", WAIT_MAX, || attack.n_attempts() >= n_attackers);
    let besieged = join_time("besieged");
    eprintln!("joined after {undisturbed:?}, under attack after {besieged:?}");
    // What a busy machine takes for one it takes for the other too.
    assert!(besieged <= Duration::from_secs(5) + 10 * undisturbed, "{besieged:?}, undisturbed {undisturbed:?}");
    siege.coordinator.terminate();
}

#[test]
fn silent_connections_do_not_block_new_worker() {
    check_let_in(Harm::SilentTcp, 3_500, |dir| Siege::begin(dir, 1_000_000, ""));
}

#[test]
fn idle_http2_connections_do_not_block_new_worker() {
    check_let_in(Harm::IdleHttp2, 1_200, |dir| Siege::begin(dir, 1_000_000, ""));
}

#[test]
fn joined_silent_workers_do_not_block_new_worker() {
    // More than there are places, and none is closed for its silence.
    check_let_in(Harm::JoinedSilent, 150, |dir| Siege::begin_narrow(dir, 1_000_000, "--heartbeat-timeout 600"));
}

/// Only joined workers can fetch the data set. A worker without a copy waits at most for the fetches in progress, and fetches of
/// peers that read nothing end at the minimum rate, though no peer is closed for its silence.
#[test]
fn stalled_fetches_do_not_block_dataset_fetch() {
    let dir = TestDir::new();
    let siege = Siege::begin(&dir, 4, "--heartbeat-timeout 600");
    // One machine may be sent four data sets at once, all together eight.
    let attacks = ["127.0.0.2", "127.0.0.3"]
        .map(|machine| siege.attack_from(machine, &[(Harm::FetchUnjoined, 10), (Harm::FetchUnread, 25)]));
    siege.wait_for_fetches(8);
    let mut command = dir.command("worker", &format!("--coordinator {} --threads 1", siege.address));
    command.env("XDG_CACHE_HOME", dir.path("empty"));
    let worker = dir.start("fetching", command);
    wait_until("the data set is fetched", FETCH_WAIT_MAX, || {
        !worker.lines(Stream::Err, "the data set is open").is_empty()
    });
    assert_eq!(worker.lines(Stream::Err, "fetching it from the coordinator").len(), 1);
    let end = siege.coordinator.end();
    dir.run("run", &end).assert_same_bits(&dir.reference(&reference_flags()));
    worker.succeed();
    drop(attacks);
}
