//! A training run's recipe: all that decides, with the data and the compute class, which bits come out of it.

use std::fmt::Display;
use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::optimizer::{Adam, Decay, LearningRates, LrSchedule, Optimizer, Rule, RuleName, Sgd, exact};
use crate::params::ParamLayout;
use crate::sampler::{Order, Sampler};
use crate::task::{Defaults, TaskSpec};

/// Shards of a step at most: each has a gradient in memory until the step's end.
pub const SHARDS_MAX: u32 = 1024;

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
    /// --max-steps may bring nearer), or step:FACTOR:EPOCHS [default: constant]
    #[arg(long, env = "TELAR_LR_SCHEDULE", value_name = "SCHEDULE")]
    pub lr_schedule: Option<Decay>,
    /// Steps over which the learning rate rises from 0 before that [default: 0]
    #[arg(long, env = "TELAR_WARMUP_STEPS", value_name = "N")]
    pub warmup_steps: Option<u64>,
    /// Shorten the averaged gradient to this Euclidean norm where it is longer
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
    /// Stop when the validation loss has not become lower for so many epochs in a row; 0 for never [default: 0]
    #[arg(long, env = "TELAR_PATIENCE", value_name = "EPOCHS")]
    pub patience: Option<u32>,
    /// Start from the weights in a .safetensors file instead of drawing them
    #[arg(long, env = "TELAR_INIT_FROM", value_name = "FILE")]
    pub init_from: Option<PathBuf>,
    /// Take from the file of --init-from the tensors that the network has too, by their names, and draw the others
    #[arg(long, env = "TELAR_INIT_PARTIAL", requires = "init_from")]
    pub init_partial: bool,
}

/// A recipe whose values make sense together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Recipe {
    /// The name of the task.
    pub task: String,
    /// Its settings, complete.
    pub settings: Value,
    /// Times through the training samples.
    pub epochs: NonZeroU32,
    /// Samples of a step, over all shards: the global batch.
    pub batch_size: NonZeroU32,
    /// Parts of a step that are computed one by one.
    pub shards: NonZeroU32,
    /// The update. Older files have it under the name of the one that there was.
    #[serde(alias = "sgd")]
    pub optimizer: Optimizer,
    /// How its learning rate changes.
    #[serde(default)]
    pub lr_schedule: LrSchedule,
    /// Euclidean norm that the averaged gradient may have, above 0.
    #[serde(default, with = "exact::option")]
    pub clip_norm: Option<f64>,
    /// Whether each epoch has an order of its own.
    pub shuffle: bool,
    /// Seed of all that is drawn.
    pub seed: u64,
    /// Steps after which the run ends, if that is before the epochs do.
    pub max_steps: Option<u64>,
    /// Epochs without a lower validation loss after which the run ends, if it does.
    #[serde(default)]
    pub patience: Option<NonZeroU32>,
    /// Where the initial weights come from, if they are not drawn.
    #[serde(serialize_with = "as_text")]
    pub init_from: Option<PathBuf>,
    /// Whether only some of them come from there.
    #[serde(default)]
    pub init_partial: bool,
}

