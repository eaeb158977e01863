//! The figures of steps and epochs, from sums.

use std::time::Duration;

use events::{EpochRecord, Figures, StepRecord};

use crate::spec::TaskSpec;
use crate::sums::{Sums, metrics};

/// The record of a step.
pub fn step_record(spec: &TaskSpec, step: u64, epoch: u32, sums: &Sums, duration: Duration) -> StepRecord {
    StepRecord {
        step,
        epoch,
        loss: sums.loss(),
        metrics: figures("", spec, sums),
        n_samples: sums.n_samples,
        milliseconds: 1e3 * duration.as_secs_f64(),
        params_blake3: None,
    }
}

/// The record of an epoch whose training took `duration`.
#[expect(clippy::cast_precision_loss, reason = "an epoch has far fewer than 2^53 samples")]
pub fn epoch_record(
    spec: &TaskSpec,
    step: u64,
    epoch: u32,
    training: &Sums,
    validation: &Sums,
    duration: Duration,
) -> EpochRecord {
    let seconds = duration.as_secs_f64();
    EpochRecord {
        epoch,
        step,
        loss: training.loss(),
        metrics: figures("", spec, training),
        val_loss: validation.loss(),
        val_metrics: figures("val_", spec, validation),
        seconds,
        samples_per_second: training.n_samples as f64 / seconds,
        samples: spec.samples.into(),
        is_best: false,
    }
}

fn figures(prefix: &str, spec: &TaskSpec, sums: &Sums) -> Figures {
    let values = spec.metrics.iter().zip(metrics(spec.metrics, sums));
    Figures(values.map(|(metric, value)| (format!("{prefix}{}", metric.name), value)).collect())
}
