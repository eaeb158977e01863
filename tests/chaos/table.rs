//! What faults cost: how soon they were noticed, how soon the run was further, and what was computed again for them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::round::{Fault, Injection, RoundLog};
use crate::harness::{Line, Run, field};

/// Steps that have to be logged before a fault counts as recovered from: the one that was under way, and a whole one.
const N_STEPS_RECOVERED: u64 = 2;

/// Figures of all rounds so far.
#[derive(Default)]
pub struct Table {
    /// By kind of fault, and, for coordinators that were killed, whether they kept a journal.
    rows: BTreeMap<(Fault, bool), Row>,
    n_rounds: u32,
    n_steps: u64,
    n_steps_lost: u64,
    n_samples: u64,
    n_samples_lost: u64,
}

/// Figures of a kind of fault.
#[derive(Default)]
struct Row {
    n_injected: usize,
    detected: Vec<Duration>,
    recovered: Vec<Duration>,
    /// Steps that a dead coordinator had logged and the next one computed again.
    n_again: u64,
}

impl Table {
    /// Adds a round that ended with the same bits as it should; its figures in words.
    pub fn add(&mut self, log: &RoundLog, run: &Run, expected: &Run, n_steps: u64) -> String {
        for injection in &log.injections {
            let has_journal = log.has_journal && injection.fault == Fault::CoordinatorKilled;
            let row = self.rows.entry((injection.fault, has_journal)).or_default();
            row.n_injected += 1;
            row.detected.extend(detected(log, injection).map(|at| at - injection.at));
            row.recovered.extend(recovered(log, injection, n_steps).map(|at| at - injection.at));
            let n_again = again(log, injection);
            // With a journal a coordinator takes at most the step at hand with it.
            assert!(!log.has_journal || n_again <= 1, "{n_again} steps were not in the journal after {injection:?}");
            row.n_again += n_again;
        }
        let n_samples = |run: &Run| -> u64 { run.steps.iter().filter_map(|step| step["n_samples"].as_u64()).sum() };
        let has_line = |step: &u64| run.steps.iter().any(|line| line["step"] == *step);
        let n_there = (1..=n_steps).filter(has_line).count() as u64;
        self.n_rounds += 1;
        self.n_steps += n_steps;
        self.n_steps_lost += n_steps - n_there;
        self.n_samples += n_samples(expected);
        self.n_samples_lost += n_samples(expected).abs_diff(n_samples(run));
        format!("{} faults, {} coordinators", log.injections.len(), log.lives.len())
    }
}

/// When a fault was noticed, if it is of a kind that is, and it was there for long enough.
fn detected(log: &RoundLog, injection: &Injection) -> Option<Instant> {
    let life = &log.lives[injection.life];
    let since = |line: &&Line| line.at >= injection.at;
    let is_of = |line: &Line, name: &str, value: &str| field(&line.text, name) == value;
    match injection.fault {
        Fault::WorkerStarted => {
            let process = injection.process?.to_string();
            let mut joins = life.iter().filter(|line| line.text.contains("worker joined"));
            Some(joins.find(|line| is_of(line, "process", &process))?.at)
        }
        Fault::WorkerKilled | Fault::WorkerHeldUp | Fault::WorkerAskedToLeave => {
            let process = injection.process?.to_string();
            let mut joins = life.iter().filter(|line| line.text.contains("worker joined") && line.at < injection.at);
            let joined = joins.rfind(|line| is_of(line, "process", &process))?;
            let worker = field(&joined.text, "worker");
            let is_held = injection.fault == Fault::WorkerHeldUp;
            let tells =
                |line: &&Line| line.text.contains("worker left") || (is_held && line.text.contains("worker is late"));
            let found = life.iter().filter(since).filter(tells).find(|line| is_of(line, "worker", &worker))?;
            // One that was let go again may be gone later for another reason.
            (!is_held || found.at <= injection.until).then_some(found.at)
        }
        Fault::CoordinatorKilled | Fault::CoordinatorStopped => {
            let looking = log.workers.iter().filter(since).filter(|line| line.text.contains("trying again"));
            looking.map(|line| line.at).min()
        }
        Fault::CoordinatorHeldUp | Fault::NoWorkerConnected => None,
    }
}

