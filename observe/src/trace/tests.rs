//! What a trace's file holds.

use std::collections::{BTreeSet, HashMap};

use events::{Figures, StepCosts, StepRecord, TaskSpan};
use serde_json::Value;

use super::lane::Lane;
use super::*;
use crate::spans::{PHASES, milliseconds};

const STARTED: f64 = 1_790_000_000.0;

/// A step of 10 ms with two workers and four shards; the second shard of each is computed while the first is on its way.
fn step(step: u64) -> RecordedEvent {
    let begun = Duration::from_micros(10_250 * (step - 1));
    let record = StepRecord {
        step,
        epoch: 1,
        loss: 0.5,
        metrics: Figures::default(),
        n_samples: 32,
        milliseconds: 10.25,
        params_blake3: None,
    };
    let task = |shard: u32, worker: u64, started: f64| TaskSpan {
        shard,
        worker,
        assigned: 0.1,
        started,
        finished: started + 3.1234,
        arrived: started + 3.7,
    };
    let tasks = vec![task(0, 1, 0.3), task(1, 2, 0.4), task(2, 1, 3.4235), task(3, 2, 3.6)];
    let costs = StepCosts {
        compute: Duration::from_micros(6247),
        wait: Duration::from_micros(7200),
        decode: Duration::from_micros(500),
        reduce: Duration::from_micros(400),
        update: Duration::from_micros(900),
        encode: Duration::from_micros(300),
        // Reaches into the next step's.
        send: Duration::from_millis(12),
        journal: Duration::ZERO,
    };
    let event = StepEvent { record, workers: vec![1, 2, 1, 2], n_active: 2, costs, begun, tasks };
    let time = STARTED + (begun + milliseconds(10.25)).as_secs_f64();
    RecordedEvent { time, event: RunEvent::Step(event) }
}

fn trace(folder: &Path, steps: &str) -> Trace {
    Trace::create(steps.parse().expect("a range"), &folder.join("trace.json"), "denoising-001").expect("a file")
}

fn read(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("trace.json")).expect("a file")).expect("JSON")
}

fn events(trace: &Value) -> &[Value] {
    trace["traceEvents"].as_array().expect("events")
}

fn named<'a>(trace: &'a Value, name: &str) -> Vec<&'a Value> {
    events(trace).iter().filter(|event| event["name"] == name).collect()
}

fn number(event: &Value, field: &str) -> f64 {
    event[field].as_f64().unwrap_or_else(|| panic!("expected a number for {field}: {event}"))
}

fn lane(event: &Value) -> (u64, u64) {
    (event["pid"].as_u64().expect("a process"), event["tid"].as_u64().expect("a thread"))
}

/// Checks that a trace has the fields that the format asks for, by phase, and that viewers can draw it.
fn check_format(trace: &Value) {
    let fields: HashMap<&str, &[&str]> = HashMap::from([
        ("M", ["args"].as_slice()),
        ("X", ["dur", "args"].as_slice()),
        ("i", ["s", "args"].as_slice()),
        ("s", ["id", "args"].as_slice()),
        ("f", ["id", "bp", "args"].as_slice()),
    ]);
    let mut names = BTreeSet::new();
    let mut slices: HashMap<_, Vec<(f64, f64)>> = HashMap::new();
    let mut arrows: HashMap<u64, Vec<&str>> = HashMap::new();
    for event in events(trace) {
        let phase = event["ph"].as_str().expect("a phase");
        let mut expected: BTreeSet<&str> = ["name", "cat", "ph", "pid", "tid", "ts"].into();
        expected.extend(fields[phase]);
        let found: BTreeSet<&str> = event.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(found, expected, "{event}");
        assert!(number(event, "ts") >= 0.0, "{event}");
        match phase {
            "M" if event["name"] == "thread_name" => {
                assert!(names.insert(lane(event)), "named twice: {event}");
            }
            "M" => {}
            _ => assert!(names.contains(&lane(event)), "a lane without a name: {event}"),
        }
        if phase == "X" {
            assert!(number(event, "dur") > 0.0, "{event}");
            let start = number(event, "ts");
            slices.entry(lane(event)).or_default().push((start, start + number(event, "dur")));
        }
        if let Some(id) = event["id"].as_u64() {
            arrows.entry(id).or_default().push(phase);
        }
    }
    for (lane, slices) in &mut slices {
        slices.sort_by(|a, b| a.0.total_cmp(&b.0));
        for pair in slices.windows(2) {
            // Half a nanosecond for the rounding of the sum.
            assert!(pair[1].0 >= pair[0].1 - 0.0005, "lane {lane:?} overlaps: {pair:?}");
        }
    }
    assert!(arrows.values().all(|phases| phases == &["s", "f"]), "{arrows:?}");
    for event in events(trace).iter().filter(|event| event["ph"] == "s" || event["ph"] == "f") {
        let at = number(event, "ts");
        let is_inside = |&(start, end): &(f64, f64)| (start - 0.0005..=end + 0.0005).contains(&at);
        assert!(slices[&lane(event)].iter().any(is_inside), "an arrow at no slice: {event}");
    }
}

