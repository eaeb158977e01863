//! A training run's recipe: all that decides, with the data and the compute class, which bits come out of it.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::arch::Architecture;
use crate::data::{Order, Sampler};
use crate::layers::Noise;
use crate::sgd::Sgd;

/// Shards of a step at most: each has a gradient in memory until the step's end.
pub const SHARDS_MAX: u32 = 1024;

/// The flags of a recipe as they were typed; what is left out is as in the book.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "What is trained")]
pub struct RecipeArgs {
    /// Network to train
    #[arg(long, env = "TELAR_ARCH", value_enum)]
    pub arch: Architecture,
    /// Times through the training images [default: conv 5, others 10]
    #[arg(long, env = "TELAR_EPOCHS", value_name = "N")]
    pub epochs: Option<u32>,
    /// Images in an optimiser step, over all shards
    #[arg(long, env = "TELAR_BATCH_SIZE", value_name = "N", default_value_t = 32)]
    pub batch_size: u32,
    /// Learning rate of SGD [default: recurrent 0.1, others 1.0]
    #[arg(long, env = "TELAR_LEARNING_RATE", value_name = "RATE", allow_negative_numbers = true)]
    pub learning_rate: Option<f32>,
    /// Momentum of SGD, from 0 to below 1
    #[arg(long, env = "TELAR_MOMENTUM", value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true)]
    pub momentum: f32,
    /// Look ahead along the momentum (Nesterov)
    #[arg(long, env = "TELAR_NESTEROV")]
    pub nesterov: bool,
    /// Noise on the input, in training only: none, gaussian:DEVIATION or dropout:RATE [default: denoising gaussian:0.2,
    /// others none]
    #[arg(long, env = "TELAR_NOISE", value_name = "NOISE")]
    pub noise: Option<Noise>,
    /// Take the training images in the order of the file
    #[arg(long, env = "TELAR_NO_SHUFFLE")]
    pub no_shuffle: bool,
    /// Seed of initial values, order and noise
    #[arg(long, env = "TELAR_SEED", value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// Stop after so many optimiser steps
    #[arg(long, env = "TELAR_MAX_STEPS", value_name = "N")]
    pub max_steps: Option<u64>,
    /// Start from the weights in a .safetensors file instead of drawing them
    #[arg(long, env = "TELAR_INIT_FROM", value_name = "FILE")]
    pub init_from: Option<PathBuf>,
}

/// A recipe whose values make sense together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// The network.
    pub architecture: Architecture,
    /// Times through the training images.
    pub epochs: NonZeroU32,
    /// Images of a step, over all shards: the global batch.
    pub batch_size: NonZeroU32,
    /// Parts of a step that are computed one by one.
    pub shards: NonZeroU32,
    /// The update.
    pub sgd: Sgd,
    /// Noise on the input.
    pub noise: Noise,
    /// Whether each epoch has an order of its own.
    pub shuffle: bool,
    /// Seed of all that is drawn.
    pub seed: u64,
    /// Steps after which the run ends, if that is before the epochs do.
    pub max_steps: Option<u64>,
    /// Where the initial weights come from, if they are not drawn.
    #[serde(serialize_with = "as_text")]
    pub init_from: Option<PathBuf>,
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
        found: f32,
        /// A value that would do.
        example: f32,
    },
    /// Nesterov's look-ahead without a momentum to look along.
    #[error("expected --momentum above 0 with --nesterov, found 0; write for example `--momentum 0.9 --nesterov`")]
    NesterovWithoutMomentum,
    /// Shards that could never hold a sample.
    #[error(
        "expected at most as many shards as images in a step, and no more than {SHARDS_MAX}, found --shards {shards} with \
         --batch-size {batch_size}"
    )]
    TooManyShards {
        /// Shards asked for.
        shards: u32,
        /// Images in a step.
        batch_size: u32,
    },
}

