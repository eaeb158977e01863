//! A worker that is suspended, and not dead: the others do its part, and do not wait for it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Process, Stream, TestDir, field, wait_until};

/// As long as the test wants.
const RUN: &str = "--arch conv --shards 4 --batch-size 16 --epochs 1000000 --data small";
/// Steps of all workers before one stands still.
const N_BEFORE: usize = 150;
/// How long the worker may take to compute again.
const AGAIN_WAIT_MAX: Duration = Duration::from_mins(1);
/// How long it stands still.
const STILL: Duration = Duration::from_secs(5);
/// Steps in the meantime, at least.
const N_STILL_MIN: usize = 20;
/// Steps in which it is waited for, until the others take over: two, and some in which a busy machine had held it up before.
const N_WAITED_MAX: usize = 5;

/// How long each of some steps took, in milliseconds, the longest last.
fn times(steps: &[Value]) -> Vec<f64> {
    let mut times: Vec<f64> = steps.iter().map(|step| step["milliseconds"].as_f64().expect("a time")).collect();
    times.sort_unstable_by(f64::total_cmp);
    times
}

/// The newest checkpoint's step.
fn newest_step(coordinator: &Process) -> usize {
    let saved = coordinator.lines(Stream::Err, "checkpoint saved");
    saved.last().map_or(0, |line| field(line, "step").parse().expect("a step"))
}

/// Shows what it cost, in times of this machine, which may have other things to do.
fn report_pace(before: &[Value], still: &[Value]) {
    let (before, still) = (times(before), times(still));
    let longest = still.last().expect("a step");
    eprintln!(
        "median step: {:.1} ms before, {:.1} ms in the {} steps while it stood still; the longest {longest:.1} ms",
        before[before.len() / 2],
        still[still.len() / 2],
        still.len(),
    );
}

/// The workers of the newest whole line.
fn last_workers(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).expect("a run's file");
    let line = text.rsplit_once('\n').and_then(|(whole, _)| whole.lines().last()).unwrap_or_default();
    let step: Value = serde_json::from_str(line).expect("a line of JSON");
    step["workers"].as_array().into_iter().flatten().map(ToString::to_string).collect()
}

/// The steps from one on in which another worker had to compute what this one was late with.
fn steps_waited(coordinator: &Process, worker: &str, from: usize) -> BTreeSet<usize> {
    let late = coordinator.lines(Stream::Err, "worker is late");
    let its = late.iter().filter(|line| field(line, "worker") == worker);
    its.map(|line| field(line, "step").parse().expect("a step")).filter(|&step| step >= from).collect()
}

/// The goal: a straggler costs a step or two, and from then on its share of the speed.
#[test]
fn paused_worker_delays_only_few_steps() {
    let dir = TestDir::new();
    let flags = format!("{RUN} --hash-steps --checkpoint-every 10 --heartbeat-timeout 10 --run-dir run");
    let (coordinator, address) = dir.external(&flags);
    let straggler = dir.worker("straggler", &address);
    let others: Vec<_> = (2..=4).map(|nth| dir.worker(&format!("worker {nth}"), &address)).collect();
    coordinator.wait_for_nth_line(Stream::Err, "worker joined", 4);

    let all_joined_at = newest_step(&coordinator) + 10;
    coordinator.wait_for_checkpoint((all_joined_at + N_BEFORE) as u64);
    let stopped_at = newest_step(&coordinator);
    straggler.signal("STOP");
    let stopped = Instant::now();
    wait_until("it has stood still for long enough", 2 * STILL, || stopped.elapsed() > STILL);
    let went_on_at = newest_step(&coordinator);
    straggler.signal("CONT");

    // It may have been let go, with more updates than its session keeps for it, and join anew.
    wait_until("it computes again", AGAIN_WAIT_MAX, || {
        let numbers = coordinator.numbers_of(&straggler);
        let last = last_workers(&dir.path("run/steps.jsonl"));
        newest_step(&coordinator) > went_on_at && last.iter().any(|worker| numbers.contains(worker))
    });
    let end = coordinator.terminated();
    let run = dir.run("run", &end);
    let expected = dir.reference(&format!("{RUN} --max-steps {}", run.steps.len()));
    assert_eq!(run.params_blake3, expected.params_blake3, "after {} steps", run.steps.len());
    report_pace(&run.steps[all_joined_at..stopped_at], &run.steps[stopped_at..went_on_at]);
    let n_steps = went_on_at - stopped_at;
    assert!(n_steps >= N_STILL_MIN, "{n_steps} steps while it stood still");
    // Under the number that it had then.
    let number = coordinator.numbers_of(&straggler).swap_remove(0);
    let waited = steps_waited(&coordinator, &number, stopped_at);
    let waited: Vec<_> = waited.range(..went_on_at).collect();
    assert!(waited.len() <= N_WAITED_MAX, "it was waited for in the steps {waited:?}");
    for worker in std::iter::once(&straggler).chain(&others) {
        worker.kill();
    }
}
