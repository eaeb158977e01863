//! A worker that stands still, and is not dead: the others do its part, and nobody waits for it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Place, Process, Run, Stream, field, wait_until};

/// Eight epochs of 138 steps.
const RUN: &str = "--arch conv --shards 4 --batch-size 16 --epochs 8 --data small";
const N_STEPS: usize = 8 * 138;
/// Steps of all workers before one stands still.
const N_BEFORE: usize = 150;
/// Steps after it went on, at least; in so many of the last ones it takes part again.
const N_AFTER: usize = 300;
const N_LAST: usize = 75;
/// How long it stands still, unless the run comes near its end before.
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

/// The steps from one on in which another worker had to compute what this one was late with.
fn steps_waited(coordinator: &Process, worker: &str, from: usize) -> BTreeSet<usize> {
    let late = coordinator.lines(Stream::Err, "worker is late");
    let its = late.iter().filter(|line| field(line, "worker") == worker);
    its.map(|line| field(line, "step").parse().expect("a step")).filter(|&step| step >= from).collect()
}

fn n_of_last_steps(run: &Run, worker: u64) -> usize {
    run.workers().iter().rev().take(N_LAST).filter(|workers| workers.contains(&worker)).count()
}

/// The goal: a straggler costs a step or two, and from then on its share of the speed.
#[test]
fn a_worker_that_stands_still_holds_up_a_step_or_two() {
    let place = Place::new();
    let expected = place.reference(RUN);
    let flags = format!("{RUN} --hash-steps --checkpoint-every 10 --heartbeat-timeout 10 --run-dir run");
    let (coordinator, address) = place.external(&flags);
    let straggler = place.worker("straggler", &address);
    let others: Vec<_> = (2..=4).map(|nth| place.worker(&format!("worker {nth}"), &address)).collect();
    coordinator.wait_for_nth_line(Stream::Err, "worker joined", 4);

    let all_joined_at = newest_step(&coordinator) + 10;
    coordinator.wait_for_checkpoint((all_joined_at + N_BEFORE) as u64);
    let stopped_at = newest_step(&coordinator);
    straggler.signal("STOP");
    let stopped = Instant::now();
    wait_until("it has stood still for long enough", 2 * STILL, || {
        stopped.elapsed() > STILL || newest_step(&coordinator) >= N_STEPS - N_AFTER
    });
    let went_on_at = newest_step(&coordinator);
    straggler.signal("CONT");

    let run = place.run("run", &coordinator.end());
    run.assert_same_bits(&expected);
    report_pace(&run.steps[all_joined_at..stopped_at], &run.steps[stopped_at..went_on_at]);
    let n_steps = went_on_at - stopped_at;
    assert!(n_steps >= N_STILL_MIN, "{n_steps} steps while it stood still");
    // Under the number that it had then.
    let number = coordinator.numbers_of(&straggler).swap_remove(0);
    let waited = steps_waited(&coordinator, &number, stopped_at);
    let waited: Vec<_> = waited.range(..went_on_at).collect();
    assert!(waited.len() <= N_WAITED_MAX, "it was waited for in the steps {waited:?}");
    // With more updates than its session keeps for it, it was let go, and joined anew.
    let number = coordinator.numbers_of(&straggler).pop().expect("it joined").parse().expect("a number");
    assert!(n_of_last_steps(&run, number) > 0, "it computes again");
    straggler.succeed();
    others.iter().for_each(Process::succeed);
}
