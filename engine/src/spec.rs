//! A task's figures: all that weights, records and recipes know of it.

use std::sync::Arc;

use serde_json::Value;

use crate::optimizer::{LrSchedule, RuleName};
use crate::params::ParamLayout;
use crate::sums::Metric;

/// What has to be known of a task to train it, without computing anything.
#[derive(Clone, Debug)]
pub struct TaskSpec {
    /// Its name.
    pub name: &'static str,
    /// Its settings, complete: with the name, enough to make the same task elsewhere.
    pub settings: Value,
    /// Its parameters.
    pub layout: Arc<ParamLayout>,
    /// Its figures beside the loss.
    pub metrics: &'static [Metric],
    /// What its samples are called.
    pub samples: &'static str,
    /// Samples that are evaluated at once.
    pub evaluation_batch: u32,
    /// What it is trained with if nothing else is said.
    pub defaults: Defaults,
}

/// What is trained with if the command line says nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    /// Times through the training split.
    pub epochs: u32,
    /// Samples of a step.
    pub batch_size: u32,
    /// The optimizer.
    pub optimizer: RuleName,
    /// Its learning rate, if it is this one.
    pub learning_rate: f32,
    /// How the learning rate changes.
    pub lr_schedule: LrSchedule,
    /// Euclidean norm that the averaged gradient may have, above 0, if it is bounded.
    pub clip_norm: Option<f64>,
    /// Epochs without a lower validation loss after which the run ends; 0 for never.
    pub patience: u32,
}

impl Default for Defaults {
    /// Ten epochs in batches of 32 by stochastic gradient descent with a learning rate of 0.01, constant, without clipping and early
    /// stopping.
    fn default() -> Self {
        Self {
            epochs: 10,
            batch_size: 32,
            optimizer: RuleName::Sgd,
            learning_rate: 0.01,
            lr_schedule: LrSchedule::default(),
            clip_norm: None,
            patience: 0,
        }
    }
}
