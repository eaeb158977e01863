//! The lines of `steps.jsonl` and `history.jsonl`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::arch::N_PIXELS;
use crate::loss::LossSums;

/// One optimiser step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Updates applied to the parameters, this one included.
    pub step: u64,
    /// Epoch, counted from 1.
    pub epoch: u32,
    /// Mean loss over the step's samples, before the update.
    pub loss: f64,
    /// Share of their pixels that round to their target.
    pub rounded_accuracy: f64,
    /// Samples of the step.
    pub n_samples: u64,
    /// How long the step took.
    pub milliseconds: f64,
    /// Name of the parameters after the step, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub params_blake3: Option<String>,
}

impl StepRecord {
    /// The record of a step.
    pub fn new(step: u64, epoch: u32, sums: &LossSums, duration: Duration) -> Self {
        Self {
            step,
            epoch,
            loss: sums.loss(),
            rounded_accuracy: sums.rounded_accuracy(N_PIXELS),
            n_samples: sums.n_samples,
            milliseconds: 1e3 * duration.as_secs_f64(),
            params_blake3: None,
        }
    }
}

/// One epoch: the running means of its steps, as Keras shows them, and the validation after it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Epoch, counted from 1.
    pub epoch: u32,
    /// Updates applied to the parameters.
    pub step: u64,
    /// Mean training loss over the epoch's samples, noise and all, each before its step's update.
    pub loss: f64,
    /// Share of their pixels that round to their target.
    pub rounded_accuracy: f64,
    /// Mean loss over the validation images, without noise.
    pub val_loss: f64,
    /// Share of their pixels that round to their target.
    pub val_rounded_accuracy: f64,
    /// How long the epoch's training took, without the validation.
    pub seconds: f64,
    /// Training images per second.
    pub images_per_second: f64,
}

impl EpochRecord {
    /// The record of an epoch whose training took `duration`.
    #[expect(clippy::cast_precision_loss, reason = "an epoch has far fewer than 2^53 samples")]
    pub fn new(step: u64, epoch: u32, training: &LossSums, validation: &LossSums, duration: Duration) -> Self {
        let seconds = duration.as_secs_f64();
        Self {
            epoch,
            step,
            loss: training.loss(),
            rounded_accuracy: training.rounded_accuracy(N_PIXELS),
            val_loss: validation.loss(),
            val_rounded_accuracy: validation.rounded_accuracy(N_PIXELS),
            seconds,
            images_per_second: training.n_samples as f64 / seconds,
        }
    }
}