#[test]
fn trace_has_lanes_without_overlaps() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut trace = trace(folder.path(), "2..4");
    for i in 1..=6 {
        trace.apply(&step(i)).expect("written");
        assert_eq!(folder.path().join("trace.json").exists(), i >= 4);
    }
    let trace = read(folder.path());
    check_format(&trace);
    assert_eq!(trace["displayTimeUnit"], "ms");
    assert_eq!(trace["otherData"]["run_id"], "denoising-001");
    assert_eq!(trace["otherData"]["first_step"], 2);
    assert_eq!(trace["otherData"]["last_step"], 4);
    assert_eq!(trace["otherData"]["is_truncated"], false);
    assert_eq!(named(&trace, "step 2").len(), 1);
    assert_eq!((named(&trace, "step 1").len(), named(&trace, "step 5").len()), (0, 0));
    let lanes: BTreeSet<&str> =
        named(&trace, "thread_name").iter().map(|event| event["args"]["name"].as_str().expect("a name")).collect();
    let expected =
        PHASES.iter().copied().chain(["steps", "worker 1", "worker 1 transfers", "worker 2", "worker 2 transfers"]);
    assert_eq!(lanes, expected.collect());
    assert!(!folder.path().join("trace.json.part").exists());
}

#[test]
fn spans_are_microseconds_from_the_process_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut trace = trace(folder.path(), "2..2");
    trace.apply(&step(2)).expect("written");
    let trace = read(folder.path());
    let check = |name: &str, ts: f64, dur: f64| {
        let events = named(&trace, name);
        let found = events
            .iter()
            .any(|event| (number(event, "ts") - ts).abs() < 0.001 && (number(event, "dur") - dur).abs() < 0.001);
        assert!(found, "{name} at {ts} of {dur}: {events:?}");
    };
    check("step 2", 10_250.0, 10_250.0);
    // Worker 1 waits from 0.1 to 0.3 ms, computes shard 0 until 3.4234, then shard 2.
    check("wait", 10_350.0, 200.0);
    check("compute shard 0", 10_550.0, 3123.4);
    check("transfer", 13_673.4, 576.6);
    check("compute shard 2", 13_673.5, 3123.4);
    // The last result arrives at 7.3 ms; the coordinator's own work follows.
    check("wait", 10_250.0, 7300.0);
    check("decode", 17_050.0, 500.0);
    check("reduce", 17_550.0, 400.0);
    check("update", 17_950.0, 900.0);
    check("send", 19_150.0, 12_000.0);
    assert!(named(&trace, "journal").iter().all(|event| event["ph"] != "X"));
}

