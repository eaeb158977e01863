use std::time::Duration;

use events::{Figures, MirrorEvent, StepCosts, StepEvent, WorkerStatus};
use serde_json::json;

use super::workers::NOT_IN_SNAPSHOT;
use super::*;

fn record(step: u64, loss: f64) -> StepRecord {
    let metrics = Figures(vec![("accuracy".to_owned(), 0.5)]);
    StepRecord { step, epoch: 1, loss, metrics, n_samples: 32, milliseconds: 4.0, params_blake3: None }
}

fn step(step: u64, loss: f64) -> RunEvent {
    let costs = StepCosts::default();
    let record = record(step, loss);
    RunEvent::Step(StepEvent { record, workers: vec![1], n_active: 1, costs, begun: Duration::ZERO, tasks: Vec::new() })
}

fn epoch(epoch: u32, step: u64, val_loss: f64) -> RunEvent {
    RunEvent::Epoch(EpochRecord {
        epoch,
        step,
        loss: 0.5,
        metrics: Figures::default(),
        val_loss,
        val_metrics: Figures::default(),
        seconds: 2.0,
        samples_per_second: 8000.0,
        samples: "images".into(),
        is_best: true,
    })
}

fn joined(worker: u64) -> RunEvent {
    let (identity, host, backend) = ("::1".to_owned(), "alpha".to_owned(), "flex on cpu".to_owned());
    RunEvent::WorkerJoined { worker, identity, host, process: 70, backend, n_threads: 2, n_active: 1 }
}

fn left(worker: u64, n_reassigned: usize) -> RunEvent {
    RunEvent::WorkerLeft { worker, reason: "it closed".to_owned(), n_active: 0, n_reassigned }
}

fn snapshot(workers: &[(u64, u64)]) -> RunEvent {
    let status = |&(worker, n_shards)| WorkerStatus { worker, silent_milliseconds: 250.0, n_shards, n_late: 3 };
    RunEvent::Snapshot(Snapshot { workers: workers.iter().map(status).collect(), ..Snapshot::default() })
}

fn picture(name: &str, epoch: u32) -> PictureFile {
    PictureFile { name: PictureName::of_folder(name).expect("a name"), epoch }
}

/// A summary of events that happen a second apart, the first at second 1.
fn summary(events: impl IntoIterator<Item = RunEvent>) -> Summary {
    let mut summary = Summary::default();
    for (place, event) in (1..).zip(events) {
        summary.apply(&RecordedEvent { time: f64::from(place), event });
    }
    summary
}

fn means(series: &Series) -> Vec<f64> {
    series.points().iter().map(|point| point.mean).collect()
}

fn xs(series: &Series) -> Vec<f64> {
    series.points().iter().map(|point| point.x).collect()
}

#[test]
fn steps_become_curves_of_loss_metrics_pace_and_duration() {
    let summary = summary([step(1, 0.75), step(2, 0.25)]);
    let names: Vec<&str> = summary.step_figures.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["loss", "accuracy"]);
    assert_eq!(means(&summary.step_figures[0].1), [0.75, 0.25]);
    assert_eq!(means(&summary.step_figures[1].1), [0.5, 0.5]);
    assert_eq!(means(&summary.pace), [8000.0, 8000.0]); // 32 samples in 4 ms
    assert_eq!(means(&summary.step_milliseconds), [4.0, 4.0]);
    assert_eq!(summary.last_step, Some(record(2, 0.25)));
    assert_eq!((summary.time, summary.event_lines.len()), (2.0, 0));
}

#[test]
fn repeated_step_replaces_it_and_all_later_ones() {
    let before = [step(1, 0.9), epoch(1, 1, 0.9), step(2, 0.8), step(3, 0.7), epoch(2, 3, 0.7), step(4, 0.6)];
    let summary = summary(before.into_iter().chain([step(2, 0.1)]));
    let (_, loss) = &summary.step_figures[0];
    assert_eq!((xs(loss), loss.points()[1].mean), (vec![1.0, 2.0], 0.1));
    assert_eq!(xs(&summary.pace), [1.0, 2.0]);
    assert_eq!(summary.epochs.iter().map(|epoch| epoch.epoch).collect::<Vec<_>>(), [1]);
    assert_eq!(summary.last_step.map(|last| last.step), Some(2));
}

