//! Workers that come, go and die in the middle of a run change nothing of what comes out.

use std::collections::BTreeSet;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::harness::{LONG_RUN, Process, SHORT_RUN, Stream, TestDir, wait_until};

/// Workers at most.
const N_WORKERS_MAX: usize = 6;
/// The checkpoint at which all workers go, or the next one.
const EXODUS: u64 = 80;
/// Steps after which no worker comes or goes any more.
const LAST_STEP: u64 = 270;

/// What a plan does when a checkpoint is saved.
#[derive(Clone, Copy, Debug)]
enum Move {
    Start,
    Dismiss,
    Kill,
    Nothing,
}

/// The workers of a run, as the plan has them.
struct Workers<'a> {
    dir: &'a TestDir,
    address: String,
    running: Vec<Process>,
    n_started: usize,
}

impl Workers<'_> {
    fn start(&mut self) {
        self.n_started += 1;
        self.running.push(self.dir.worker(&format!("worker {}", self.n_started), &self.address));
    }

    /// One of them has to go. One that has not joined yet may not have its signals in place, and cannot be asked to.
    fn end(&mut self, index: usize, how: Move) {
        let worker = self.running.swap_remove(index);
        if matches!(how, Move::Dismiss) && !worker.lines(Stream::Err, "joined the run").is_empty() {
            worker.terminate();
        } else {
            worker.kill();
        }
    }

    fn follow(&mut self, plan: &mut ChaCha8Rng) {
        let n_running = self.running.len();
        let drawn = match plan.next_u32() % 8 {
            0..=3 if n_running < N_WORKERS_MAX => Move::Start,
            4 => Move::Dismiss,
            5 | 6 => Move::Kill,
            _ => Move::Nothing,
        };
        match drawn {
            Move::Start => self.start(),
            Move::Dismiss | Move::Kill => self.end(plan.next_u32() as usize % n_running, drawn),
            Move::Nothing => {}
        }
    }

    /// All go, each in its own way, and the run waits.
    fn leave(&mut self, coordinator: &Process) {
        while let Some(index) = self.running.len().checked_sub(1) {
            self.end(index, if index % 2 == 0 { Move::Kill } else { Move::Dismiss });
        }
        coordinator.wait_for_line(Stream::Err, "n_active=0");
    }
}

/// Follows the plan of a seed through a run.
fn check(arch: &str, seed: u64) {
    eprintln!("the plan of seed {seed}");
    let dir = TestDir::new();
    let flags = format!("--arch {arch} {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let (coordinator, address) =
        dir.external(&format!("{flags} --workers 4 --checkpoint-every 20 --hash-steps --run-dir run"));
    let mut plan = ChaCha8Rng::seed_from_u64(seed);
    let mut workers = Workers { dir: &dir, address, running: Vec::new(), n_started: 0 };
    workers.start();
    workers.start();
    let (mut step, mut has_waited) = (0, false);
    // Ends with the run.
    while let Some(saved) = coordinator.checkpoint_if_any(step + 1).filter(|&saved| saved < LAST_STEP) {
        step = saved;
        eprintln!("{} workers at the checkpoint of step {step}", workers.running.len());
        if step >= EXODUS && !std::mem::replace(&mut has_waited, true) {
            workers.leave(&coordinator);
        } else {
            workers.follow(&mut plan);
        }
        if workers.running.is_empty() {
            workers.start();
        }
    }
    let end = coordinator.end();
    assert_eq!(end["outcome"], "completed");
    let run = dir.run("run", &end);
    run.assert_same_bits(&expected);
    let computing: BTreeSet<u64> = run.workers().concat().into_iter().collect();
    assert!(computing.len() >= 3, "only the workers {computing:?} took part");
    for worker in workers.running {
        // Others came too late, and still look for the coordinator.
        if !worker.lines(Stream::Err, "joined the run").is_empty() {
            worker.succeed();
        }
    }
}

#[test]
fn conv_has_same_bits_while_workers_come_and_go() {
    for seed in 1..=3 {
        check("conv", seed);
    }
}

#[test]
fn denoising_has_same_bits_while_workers_come_and_go() {
    for seed in 11..=13 {
        check("denoising", seed);
    }
}

/// The goal: a worker that hangs, and does not even close its connection, holds up a run for no longer than was said.
#[test]
fn shards_of_silent_worker_are_reassigned() {
    let dir = TestDir::new();
    let flags = format!("--arch conv {LONG_RUN}");
    let expected = dir.reference(&flags);
    let (coordinator, address) =
        dir.external(&format!("{flags} --checkpoint-every 20 --heartbeat-timeout 1 --run-dir run"));
    let [hung, other] = ["hung", "other"].map(|name| dir.worker(name, &address));
    coordinator.wait_for_nth_line(Stream::Err, "worker joined", 2);
    coordinator.wait_for_checkpoint(20);
    hung.signal("STOP");
    // The other one did its work in the meantime, and it has not taken the updates of that.
    let left = coordinator.wait_for_line(Stream::Err, "worker left");
    assert!(left.contains("silent for 1000 ms") || left.contains("does not take its messages"), "{left}");
    dir.run("run", &coordinator.end()).assert_same_bits(&expected);
    other.succeed();
}

#[test]
fn paused_worker_rejoins() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let (coordinator, address) =
        dir.external(&format!("{flags} --checkpoint-every 20 --heartbeat-timeout 1 --run-dir run"));
    let worker = dir.worker("worker", &address);
    coordinator.wait_for_checkpoint(20);
    worker.signal("STOP");
    coordinator.wait_for_line(Stream::Err, "silent for 1000 ms");
    worker.signal("CONT");
    dir.run("run", &coordinator.end()).assert_same_bits(&expected);
    assert_eq!(coordinator.lines(Stream::Err, "worker joined").len(), 2, "it joined anew");
    worker.succeed();
}

#[test]
fn run_without_workers_reports_waiting() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN} --checkpoint-every 20 --run-dir run");
    let flags = format!("{flags} --launch external --listen unix:socket");
    let coordinator = dir.start("coordinator", dir.command("coordinator", &flags));
    coordinator.wait_for_line(Stream::Out, "/worker --coordinator unix:socket");
    let first = dir.worker("first", "unix:socket");
    coordinator.wait_for_checkpoint(20);
    first.kill();
    coordinator.wait_for_line(Stream::Out, "waiting: no worker is there");
    let second = dir.worker("second", "unix:socket");
    coordinator.wait_for_line(Stream::Out, "going on: a worker is there");
    coordinator.succeed();
    second.succeed();
}

/// The goal: workers are not to blame for a coordinator that was held up.
#[test]
fn paused_coordinator_keeps_its_workers() {
    let dir = TestDir::new();
    let flags = format!("--arch denoising {SHORT_RUN}");
    let expected = dir.reference(&flags);
    let (coordinator, address) =
        dir.external(&format!("{flags} --hash-steps --checkpoint-every 20 --heartbeat-timeout 1 --run-dir run"));
    let workers = ["first", "second"].map(|name| dir.worker(name, &address));
    coordinator.wait_for_nth_line(Stream::Err, "worker joined", 2);
    coordinator.signal("STOP");
    let stopped = std::time::Instant::now();
    wait_until("a worker may not be silent for so long", std::time::Duration::from_secs(5), || {
        stopped.elapsed() > std::time::Duration::from_millis(1_600)
    });
    coordinator.signal("CONT");
    dir.run("run", &coordinator.end()).assert_same_bits(&expected);
    assert!(coordinator.lines(Stream::Err, "worker left").iter().all(|line| !line.contains("silent")));
    for worker in workers {
        worker.succeed();
    }
}
