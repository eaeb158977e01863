//! The flags of a recipe.

use std::path::PathBuf;

use clap::Args;

use super::error::RecipeError;
use crate::optimizer::{Adam, Decay, Optimizer, Rule, RuleName, Sgd};
use crate::spec::Defaults;
use crate::weights::PrefixMapping;

/// The flags of a recipe as they were typed. What is left out is as the task has it, or for a run that is resumed as it was.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "What is trained")]
pub struct RecipeArgs {
    /// Times through the training samples
    #[arg(long, env = "TELAR_EPOCHS", value_name = "N")]
    pub epochs: Option<u32>,
    /// Samples in an optimiser step, over all shards
    #[arg(long, env = "TELAR_BATCH_SIZE", value_name = "N")]
    pub batch_size: Option<u32>,
    /// Rule by which gradients change the parameters
    #[arg(long, env = "TELAR_OPTIMIZER", value_enum)]
    pub optimizer: Option<RuleName>,
    /// Learning rate; with an optimizer other than the task's own 0.01 for sgd and 0.001 for adam and adamw
    #[arg(long, env = "TELAR_LEARNING_RATE", value_name = "RATE", allow_negative_numbers = true)]
    pub learning_rate: Option<f32>,
    /// How the learning rate changes over the steps after the warm-up: constant, linear or cosine (to 0 at the run's end, which
    /// --max-steps may bring nearer), or step:FACTOR:EPOCHS
    #[arg(long, env = "TELAR_LR_SCHEDULE", value_name = "SCHEDULE")]
    pub lr_schedule: Option<Decay>,
    /// Steps over which the learning rate rises from 0 before that
    #[arg(long, env = "TELAR_WARMUP_STEPS", value_name = "N")]
    pub warmup_steps: Option<u64>,
    /// Shorten the averaged gradient to this Euclidean norm where it is longer; a very large one shortens none
    #[arg(long, env = "TELAR_CLIP_NORM", value_name = "NORM", allow_negative_numbers = true)]
    pub clip_norm: Option<f64>,
    /// Share of each parameter that is added to its gradient; with adamw the share of the learning rate by which each shrinks
    /// [default: adamw 0.01, others 0]
    #[arg(long, env = "TELAR_WEIGHT_DECAY", value_name = "SHARE", allow_negative_numbers = true)]
    pub weight_decay: Option<f64>,
    /// Share of the mean of gradients that goes on, of Adam [default: 0.9]
    #[arg(long, env = "TELAR_BETA1", value_name = "SHARE", allow_negative_numbers = true)]
    pub beta1: Option<f64>,
    /// Share of the mean of squared gradients that goes on, of Adam [default: 0.999]
    #[arg(long, env = "TELAR_BETA2", value_name = "SHARE", allow_negative_numbers = true)]
    pub beta2: Option<f64>,
    /// What is added to the divisor, of Adam [default: 1e-8]
    #[arg(long, env = "TELAR_EPSILON", value_name = "NUMBER", allow_negative_numbers = true)]
    pub epsilon: Option<f64>,
    /// Momentum of SGD, from 0 to below 1 [default: 0]
    #[arg(long, env = "TELAR_MOMENTUM", value_name = "SHARE", allow_negative_numbers = true)]
    pub momentum: Option<f32>,
    /// Look ahead along the momentum (Nesterov)
    #[arg(long, env = "TELAR_NESTEROV")]
    pub nesterov: bool,
    /// Take the training samples in their own order
    #[arg(long, env = "TELAR_NO_SHUFFLE")]
    pub no_shuffle: bool,
    /// Seed of initial values, order and all that the task draws [default: 42]
    #[arg(long, env = "TELAR_SEED", value_name = "N")]
    pub seed: Option<u64>,
    /// Stop after so many optimiser steps
    #[arg(long, env = "TELAR_MAX_STEPS", value_name = "N")]
    pub max_steps: Option<u64>,
    /// Stop when the validation loss has not become lower for so many epochs in a row; 0 for never
    #[arg(long, env = "TELAR_PATIENCE", value_name = "EPOCHS")]
    pub patience: Option<u32>,
    /// Start from the weights in a .safetensors file instead of drawing them
    #[arg(long, env = "TELAR_INIT_FROM", value_name = "FILE")]
    pub init_from: Option<PathBuf>,
    /// Take from the file of --init-from the tensors that the network has too, by their names, and draw the others
    #[arg(long, env = "TELAR_INIT_PARTIAL", requires = "init_from")]
    pub init_partial: bool,
    /// With --init-partial: tensors whose names in the file begin with FROM are those of the network that begin with TO, such as
    /// encoder=net.encoder; either may be empty. Several with commas, or by giving it several times
    #[arg(long, env = "TELAR_INIT_MAP", value_name = "FROM=TO", value_delimiter = ',', requires = "init_partial")]
    pub init_map: Vec<PrefixMapping>,
}

/// The optimizer that the flags name.
pub(super) fn optimizer(args: &RecipeArgs, defaults: Defaults) -> Result<Optimizer, RecipeError> {
    let name = args.optimizer.unwrap_or(defaults.optimizer);
    refuse_others(args, name)?;
    let adam = || {
        let usual = Adam::default();
        Adam {
            beta1: args.beta1.unwrap_or(usual.beta1),
            beta2: args.beta2.unwrap_or(usual.beta2),
            epsilon: args.epsilon.unwrap_or(usual.epsilon),
        }
    };
    let rule = match name {
        RuleName::Sgd => Rule::Sgd(Sgd { momentum: args.momentum.unwrap_or(0.0), nesterov: args.nesterov }),
        RuleName::Adam => Rule::Adam(adam()),
        RuleName::AdamW => Rule::AdamW(adam()),
    };
    let weight_decay = args.weight_decay.unwrap_or(if name == RuleName::AdamW { 0.01 } else { 0.0 });
    let learning_rate = args.learning_rate.unwrap_or(default_learning_rate(name, defaults));
    Ok(Optimizer { learning_rate, weight_decay, rule })
}

/// Refuses flags that say nothing to an optimizer.
pub(super) fn refuse_others(args: &RecipeArgs, found: RuleName) -> Result<(), RecipeError> {
    let of_sgd = [("--momentum", args.momentum.is_some()), ("--nesterov", args.nesterov)];
    let of_adam =
        [("--beta1", args.beta1.is_some()), ("--beta2", args.beta2.is_some()), ("--epsilon", args.epsilon.is_some())];
    let (others, expected): (&[_], _) =
        if found == RuleName::Sgd { (&of_adam, "adam or adamw") } else { (&of_sgd, "sgd") };
    match others.iter().find(|(_, is_given)| *is_given) {
        Some(&(flag, _)) => Err(RecipeError::OtherOptimizer { flag, expected, found }),
        None => Ok(()),
    }
}

/// The task's with its own optimizer, else what is usual: PyTorch's for Adam.
pub(super) fn default_learning_rate(name: RuleName, defaults: Defaults) -> f32 {
    match name {
        name if name == defaults.optimizer => defaults.learning_rate,
        RuleName::Sgd => 0.01,
        RuleName::Adam | RuleName::AdamW => 0.001,
    }
}