#[test]
fn epoch_replaces_record_of_same_number_and_is_bounded() {
    let again = summary([epoch(1, 10, 0.5), epoch(2, 15, 0.6), epoch(2, 20, 0.4)]);
    let found: Vec<_> = again.epochs.iter().map(|epoch| (epoch.epoch, epoch.step, epoch.val_loss)).collect();
    assert_eq!(found, [(1, 10, 0.5), (2, 20, 0.4)]);
    assert_eq!(again.samples, "images");
    let many = summary((1..=10_003).map(|number| epoch(number, number.into(), 0.5)));
    assert_eq!((many.epochs.len(), many.epochs[0].epoch), (EPOCHS_MAX, 4));
}

#[test]
fn worker_that_leaves_is_listed_with_its_reason() {
    let summary = summary([joined(1), joined(2), left(1, 3)]);
    let worker = &summary.workers[&1];
    assert_eq!((worker.host.as_str(), worker.process, worker.n_threads, worker.joined), ("alpha", 70, 2, 1.0));
    assert_eq!((worker.left.clone(), worker.n_reassigned), (Some((3.0, "it closed".to_owned())), 3));
    assert_eq!(summary.workers[&2].left, None);
    assert_eq!((summary.faults.n_left, summary.faults.n_reassigned, summary.n_lost), (1, 3, 1));
}

#[test]
fn only_newest_workers_that_left_are_kept() {
    let summary =
        summary([joined(1000)].into_iter().chain((1..=40).flat_map(|worker| [joined(worker), left(worker, 0)])));
    assert_eq!(summary.workers.len(), 1 + LEFT_WORKERS_MAX);
    assert!(!summary.workers.contains_key(&8) && summary.workers.contains_key(&9)); // 40 - 32 = 8
    assert_eq!(summary.faults.n_left, 40);
}

#[test]
fn snapshot_gives_silence_shards_and_their_rate() {
    let mut events = vec![joined(1)];
    events.extend((0..30).map(|second| snapshot(&[(1, if second < 15 { 0 } else { 8 * (second - 15) })])));
    let summary = summary(events);
    let worker = &summary.workers[&1];
    assert_eq!((worker.silent_seconds, worker.n_shards, worker.n_late), (0.25, 112, 3)); // 8 * 14
    assert_eq!((worker.shards_per_second, worker.left.clone()), (8.0, None));
    assert_eq!(summary.snapshots.len(), 30);
    assert_eq!(summary.snapshots.back().map(|(time, _)| *time), Some(31.0));
}

#[test]
fn snapshots_are_bounded() {
    let summary = summary((0..200).map(|n_shards| snapshot(&[(1, n_shards)])));
    assert_eq!((summary.snapshots.len(), summary.snapshots[0].0), (SNAPSHOTS_MAX, 81.0)); // 200 - 120 + 1
}

/// The goal: a listener that lost events shows the right roster after the next snapshot.
#[test]
fn roster_follows_snapshot_where_events_were_lost() {
    let summary = summary([joined(1), joined(2), snapshot(&[(2, 4), (3, 4)])]);
    assert_eq!(summary.workers[&1].left, Some((3.0, NOT_IN_SNAPSHOT.to_owned())));
    assert_eq!((summary.workers[&2].left.clone(), summary.workers[&3].joined), (None, 3.0));
}

/// The goal: worker 1 of the second process is not taken for worker 1 of the first.
#[test]
fn new_process_begins_with_no_workers() {
    let summary = summary([
        RunEvent::Started { incarnation: 1, step: 0 },
        joined(1),
        joined(2),
        snapshot(&[(1, 100), (2, 100)]),
        RunEvent::Started { incarnation: 2, step: 40 },
        joined(1),
        snapshot(&[(1, 2)]),
        snapshot(&[(1, 5)]),
    ]);
    assert_eq!(summary.workers.keys().collect::<Vec<_>>(), [&1]);
    assert_eq!((summary.workers[&1].joined, summary.workers[&1].shards_per_second), (6.0, 3.0));
    assert_eq!((summary.faults.n_restarts, summary.faults.n_left, summary.snapshots.len()), (1, 0, 2));
}

/// How a line is shown after others.
fn check_kind(before: &[RunEvent], event: RunEvent, kind: EventKind) {
    let summary = summary(before.iter().cloned().chain([event.clone()]));
    let last = summary.event_lines.back().expect("a line");
    let time = f64::from(u32::try_from(before.len()).expect("a few") + 1);
    assert_eq!((last.time, last.kind, last.text.clone()), (time, kind, event.describe().expect("a line")), "{event:?}");
}

