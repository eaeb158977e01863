//! A training run's recipe: all that decides, with the data and the compute class, which bits come out of it.

use std::fmt::Display;
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

/// The flags of a recipe as they were typed. What is left out is as in the book, or for a run that is resumed as it was.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "What is trained")]
pub struct RecipeArgs {
    /// Network to train
    #[arg(long, env = "TELAR_ARCH", value_enum)]
    pub arch: Option<Architecture>,
    /// Times through the training images [default: conv 5, others 10]
    #[arg(long, env = "TELAR_EPOCHS", value_name = "N")]
    pub epochs: Option<u32>,
    /// Images in an optimiser step, over all shards [default: 32]
    #[arg(long, env = "TELAR_BATCH_SIZE", value_name = "N")]
    pub batch_size: Option<u32>,
    /// Learning rate of SGD [default: recurrent 0.1, others 1.0]
    #[arg(long, env = "TELAR_LEARNING_RATE", value_name = "RATE", allow_negative_numbers = true)]
    pub learning_rate: Option<f32>,
    /// Momentum of SGD, from 0 to below 1 [default: 0]
    #[arg(long, env = "TELAR_MOMENTUM", value_name = "SHARE", allow_negative_numbers = true)]
    pub momentum: Option<f32>,
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
    /// Seed of initial values, order and noise [default: 42]
    #[arg(long, env = "TELAR_SEED", value_name = "N")]
    pub seed: Option<u64>,
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
    /// No network.
    #[error("expected --arch conv, recurrent or denoising, found none; write for example `--arch denoising`")]
    NoArchitecture,
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
    /// Takes the flags, fills what is left out from the book, and checks it.
    ///
    /// # Errors
    /// If a value is out of its range, or values do not go together.
    pub fn new(args: RecipeArgs, shards: u32) -> Result<Self, RecipeError> {
        let architecture = args.arch.ok_or(RecipeError::NoArchitecture)?;
        let epochs = args.epochs.unwrap_or(architecture.book_epochs());
        Self {
            architecture,
            epochs: count("--epochs", epochs, architecture.book_epochs())?,
            batch_size: count("--batch-size", args.batch_size.unwrap_or(32), 32)?,
            shards: count("--shards", shards, 4)?,
            sgd: Sgd {
                learning_rate: args.learning_rate.unwrap_or(architecture.book_learning_rate()),
                momentum: args.momentum.unwrap_or(0.0),
                nesterov: args.nesterov,
            },
            noise: args.noise.unwrap_or(architecture.book_noise()),
            shuffle: !args.no_shuffle,
            seed: args.seed.unwrap_or(42),
            max_steps: args.max_steps,
            init_from: args.init_from,
        }
        .checked()
    }

    /// The recipe of a run that goes on, from that of the run so far. Where the run ends may be given anew: `--epochs`
    /// replaces both limits unless `--max-steps` is given too, which alone replaces its own. What else is given has to be
    /// as it was, since other bits would come out.
    ///
    /// # Errors
    /// If a flag says something else, initial weights are given, or a limit is out of its range.
    pub fn resumed(mut self, args: &RecipeArgs, shards: Option<u32>) -> Result<Self, RecipeError> {
        same("--arch", args.arch, self.architecture)?;
        same("--batch-size", args.batch_size, self.batch_size.get())?;
        same("--shards", shards, self.shards.get())?;
        same("--learning-rate", args.learning_rate, self.sgd.learning_rate)?;
        same("--momentum", args.momentum, self.sgd.momentum)?;
        same("--noise", args.noise, self.noise)?;
        same("--seed", args.seed, self.seed)?;
        for (flag, is_given, was_given) in
            [("--nesterov", args.nesterov, self.sgd.nesterov), ("--no-shuffle", args.no_shuffle, !self.shuffle)]
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
        if let Some(epochs) = args.epochs {
            self.epochs = count("--epochs", epochs, self.architecture.book_epochs())?;
        }
        if args.epochs.is_some() || args.max_steps.is_some() {
            self.max_steps = args.max_steps;
        }
        self.checked()
    }

    /// The recipe itself, if its values are in their ranges and go together.
    fn checked(self) -> Result<Self, RecipeError> {
        if self.max_steps == Some(0) {
            return Err(RecipeError::Zero { flag: "--max-steps", example: 25 });
        }
        let Sgd { learning_rate, momentum, nesterov } = self.sgd;
        if !(learning_rate.is_finite() && learning_rate > 0.0) {
            let (flag, range, example) =
                ("--learning-rate", "above 0 and finite", self.architecture.book_learning_rate());
            return Err(RecipeError::Range { flag, range, found: learning_rate, example });
        }
        if !(0.0..1.0).contains(&momentum) {
            let (flag, range) = ("--momentum", "from 0 to below 1");
            return Err(RecipeError::Range { flag, range, found: momentum, example: 0.9 });
        }
        if nesterov && momentum == 0.0 {
            return Err(RecipeError::NesterovWithoutMomentum);
        }
        let [shards, batch_size] = [self.shards, self.batch_size].map(NonZeroU32::get);
        if shards > batch_size.min(SHARDS_MAX) {
            return Err(RecipeError::TooManyShards { shards, batch_size });
        }
        Ok(self)
    }

