//! The lines of `steps.jsonl` and `history.jsonl`.

use std::time::Duration;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::spec::TaskSpec;
use crate::sums::{Metric, Sums, metrics};

/// One optimiser step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepRecord {
    /// Updates applied to the parameters, this one included.
    pub step: u64,
    /// Epoch, counted from 1.
    pub epoch: u32,
    /// Mean loss over the step's samples, before the update.
    pub loss: f64,
    /// The task's metrics over the step's samples.
    #[serde(flatten)]
    pub metrics: Figures,
    /// Samples of the step.
    pub n_samples: u64,
    /// How long the step took.
    pub milliseconds: f64,
    /// Name of the parameters after the step, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub params_blake3: Option<String>,
}

/// Figures by name, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures(pub Vec<(String, f64)>);

impl Figures {
    fn of(prefix: &str, of: &[Metric], sums: &Sums) -> Self {
        Self(
            of.iter()
                .zip(metrics(of, sums))
                .map(|(metric, value)| (format!("{prefix}{}", metric.name), value))
                .collect(),
        )
    }

    /// As people read them: `, rounded accuracy 0.9512` for each.
    pub fn describe(&self) -> String {
        self.0.iter().map(|(name, value)| format!(", {} {value:.4}", name.replace('_', " "))).collect()
    }
}

impl Serialize for Figures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl StepRecord {
    /// The record of a step.
    pub fn new(spec: &TaskSpec, step: u64, epoch: u32, sums: &Sums, duration: Duration) -> Self {
        Self {
            step,
            epoch,
            loss: sums.loss(),
            metrics: Figures::of("", spec.metrics, sums),
            n_samples: sums.n_samples,
            milliseconds: 1e3 * duration.as_secs_f64(),
            params_blake3: None,
        }
    }
}

/// One epoch: the running means of its steps, as Keras shows them, and the validation after it.
#[derive(Clone, Debug, PartialEq)]
pub struct EpochRecord {
    /// Epoch, counted from 1.
    pub epoch: u32,
    /// Updates applied to the parameters.
    pub step: u64,
    /// Mean training loss over the epoch's samples, noise and all, each before its step's update.
    pub loss: f64,
    /// The task's metrics over the same.
    pub metrics: Figures,
    /// Mean loss over the validation samples, without noise.
    pub val_loss: f64,
    /// The task's metrics over the validation samples.
    pub val_metrics: Figures,
    /// How long the epoch's training took, without the validation.
    pub seconds: f64,
    /// Training samples per second.
    pub samples_per_second: f64,
    /// What samples are called.
    pub samples: &'static str,
    /// Whether the validation loss is below those of all epochs before.
    pub is_best: bool,
}

impl EpochRecord {
    /// The record of an epoch whose training took `duration`.
    #[expect(clippy::cast_precision_loss, reason = "an epoch has far fewer than 2^53 samples")]
    pub fn new(spec: &TaskSpec, step: u64, epoch: u32, training: &Sums, validation: &Sums, duration: Duration) -> Self {
        let seconds = duration.as_secs_f64();
        Self {
            epoch,
            step,
            loss: training.loss(),
            metrics: Figures::of("", spec.metrics, training),
            val_loss: validation.loss(),
            val_metrics: Figures::of("val_", spec.metrics, validation),
            seconds,
            samples_per_second: training.n_samples as f64 / seconds,
            samples: spec.samples,
            is_best: false,
        }
    }

    /// The name of the figure that says how fast it was, such as `images_per_second`.
    pub fn pace_name(&self) -> String {
        format!("{}_per_second", self.samples)
    }
}

impl Serialize for EpochRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("epoch", &self.epoch)?;
        map.serialize_entry("step", &self.step)?;
        map.serialize_entry("loss", &self.loss)?;
        for (name, value) in &self.metrics.0 {
            map.serialize_entry(name, value)?;
        }
        map.serialize_entry("val_loss", &self.val_loss)?;
        for (name, value) in &self.val_metrics.0 {
            map.serialize_entry(name, value)?;
        }
        map.serialize_entry("seconds", &self.seconds)?;
        map.serialize_entry(&self.pace_name(), &self.samples_per_second)?;
        map.serialize_entry("best", &self.is_best)?;
        map.end()
    }
}
