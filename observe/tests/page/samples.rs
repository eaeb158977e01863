//! Made-up runs, for tests and to be looked at.

use std::sync::Arc;
use std::time::Duration;

use events::{EpochRecord, Figures, PictureName, Snapshot, StepCosts, StepRecord, TaskSpan, WorkerStatus};
use observe::series::Series;
use observe::summary::{EventKind, EventLine, Faults, Summary, Worker};
use serde_json::json;

/// When the pages are made, in seconds since 1970.
pub const NOW: f64 = 1_790_000_000.0;
/// What a hostile worker might say.
pub const HOSTILE: &str = "<script>alert(1)</script><img src=x onerror=\"alert('2')\" style='color:red'>";

/// Numbers from 0 to 1 that look drawn, and are the same each time.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f64::from(u32::try_from(self.0 >> 33).expect("31 bits")) / f64::from(1_u32 << 31)
    }
}

/// What is known before the first event.
pub fn empty() -> Summary {
    Summary { name: "denoising-007".to_owned(), ..Summary::default() }
}

/// Steps and epochs of a run whose loss falls.
struct Course {
    n_steps: u32,
    steps_per_epoch: u32,
    loss: (f64, f64),
    metrics: &'static [(&'static str, f64, f64)],
    milliseconds: f64,
    samples: &'static str,
    n_samples: u32,
}

impl Course {
    fn fill(&self, summary: &mut Summary) {
        let mut noise = Noise(7);
        let Self { n_steps, steps_per_epoch, loss: (first, last), milliseconds, n_samples, .. } = *self;
        let at = |from: f64, to: f64, step: u32| to + (from - to) * (-5.0 * f64::from(step) / f64::from(n_steps)).exp();
        let names = ["loss"].into_iter().chain(self.metrics.iter().map(|(name, ..)| *name));
        summary.step_figures = names.map(|name| (name.to_owned(), Series::default())).collect();
        self.samples.clone_into(&mut summary.samples);
        for step in 1..=n_steps {
            let x = f64::from(step);
            let loss = at(first, last, step) * (1.0 + 0.12 * (noise.next() - 0.5));
            summary.step_figures[0].1.push(x, loss);
            let mut metrics = Vec::new();
            for (place, (name, first, last)) in self.metrics.iter().enumerate() {
                let value = at(*first, *last, step) * (1.0 + 0.04 * (noise.next() - 0.5));
                summary.step_figures[place + 1].1.push(x, value);
                metrics.push(((*name).to_owned(), value));
            }
            let slow = if step == 1 { 180.0 } else { 1.0 + 0.3 * noise.next() + f64::from(u8::from(step % 211 == 0)) };
            summary.step_milliseconds.push(x, milliseconds * slow);
            summary.pace.push(x, f64::from(n_samples) * 1e3 / (milliseconds * slow));
            summary.last_step = Some(StepRecord {
                step: u64::from(step),
                epoch: (step - 1) / steps_per_epoch + 1,
                loss,
                metrics: Figures(metrics.clone()),
                n_samples: u64::from(n_samples),
                milliseconds: milliseconds * slow,
                params_blake3: None,
            });
            if step % steps_per_epoch == 0 {
                let val = |name: &str, value: f64| (format!("val_{name}"), value * 1.01);
                let val_metrics = metrics.iter().map(|(name, value)| val(name, *value)).collect();
                let epoch = EpochRecord {
                    epoch: step / steps_per_epoch,
                    step: u64::from(step),
                    loss,
                    metrics: Figures(metrics),
                    val_loss: at(first, last, step) * 0.97,
                    val_metrics: Figures(val_metrics),
                    seconds: f64::from(steps_per_epoch) * milliseconds / 900.0,
                    samples_per_second: f64::from(n_samples) * 1e3 / milliseconds,
                    samples: self.samples.into(),
                    is_best: true,
                };
                summary.epochs.push_back(Arc::new(epoch));
            }
        }
    }
}

fn worker(number: u32, joined: f64) -> Worker {
    Worker {
        host: format!("node-{number:02}.cluster.internal"),
        process: 4000 + number,
        backend: "flex on cpu".to_owned(),
        n_threads: 4,
        joined,
        left: None,
        silent_seconds: 0.3,
        n_shards: 2900 + u64::from(number) * 13,
        shards_per_second: 93.4 + f64::from(number),
        n_late: u64::from(number % 3),
        n_reassigned: 0,
    }
}

fn event_line(time: f64, kind: EventKind, text: &str) -> EventLine {
    EventLine::new(time, kind, text.to_owned())
}