    /// What is trained on what, in words, for the first line of a run.
    pub fn words(&self, n_images: usize, data_name: &str) -> String {
        format!(
            "{}: {n_images} images of {data_name}, global batch {} = {}, learning rate {}, noise {}, seed {}",
            self.architecture,
            self.batch_size,
            self.cut(),
            self.sgd.learning_rate,
            self.noise,
            self.seed,
        )
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

    fn recipe(flags: &str, shards: u32) -> Result<Recipe, RecipeError> {
        Recipe::new(args(&format!("--arch {flags}")), shards)
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

    #[test]
    fn a_recipe_names_its_network() {
        let error = Recipe::new(args("--epochs 3"), 1).expect_err("no network").to_string();
        assert!(error.ends_with("found none; write for example `--arch denoising`"), "{error}");
    }

    /// A run with all flags, and what it says of the flags it is resumed with: its limits then, or the error.
    fn check_resumed(flags: &str, shards: Option<u32>, expected: Result<(u32, Option<u64>), &str>) {
        let before = "denoising --epochs 3 --batch-size 16 --learning-rate 0.3 --momentum 0.9 --noise dropout:0.5 --seed 7 \
                      --max-steps 90 --init-from w.safetensors";
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
    fn a_resumed_run_is_as_it_was_but_for_its_end() {
        check_resumed("", None, Ok((3, Some(90))));
        check_resumed(
            "--arch denoising --batch-size 16 --learning-rate 0.3 --momentum 0.9",
            Some(4),
            Ok((3, Some(90))),
        );
        check_resumed("--noise dropout:0.5 --seed 7 --epochs 3", None, Ok((3, None)));
        check_resumed("--epochs 5", None, Ok((5, None)));
        check_resumed("--max-steps 120", None, Ok((3, Some(120))));
        check_resumed("--epochs 5 --max-steps 120", None, Ok((5, Some(120))));
    }

    #[test]
    fn a_resumed_run_that_would_be_another_is_refused() {
        let whole = "expected --batch-size 16 as in the run that is resumed, found --batch-size 64; leave it out, or start a \
                     new run";
        check_resumed("--batch-size 64", None, Err(whole));
        check_resumed("--arch conv", None, Err("--arch denoising as in the run that is resumed, found --arch conv"));
        check_resumed("", Some(2), Err("--shards 4 as in the run that is resumed, found --shards 2"));
        check_resumed("--learning-rate 0.30000004", None, Err("--learning-rate 0.3 as"));
        check_resumed("--momentum 0", None, Err("found --momentum 0;"));
        check_resumed(
            "--nesterov",
            None,
            Err("expected no --nesterov as in the run that is resumed, found --nesterov"),
        );
        check_resumed("--no-shuffle", None, Err("expected no --no-shuffle"));
        check_resumed("--noise none", None, Err("--noise dropout:0.5 as"));
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
        let tree: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(&serde_json::from_value::<Recipe>(tree).expect("a recipe"), recipe, "{text}");
    }

    #[test]
    fn odd_values_are_stored_exactly() {
        // The first lies so near the middle of two f32 that its shortest decimal, read as f64, gives the other one.
        let odd = [7.038_531e-26, f32::MIN_POSITIVE, f32::from_bits(1), f32::MAX, 0.1, 1.0 / 3.0, 8.5e7, 1e-45];
        for learning_rate in odd {
            let mut recipe =
                recipe("conv --seed 18446744073709551615 --max-steps 18446744073709551615", 1).expect("a recipe");
            recipe.sgd = Sgd { learning_rate, momentum: learning_rate, nesterov: true };
            recipe.noise = Noise::Gaussian { deviation: learning_rate };
            check_stored(&recipe);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn every_value_is_stored_exactly(bits in any::<[u32; 3]>(), seed in any::<u64>(), max_steps in any::<Option<u64>>()) {
            let [learning_rate, momentum, deviation] = bits.map(|bits| f32::from_bits(bits >> 1)); // at least 0
            let are_finite = [learning_rate, momentum, deviation].iter().all(|value| value.is_finite());
            prop_assume!(are_finite && deviation > 0.0);
            let mut recipe = recipe("denoising", 4).expect("a recipe");
            recipe.sgd = Sgd { learning_rate, momentum, nesterov: false };
            (recipe.noise, recipe.seed, recipe.max_steps) = (Noise::Gaussian { deviation }, seed, max_steps);
            check_stored(&recipe);
        }
    }
}
