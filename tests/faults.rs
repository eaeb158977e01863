//! Every fault of a worker at every moment of a step: the run ends with the same bits, the worker is missed in time, and
//! no other worker is lost. A proxy stops the connection at an exact byte, so that the fault comes when it should.
//!
//! What Horovod's elastic tests try, and what tries it here:
//!
//! | there | here |
//! |---|---|
//! | hosts added | `external::worker_joins_run_in_progress`, `elastic::*_while_workers_come_and_go` |
//! | hosts removed | `external::terminated_worker_leaves_and_others_continue`, `elastic::*_while_workers_come_and_go` |
//! | one rank lost by an exception | `faults::exited_worker_changes_no_bits`; started anew: `programs::killed_local_worker_is_restarted` |
//! | one rank lost by a kill | `faults::killed_worker_changes_no_bits`, and anew as above |
//! | all ranks lost | the run fails there; here it waits: `elastic::run_without_workers_reports_waiting`, `partition::*` |
//! | reset limit | `programs::repeated_worker_start_failure_ends_run_with_its_output` |

use std::process::Stdio;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::harness::{Blocked, Byte, Message, Process, Proxy, Stream, TestDir, field};

/// Epochs of 69 steps: 2,200 images in batches of 32, a shard for each worker.
const RUN: &str = "--arch denoising --shards 3 --batch-size 32 --data small";
const N_STEPS_OF_EPOCH: u32 = 69;
/// Steps in which a fault may come: those of the first epoch, without the first ones and the last ones.
const STEPS: std::ops::Range<u32> = 5..60;
/// How long a silent worker is waited for.
const SILENCE_MAX: Duration = Duration::from_secs(1);
/// As [`SILENCE_MAX`] where a closing connection signals the fault: so long that only that can have signalled it.
const SILENCE_MAX_OF_TOLD: Duration = Duration::from_mins(10);

/// What becomes of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// SIGKILL.
    Killed,
    /// SIGSTOP, and SIGCONT when it was given up.
    Stopped,
    /// Its process ends by itself.
    Ended,
    /// Its connection is reset.
    Reset,
    /// Its connection stays open, and nothing comes through it.
    Silent,
}

/// When.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// It computes; its part of the gradient lies in a slot that the coordinator does not know of yet.
    BeforeResult,
    DuringResult,
    AfterResult,
    DuringUpdate,
    /// Each update is followed by one.
    DuringCheckpoint,
    DuringValidation,
}

const MOMENTS: [Moment; 6] = [
    Moment::BeforeResult,
    Moment::DuringResult,
    Moment::AfterResult,
    Moment::DuringUpdate,
    Moment::DuringCheckpoint,
    Moment::DuringValidation,
];

/// Those at which a gradient is on its way, if it is in the message: some of it has come, and the rest has not.
const MOMENTS_OF_BYTES: [Moment; 2] = [Moment::DuringResult, Moment::DuringUpdate];

impl Moment {
    /// Stops the proxy then, in a step that is drawn.
    fn set(self, proxy: &Proxy, draw: &mut ChaCha8Rng) {
        let step = STEPS.start + draw.next_u32() % (STEPS.end - STEPS.start);
        let (message, byte) = match self {
            Self::BeforeResult | Self::DuringCheckpoint => (Message::Update, Byte::Last),
            Self::DuringResult => (Message::ShardDone, Byte::Middle),
            Self::AfterResult => (Message::ShardDone, Byte::Last),
            Self::DuringUpdate => (Message::Update, Byte::Middle),
            Self::DuringValidation => (Message::BatchDone, Byte::Middle),
        };
        // The validation split is one batch.
        let nth = if self == Self::DuringValidation { 1 } else { step as usize };
        eprintln!("{self:?}: in {message:?} {nth}");
        proxy.stop_at(message, nth, byte, Blocked::BothWays);
    }

    /// Whether the worker then has a task.
    fn has_work(self) -> bool {
        self != Self::AfterResult
    }
}

