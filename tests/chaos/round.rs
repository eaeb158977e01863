//! A round: the coordinators one after the other, the workers, and the faults that come to them.

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::plan::{Draws, Plan};
use crate::harness::{Line, Process, Run, Stream, TERMINATED, TestDir, field, is_alive, signal};

/// How long faults come, from the beginning of a round; then it may end.
const FAULTS_TIME: Duration = Duration::from_secs(8);
/// How long a coordinator may take to end that was asked to.
const END_MAX: Duration = Duration::from_mins(1);
/// Workers at most that others start.
const N_WORKERS_MAX: usize = 6;
/// Connections at most that say nothing of use.
const N_CONNECTIONS_MAX: usize = 16;

/// Something that happens to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    WorkerKilled,
    WorkerHeldUp,
    WorkerAskedToLeave,
    WorkerStarted,
    CoordinatorKilled,
    CoordinatorStopped,
    CoordinatorHeldUp,
    NoWorkerConnected,
}

/// What happened, and what was known then.
#[derive(Clone, Debug)]
pub struct Injection {
    pub fault: Fault,
    pub at: Instant,
    /// When it was over.
    pub until: Instant,
    /// The last step that the coordinator had logged.
    pub step: u64,
    /// Which coordinator of the round it was, counted from 0.
    pub life: usize,
    /// The worker's process, if it is about one.
    pub process: Option<u32>,
}

/// All that was said in a round.
pub struct RoundLog {
    /// Whether every step was brought to the disk.
    pub has_journal: bool,
    /// What happened, in order.
    pub injections: Vec<Injection>,
    /// The lines of each coordinator.
    pub lives: Vec<Vec<Line>>,
    /// The lines of all workers that others started.
    pub workers: Vec<Line>,
}

/// A worker that others start.
struct Worker {
    process: Process,
    /// Whether it was made to end.
    is_gone: bool,
}

/// A round that is played.
pub struct Round<'a> {
    dir: &'a TestDir,
    plan: &'a Plan,
    data: &'a str,
    draws: Draws,
    begun: Instant,
    /// The last one is at work.
    coordinators: Vec<Process>,
    workers: Vec<Worker>,
    /// Processes that are held up, and when that is over.
    held: Vec<(u32, Instant)>,
    connections: Vec<Box<dyn Write>>,
    injections: Vec<Injection>,
    /// The last step known when a coordinator was last disturbed: the next one is not before there are others.
    step_disturbed: u64,
}

impl<'a> Round<'a> {
    /// The first coordinator and the first workers.
    pub fn begin(dir: &'a TestDir, plan: &'a Plan, data: &'a str) -> Self {
        let mut round = Self {
            dir,
            plan,
            data,
            draws: plan.draws.clone(),
            begun: Instant::now(),
            coordinators: Vec::new(),
            workers: Vec::new(),
            held: Vec::new(),
            connections: Vec::new(),
            injections: Vec::new(),
            step_disturbed: 0,
        };
        round.start_coordinator(&format!("{} --run-dir run", plan.recipe_flags(data)));
        // Before it there is nothing to resume.
        round.coordinator().wait_for_checkpoint(0);
        if plan.address.is_some() {
            for _ in 0..plan.n_workers {
                round.start_worker();
            }
        }
        round
    }

    /// Plays it to its end: what came out.
    pub fn play(&mut self) -> Run {
        // Ends: when no fault comes any more, the run does.
        while self.begun.elapsed() < FAULTS_TIME {
            let pause = Duration::from_millis(self.draws.number(20, 500));
            let is_over = self.coordinator().ends_within(pause);
            self.let_go(Instant::now());
            if is_over || self.is_complete_after_fault() {
                break;
            }
        }
        self.let_go(self.begun + Duration::from_hours(1));
        if self.plan.address.is_some() && self.running().is_empty() {
            self.start_worker();
        }
        let end = self.coordinator().end();
        assert_eq!(end["outcome"], "completed");
        self.dir.run("run", &end)
    }