/// When the run was further than it could have been without a recovery.
fn recovered(log: &RoundLog, injection: &Injection, n_steps: u64) -> Option<Instant> {
    let step_min = n_steps.min(injection.step + N_STEPS_RECOVERED);
    let mut later = log.lives[injection.life..].iter().flatten().filter(|line| line.at >= injection.at);
    Some(later.find(|line| step_done(line).is_some_and(|step| step >= step_min))?.at)
}

/// The step that a line logs.
fn step_done(line: &Line) -> Option<u64> {
    line.text.contains("step done").then(|| field(&line.text, "step").parse().expect("a step"))
}

/// How many steps were logged by a coordinator that died and computed again by the next one.
fn again(log: &RoundLog, injection: &Injection) -> u64 {
    let is_death = matches!(injection.fault, Fault::CoordinatorKilled | Fault::CoordinatorStopped);
    let Some(next) = log.lives.get(injection.life + 1).filter(|_| is_death) else { return 0 };
    let begin = next.iter().find(|line| line.text.contains(r#""event":"begin""#)).expect("it began");
    let begin: Value = serde_json::from_str(&begin.text).expect("JSON");
    let last = log.lives[injection.life].iter().rev().find_map(step_done).unwrap_or(0);
    last.saturating_sub(begin["step"].as_u64().expect("a step"))
}

/// A fault's name in the table.
fn name(fault: Fault) -> &'static str {
    match fault {
        Fault::WorkerKilled => "worker killed",
        Fault::WorkerHeldUp => "worker held up 0.1-4 s",
        Fault::WorkerAskedToLeave => "worker asked to leave",
        Fault::WorkerStarted => "worker started",
        Fault::CoordinatorKilled => "coordinator killed",
        Fault::CoordinatorStopped => "coordinator stopped",
        Fault::CoordinatorHeldUp => "coordinator held up 0.1-3 s",
        Fault::NoWorkerConnected => "stranger connected",
    }
}

/// The median and the largest, in milliseconds, and of how many.
fn figures(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let Some(max) = times.last() else { return "-".to_owned() };
    format!("{} / {} ({})", times[times.len() / 2].as_millis(), max.as_millis(), times.len())
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles = ["fault", "injected", "detected in ms", "recovered in ms", "computed again"];
        let [fault, injected, detected, recovered, again] = titles;
        writeln!(out, "| {fault:36} | {injected:>8} | {detected:>22} | {recovered:>22} | {again:>14} |")?;
        writeln!(out, "|{0:-<38}|{0:->9}:|{0:->23}:|{0:->23}:|{0:->15}:|", "")?;
        for (&(fault, has_journal), row) in &self.rows {
            let fault = format!("{}{}", name(fault), if has_journal { " with a journal" } else { "" });
            let (injected, again) = (row.n_injected, row.n_again);
            let [detected, recovered] = [&row.detected, &row.recovered].map(|times| figures(times.clone()));
            writeln!(out, "| {fault:36} | {injected:>8} | {detected:>22} | {recovered:>22} | {again:>14} |")?;
        }
        let Self { n_rounds, n_steps, n_steps_lost, n_samples, n_samples_lost, .. } = self;
        writeln!(
            out,
            "times: median / largest (of how many); detected: told by the coordinator, or by workers if it is gone;"
        )?;
        writeln!(
            out,
            "recovered: {N_STEPS_RECOVERED} steps further than known at the fault; others may come meanwhile"
        )?;
        writeln!(out, "steps lost: {n_steps_lost} of {n_steps}; samples lost: {n_samples_lost} of {n_samples}")?;
        write!(out, "the same bits as one undisturbed process: {n_rounds} of {n_rounds} rounds")
    }
}