impl Fault {
    /// What the coordinator may say of the worker.
    fn reasons(self) -> &'static [&'static str] {
        match self {
            Self::Killed | Self::Ended | Self::Reset => &["it closed its connection", "its connection broke"],
            Self::Stopped | Self::Silent => &["silent for 1000 ms", "does not take its messages"],
        }
    }

    /// Whether the connection itself signals it.
    fn is_told(self) -> bool {
        !matches!(self, Self::Stopped | Self::Silent)
    }

    /// The silence after which the coordinator takes the worker for dead.
    fn heartbeat_timeout(self) -> Duration {
        if self.is_told() { SILENCE_MAX_OF_TOLD } else { SILENCE_MAX }
    }

    /// Epochs to train for, so that there is time to miss the worker.
    fn n_epochs(self) -> u32 {
        if self.is_told() { 2 } else { 6 }
    }

    fn start(self, dir: &TestDir, address: &str) -> Process {
        let mut command = dir.worker_command(address);
        if self != Self::Ended {
            return dir.start("faulty", command);
        }
        command.arg("--supervised");
        dir.start_with_input("faulty", command, Stdio::piped())
    }

    /// Does it, while the proxy holds all that the worker says and hears.
    fn strike(self, worker: &Process, proxy: &Proxy) {
        match self {
            Self::Killed => {
                worker.kill();
                proxy.close();
            }
            Self::Ended => {
                worker.end_input();
                worker.check_end(0, &[]);
                proxy.close();
            }
            Self::Stopped => worker.signal("STOP"),
            Self::Reset => proxy.reset(),
            Self::Silent => {} // the proxy holds on
        }
    }
}

/// One fault at one moment, with gradients that travel in one way; how long it took to be noticed.
fn check_at(fault: Fault, moment: Moment, wire: &str, draw: &mut ChaCha8Rng) -> Duration {
    eprintln!("--wire {wire}");
    let dir = TestDir::new();
    let run = format!("{RUN} --epochs {}", fault.n_epochs());
    let expected = dir.reference(&run);
    let heartbeat_timeout = fault.heartbeat_timeout().as_secs();
    let every = if moment == Moment::DuringCheckpoint { "1" } else { "epoch" };
    let flags = format!(
        "{run} --hash-steps --checkpoint-every {every} --heartbeat-timeout {heartbeat_timeout} --wire {wire} --run-dir run"
    );
    let (coordinator, address) = dir.external(&flags);
    let proxy = Proxy::start(&address);

    // It joins first, so that the batch of the validation is its; and gets its state when the others are there.
    proxy.stop_at(Message::State, 1, Byte::Middle, Blocked::OneWay);
    let worker = fault.start(&dir, &proxy.address());
    proxy.wait_until_stopped();
    let others = ["first other", "second other"].map(|name| dir.worker(name, &address));
    coordinator.wait_for_nth_line(Stream::Err, "worker joined", 3);
    moment.set(&proxy, draw);
    proxy.go_on();

    proxy.wait_until_stopped();
    let struck = Instant::now();
    fault.strike(&worker, &proxy);
    let last_one = format!("checkpoint saved step={} ", fault.n_epochs() * N_STEPS_OF_EPOCH);
    let line = coordinator.wait_for_line_with_any(Stream::Err, &["worker left", &last_one]);
    let noticed = struck.elapsed();
    if fault == Fault::Stopped {
        worker.signal("CONT");
        // What was on its way comes late, and is of no use.
        proxy.go_on();
    }

    let end = coordinator.end();
    assert_eq!(end["outcome"], "completed");
    dir.run("run", &end).assert_same_bits(&expected);
    // While others compute what is its, a run can end before a silent worker is given up.
    let is_over = !fault.is_told() && line.contains(&last_one);
    if !is_over {
        assert!(fault.reasons().iter().any(|reason| line.contains(reason)), "{line}");
        assert_eq!(field(&line, "worker"), coordinator.numbers_of(&worker)[0], "{line}");
        let is_helped = !coordinator.lines(Stream::Err, "worker is late").is_empty();
        assert!(field(&line, "n_reassigned") == "1" || is_helped || !moment.has_work(), "{line}");
    }
    assert!(coordinator.lines(Stream::Err, "worker left").len() <= 1, "nobody else was lost");
    for other in &others {
        other.succeed();
        assert_eq!(other.lines(Stream::Err, "joined the run").len(), 1, "it was in all the time");
    }
    noticed
}

fn check(fault: Fault, seed: u64) {
    eprintln!("the draws of seed {seed}");
    let mut draw = ChaCha8Rng::seed_from_u64(seed);
    let mut times = MOMENTS.map(|moment| check_at(fault, moment, "auto", &mut draw)).to_vec();
    times.extend(MOMENTS_OF_BYTES.map(|moment| check_at(fault, moment, "grpc", &mut draw)));
    eprintln!("noticed after {times:?}");
}

#[test]
fn killed_worker_changes_no_bits() {
    check(Fault::Killed, 1);
}

#[test]
fn paused_worker_changes_no_bits() {
    check(Fault::Stopped, 2);
}

#[test]
fn exited_worker_changes_no_bits() {
    check(Fault::Ended, 3);
}

#[test]
fn reset_connection_changes_no_bits() {
    check(Fault::Reset, 4);
}

#[test]
fn silent_connection_changes_no_bits() {
    check(Fault::Silent, 5);
}