fn snapshot(step: u64, workers: &[u64], shards_per_worker: u32, noise: &mut Noise) -> Snapshot {
    let mut tasks = Vec::new();
    let mut shard = 0;
    for &worker in workers {
        let mut at = 0.05 + 0.1 * noise.next();
        for _ in 0..shards_per_worker {
            let started = at + 0.04;
            let finished = started + 0.7 + 0.3 * noise.next();
            tasks.push(TaskSpan { shard, worker, assigned: 0.02, started, finished, arrived: finished + 0.15 });
            at = finished;
            shard += 1;
        }
    }
    let last = tasks.iter().map(|task| task.arrived).fold(0.0, f64::max);
    let micros = Duration::from_micros;
    let costs = StepCosts {
        compute: Duration::from_secs_f64((last - 0.4) / 1e3),
        wait: Duration::from_secs_f64(last / 1e3),
        decode: micros(250),
        reduce: micros(92),
        update: micros(140),
        encode: micros(110),
        send: micros(60),
        journal: micros(10),
    };
    let status = |&worker: &u64| WorkerStatus { worker, silent_milliseconds: 300.0, n_shards: 2900, n_late: 1 };
    Snapshot { step, milliseconds: last + 0.45, costs, tasks, workers: workers.iter().map(status).collect() }
}

fn recipe(task: &str, learning_rate: f64) -> serde_json::Value {
    json!({
        "task": task, "settings": { "noise": 0.5, "hidden": [100, 50, 20] }, "epochs": 3, "batch_size": 32, "shards": 8,
        "optimizer": { "sgd": { "learning_rate": learning_rate, "momentum": 0.9 } }, "lr_schedule": "constant",
        "clip_norm": null, "shuffle": true, "seed": 42, "max_steps": null,
    })
}

/// A run under way: four workers took part, of which one left and one was evicted.
pub fn running() -> Summary {
    use EventKind::{Fault, Info, Recovery};
    let mut summary =
        Summary { name: "denoising-007".to_owned(), n_steps: 2500, n_epochs: 5, time: NOW - 0.4, ..Summary::default() };
    let metrics = &[("rounded_accuracy", 0.55, 0.94)];
    Course {
        n_steps: 1500,
        steps_per_epoch: 500,
        loss: (0.69, 0.21),
        metrics,
        milliseconds: 2.6,
        samples: "images",
        n_samples: 32,
    }
    .fill(&mut summary);
    summary.version = 1600;
    summary.description = json!({
        "program": "coordinator", "version": "0.1.0", "run_id": "9f6c2a51-77d1-4a0e-9f0a-3a8f5b2c1d00", "incarnation": 1,
        "recipe": recipe("denoising", 0.1), "workers": 4, "launch": "external", "security": { "tls": true, "token": true },
        "heartbeat_timeout_seconds": 10.0, "checkpoint_every": "500 steps", "n_params": 2_837_314,
        "data": { "name": "fashion-mnist", "fingerprint": "d41d8cd98f00b204e9800998ecf8427ed41d8cd98f00b204e9800998ecf8427e" },
    });
    for number in 1..=5 {
        summary.workers.insert(u64::from(number), worker(number, NOW - 300.0 + 40.0 * f64::from(number)));
    }
    summary.workers.get_mut(&2).expect("worker 2").silent_seconds = 6.2;
    let killed = summary.workers.get_mut(&3).expect("worker 3");
    killed.left = Some((NOW - 41.0, "the connection was lost: broken pipe".to_owned()));
    killed.n_reassigned = 2;
    let evicted = summary.workers.get_mut(&5).expect("worker 5");
    evicted.host = HOSTILE.into();
    evicted.left = Some((NOW - 12.5, format!("evicted, its results were wrong: {HOSTILE} {}", "x".repeat(120))));
    let mut noise = Noise(3);
    for ago in (0..110_u32).rev() {
        let workers: &[u64] = if ago > 41 { &[1, 2, 3, 4] } else { &[1, 2, 4] };
        let snapshot = snapshot(u64::from(1500 - ago), workers, 2, &mut noise);
        summary.snapshots.push_back((NOW - 0.4 - f64::from(ago), Arc::new(snapshot)));
    }
    for (ago, kind, text) in [
        (330.0, Info, "the run begins".to_owned()),
        (
            260.0,
            Info,
            "worker 1 joined: node-01.cluster.internal, process 4001, flex on cpu, 4 threads; 1 worker takes part"
                .to_owned(),
        ),
        (
            180.0,
            Info,
            "worker 3 joined: node-03.cluster.internal, process 4003, flex on cpu, 4 threads; 3 workers take part"
                .to_owned(),
        ),
        (95.0, Fault, "worker 2 is late with task 3 of step 412: worker 1 computes it too, after 120 ms".to_owned()),
        (
            41.0,
            Fault,
            "worker 3 left: the connection was lost: broken pipe, 2 tasks reassigned; 3 workers take part".to_owned(),
        ),
        (40.8, Recovery, "worker 4 is sent its replica again: its parameters differ".to_owned()),
        (12.5, Fault, format!("worker 5 evicted ({HOSTILE}, process 4005): {}", "w".repeat(200))),
    ] {
        summary.event_lines.push_back(event_line(NOW - ago, kind, &text));
    }
    summary.faults = Faults { n_left: 2, n_evicted: 1, n_reassigned: 2, n_late: 4, n_resent: 1, ..Faults::default() };
    summary.pictures = [("attention-maps", 3..=3), ("reconstructions", 1..=3), ("codes", 1..=3)]
        .map(|(name, epochs)| (PictureName::of_folder(name).expect("a name"), epochs.collect()))
        .into();
    summary
}

