//! Prints the metrics of a made-up run as text, for `promtool check metrics` and for `tests/prometheus.py`. With the argument
//! `openmetrics` in that format.

use std::time::Duration;

use events::{Figures, RecordedEvent, RunEvent, Snapshot, StepCosts, StepEvent, StepRecord, WorkerStatus};
use observe::metrics::{Format, Metrics, RunInfo};

fn main() {
    let metrics = Metrics::new(RunInfo {
        task: "denoising".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        run_id: "denoising-001".to_owned(),
        n_workers_expected: 2,
        process_started: 1_790_000_000.0,
    });
    let workers = vec![
        WorkerStatus { worker: 1, silent_milliseconds: 12.5, n_shards: 200, n_late: 0 },
        WorkerStatus { worker: 2, silent_milliseconds: 480.0, n_shards: 200, n_late: 1 },
    ];
    let steps = (1..=100).map(|step| RunEvent::Step(made_up_step(step)));
    let epoch = r#"{"epoch": 1, "step": 100, "loss": 0.2, "accuracy": 0.9, "val_loss": 0.21, "val_accuracy": 0.89}"#;
    let others = [
        RunEvent::Epoch(serde_json::from_str(epoch).expect("an epoch")),
        RunEvent::Snapshot(Snapshot { step: 100, workers, ..Snapshot::default() }),
    ];
    for event in steps.chain(others) {
        metrics.apply(&RecordedEvent { time: 1_790_000_001.0, event });
    }
    let is_openmetrics = std::env::args().nth(1).is_some_and(|format| format == "openmetrics");
    print!("{}", metrics.encode(if is_openmetrics { Format::OpenMetrics } else { Format::Prometheus }));
}

fn made_up_step(step: u32) -> StepEvent {
    let record = StepRecord {
        step: step.into(),
        epoch: 1,
        loss: 1.0 / f64::from(step),
        metrics: Figures(vec![("accuracy".to_owned(), 1.0 - 1.0 / f64::from(step))]),
        n_samples: 32,
        milliseconds: 2.0 + f64::from(step % 10),
        params_blake3: None,
    };
    let costs = StepCosts {
        compute: Duration::from_millis(1),
        wait: Duration::from_micros(1300),
        update: Duration::from_micros(200),
        ..StepCosts::default()
    };
    StepEvent { record, workers: vec![1, 2], n_active: 2, costs, begun: Duration::ZERO, tasks: Vec::new() }
}