#[test]
fn event_lines_are_faults_recoveries_or_neither() {
    use EventKind::{Fault, Info, Recovery};
    let ended = |outcome: &str| RunEvent::Ended { outcome: outcome.to_owned(), step: 9 };
    let reason = || "bits".to_owned();
    check_kind(&[], RunEvent::Started { incarnation: 1, step: 0 }, Info);
    check_kind(&[], RunEvent::Started { incarnation: 2, step: 7 }, Recovery);
    check_kind(&[ended("stopped")], RunEvent::Started { incarnation: 2, step: 9 }, Info);
    check_kind(&[], joined(1), Info);
    check_kind(&[joined(1)], left(1, 2), Fault);
    check_kind(&[joined(1), left(1, 2)], joined(2), Recovery);
    check_kind(&[joined(1), left(1, 2), joined(2)], joined(3), Info);
    check_kind(&[joined(1), ended("completed")], left(1, 0), Info);
    check_kind(&[joined(1), left(1, 2), RunEvent::Started { incarnation: 2, step: 1 }], joined(1), Info);
    for outcome in ["completed", "stopped"] {
        check_kind(&[], ended(outcome), Info);
    }
    for outcome in ["diverged", "nobody came", "disk full"] {
        check_kind(&[], ended(outcome), Fault);
    }
    let (identity, host) = ("::1".to_owned(), "alpha".to_owned());
    check_kind(&[], RunEvent::WorkerEvicted { worker: 1, identity, host, process: 7, reason: reason() }, Fault);
    check_kind(&[], RunEvent::TaskLate { step: 3, task: 1, worker: 1, helper: 2, milliseconds: 40 }, Fault);
    check_kind(&[], RunEvent::ReplicaResent { worker: 1, reason: reason() }, Fault);
    check_kind(&[], RunEvent::ResultRefused { worker: 1, reason: reason() }, Fault);
    check_kind(&[], RunEvent::ComputeClassAdded { class: "avx2".to_owned(), n_classes: 2 }, Info);
    check_kind(&[], RunEvent::Waiting, Fault);
    check_kind(&[RunEvent::Waiting], RunEvent::Continuing, Recovery);
    for (event, kind) in [
        (MirrorEvent::Failing { reason: reason() }, Fault),
        (MirrorEvent::Behind { local: Some(2), mirrored: None }, Fault),
        (MirrorEvent::GivenUp { reason: reason() }, Fault),
        (MirrorEvent::CaughtUp { mirrored: Some(2) }, Recovery),
        (MirrorEvent::Ahead { mirrored: 9 }, Info),
        (MirrorEvent::Finishing { n_files: 2 }, Info),
    ] {
        check_kind(&[], RunEvent::Mirror(event), kind);
    }
}

#[test]
fn faults_are_counted_and_lines_bounded() {
    let late = || RunEvent::TaskLate { step: 3, task: 1, worker: 1, helper: 2, milliseconds: 40 };
    let resent = RunEvent::ReplicaResent { worker: 1, reason: "lost".to_owned() };
    let refused = RunEvent::ResultRefused { worker: 1, reason: "stale".to_owned() };
    let summary = summary([joined(1), resent, refused, RunEvent::Waiting].into_iter().chain((0..600).map(|_| late())));
    let Faults { n_resent, n_refused, n_waits, n_late, .. } = summary.faults;
    assert_eq!((n_resent, n_refused, n_waits, n_late), (1, 1, 1, 600));
    assert_eq!((summary.workers[&1].n_late, summary.is_waiting), (600, true));
    assert_eq!((summary.event_lines.len(), summary.event_lines[0].time), (EVENT_LINES_MAX, 105.0)); // 604 - 500 + 1
    assert_eq!(summary.version, 604);
}

#[test]
fn deliberate_stop_is_no_restart() {
    let started = |incarnation: u64| RunEvent::Started { incarnation, step: 9 };
    let ended = || RunEvent::Ended { outcome: "stopped".to_owned(), step: 9 };
    let mut found = summary([started(1), ended()]);
    // As the coordinator does before it goes on: what it says then has no result any more.
    found.describe(json!({ "result": { "outcome": "stopped" } }));
    found.describe(json!({}));
    found.apply(&RecordedEvent { time: 3.0, event: started(2) });
    assert_eq!(found.faults.n_restarts, 0);
    found.apply(&RecordedEvent { time: 4.0, event: started(3) });
    assert_eq!(found.faults.n_restarts, 1, "process 2 was killed");
}

#[test]
fn step_ends_waiting() {
    assert!(!summary([RunEvent::Waiting, step(1, 0.5)]).is_waiting);
}

