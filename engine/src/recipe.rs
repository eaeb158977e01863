//! A training run's recipe: all that decides, with the data and the compute class, which bits come out of it.

mod args;
mod error;

use std::fmt::Display;
use std::num::NonZeroU32;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use args::{default_learning_rate, optimizer, refuse_others};

use crate::optimizer::{Adam, LearningRates, LrSchedule, Optimizer, Rule, RuleName, Sgd, clip_norm, exact};
use crate::params::ParamLayout;
use crate::reduce::average;
use crate::sampler::{Order, Sampler};
use crate::spec::{Defaults, TaskSpec};
use crate::weights::PrefixMapping;

pub use args::RecipeArgs;
pub use error::RecipeError;

/// Shards of a step at most: each has a gradient in memory until the step's end.
pub const SHARDS_MAX: u32 = 1024;

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
    /// Which names of the file are others in the network, if only some come from there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub init_map: Vec<PrefixMapping>,
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
                decay: args.lr_schedule.unwrap_or(defaults.lr_schedule.decay),
                warmup_steps: args.warmup_steps.unwrap_or(defaults.lr_schedule.warmup_steps),
            },
            clip_norm: args.clip_norm.or(defaults.clip_norm),
            shuffle: !args.no_shuffle,
            seed: args.seed.unwrap_or(42),
            max_steps: args.max_steps,
            patience: NonZeroU32::new(args.patience.unwrap_or(defaults.patience)),
            init_from: args.init_from,
            init_partial: args.init_partial,
            init_map: args.init_map,
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
    /// replaces both limits unless `--max-steps` is given too; `--max-steps` alone and `--patience` replace their own values. What
    /// else is given has to be as it was, since other bits would come out.
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

    /// Parses a recipe that another process sent, and checks it like flags.
    ///
    /// # Errors
    /// If it is no recipe, or one that cannot be followed.
    pub fn from_json(text: &[u8]) -> Result<Self, RecipeError> {
        let recipe: Self =
            serde_json::from_slice(text).map_err(|error| RecipeError::Json { reason: error.to_string() })?;
        recipe.checked()
    }

    /// What another process needs to know of it.
    ///
    /// # Panics
    /// Never: a recipe is numbers and words.
    pub fn to_json(&self) -> Vec<u8> {
        // Paths of weight files are not sent to other processes.
        let shared = Self { init_from: None, init_map: Vec::new(), ..self.clone() };
        serde_json::to_vec(&shared).expect("a recipe is numbers and words")
    }

    /// Turns the sum of a step's gradients into what the optimizer applies: their average, clipped. Whether the average is finite.
    ///
    /// # Panics
    /// If there are no samples.
    pub fn average_gradient(&self, gradient_sum: &mut [f32], n_samples: u64) -> bool {
        let is_finite = average(gradient_sum, n_samples);
        if let Some(norm_max) = self.clip_norm {
            clip_norm(gradient_sum, norm_max);
        }
        is_finite
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
mod tests;