impl Recipe {
    /// Takes the flags, fills what is left out from the book, and checks it.
    ///
    /// # Errors
    /// If a value is out of its range, or values do not go together.
    pub fn new(args: RecipeArgs, shards: u32) -> Result<Self, RecipeError> {
        let count = |flag, value, example| NonZeroU32::new(value).ok_or(RecipeError::Zero { flag, example });
        let architecture = args.arch;
        if args.max_steps == Some(0) {
            return Err(RecipeError::Zero { flag: "--max-steps", example: 25 });
        }
        let recipe = Self {
            architecture,
            epochs: count("--epochs", args.epochs.unwrap_or(architecture.book_epochs()), architecture.book_epochs())?,
            batch_size: count("--batch-size", args.batch_size, 32)?,
            shards: count("--shards", shards, 4)?,
            sgd: checked_sgd(&args)?,
            noise: args.noise.unwrap_or(architecture.book_noise()),
            shuffle: !args.no_shuffle,
            seed: args.seed,
            max_steps: args.max_steps,
            init_from: args.init_from,
        };
        if shards > args.batch_size.min(SHARDS_MAX) {
            return Err(RecipeError::TooManyShards { shards, batch_size: args.batch_size });
        }
        Ok(recipe)
    }

    /// How a step is cut, in words: `4 shards x 8`, or `3 shards of 10 or 11`.
    pub fn cut(&self) -> String {
        let (images, shards) = (self.batch_size.get(), self.shards.get());
        let (plural, smaller) = (if shards == 1 { "" } else { "s" }, images / shards);
        if images.is_multiple_of(shards) {
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

/// A path as text, whatever its bytes: what is written down is for people, and is not opened again.
#[expect(clippy::ref_option, reason = "serde asks for this form")]
fn as_text<S: serde::Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| path.display().to_string()).serialize(serializer)
}

fn checked_sgd(args: &RecipeArgs) -> Result<Sgd, RecipeError> {
    let learning_rate = args.learning_rate.unwrap_or(args.arch.book_learning_rate());
    let momentum = args.momentum;
    if !(learning_rate.is_finite() && learning_rate > 0.0) {
        let (flag, range) = ("--learning-rate", "above 0 and finite");
        return Err(RecipeError::Range { flag, range, found: learning_rate, example: args.arch.book_learning_rate() });
    }
    if !(0.0..1.0).contains(&momentum) {
        let (flag, range) = ("--momentum", "from 0 to below 1");
        return Err(RecipeError::Range { flag, range, found: momentum, example: 0.9 });
    }
    if args.nesterov && momentum == 0.0 {
        return Err(RecipeError::NesterovWithoutMomentum);
    }
    Ok(Sgd { learning_rate, momentum, nesterov: args.nesterov })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        recipe: RecipeArgs,
    }

    fn recipe(flags: &str, shards: u32) -> Result<Recipe, RecipeError> {
        let line = Line::try_parse_from(["train", "--arch"].into_iter().chain(flags.split_whitespace()));
        Recipe::new(line.expect("flags that are known").recipe, shards)
    }

    #[test]
    fn what_is_left_out_is_as_in_the_book() {
        let check = |name: &str, epochs, learning_rate, noise| {
            let recipe = recipe(name, 1).expect("the book's recipe");
            assert_eq!((recipe.epochs.get(), recipe.batch_size.get()), (epochs, 32));
            assert_eq!(recipe.sgd, Sgd { learning_rate, momentum: 0.0, nesterov: false });
            assert_eq!((recipe.noise, recipe.shuffle), (noise, true));
        };
        check("conv", 5, 1.0, Noise::None);
        check("recurrent", 10, 0.1, Noise::None);
        check("denoising", 10, 1.0, Noise::Gaussian { deviation: 0.2 });
    }

    #[test]
    fn the_cut_of_a_step_is_told_in_words() {
        let check = |shards, words: &str| assert_eq!(recipe("conv", shards).expect("a recipe").cut(), words);
        check(1, "1 shard x 32");
        check(4, "4 shards x 8");
        check(3, "3 shards of 10 or 11");
    }

    #[test]
    fn a_recipe_that_cannot_be_followed_says_what_to_write() {
        let check = |flags: &str, shards, part: &str| {
            let text = recipe(flags, shards).expect_err(flags).to_string();
            assert!(text.contains(part), "`{text}` does not say `{part}`");
        };
        check("conv --batch-size 0", 1, "write for example `--batch-size 32`");
        check("conv --epochs 0", 1, "write for example `--epochs 5`");
        check("conv --max-steps 0", 1, "--max-steps 25");
        check("conv", 0, "--shards 4");
        check("conv --batch-size 4", 8, "found --shards 8 with --batch-size 4");
        check("conv --learning-rate 0", 1, "--learning-rate above 0 and finite, found 0");
        check("conv --learning-rate nan", 1, "found NaN");
        check("conv --momentum 1", 1, "from 0 to below 1, found 1");
        check("conv --nesterov", 1, "--momentum 0.9 --nesterov");
    }
}