/// A recipe that cannot be followed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RecipeError {
    /// A count of nothing.
    #[error("expected {flag} as a whole number above 0, found 0; write for example `{flag} {example}`")]
    Zero {
        /// The flag.
        flag: &'static str,
        /// A value that would do.
        example: u32,
    },
    /// A number outside its range.
    #[error("expected {flag} {range}, found {found}; write for example `{flag} {example}`")]
    Range {
        /// The flag.
        flag: &'static str,
        /// The range in words.
        range: &'static str,
        /// The value found.
        found: f64,
        /// A value that would do.
        example: f64,
    },
    /// A flag of another optimizer.
    #[error("expected {flag} with --optimizer {expected} only, found it with {found}; leave it out")]
    OtherOptimizer {
        /// The flag.
        flag: &'static str,
        /// The optimizers that it belongs to.
        expected: &'static str,
        /// The one that is asked for.
        found: RuleName,
    },
    /// A text that is no recipe.
    #[error("expected a recipe as JSON, found {reason}; use a coordinator and workers of one version")]
    Json {
        /// What is wrong with it.
        reason: String,
    },
    /// A run that is to become longer or shorter, whose learning rates follow from its length.
    #[error(
        "expected {flag} as in the run that is resumed, since the learning rates of --lr-schedule {schedule} follow from it; \
         leave it out, or start a new run"
    )]
    Length {
        /// The flag.
        flag: &'static str,
        /// The schedule.
        schedule: Decay,
    },
    /// Nesterov's look-ahead without a momentum to look along.
    #[error("expected --momentum above 0 with --nesterov, found 0; write for example `--momentum 0.9 --nesterov`")]
    NesterovWithoutMomentum,
    /// Shards that could never hold a sample.
    #[error(
        "expected at most as many shards as samples in a step, and no more than {SHARDS_MAX}, found --shards {shards} with \
         --batch-size {batch_size}"
    )]
    TooManyShards {
        /// Shards asked for.
        shards: u32,
        /// Samples in a step.
        batch_size: u32,
    },
    /// A rule that changes what has no gradient.
    #[error(
        "expected no --weight-decay for a network with parameters that are not trained, such as {name}, found {found}; write \
         `--weight-decay 0`"
    )]
    DecayOfFrozen {
        /// One of them.
        name: String,
        /// The weight decay.
        found: f64,
    },
    /// Early stopping without anything to stop by.
    #[error(
        "expected no --patience with a data set without validation samples, found {found}; leave it out, or give the data set some"
    )]
    PatienceWithoutValidation {
        /// The epochs asked for.
        found: NonZeroU32,
    },
    /// A flag that says something else than the run that is resumed.
    #[error("expected {expected} as in the run that is resumed, found {found}; leave it out, or start a new run")]
    NotAsBefore {
        /// The flag as it was.
        expected: String,
        /// The flag as it was given.
        found: String,
    },
}

impl Recipe {
    /// Takes the flags, fills in what is left out as the task has it, and checks it.
    ///
    /// # Errors
    /// If a value is out of its range, or values do not go together.
    pub fn new(args: RecipeArgs, spec: &TaskSpec, shards: u32) -> Result<Self, RecipeError> {
        let defaults = spec.defaults;
        let recipe = Self {
            task: spec.name.to_owned(),
            settings: spec.settings.clone(),
            epochs: count("--epochs", args.epochs.unwrap_or(defaults.epochs), 10)?,
            batch_size: count("--batch-size", args.batch_size.unwrap_or(defaults.batch_size), 32)?,
            shards: count("--shards", shards, 4)?,
            optimizer: optimizer(&args, defaults)?,
            lr_schedule: LrSchedule {
                decay: args.lr_schedule.unwrap_or_default(),
                warmup_steps: args.warmup_steps.unwrap_or(0),
            },
            clip_norm: args.clip_norm,
            shuffle: !args.no_shuffle,
            seed: args.seed.unwrap_or(42),
            max_steps: args.max_steps,
            patience: args.patience.and_then(NonZeroU32::new),
            init_from: args.init_from,
            init_partial: args.init_partial,
        }
        .checked()?;
        recipe.check_layout(&spec.layout)?;
        Ok(recipe)
    }

