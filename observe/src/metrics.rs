//! A run's metrics for Prometheus, in the two text formats that it reads. Knows nothing of HTTP.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use events::{EpochRecord, Figures, MirrorEvent, RecordedEvent, RunEvent, Snapshot, StepCosts, StepEvent};
use prometheus_client::encoding::{EncodeLabelSet, prometheus_text, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// Metrics that a task has at most; more are left out, so that the number of series stays bounded.
pub const METRICS_MAX: usize = 8;

/// Upper bounds of the histograms' buckets, in seconds: three for each factor of ten.
const BUCKETS: [f64; 19] = [
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0,
    100.0,
];

/// A run's metrics. Shared by the thread that feeds them and the one that answers requests.
///
/// Loss and metrics are NaN, or not there, before they are known. Counters count from the start of the coordinator's process.
pub struct Metrics {
    registry: Registry,
    step_duration: Histogram,
    phases: [Histogram; StepCosts::N_PARTS],
    n_steps: Counter,
    n_samples: Counter,
    step: Gauge<u64, AtomicU64>,
    epoch: Gauge<u64, AtomicU64>,
    loss: Gauge<f64, AtomicU64>,
    val_loss: Gauge<f64, AtomicU64>,
    /// The task's metrics.
    figures: Family<MetricLabels, Gauge<f64, AtomicU64>>,
    samples_per_second: Gauge<f64, AtomicU64>,
    n_active: Gauge,
    n_joined: Counter,
    n_left: Counter,
    n_evicted: Counter,
    n_reassigned: Counter,
    n_late: Counter,
    n_refused: Counter,
    n_resent: Counter,
    waiting: Gauge,
    mirror_behind: Gauge,
    silent: Family<WorkerLabels, Gauge<f64, AtomicU64>>,
    /// The workers that have a series in `silent`.
    reported: Mutex<BTreeSet<u64>>,
}

/// What does not change in the life of a coordinator's process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunInfo {
    /// What is trained, such as `denoising`.
    pub task: String,
    /// The program's version.
    pub version: String,
    /// The run's name or number, the same after a restart.
    pub run_id: String,
    /// Workers that the run is meant to have.
    pub n_workers_expected: usize,
    /// When the process started, in seconds since 1970.
    pub process_started: f64,
}

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0: what Prometheus asks for first.
    OpenMetrics,
    /// Prometheus' own text format 0.0.4, which everything reads, `promtool check metrics` too.
    Prometheus,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MetricLabels {
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WorkerLabels {
    worker: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InfoLabels {
    task: String,
    version: String,
    run_id: String,
}

impl Format {
    /// The format for a request: OpenMetrics where its header `Accept` names that, as Prometheus' does.
    pub fn negotiate(accept: Option<&str>) -> Self {
        let names_openmetrics = accept.is_some_and(|accept| accept.contains("application/openmetrics-text"));
        if names_openmetrics { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// For the response's header `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
        }
    }
}

impl Metrics {
    /// The metrics of a run of which nothing has happened yet.
    pub fn new(info: RunInfo) -> Self {
        // Names are written out, so that searching for one finds it; an encoder adds `_total` to counters' and `_info`.
        let mut registry = Registry::default();
        let RunInfo { task, version, run_id, n_workers_expected, process_started } = info;
        registry.register("telar_run", "The run", Info::new(InfoLabels { task, version, run_id }));
        let started = Gauge::<f64, AtomicU64>::default();
        registry.register(
            "process_start_time_seconds",
            "When the coordinator's process started, in seconds since 1970",
            started.clone(),
        );
        started.set(process_started);
        let expected = Gauge::<i64>::default();
        registry.register("telar_workers_expected", "Workers that the run is meant to have", expected.clone());
        expected.set(i64::try_from(n_workers_expected).unwrap_or(i64::MAX));

        let step_duration = Histogram::new(BUCKETS);
        registry.register("telar_step_duration_seconds", "How long optimiser steps took", step_duration.clone());
        let phases = register_phases(&mut registry);
        let workers = Family::<StateLabels, Gauge>::default();
        registry.register("telar_workers", "Workers by state", workers.clone());
        let n_active = workers.get_or_create_owned(&StateLabels { state: "active" });

        let mut counter = |name: &str, help: &str| {
            let counter = Counter::<u64>::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let n_steps = counter("telar_steps", "Optimiser steps of this process");
        let n_samples = counter("telar_samples", "Training samples of this process");
        let n_joined = counter("telar_workers_joined", "Workers that joined");
        let n_left = counter("telar_workers_left", "Workers that left, for whatever reason");
        let n_evicted =
            counter("telar_workers_evicted", "Workers evicted for wrong results; each counts as left as well");
        let n_reassigned = counter("telar_reassigned_tasks", "Tasks reassigned since their worker left");
        let n_late = counter("telar_late_tasks", "Tasks assigned to a second worker since the first was late");
        let n_refused = counter("telar_refused_messages", "Messages of workers that were not used");
        let n_resent = counter("telar_replicas_resent", "Times that a worker was sent its replica again");

        let mut flag = |name: &str, help: &str| {
            let gauge = Gauge::<i64>::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let waiting = flag("telar_waiting", "Whether the run waits for workers: 1 if so");
        let mirror_behind = flag("telar_mirror_behind", "Whether checkpoints are missing at the mirror: 1 if so");

        let mut whole = |name: &str, help: &str| {
            let gauge = Gauge::<u64, AtomicU64>::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let step = whole("telar_step", "Updates applied to the parameters, over all processes of the run");
        let epoch = whole("telar_epoch", "The epoch of the newest step, counted from 1");

        let mut real = |name: &str, help: &str, value: f64| {
            let gauge = Gauge::<f64, AtomicU64>::default();
            registry.register(name, help, gauge.clone());
            gauge.set(value);
            gauge
        };
        let loss = real("telar_loss", "Mean training loss over the newest step's samples", f64::NAN);
        let val_loss =
            real("telar_val_loss", "Mean loss over the validation samples, after the newest epoch", f64::NAN);
        let samples_per_second =
            real("telar_samples_per_second", "Training samples per second of the newest step", 0.0);

        let figures = Family::default();
        registry.register(
            "telar_metric",
            "The task's metrics over the newest step's samples; those that begin with val_ over the validation samples",
            figures.clone(),
        );
        let silent = Family::default();
        registry.register(
            "telar_worker_silent_seconds",
            "Seconds since an active worker was last heard of, about once a second",
            silent.clone(),
        );
        Self {
            registry,
            step_duration,
            phases,
            n_steps,
            n_samples,
            step,
            epoch,
            loss,
            val_loss,
            figures,
            samples_per_second,
            n_active,
            n_joined,
            n_left,
            n_evicted,
            n_reassigned,
            n_late,
            n_refused,
            n_resent,
            waiting,
            mirror_behind,
            silent,
            reported: Mutex::default(),
        }
    }

    /// Takes in what happened.
    pub fn apply(&self, recorded: &RecordedEvent) {
        match &recorded.event {
            RunEvent::Step(event) => self.apply_step(event),
            RunEvent::Epoch(record) => self.apply_epoch(record),
            RunEvent::Snapshot(snapshot) => self.apply_snapshot(snapshot),
            RunEvent::Started { step, .. } | RunEvent::Ended { step, .. } => {
                self.step.set(*step);
            }
            RunEvent::WorkerJoined { n_active, .. } => {
                self.n_joined.inc();
                self.set_active(*n_active);
            }
            RunEvent::WorkerLeft { worker, n_active, n_reassigned, .. } => {
                self.n_left.inc();
                self.n_reassigned.inc_by(u64::try_from(*n_reassigned).unwrap_or(u64::MAX));
                self.set_active(*n_active);
                self.silent.remove(&WorkerLabels { worker: *worker });
            }
            RunEvent::WorkerEvicted { .. } => {
                self.n_evicted.inc();
            }
            RunEvent::TaskLate { .. } => {
                self.n_late.inc();
            }
            RunEvent::ReplicaResent { .. } => {
                self.n_resent.inc();
            }
            RunEvent::ResultRefused { .. } => {
                self.n_refused.inc();
            }
            RunEvent::Waiting => {
                self.waiting.set(1);
            }
            RunEvent::Continuing => {
                self.waiting.set(0);
            }
            RunEvent::Mirror(MirrorEvent::Behind { .. } | MirrorEvent::GivenUp { .. }) => {
                self.mirror_behind.set(1);
            }
            RunEvent::Mirror(MirrorEvent::CaughtUp { .. }) => {
                self.mirror_behind.set(0);
            }
            RunEvent::Mirror(
                MirrorEvent::Failing { .. } | MirrorEvent::Ahead { .. } | MirrorEvent::Finishing { .. },
            )
            | RunEvent::ComputeClassAdded { .. } => {}
        }
    }

    /// All metrics as text.
    ///
    /// # Panics
    /// Never: writing to a `String` does not fail.
    pub fn encode(&self, format: Format) -> String {
        let mut encoded = String::new();
        match format {
            Format::OpenMetrics => text::encode(&mut encoded, &self.registry),
            Format::Prometheus => prometheus_text::encode(&mut encoded, &self.registry),
        }
        .expect("a string takes everything");
        encoded
    }

    fn apply_step(&self, event: &StepEvent) {
        let record = &event.record;
        let seconds = record.milliseconds / 1e3;
        self.step_duration.observe(seconds);
        for (phase, (_, duration)) in self.phases.iter().zip(event.costs.parts()) {
            phase.observe(duration.as_secs_f64());
        }
        self.n_steps.inc();
        self.n_samples.inc_by(record.n_samples);
        self.step.set(record.step);
        self.epoch.set(record.epoch.into());
        self.loss.set(record.loss);
        self.set_figures(&record.metrics);
        if seconds > 0.0 {
            #[expect(clippy::cast_precision_loss, reason = "a step has fewer than 2^53 samples")]
            self.samples_per_second.set(record.n_samples as f64 / seconds);
        }
        // The events that say so may have been lost.
        self.set_active(event.n_active);
        self.waiting.set(0);
    }

    fn apply_epoch(&self, record: &EpochRecord) {
        self.val_loss.set(record.val_loss);
        self.set_figures(&record.val_metrics);
    }

    fn apply_snapshot(&self, snapshot: &Snapshot) {
        // A poisoned set would only keep series for longer.
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let active: BTreeSet<u64> = snapshot.workers.iter().map(|status| status.worker).collect();
        for &worker in reported.difference(&active) {
            self.silent.remove(&WorkerLabels { worker });
        }
        for status in &snapshot.workers {
            let labels = WorkerLabels { worker: status.worker };
            self.silent.get_or_create(&labels).set(status.silent_milliseconds / 1e3);
        }
        self.set_active(active.len());
        *reported = active;
    }

    fn set_active(&self, n_active: usize) {
        self.n_active.set(i64::try_from(n_active).unwrap_or(i64::MAX));
    }

    fn set_figures(&self, new: &Figures) {
        for (name, value) in new.0.iter().take(METRICS_MAX) {
            self.figures.get_or_create(&MetricLabels { name: name.clone() }).set(*value);
        }
    }
}

/// A histogram for each part of a step's costs, in the order of [`StepCosts::parts`].
fn register_phases(registry: &mut Registry) -> [Histogram; StepCosts::N_PARTS] {
    let family = Family::<PhaseLabels, Histogram>::new_with_constructor(|| Histogram::new(BUCKETS));
    registry.register(
        "telar_step_phase_seconds",
        "Where the time of steps went; compute is the slowest worker's, and decode goes on while the coordinator waits",
        family.clone(),
    );
    StepCosts::default().parts().map(|(phase, _)| family.get_or_create_owned(&PhaseLabels { phase }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use events::{StepRecord, WorkerStatus};
    use serde_json::Value;

    use super::*;

    fn metrics() -> Metrics {
        Metrics::new(RunInfo {
            task: "denoising".to_owned(),
            version: "0.1.0".to_owned(),
            run_id: "denoising-001".to_owned(),
            n_workers_expected: 4,
            process_started: 1_790_000_000.5,
        })
    }

    fn apply(metrics: &Metrics, event: RunEvent) {
        metrics.apply(&RecordedEvent { time: 1_790_000_001.0, event });
    }

    fn step(step: u64, milliseconds: f64) -> RunEvent {
        let record = StepRecord {
            step,
            epoch: 2,
            loss: 0.25,
            metrics: Figures(vec![("accuracy".to_owned(), 0.5)]),
            n_samples: 32,
            milliseconds,
            params_blake3: None,
        };
        let costs = StepCosts { compute: Duration::from_millis(3), ..StepCosts::default() };
        RunEvent::Step(StepEvent {
            record,
            workers: vec![1, 2],
            n_active: 2,
            costs,
            begun: Duration::ZERO,
            tasks: Vec::new(),
        })
    }

    fn snapshot(silent: &[(u64, f64)]) -> RunEvent {
        let status = |&(worker, silent_milliseconds): &(u64, f64)| WorkerStatus {
            worker,
            silent_milliseconds,
            n_shards: 0,
            n_late: 0,
        };
        RunEvent::Snapshot(Snapshot { workers: silent.iter().map(status).collect(), ..Snapshot::default() })
    }

    /// Values by series, as written: `name{labels}`.
    fn parse(text: &str) -> BTreeMap<String, f64> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| {
                let (series, value) = line.rsplit_once(' ').expect("a series and its value");
                (series.to_owned(), value.parse().expect("a number"))
            })
            .collect()
    }

    fn check(metrics: &Metrics, expected: &[(&str, f64)]) {
        for format in [Format::OpenMetrics, Format::Prometheus] {
            let text = metrics.encode(format);
            let values = parse(&text);
            for (series, expected) in expected {
                let found = values.get(*series);
                assert!(found.is_some_and(|found| found.total_cmp(expected).is_eq()), "{series}: {found:?} in\n{text}");
            }
        }
    }

    #[test]
    fn steps_are_counted_in_histograms_and_gauges() {
        let metrics = metrics();
        apply(&metrics, step(41, 4.0));
        apply(&metrics, step(42, 40.0));
        check(
            &metrics,
            &[
                ("telar_step_duration_seconds_bucket{le=\"0.0025\"}", 0.0),
                ("telar_step_duration_seconds_bucket{le=\"0.005\"}", 1.0),
                ("telar_step_duration_seconds_bucket{le=\"+Inf\"}", 2.0),
                ("telar_step_duration_seconds_count", 2.0),
                ("telar_step_duration_seconds_sum", 0.044),
                ("telar_step_phase_seconds_sum{phase=\"compute\"}", 0.006),
                ("telar_step_phase_seconds_count{phase=\"journal\"}", 2.0),
                ("telar_steps_total", 2.0),
                ("telar_samples_total", 64.0),
                ("telar_step", 42.0),
                ("telar_epoch", 2.0),
                ("telar_loss", 0.25),
                ("telar_val_loss", f64::NAN),
                ("telar_metric{name=\"accuracy\"}", 0.5),
                ("telar_samples_per_second", 800.0),
                ("telar_workers{state=\"active\"}", 2.0),
                ("telar_workers_expected", 4.0),
                ("telar_run_info{task=\"denoising\",version=\"0.1.0\",run_id=\"denoising-001\"}", 1.0),
                ("process_start_time_seconds", 1_790_000_000.5),
            ],
        );
    }

    #[test]
    fn validation_sets_loss_and_metrics_of_its_own() {
        let metrics = metrics();
        apply(&metrics, step(1, 4.0));
        let record =
            r#"{"epoch": 1, "step": 1, "loss": 0.5, "accuracy": 0.7, "val_loss": 0.125, "val_accuracy": 0.75}"#;
        apply(&metrics, RunEvent::Epoch(serde_json::from_str(record).expect("an epoch")));
        check(
            &metrics,
            &[
                ("telar_val_loss", 0.125),
                ("telar_metric{name=\"accuracy\"}", 0.5),
                ("telar_metric{name=\"val_accuracy\"}", 0.75),
            ],
        );
    }

    #[test]
    fn faults_are_counted() {
        let metrics = metrics();
        let reason = || "it closed".to_owned();
        let (identity, host) = (String::new, || "node".to_owned());
        for event in [
            RunEvent::WorkerJoined {
                worker: 1,
                identity: identity(),
                host: host(),
                process: 7,
                backend: "flex on cpu".to_owned(),
                n_threads: 1,
                n_active: 1,
            },
            RunEvent::TaskLate { step: 1, task: 0, worker: 1, helper: 2, milliseconds: 5 },
            RunEvent::ResultRefused { worker: 1, reason: reason() },
            RunEvent::ReplicaResent { worker: 1, reason: reason() },
            RunEvent::WorkerEvicted { worker: 1, identity: identity(), host: host(), process: 7, reason: reason() },
            RunEvent::WorkerLeft { worker: 1, reason: reason(), n_active: 0, n_reassigned: 3 },
            RunEvent::Waiting,
            RunEvent::Mirror(MirrorEvent::Behind { local: Some(2), mirrored: None }),
        ] {
            apply(&metrics, event);
        }
        check(
            &metrics,
            &[
                ("telar_workers_joined_total", 1.0),
                ("telar_workers_left_total", 1.0),
                ("telar_workers_evicted_total", 1.0),
                ("telar_reassigned_tasks_total", 3.0),
                ("telar_late_tasks_total", 1.0),
                ("telar_refused_messages_total", 1.0),
                ("telar_replicas_resent_total", 1.0),
                ("telar_waiting", 1.0),
                ("telar_mirror_behind", 1.0),
                ("telar_workers{state=\"active\"}", 0.0),
            ],
        );
        apply(&metrics, RunEvent::Continuing);
        apply(&metrics, RunEvent::Mirror(MirrorEvent::CaughtUp { mirrored: Some(2) }));
        check(&metrics, &[("telar_waiting", 0.0), ("telar_mirror_behind", 0.0)]);
    }

    #[test]
    fn step_sets_gauges_whose_events_were_lost() {
        let metrics = metrics();
        apply(&metrics, RunEvent::Waiting);
        apply(&metrics, step(1, 4.0));
        check(&metrics, &[("telar_waiting", 0.0), ("telar_workers{state=\"active\"}", 2.0)]);
    }

    #[test]
    fn worker_that_left_loses_its_series() {
        let metrics = metrics();
        let silent = |metrics: &Metrics| -> Vec<String> {
            let values = parse(&metrics.encode(Format::Prometheus)).into_keys();
            values.filter(|series| series.starts_with("telar_worker_silent_seconds")).collect()
        };
        apply(&metrics, snapshot(&[(1, 250.0), (2, 0.0), (3, 0.0)]));
        check(&metrics, &[("telar_worker_silent_seconds{worker=\"1\"}", 0.25)]);
        assert_eq!(silent(&metrics).len(), 3);
        let reason = "it closed".to_owned();
        apply(&metrics, RunEvent::WorkerLeft { worker: 1, reason, n_active: 2, n_reassigned: 0 });
        assert_eq!(silent(&metrics).len(), 2);
        // The event that says that worker 3 left was lost.
        apply(&metrics, snapshot(&[(2, 0.0)]));
        assert_eq!(silent(&metrics), ["telar_worker_silent_seconds{worker=\"2\"}"]);
    }

    #[test]
    fn task_with_too_many_metrics_has_bounded_series() {
        let metrics = metrics();
        let RunEvent::Step(mut event) = step(1, 4.0) else { unreachable!("a step") };
        event.record.metrics = Figures((0..100).map(|i| (format!("metric_{i}"), 0.0)).collect());
        apply(&metrics, RunEvent::Step(event));
        let values = parse(&metrics.encode(Format::Prometheus));
        assert_eq!(values.keys().filter(|series| series.starts_with("telar_metric{")).count(), METRICS_MAX);
    }

    #[test]
    fn format_follows_accept_header() {
        let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Format::negotiate(Some(prometheus)), Format::OpenMetrics);
        assert_eq!(Format::negotiate(Some("*/*")), Format::Prometheus);
        assert_eq!(Format::negotiate(None), Format::Prometheus);
        assert!(metrics().encode(Format::OpenMetrics).ends_with("# EOF\n"));
        assert!(!metrics().encode(Format::Prometheus).contains("# EOF"));
    }

    /// Adds the expressions in a dashboard to `found`.
    fn add_expressions<'a>(node: &'a Value, found: &mut Vec<&'a str>) {
        match node {
            Value::Object(map) => {
                for (key, value) in map {
                    match value {
                        Value::String(text) if key == "expr" => found.push(text),
                        value => add_expressions(value, found),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| add_expressions(item, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn dashboard_asks_for_series_that_exist() {
        let metrics = metrics();
        apply(&metrics, step(1, 4.0));
        apply(&metrics, snapshot(&[(1, 0.0)]));
        let values = parse(&metrics.encode(Format::OpenMetrics));
        let names: BTreeSet<&str> = values.keys().filter_map(|series| series.split('{').next()).collect();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/grafana/telar.json");
        let dashboard: Value = serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON");
        let mut expressions = Vec::new();
        add_expressions(&dashboard, &mut expressions);
        let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let words = expressions.iter().flat_map(|expression| expression.split(|c| !is_of_name(c)));
        let asked: BTreeSet<&str> = words.filter(|word| word.starts_with("telar_")).collect();
        assert!(asked.len() > 10, "{asked:?}");
        assert!(asked.is_subset(&names), "unknown: {:?}", asked.difference(&names));
    }
}