#[test]
fn what_happens_to_workers_is_in_their_lanes() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut trace = trace(folder.path(), "1..3");
    let at = |seconds: f64, event: RunEvent| RecordedEvent { time: STARTED + seconds, event };
    let left =
        |worker: u64| RunEvent::WorkerLeft { worker, reason: "it closed".to_owned(), n_active: 1, n_reassigned: 1 };
    trace.apply(&at(0.0, RunEvent::Started { incarnation: 1, step: 0 })).expect("written");
    trace.apply(&step(1)).expect("written");
    let late = RunEvent::TaskLate { step: 1, task: 3, worker: 2, helper: 1, milliseconds: 4 };
    trace.apply(&at(0.015, late)).expect("written");
    trace.apply(&at(0.016, left(3))).expect("written");
    trace.apply(&step(3)).expect("written");
    // After the range.
    trace.apply(&at(0.04, left(2))).expect("written");
    let trace = read(folder.path());
    check_format(&trace);
    let [late] = named(&trace, "late")[..] else { panic!("one") };
    assert!((number(late, "ts") - 15_000.0).abs() < 1.0, "{late}");
    assert_eq!((&late["args"]["step"], &late["args"]["helper"]), (&Value::from(2), &Value::from(1)));
    let [left] = named(&trace, "left")[..] else { panic!("one") };
    assert_eq!(lane(left), Lane::Worker(3).ids());
    assert_eq!(left["args"]["reason"], "it closed");
}

#[test]
fn run_that_ends_early_has_the_steps_so_far() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut trace = trace(folder.path(), "1..100");
    trace.apply(&step(1)).expect("written");
    assert!(!folder.path().join("trace.json").exists());
    let ended = RunEvent::Ended { outcome: "stopped".to_owned(), step: 1 };
    trace.apply(&RecordedEvent { time: STARTED, event: ended }).expect("written");
    trace.finish().expect("nothing to do");
    let trace = read(folder.path());
    check_format(&trace);
    assert_eq!(trace["otherData"]["steps"], "1..100");
    assert_eq!(trace["otherData"]["last_step"], 1);
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    entries.map(|name| name.to_string_lossy().into_owned()).collect()
}

#[test]
fn trace_without_step_leaves_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    trace(folder.path(), "5..6").finish().expect("removed");
    assert!(names(folder.path()).is_empty(), "{:?}", names(folder.path()));
}

#[test]
fn resume_after_traced_range_keeps_trace_of_earlier_process() {
    let folder = tempfile::tempdir().expect("a folder");
    trace(folder.path(), "1..1").apply(&step(1)).expect("written");
    let before = read(folder.path());
    let mut resumed = trace(folder.path(), "1..1");
    resumed.apply(&step(7)).expect("nothing to write");
    resumed.finish().expect("nothing to do");
    assert_eq!(read(folder.path()), before);
    assert_eq!(names(folder.path()), ["trace.json".to_owned()].into());
}

#[test]
fn trace_of_later_process_gets_next_free_number() {
    let folder = tempfile::tempdir().expect("a folder");
    for i in 1..=3 {
        trace(folder.path(), "1..9").apply(&step(i)).expect("written");
        let mut trace = trace(folder.path(), "1..9");
        trace.apply(&step(i)).expect("written");
        trace.finish().expect("written");
    }
    let expected = ["trace-2.json", "trace-3.json", "trace.json"].map(str::to_owned);
    assert_eq!(names(folder.path()), expected.into());
}

#[test]
fn too_many_events_end_the_trace() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut trace = trace(folder.path(), "1..100");
    trace.writer.as_mut().expect("a writer").n_events_max = 200;
    for i in 1..=20 {
        trace.apply(&step(i)).expect("written");
    }
    let trace = read(folder.path());
    check_format(&trace);
    assert_eq!(trace["otherData"]["is_truncated"], true);
    assert!((200..300).contains(&events(&trace).len()), "{}", events(&trace).len());
}

#[test]
fn event_takes_at_most_200_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut trace = trace(folder.path(), "1..1000");
    for i in 1..=1000 {
        trace.apply(&step(i)).expect("written");
    }
    let length = fs::metadata(folder.path().join("trace.json")).expect("a file").len();
    let n_events = u64::try_from(events(&read(folder.path())).len()).expect("a number");
    assert!((100..200).contains(&(length / n_events)), "{length} bytes, {n_events} events");
}