    /// Panics if a worker has ended that no fault ended, unless it ended with the run.
    pub fn check_workers(&self) {
        for worker in self.workers.iter().filter(|worker| !worker.is_gone && !worker.process.is_running()) {
            worker.process.succeed();
        }
    }

    /// How long it has taken so far.
    pub fn duration(&self) -> Duration {
        self.begun.elapsed()
    }

    /// All that was said.
    pub fn log(&self) -> RoundLog {
        RoundLog {
            has_journal: self.plan.has_journal,
            injections: self.injections.clone(),
            lives: self.coordinators.iter().map(Process::said).collect(),
            workers: self.workers.iter().flat_map(|worker| worker.process.said()).collect(),
        }
    }

    fn coordinator(&self) -> &Process {
        self.coordinators.last().expect("a round begins with one")
    }

    fn start_coordinator(&mut self, flags: &str) {
        let mut command = self.dir.command("coordinator", &format!("{flags} {}", self.plan.other_flags()));
        // A line each step.
        command.env("RUST_LOG", "info,coordinator::observe::view=debug");
        let name = format!("coordinator {}", self.coordinators.len() + 1);
        self.coordinators.push(self.dir.start(&name, command));
        self.coordinator().begin();
    }

    fn start_worker(&mut self) -> u32 {
        let address = self.plan.address.as_ref().expect("nobody else starts local workers");
        let flags = format!("--coordinator {address} --data {} --threads 1", self.data);
        let name = format!("worker {}", self.workers.len() + 1);
        let process = self.dir.start(&name, self.dir.command("worker", &flags));
        let id = process.id();
        self.workers.push(Worker { process, is_gone: false });
        id
    }

    /// The last step that any coordinator has logged.
    fn step(&self) -> u64 {
        let last = self.coordinator().lines(Stream::Err, "step done").pop();
        let step = last.map_or(0, |line| field(&line, "step").parse().expect("a step"));
        self.injections.last().map_or(step, |before| before.step.max(step))
    }

    /// Workers that the test started, and no fault ended.
    fn running(&self) -> Vec<u32> {
        let running = self.workers.iter().filter(|worker| !worker.is_gone && worker.process.is_running());
        running.map(|worker| worker.process.id()).collect()
    }

    /// Workers that a fault may come to. Of local ones, the first is never made to end: when all of them die at once again
    /// and again, a coordinator gives up, as it should.
    fn targets(&self, is_end: bool) -> Vec<u32> {
        if self.plan.address.is_some() {
            return self.running();
        }
        let started = self.coordinator().lines(Stream::Err, "local worker started");
        let may_be = started.iter().filter(|line| !is_end || field(line, "local_worker") != "1");
        let processes = may_be.map(|line| field(line, "process").parse().expect("a number"));
        processes.filter(|&process| is_alive(process)).collect()
    }

    /// Draws a fault, and lets it come; whether the run was complete by then.
    fn is_complete_after_fault(&mut self) -> bool {
        let step = self.step();
        let mut fault = match self.draws.number(0, 19) {
            0..=4 => Fault::WorkerKilled,
            5..=8 => Fault::WorkerHeldUp,
            9..=10 => Fault::WorkerAskedToLeave,
            11..=13 => Fault::WorkerStarted,
            14..=15 => Fault::CoordinatorKilled,
            16 => Fault::CoordinatorStopped,
            17 => Fault::CoordinatorHeldUp,
            _ => Fault::NoWorkerConnected,
        };
        if self.plan.address.is_some() && self.running().is_empty() {
            fault = Fault::WorkerStarted;
        }
        let (at, life) = (Instant::now(), self.coordinators.len() - 1);
        let mut injection = Injection { fault, at, until: at, step, life, process: None };
        match fault {
            Fault::WorkerKilled | Fault::WorkerAskedToLeave | Fault::WorkerHeldUp => {
                let targets = self.targets(fault != Fault::WorkerHeldUp);
                if targets.is_empty() {
                    return false;
                }
                let process = self.draws.one_of(&targets);
                injection.process = Some(process);
                injection.until = self.disturb(process, fault);
            }
            Fault::WorkerStarted if self.plan.address.is_some() && self.running().len() < N_WORKERS_MAX => {
                injection.process = Some(self.start_worker());
            }
            Fault::NoWorkerConnected if self.connections.len() < N_CONNECTIONS_MAX => {
                // A coordinator that is about to end does not listen any more.
                let Some(connection) = self.connect() else { return false };
                self.connections.push(connection);
            }
            Fault::WorkerStarted | Fault::NoWorkerConnected => return false,
            Fault::CoordinatorKilled | Fault::CoordinatorStopped | Fault::CoordinatorHeldUp => {
                // A run whose coordinator never gets to a step comes to no end.
                if step <= self.step_disturbed {
                    return false;
                }
                self.step_disturbed = step;
                self.injections.push(injection);
                return self.is_complete_after_disturbing_coordinator(fault);
            }
        }
        self.injections.push(injection);
        false
    }

