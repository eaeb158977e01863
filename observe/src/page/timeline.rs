//! One step's course: a lane for each worker, and one for the coordinator.

use std::collections::BTreeMap;

use events::{Snapshot, TaskSpan};

use super::lanes::{self, Axis, Bar, Height, Lane};
use super::workers::is_single_process;
use super::{heading, nothing_yet};
use crate::summary::Summary;
use crate::text::{grouped, milliseconds};

/// Bars of a lane at most.
const BARS_MAX: usize = 256;

pub(super) fn html(summary: &Summary) -> String {
    let comes_no_more = summary.outcome.is_some() && summary.snapshots.is_empty();
    if is_single_process(summary) || comes_no_more {
        return String::new();
    }
    let newest =
        summary.snapshots.iter().rev().map(|(_, snapshot)| snapshot).find(|snapshot| !snapshot.tasks.is_empty());
    let Some(snapshot) = newest else {
        let text = "When which worker computed what is drawn here, once a second, from the first step on.";
        return heading("timeline", "One step", "") + &nothing_yet(text);
    };
    let note = format!("step {}, {}", grouped(snapshot.step), milliseconds(snapshot.milliseconds));
    let (coordinator, end) = coordinator(snapshot);
    let lanes: Vec<Lane> = [coordinator].into_iter().chain(workers(snapshot)).collect();
    let axis = Axis::from_zero(end.max(snapshot.milliseconds), tick);
    let legend = lanes::legend(&[
        ("f-compute", "computes a shard"),
        ("f-wait", "result on its way"),
        ("f-idle", "assigned"),
        ("f-reduce", "reduce"),
        ("f-update", "update"),
        ("f-encode", "encode"),
        ("f-send", "send"),
    ]);
    heading("timeline", "One step", &note)
        + &legend
        + &lanes::html(&lanes, &axis, "timeline-lanes", "the step by worker")
}

fn tick(at: f64) -> String {
    let text = format!("{at:.3}");
    format!("{} ms", text.trim_end_matches('0').trim_end_matches('.'))
}

/// What the coordinator did after the last result, and when it was done with it.
fn coordinator(snapshot: &Snapshot) -> (Lane, f64) {
    let mut at = snapshot.tasks.iter().map(|task| task.arrived).filter(|at| at.is_finite()).fold(0.0, f64::max);
    let costs = &snapshot.costs;
    let parts = [
        ("reduce", "f-reduce", costs.reduce),
        ("update", "f-update", costs.update),
        ("encode", "f-encode", costs.encode),
        ("send", "f-send", costs.send),
    ];
    let mut bars = tasks_of(snapshot, 0);
    for (name, class, part) in parts {
        let length = 1e3 * part.as_secs_f64();
        if length > 0.0 {
            let title = format!("{name}: {}", milliseconds(length));
            bars.push(Bar { from: at, to: at + length, class, height: Height::Full, label: name.to_owned(), title });
            at += length;
        }
    }
    (Lane { name: "coordinator".to_owned(), bars, ..Lane::default() }, at)
}

/// The lanes of all workers that took part, by number.
fn workers(snapshot: &Snapshot) -> impl Iterator<Item = Lane> {
    let numbers = snapshot.workers.iter().map(|status| status.worker);
    let numbers = numbers.chain(snapshot.tasks.iter().map(|task| task.worker)).filter(|worker| *worker != 0);
    let lanes: BTreeMap<u64, Lane> = numbers
        .map(|number| {
            let lane = Lane { name: format!("worker {number}"), bars: tasks_of(snapshot, number), ..Lane::default() };
            (number, lane)
        })
        .collect();
    lanes.into_values()
}

fn tasks_of(snapshot: &Snapshot, worker: u64) -> Vec<Bar> {
    let tasks = snapshot.tasks.iter().filter(|task| task.worker == worker);
    let mut bars: Vec<Bar> = tasks.flat_map(task_bars).take(BARS_MAX).collect();
    // What computes lies above what waits for it.
    bars.sort_by_key(|bar| bar.height != Height::Thin);
    bars
}

/// From its assignment to the arrival of its result.
fn task_bars(task: &TaskSpan) -> [Bar; 3] {
    let bar = |from: f64, to: f64, class, height, label: String, title: String| Bar {
        from,
        to: to.max(from),
        class,
        height,
        label,
        title,
    };
    let TaskSpan { shard, assigned, started, finished, arrived, .. } = *task;
    let computing = format!(
        "shard {shard}: {} to compute, {} on its way",
        milliseconds((finished - started).max(0.0)),
        milliseconds((arrived - finished).max(0.0))
    );
    [
        bar(assigned, started, "f-idle", Height::Thin, String::new(), String::new()),
        bar(started, finished, "f-compute", Height::Full, shard.to_string(), computing),
        bar(finished, arrived, "f-wait", Height::Under, String::new(), String::new()),
    ]
}