/// A run that is over, in one process.
pub fn single_process() -> Summary {
    let mut summary =
        Summary { name: "deep-001".to_owned(), n_steps: 1200, n_epochs: 4, time: NOW - 86_400.0, ..Summary::default() };
    let metrics = &[("rounded_accuracy", 0.5, 0.9)];
    Course {
        n_steps: 1200,
        steps_per_epoch: 300,
        loss: (0.72, 0.26),
        metrics,
        milliseconds: 4.1,
        samples: "images",
        n_samples: 64,
    }
    .fill(&mut summary);
    summary.description = json!({
        "program": "autoencoder", "version": "0.1.0", "recipe": recipe("deep", 0.5), "backend": "flex", "device": "cpu",
        "threads": 2, "data": { "name": "fashion-mnist", "fingerprint": "d41d8cd9" }, "n_params": 220_320,
        "result": { "outcome": "completed", "best_epoch": { "epoch": 4, "val_loss": 0.2604 }, "params_blake3": "ab".repeat(32) },
    });
    summary.outcome = Some("completed".to_owned());
    let name = PictureName::new("reconstructions").expect("a name");
    summary.pictures = [(name, (1..=4).collect())].into();
    summary
}

/// A task with figures of its own, and no pictures; it waits for workers.
pub fn language() -> Summary {
    let mut summary = Summary {
        name: "language-001".to_owned(),
        n_steps: 40_000,
        n_epochs: 8,
        time: NOW - 2.0,
        ..Summary::default()
    };
    let metrics =
        &[("perplexity", 61.0, 5.2), ("next_character_accuracy", 0.05, 0.51), ("bits_per_character", 5.9, 2.2)];
    Course {
        n_steps: 12_345,
        steps_per_epoch: 5000,
        loss: (4.1, 1.6),
        metrics,
        milliseconds: 31.0,
        samples: "sequences",
        n_samples: 16,
    }
    .fill(&mut summary);
    summary.description =
        json!({ "recipe": recipe("language", 0.003), "workers": 2, "data": { "name": "Don Quijote" } });
    let mut gone = worker(1, NOW - 900.0);
    gone.left = Some((NOW - 30.0, "it was terminated".to_owned()));
    summary.workers.insert(1, gone);
    summary.event_lines.push_back(event_line(NOW - 950.0, EventKind::Info, "the run begins"));
    summary.event_lines.push_back(event_line(
        NOW - 30.0,
        EventKind::Fault,
        "worker 1 left: it was terminated; no worker takes part",
    ));
    summary.is_waiting = true;
    summary.faults = Faults { n_left: 1, n_waits: 1, ..Faults::default() };
    summary
}

/// Sixty-four workers.
pub fn crowd() -> Summary {
    let mut summary = running();
    summary.name = "denoising-064".into();
    summary.workers =
        (1..=64).map(|number| (u64::from(number), worker(number, NOW - 200.0 + f64::from(number)))).collect();
    let mut noise = Noise(11);
    let workers: Vec<u64> = (1..=64).collect();
    for (_, old) in &mut summary.snapshots {
        *old = Arc::new(snapshot(old.step, &workers, 4, &mut noise));
    }
    summary
}

/// A run that failed.
pub fn failed() -> Summary {
    let mut summary = running();
    summary.name = "denoising-008".into();
    summary.outcome = Some("diverged".to_owned());
    summary.description["recipe"] = recipe("denoising", 5.0);
    summary.description["result"] = json!({
        "outcome": "diverged", "error": "the loss of step 1501 is not finite: a learning rate of 5 may be too high", "step": 1500,
    });
    for (name, series) in &mut summary.step_figures {
        for step in 1501..1600 {
            let rise = f64::from(step - 1500) / 60.0;
            series.push(f64::from(step), if name == "loss" { 0.21 + rise * rise } else { 0.93 - rise / 4.0 });
        }
    }
    summary
}