    /// Lets a fault come to a worker; until when it lasts.
    fn disturb(&mut self, process: u32, fault: Fault) -> Instant {
        let now = Instant::now();
        if fault == Fault::WorkerHeldUp {
            signal("STOP", process);
            let until = now + Duration::from_millis(self.draws.number(100, 4_000));
            self.held.push((process, until));
            return until;
        }
        signal(if fault == Fault::WorkerKilled { "KILL" } else { "TERM" }, process);
        for worker in self.workers.iter_mut().filter(|worker| worker.process.id() == process) {
            worker.is_gone = true;
        }
        now
    }

    /// Lets go of processes that were held up until now.
    fn let_go(&mut self, now: Instant) {
        self.held.retain(|&(process, until)| {
            if until <= now && is_alive(process) {
                signal("CONT", process);
            }
            until > now
        });
    }

    fn is_complete_after_disturbing_coordinator(&mut self, fault: Fault) -> bool {
        let pause = Duration::from_millis(self.draws.number(100, 3_000));
        let coordinator = self.coordinator();
        match fault {
            Fault::CoordinatorHeldUp => {
                coordinator.signal_if_running("STOP");
                coordinator.ends_within(pause);
                coordinator.signal_if_running("CONT");
                return false;
            }
            Fault::CoordinatorStopped => {
                coordinator.signal_if_running("TERM");
                assert!(coordinator.ends_within(END_MAX), "a coordinator that was asked to end takes too long");
                let status = coordinator.wait_exit();
                // It may have ended by itself, or not have had its signals in place yet.
                let is_expected = status.success() || status.code() == Some(TERMINATED) || status.signal() == Some(15);
                assert!(is_expected, "it ended with {status}");
            }
            _ => {
                coordinator.signal_if_running("KILL");
                coordinator.wait_exit();
            }
        }
        if outcome(coordinator).is_some_and(|outcome| outcome == "completed") {
            return true;
        }
        let skipped = coordinator.lines(Stream::Err, "checkpoint skipped");
        assert!(skipped.is_empty(), "{skipped:?}");
        self.start_coordinator(&format!("--resume run --data {}", self.data));
        false
    }

    /// Connects, and says what no worker says.
    fn connect(&mut self) -> Option<Box<dyn Write>> {
        let address = self.coordinator().begin()["address"].as_str().expect("an address").to_owned();
        let mut connection: Box<dyn Write> = if let Some(path) = address.strip_prefix("unix:") {
            Box::new(UnixStream::connect(self.dir.path(path)).ok()?)
        } else {
            let address = address.strip_prefix("http://").expect("an address of the web");
            Box::new(TcpStream::connect(address).ok()?)
        };
        let words: &[u8] =
            self.draws.one_of(&[&b""[..], &[0xa5; 5_000], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff"]);
        // It may be closed in the middle of it.
        let _ = connection.write_all(words);
        Some(connection)
    }
}

/// How a coordinator says that the run ended, if it does.
fn outcome(coordinator: &Process) -> Option<String> {
    let line = coordinator.lines(Stream::Out, r#""event":"end""#).pop()?;
    let end: Value = serde_json::from_str(&line).expect("JSON");
    end["outcome"].as_str().map(str::to_owned)
}