#[test]
fn repeated_refusals_share_line_with_count() {
    let refused = |worker: u64, n: u64| RunEvent::ResultRefused { worker, reason: format!("stale, of step {n}") };
    let resent = |worker: u64| RunEvent::ReplicaResent { worker, reason: "lost".to_owned() };
    let flood = (0..1000).flat_map(|n| [refused(1, n), resent(1), refused(2, n), step(n + 1, 0.5)]);
    let summary = summary([joined(1)].into_iter().chain(flood).chain([joined(3), refused(1, 7)]));
    let texts: Vec<&str> = summary.event_lines.iter().skip(1).map(|line| line.text.as_str()).collect();
    assert_eq!(
        [texts[0], texts[1], texts[2], texts[4]],
        [
            "a message of worker 1 was not used: stale, of step 999 (1000 times)",
            "worker 1 is sent its replica again: lost (1000 times)",
            "a message of worker 2 was not used: stale, of step 999 (1000 times)",
            "a message of worker 1 was not used: stale, of step 7",
        ]
    );
    assert_eq!((texts.len(), summary.faults.n_refused), (5, 2001));
}

#[test]
fn resume_from_earlier_checkpoint_drops_later_pictures() {
    let mut summary = summary([epoch(1, 10, 0.5), step(11, 0.4), epoch(2, 20, 0.4), step(20, 0.4)]);
    for epoch in 1..=3 {
        summary.add_picture(picture("reconstructions", epoch));
    }
    summary.add_picture(picture("maps", 2));
    summary.apply(&RecordedEvent { time: 9.0, event: step(11, 0.4) });
    assert_eq!(summary.pictures, BTreeMap::from([(picture("reconstructions", 1).name, vec![1])]));
    summary.apply(&RecordedEvent { time: 9.0, event: step(1, 0.4) });
    assert!(summary.pictures.is_empty());
}

#[test]
fn clone_shares_snapshots_and_epochs() {
    let summary = summary([epoch(1, 10, 0.5), snapshot(&[(1, 4)])]);
    let clone = summary.clone();
    assert!(Arc::ptr_eq(&clone.epochs[0], &summary.epochs[0]));
    assert!(Arc::ptr_eq(&clone.snapshots[0].1, &summary.snapshots[0].1));
}

#[test]
fn description_gives_sizes_names_and_outcome() {
    let mut summary = Summary::default();
    let recipe = json!({ "epochs": 20 });
    summary.describe(json!({ "program": "coordinator", "recipe": recipe }));
    assert_eq!((summary.n_steps, summary.n_epochs, summary.samples.as_str()), (0, 20, "samples"));
    summary.describe(json!({ "n_steps": 34_380, "samples": "images", "recipe": recipe }));
    assert_eq!((summary.n_steps, summary.n_epochs, summary.samples.as_str()), (34_380, 20, "images"));
    assert_eq!(summary.outcome, None);
    summary.describe(json!({ "recipe": recipe, "result": { "outcome": "completed", "error": null } }));
    assert_eq!(summary.outcome.as_deref(), Some("completed"));
    summary.describe(json!({ "recipe": recipe }));
    assert_eq!(summary.outcome, None, "the run was resumed");
    for (result, outcome) in [
        (json!({ "outcome": "diverged", "error": "step 7: the loss is NaN" }), "step 7: the loss is NaN"),
        (json!({ "step": 9, "interrupted": true }), "stopped"),
        (json!({ "step": 9, "interrupted": false }), "completed"),
        (json!({ "step": 9, "error": "disk full" }), "disk full"),
    ] {
        summary.describe(json!({ "result": result }));
        assert_eq!(summary.outcome.as_deref(), Some(outcome));
    }
}

#[test]
fn pictures_are_in_order_of_epochs() {
    let mut summary = Summary::default();
    for epoch in [3, 1, 2, 3] {
        summary.add_picture(picture("maps", epoch));
    }
    summary.add_picture(picture("codes", 2));
    assert_eq!(summary.pictures.values().collect::<Vec<_>>(), [&vec![2], &vec![1, 2, 3]]);
    assert!(summary.has_picture(picture("maps", 3)) && !summary.has_picture(picture("codes", 3)));
    assert!(!summary.has_picture(picture("other", 3)));
    for epoch in 0..=10_003 {
        summary.add_picture(picture("maps", epoch));
    }
    let epochs = &summary.pictures[&picture("maps", 1).name];
    assert_eq!((epochs.len(), epochs[0]), (EPOCHS_MAX, 4));
}
