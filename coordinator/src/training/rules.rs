//! What a run is trained by, and what it has come to.

use std::time::Duration;

use engine::early_stopping::BestEpoch;
use engine::recipe::Recipe;
use engine::sums::{Metric, Sums};

use super::audit::AuditSecret;

/// What holds for the whole of a coordinator's life.
#[derive(Clone, Debug)]
pub struct Rules {
    /// What is trained.
    pub recipe: Recipe,
    /// Samples of the training split.
    pub n_train: u32,
    /// Samples of the validation split.
    pub n_valid: u32,
    /// Samples that are evaluated at once.
    pub evaluation_batch: u32,
    /// The task's figures beside the loss.
    pub metrics: &'static [Metric],
    /// What is done to the averaged gradient before it is applied.
    pub rounding: Rounding,
    /// When checkpoints are due.
    pub checkpoint_every: CheckpointEvery,
    /// How long a worker may be silent.
    pub heartbeat_timeout: Duration,
    /// How long the first worker may take to come, each one to get ready, and each one to answer.
    pub join_timeout: Duration,
    /// The share of shards, from 0 to 1, that two compute, whose results are compared.
    pub audit: f64,
    /// What these are drawn by.
    pub audit_secret: AuditSecret,
    /// The compute class of what the coordinator computes itself.
    pub own_class: String,
    /// What becomes of the workers when the run is stopped before its end.
    pub after_stop: AfterStop,
}

/// What is done to the averaged gradient before it is applied, here and on every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Nothing.
    None,
    /// It is rounded to bf16, and what that takes is added to the next one.
    Bf16,
}

/// When a checkpoint is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointEvery {
    /// After each epoch's validation.
    Epoch,
    /// After every so many steps.
    Steps(u64),
}

/// What becomes of the workers when the run is stopped before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterStop {
    /// They end.
    End,
    /// They come back to a coordinator that resumes the run.
    ComeBack,
}

/// All that a run has come to: with the rules, enough to go on from.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Updates applied to the parameters.
    pub step: u64,
    /// In layout order.
    pub params: Vec<f32>,
    /// What the optimizer keeps from update to update, each in layout order.
    pub slots: Vec<Vec<f32>>,
    /// What rounding took from the gradients so far, in layout order; empty without rounding.
    pub residual: Vec<f32>,
    /// Sums over the steps since the last validation.
    pub epoch_sums: Sums,
    /// How long these steps took.
    pub epoch_time: Duration,
    /// The epoch with the lowest validation loss.
    pub best: Option<BestEpoch>,
}

impl State {
    /// A run that begins with these parameters.
    pub fn new(recipe: &Recipe, rounding: Rounding, params: Vec<f32>) -> Self {
        let residual = match rounding {
            Rounding::None => Vec::new(),
            Rounding::Bf16 => vec![0.0; params.len()],
        };
        let slots = recipe.optimizer.slots(params.len());
        let (epoch_sums, epoch_time) = (Sums::default(), Duration::ZERO);
        Self { step: 0, params, slots, residual, epoch_sums, epoch_time, best: None }
    }
}
