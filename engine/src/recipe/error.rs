//! Recipes that cannot be followed.

use std::num::NonZeroU32;

use super::SHARDS_MAX;
use crate::optimizer::{Decay, RuleName};

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