    /// Whether it can be followed for these parameters.
    ///
    /// # Errors
    /// If it would change some that are not trained.
    pub fn check_layout(&self, layout: &ParamLayout) -> Result<(), RecipeError> {
        match layout.frozen() {
            Some(entry) if self.optimizer.weight_decay > 0.0 => {
                Err(RecipeError::DecayOfFrozen { name: entry.name.clone(), found: self.optimizer.weight_decay })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether it can be followed on a data set with so many validation samples.
    ///
    /// # Errors
    /// If it is to stop by a validation loss that there is not.
    pub fn check_validation(&self, n_valid: u32) -> Result<(), RecipeError> {
        match self.patience {
            Some(found) if n_valid == 0 => Err(RecipeError::PatienceWithoutValidation { found }),
            Some(_) | None => Ok(()),
        }
    }

    /// The recipe of a run that goes on, from that of the run so far. Where the run ends may be given anew: `--epochs`
    /// replaces both limits unless `--max-steps` is given too, which alone replaces its own, as `--patience` does. What else is given has to be
    /// as it was, since other bits would come out.
    ///
    /// # Errors
    /// If a flag says something else, initial weights are given, or a limit is out of its range.
    pub fn resumed(mut self, args: &RecipeArgs, shards: Option<u32>) -> Result<Self, RecipeError> {
        same("--batch-size", args.batch_size, self.batch_size.get())?;
        same("--shards", shards, self.shards.get())?;
        let Optimizer { learning_rate, weight_decay, rule } = self.optimizer;
        same("--optimizer", args.optimizer, self.optimizer.name())?;
        same("--learning-rate", args.learning_rate, learning_rate)?;
        same("--weight-decay", args.weight_decay, weight_decay)?;
        match rule {
            Rule::Sgd(Sgd { momentum, .. }) => same("--momentum", args.momentum, momentum)?,
            Rule::Adam(adam) | Rule::AdamW(adam) => {
                same("--beta1", args.beta1, adam.beta1)?;
                same("--beta2", args.beta2, adam.beta2)?;
                same("--epsilon", args.epsilon, adam.epsilon)?;
            }
        }
        refuse_others(args, self.optimizer.name())?;
        same("--lr-schedule", args.lr_schedule, self.lr_schedule.decay)?;
        same("--warmup-steps", args.warmup_steps, self.lr_schedule.warmup_steps)?;
        if args.clip_norm.is_some() && args.clip_norm != self.clip_norm {
            let words =
                |norm: Option<f64>| norm.map_or("no --clip-norm".to_owned(), |norm| format!("--clip-norm {norm}"));
            return Err(RecipeError::NotAsBefore { expected: words(self.clip_norm), found: words(args.clip_norm) });
        }
        same("--seed", args.seed, self.seed)?;
        let is_nesterov = matches!(rule, Rule::Sgd(Sgd { nesterov: true, .. }));
        for (flag, is_given, was_given) in
            [("--nesterov", args.nesterov, is_nesterov), ("--no-shuffle", args.no_shuffle, !self.shuffle)]
        {
            if is_given && !was_given {
                return Err(RecipeError::NotAsBefore { expected: format!("no {flag}"), found: flag.to_owned() });
            }
        }
        if let Some(path) = &args.init_from {
            // Even the same file: the run has its weights, and they are no longer those.
            let found = format!("--init-from {}", path.display());
            return Err(RecipeError::NotAsBefore { expected: "no --init-from".to_owned(), found });
        }
        let before = (self.epochs, self.max_steps);
        if let Some(epochs) = args.epochs {
            self.epochs = count("--epochs", epochs, 10)?;
        }
        if args.epochs.is_some() || args.max_steps.is_some() {
            self.max_steps = args.max_steps;
        }
        if let Some(patience) = args.patience {
            self.patience = NonZeroU32::new(patience);
        }
        let schedule = self.lr_schedule.decay;
        if schedule.follows_length() && (self.epochs, self.max_steps) != before {
            let flag = if self.max_steps == before.1 { "--epochs" } else { "--max-steps" };
            return Err(RecipeError::Length { flag, schedule });
        }
        self.checked()
    }

    /// The recipe itself, if its values are in their ranges and go together.
    fn checked(self) -> Result<Self, RecipeError> {
        if self.max_steps == Some(0) {
            return Err(RecipeError::Zero { flag: "--max-steps", example: 25 });
        }
        let Optimizer { learning_rate, weight_decay, rule } = self.optimizer;
        let check = |flag, range, found: f64, is_within: bool, example| {
            if is_within { Ok(()) } else { Err(RecipeError::Range { flag, range, found, example }) }
        };
        let is_share = |share: f64| (0.0..1.0).contains(&share);
        let is_positive = |number: f64| number.is_finite() && number > 0.0;
        let learning_rate = shown(learning_rate);
        let usual = default_learning_rate(self.optimizer.name(), Defaults::default());
        check("--learning-rate", "above 0 and finite", learning_rate, is_positive(learning_rate), shown(usual))?;
        check("--weight-decay", "from 0", weight_decay, weight_decay.is_finite() && weight_decay >= 0.0, 0.01)?;
        match rule {
            Rule::Sgd(Sgd { momentum, nesterov }) => {
                check("--momentum", "from 0 to below 1", shown(momentum), is_share(momentum.into()), 0.9)?;
                if nesterov && momentum == 0.0 {
                    return Err(RecipeError::NesterovWithoutMomentum);
                }
            }
            Rule::Adam(Adam { beta1, beta2, epsilon }) | Rule::AdamW(Adam { beta1, beta2, epsilon }) => {
                check("--beta1", "from 0 to below 1", beta1, is_share(beta1), 0.9)?;
                check("--beta2", "from 0 to below 1", beta2, is_share(beta2), 0.999)?;
                // It is used as an f32.
                let is_usable = epsilon >= f64::from(f32::MIN_POSITIVE) && epsilon <= 1.0;
                check("--epsilon", "from 1.2e-38 to 1", epsilon, is_usable, 1e-8)?;
            }
        }
        if let Some(norm) = self.clip_norm {
            check("--clip-norm", "above 0 and finite", norm, is_positive(norm), 1.0)?;
        }
        let [shards, batch_size] = [self.shards, self.batch_size].map(NonZeroU32::get);
        if shards > batch_size.min(SHARDS_MAX) {
            return Err(RecipeError::TooManyShards { shards, batch_size });
        }
        Ok(self)
    }

    /// The recipe in a text that another process was told, checked as if it had been typed.
    ///
    /// # Errors
    /// If it is no recipe, or one that cannot be followed.
    pub fn from_json(text: &[u8]) -> Result<Self, RecipeError> {
        let recipe: Self =
            serde_json::from_slice(text).map_err(|error| RecipeError::Json { reason: error.to_string() })?;
        recipe.checked()
    }

    /// What another process has to be told of it.
    ///
    /// # Panics
    /// Never: a recipe is numbers and words.
    pub fn to_json(&self) -> Vec<u8> {
        // Where a file of weights lies is nobody else's business.
        serde_json::to_vec(&Self { init_from: None, ..self.clone() }).expect("a recipe is numbers and words")
    }

    /// The learning rates of its steps on a split of `n_samples`.
    pub fn learning_rates(&self, n_samples: u64) -> LearningRates {
        let steps_per_epoch = n_samples.div_ceil(self.batch_size.get().into());
        LearningRates::new(self.optimizer.learning_rate, self.lr_schedule, self.n_steps(n_samples), steps_per_epoch)
    }

    /// What is trained on how many of which samples, in words, for the first line of a run.
    pub fn describe(&self, n_samples: u32, samples: &str, data_name: &str) -> String {
        format!(
            "{}: {n_samples} {samples} of {data_name}, global batch {} = {}, {}{}, seed {}",
            self.task,
            self.batch_size,
            self.cut(),
            self.describe_update(),
            self.describe_settings(),
            self.seed,
        )
    }

    /// The task's settings in words: `, noise gaussian:0.2`.
    fn describe_settings(&self) -> String {
        let words = |(name, value): (&String, &Value)| match value {
            Value::Null | Value::Bool(false) => String::new(),
            Value::Bool(true) => format!(", {}", name.replace('_', " ")),
            Value::String(text) => format!(", {} {text}", name.replace('_', " ")),
            other => format!(", {} {other}", name.replace('_', " ")),
        };
        self.settings.as_object().into_iter().flatten().map(words).collect()
    }

    /// The update in words, without what is as it usually is: `learning rate 1`, or `adamw, learning rate 0.001 (cosine)`.
    fn describe_update(&self) -> String {
        let name = match self.optimizer.name() {
            RuleName::Sgd => String::new(),
            name => format!("{name}, "),
        };
        let schedule = match self.lr_schedule {
            schedule if schedule == LrSchedule::default() => String::new(),
            schedule => format!(" ({schedule})"),
        };
        let clip = self.clip_norm.map_or(String::new(), |norm| format!(", gradients up to a norm of {norm}"));
        let patience = self.patience.map_or(String::new(), |epochs| format!(", patience {epochs}"));
        format!("{name}learning rate {}{schedule}{clip}{patience}", self.optimizer.learning_rate)
    }

    /// How a step is cut, in words: `4 shards x 8`, or `3 shards of 10 or 11`.
    pub fn cut(&self) -> String {
        let (n_samples, shards) = (self.batch_size.get(), self.shards.get());
        let (plural, smaller) = (if shards == 1 { "" } else { "s" }, n_samples / shards);
        if n_samples.is_multiple_of(shards) {
            format!("{shards} shard{plural} x {smaller}")
        } else {
            format!("{shards} shard{plural} of {smaller} or {}", smaller + 1)
        }
    }

    /// Steps of the whole run on a split of `n_samples`.
    pub fn n_steps(&self, n_samples: u64) -> u64 {
        let of_epochs = n_samples.div_ceil(self.batch_size.get().into()) * u64::from(self.epochs.get());
        self.max_steps.map_or(of_epochs, |max_steps| max_steps.min(of_epochs))
    }

    /// The samples of an epoch, counted from 0, of a split of `n_samples`.
    pub fn sampler(&self, epoch: u32, n_samples: u32) -> Sampler {
        let order = if self.shuffle { Order::Shuffled } else { Order::AsIs };
        let [batch_size, shards] = [self.batch_size, self.shards].map(|count| count.get() as usize);
        Sampler::new(self.seed, epoch, n_samples, order, batch_size, shards)
    }
}

/// The optimizer that the flags name.
fn optimizer(args: &RecipeArgs, defaults: Defaults) -> Result<Optimizer, RecipeError> {
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
fn refuse_others(args: &RecipeArgs, found: RuleName) -> Result<(), RecipeError> {
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
fn default_learning_rate(name: RuleName, defaults: Defaults) -> f32 {
    match name {
        name if name == defaults.optimizer => defaults.learning_rate,
        RuleName::Sgd => 0.01,
        RuleName::Adam | RuleName::AdamW => 0.001,
    }
}

impl Serialize for Recipe {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Recipe {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        if let Some(fields) = value.as_object_mut()
            && let Some(name) = fields.remove("architecture")
        {
            // As versions stored it that had no tasks but the autoencoders, with one setting.
            fields.entry("task").or_insert(name);
            let noise = fields.remove("noise").unwrap_or(Value::Null);
            fields.entry("settings").or_insert(serde_json::json!({ "noise": noise }));
        }
        Self::deserialize(value).map_err(serde::de::Error::custom)
    }
}

/// A number with the digits that it is typed with.
fn shown(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::NAN)
}

/// A path as text, whatever its bytes: what is written down is for people, and is not opened again.
#[expect(clippy::ref_option, reason = "serde asks for this form")]
fn as_text<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| path.display().to_string()).serialize(serializer)
}

fn count(flag: &'static str, value: u32, example: u32) -> Result<NonZeroU32, RecipeError> {
    NonZeroU32::new(value).ok_or(RecipeError::Zero { flag, example })
}

/// A flag that may be left out where a run is resumed, and else has to be as it was.
fn same<T: PartialEq + Display>(flag: &str, found: Option<T>, expected: T) -> Result<(), RecipeError> {
    match found {
        Some(found) if found != expected => {
            Err(RecipeError::NotAsBefore { expected: format!("{flag} {expected}"), found: format!("{flag} {found}") })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser;
    use proptest::prelude::*;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        recipe: RecipeArgs,
    }

    fn args(flags: &str) -> RecipeArgs {
        let line = Line::try_parse_from(std::iter::once("train").chain(flags.split_whitespace()));
        line.expect("flags that are known").recipe
    }

    /// A task that is trained by SGD at 1, for ten epochs.
    fn spec() -> TaskSpec {
        TaskSpec {
            name: "words",
            settings: serde_json::json!({ "noise": "dropout:0.5" }),
            layout: Arc::new(ParamLayout::of_tensors([("w".to_owned(), vec![2])])),
            metrics: &[],
            samples: "texts",
            evaluation_batch: 500,
            defaults: Defaults { learning_rate: 1.0, ..Defaults::default() },
        }
    }

    fn recipe(flags: &str, shards: u32) -> Result<Recipe, RecipeError> {
        Recipe::new(args(flags), &spec(), shards)
    }

    #[test]
    fn omitted_flags_use_task_defaults() {
        let found = recipe("", 1).expect("the task's recipe");
        assert_eq!((found.epochs.get(), found.batch_size.get(), found.shuffle), (10, 32, true));
        assert_eq!(found.optimizer, Optimizer::sgd(1.0, 0.0, false));
        let learning_rate = |flags| recipe(flags, 1).expect(flags).optimizer.learning_rate.to_string();
        assert_eq!(learning_rate("--optimizer adamw"), "0.001");
        assert_eq!(learning_rate("--optimizer adamw --learning-rate 0.5"), "0.5");
    }

    #[test]
    fn weight_decay_with_frozen_parameters_is_refused() {
        let mut spec = spec();
        spec.layout = Arc::new(ParamLayout::with_frozen_for_tests());
        let new = |flags| Recipe::new(args(flags), &spec, 1).map(drop).map_err(|error| error.to_string());
        assert_eq!(new("--optimizer adam"), Ok(()));
        let error = new("--optimizer adamw").expect_err("weight decay");
        assert!(error.contains("such as frozen, found 0.01; write `--weight-decay 0`"), "{error}");
    }

    #[test]
    fn older_recipe_format_is_read() {
        let text = r#"{"architecture":"denoising","epochs":3,"batch_size":32,"shards":4,"sgd":{"learning_rate":1.0,
            "momentum":0.0,"nesterov":false},"noise":"gaussian:0.2","shuffle":true,"seed":42,"max_steps":null,"init_from":null}"#;
        let found: Recipe = serde_json::from_str(text).expect("an older recipe");
        assert_eq!((found.task.as_str(), found.epochs.get()), ("denoising", 3));
        assert_eq!(found.settings, serde_json::json!({ "noise": "gaussian:0.2" }));
    }

    #[test]
    fn cut_describes_shard_sizes() {
        let check = |shards, words: &str| assert_eq!(recipe("", shards).expect("a recipe").cut(), words);
        check(1, "1 shard x 32");
        check(4, "4 shards x 8");
        check(3, "3 shards of 10 or 11");
    }

    #[test]
    fn invalid_recipe_is_refused_with_advice() {
        let check = |flags: &str, shards, part: &str| {
            let text = recipe(flags, shards).expect_err(flags).to_string();
            assert!(text.contains(part), "`{text}` does not say `{part}`");
        };
        check("--batch-size 0", 1, "write for example `--batch-size 32`");
        check("--epochs 0", 1, "write for example `--epochs 10`");
        check("--max-steps 0", 1, "--max-steps 25");
        check("", 0, "--shards 4");
        check("--batch-size 4", 8, "found --shards 8 with --batch-size 4");
        check("--learning-rate 0", 1, "--learning-rate above 0 and finite, found 0");
        check("--learning-rate nan", 1, "found NaN");
        check("--momentum 1", 1, "from 0 to below 1, found 1");
        check("--nesterov", 1, "--momentum 0.9 --nesterov");
        check("--weight-decay -1", 1, "--weight-decay from 0, found -1");
        check("--optimizer adam --epsilon 1e-46", 1, "--epsilon from 1.2e-38 to 1, found 0.000000");
        check("--clip-norm 0", 1, "--clip-norm above 0 and finite, found 0; write for example `--clip-norm 1`");
        check("--beta1 0.5", 1, "expected --beta1 with --optimizer adam or adamw only, found it with sgd");
        check("--optimizer adam --momentum 0.5", 1, "--momentum with --optimizer sgd only, found it with adam");
        check("--optimizer adamw --beta2 1", 1, "--beta2 from 0 to below 1, found 1");
        check("--optimizer adamw --learning-rate 0", 1, "write for example `--learning-rate 0.001`");
    }

    /// A run with all flags, and what it says of the flags it is resumed with: its limits then, or the error.
    fn check_resumed(flags: &str, shards: Option<u32>, expected: Result<(u32, Option<u64>), &str>) {
        let before = "--epochs 3 --batch-size 16 --learning-rate 0.3 --momentum 0.9 --seed 7 --max-steps 90 \
                      --init-from w.safetensors";
        let before = recipe(before, 4).expect("a recipe");
        let resumed = before.clone().resumed(&args(flags), shards);
        match (resumed, expected) {
            (Ok(resumed), Ok((epochs, max_steps))) => {
                assert_eq!((resumed.epochs.get(), resumed.max_steps), (epochs, max_steps), "`{flags}`");
                assert_eq!(
                    Recipe { epochs: before.epochs, max_steps: before.max_steps, ..resumed },
                    before,
                    "`{flags}`"
                );
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "`{error}` does not say `{part}`"),
            (resumed, expected) => panic!("`{flags}`: {expected:?} expected, found {resumed:?}"),
        }
    }

    #[test]
    fn resume_may_change_only_run_length() {
        check_resumed("", None, Ok((3, Some(90))));
        check_resumed("--batch-size 16 --learning-rate 0.3 --momentum 0.9", Some(4), Ok((3, Some(90))));
        check_resumed("--seed 7 --epochs 3", None, Ok((3, None)));
        check_resumed("--epochs 5", None, Ok((5, None)));
        check_resumed("--max-steps 120", None, Ok((3, Some(120))));
        check_resumed("--epochs 5 --max-steps 120", None, Ok((5, Some(120))));
    }

    #[test]
    fn patience_may_change_when_run_is_resumed() {
        let before = recipe("--patience 3", 4).expect("a recipe");
        let patience = |flags| before.clone().resumed(&args(flags), None).expect(flags).patience.map(NonZeroU32::get);
        assert_eq!(patience(""), Some(3));
        assert_eq!(patience("--patience 7"), Some(7));
        assert_eq!(patience("--patience 0"), None);
        assert_eq!(recipe("--patience 0", 4).expect("a recipe").patience, None);
        assert_eq!(before.check_validation(1), Ok(()));
        let error = before.check_validation(0).expect_err("nothing to validate").to_string();
        assert!(
            error.contains("expected no --patience with a data set without validation samples, found 3"),
            "{error}"
        );
    }

    #[test]
    fn resume_with_length_dependent_schedule_keeps_run_length() {
        let before = |schedule| recipe(&format!("--lr-schedule {schedule} --epochs 3"), 4).expect("a recipe");
        let text = |schedule, flags| before(schedule).resumed(&args(flags), None).map_err(|error| error.to_string());
        assert!(text("step:0.1:2", "--epochs 5").is_ok() && text("cosine", "--epochs 3").is_ok());
        for flags in ["--epochs 5", "--max-steps 7"] {
            let error = text("cosine", flags).expect_err(flags);
            assert!(error.contains("--lr-schedule cosine follow from it"), "{error}");
        }
        let error = text("cosine", "--lr-schedule linear").expect_err("another schedule");
        assert!(error.contains("expected --lr-schedule cosine as in the run"), "{error}");
    }

    #[test]
    fn received_recipe_is_validated_like_flags() {
        let told = recipe("--optimizer adamw --lr-schedule cosine --warmup-steps 5 --clip-norm 0.7", 4);
        let told = told.expect("a recipe");
        assert_eq!(Recipe::from_json(&told.to_json()), Ok(told.clone()));
        let check = |change: fn(&mut Value), part: &str| {
            let mut value: Value = serde_json::from_slice(&told.to_json()).expect("JSON");
            change(&mut value);
            let error = Recipe::from_json(value.to_string().as_bytes()).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        };
        check(|value| value["batch_size"] = 0.into(), "expected a recipe as JSON, found invalid value: integer `0`");
        check(|value| value["shards"] = 99.into(), "found --shards 99 with --batch-size 32");
        check(|value| value["optimizer"]["learning_rate"] = 0.into(), "--learning-rate above 0 and finite");
        check(|value| value["optimizer"]["name"] = "lion".into(), "unknown variant `lion`");
        check(|value| value["lr_schedule"]["decay"] = "square".into(), "found `square`");
    }

    #[test]
    fn resume_with_other_flags_is_refused() {
        let whole = "expected --batch-size 16 as in the run that is resumed, found --batch-size 64; leave it out, or start a \
                     new run";
        check_resumed("--batch-size 64", None, Err(whole));
        check_resumed("", Some(2), Err("--shards 4 as in the run that is resumed, found --shards 2"));
        check_resumed("--learning-rate 0.30000004", None, Err("--learning-rate 0.3 as"));
        check_resumed("--momentum 0", None, Err("found --momentum 0;"));
        check_resumed(
            "--nesterov",
            None,
            Err("expected no --nesterov as in the run that is resumed, found --nesterov"),
        );
        check_resumed("--no-shuffle", None, Err("expected no --no-shuffle"));
        check_resumed("--seed 42", None, Err("--seed 7 as"));
        check_resumed("--init-from w.safetensors", None, Err("expected no --init-from"));
        check_resumed("--epochs 0", None, Err("write for example `--epochs 10`"));
        check_resumed("--max-steps 0", None, Err("--max-steps 25"));
    }

    /// Through text, and through a tree of values and text.
    fn check_stored(recipe: &Recipe) {
        let text = serde_json::to_string(recipe).expect("a recipe is JSON");
        assert_eq!(&serde_json::from_str::<Recipe>(&text).expect("a recipe"), recipe, "{text}");
        let text = serde_json::to_value(recipe).expect("a recipe is JSON").to_string();
        assert_eq!(&serde_json::from_str::<Recipe>(&text).expect("a recipe"), recipe, "{text}");
        let tree: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(&serde_json::from_value::<Recipe>(tree).expect("a recipe"), recipe, "{text}");
    }

    #[test]
    fn extreme_f32_values_are_stored_exactly() {
        // The first lies so near the middle of two f32 that its shortest decimal, read as f64, gives the other one.
        let odd = [7.038_531e-26, f32::MIN_POSITIVE, f32::from_bits(1), f32::MAX, 0.1, 1.0 / 3.0, 8.5e7, 1e-45];
        for learning_rate in odd {
            let mut recipe =
                recipe("--seed 18446744073709551615 --max-steps 18446744073709551615", 1).expect("a recipe");
            recipe.optimizer = Optimizer::sgd(learning_rate, learning_rate, true);
            check_stored(&recipe);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn sgd_values_are_stored_exactly(bits in any::<[u32; 2]>(), seed in any::<u64>(), max_steps in any::<Option<u64>>()) {
            let [learning_rate, momentum] = bits.map(|bits| f32::from_bits(bits >> 1)); // at least 0
            let are_finite = [learning_rate, momentum].iter().all(|value| value.is_finite());
            prop_assume!(are_finite);
            let mut recipe = recipe("", 4).expect("a recipe");
            recipe.optimizer = Optimizer::sgd(learning_rate, momentum, false);
            (recipe.seed, recipe.max_steps) = (seed, max_steps);
            check_stored(&recipe);
        }

        #[test]
        fn adamw_values_are_stored_exactly(bits in any::<[u64; 5]>()) {
            let [weight_decay, beta1, beta2, epsilon, norm] = bits.map(|bits| f64::from_bits(bits >> 1)); // at least 0
            prop_assume!([weight_decay, beta1, beta2, epsilon, norm].iter().all(|value| value.is_finite()));
            let mut recipe = recipe("--optimizer adamw", 4).expect("a recipe");
            let rule = Rule::AdamW(Adam { beta1, beta2, epsilon });
            recipe.optimizer = Optimizer { learning_rate: 0.1, weight_decay, rule };
            recipe.clip_norm = Some(norm);
            check_stored(&recipe);
        }
    }
}
