//! Where in a run a step lies, and what the run does next. Arithmetic over counts; knows neither workers nor time.

use std::num::NonZeroU32;
use std::ops::Range;

use engine::early_stopping::BestEpoch;
use engine::recipe::Recipe;
use engine::sampler::n_batches;
use engine::sums::Sums;

/// The run's steps, cut into epochs, cut into shards.
#[derive(Clone, Debug)]
pub struct Schedule {
    n_train: u64,
    n_valid: u32,
    evaluation_batch: u32,
    batch_size: u64,
    n_shards: u32,
    steps_per_epoch: u64,
    n_steps: u64,
    patience: Option<NonZeroU32>,
}

/// Where a step lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulePosition {
    /// Epoch, counted from 0.
    pub epoch: u32,
    /// Which step of the epoch, counted from 0.
    pub step_of_epoch: u32,
}

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextRound {
    /// Another step.
    Step,
    /// To validate what was trained since the last validation.
    Validate,
    /// Nothing.
    End,
}

impl Schedule {
    /// The schedule of a recipe on a data set of so many samples for training and validation, the latter evaluated in batches.
    pub fn new(recipe: &Recipe, n_train: u32, n_valid: u32, evaluation_batch: u32) -> Self {
        let batch_size = u64::from(recipe.batch_size.get());
        Self {
            n_train: n_train.into(),
            n_valid,
            evaluation_batch,
            batch_size,
            n_shards: recipe.shards.get(),
            steps_per_epoch: u64::from(n_train).div_ceil(batch_size),
            n_steps: recipe.n_steps(n_train.into()),
            patience: recipe.patience,
        }
    }

    /// Steps of the whole run.
    pub fn n_steps(&self) -> u64 {
        self.n_steps
    }

    /// Shards of each step.
    pub fn n_shards(&self) -> u32 {
        self.n_shards
    }

    /// Batches of the validation split.
    pub fn n_batches(&self) -> u32 {
        n_batches(self.n_valid, self.evaluation_batch)
    }

    /// Where the step after `step` updates lies.
    pub fn position(&self, step: u64) -> SchedulePosition {
        SchedulePosition {
            epoch: as_u32(step / self.steps_per_epoch),
            step_of_epoch: as_u32(step % self.steps_per_epoch),
        }
    }

    /// Samples of a shard of the step after `step` updates. As the sampler cuts it: sizes differ by at most one.
    pub fn shard_samples(&self, step: u64, shard: u32) -> u64 {
        let begun = step % self.steps_per_epoch * self.batch_size;
        let n_samples = self.batch_size.min(self.n_train - begun);
        let cut = |position: u32| n_samples * u64::from(position) / u64::from(self.n_shards);
        cut(shard + 1) - cut(shard)
    }

    /// Samples of a batch of the validation split.
    pub fn batch_samples(&self, batch: u32) -> u64 {
        let (n_valid, evaluation_batch) = (u64::from(self.n_valid), u64::from(self.evaluation_batch));
        evaluation_batch.min(n_valid.saturating_sub(u64::from(batch) * evaluation_batch))
    }

    /// What comes after `step` updates, the last of which gave the sums that are not validated yet, where `best` is the best
    /// epoch so far.
    pub fn next(&self, step: u64, unvalidated: &Sums, best: Option<BestEpoch>) -> NextRound {
        let is_end = step >= self.n_steps || self.is_exhausted(step, best);
        let is_epoch_end = step.is_multiple_of(self.steps_per_epoch);
        match (unvalidated.n_samples > 0, is_end, is_epoch_end) {
            (true, true, _) | (true, _, true) => NextRound::Validate,
            (false, true, _) => NextRound::End,
            (_, false, _) => NextRound::Step,
        }
    }

    /// Whether the best epoch is too long ago for the run to go on after `step` updates, at the end of an epoch.
    pub fn is_exhausted(&self, step: u64, best: Option<BestEpoch>) -> bool {
        let is_epoch_end = step > 0 && step.is_multiple_of(self.steps_per_epoch);
        let found = self.patience.zip(best).filter(|_| is_epoch_end);
        found.is_some_and(|(patience, best)| best.exhausts(patience, self.trained_epoch(step)))
    }

    /// The epoch, counted from 0, that the last of `step` updates was of.
    ///
    /// # Panics
    /// If there was none.
    pub fn trained_epoch(&self, step: u64) -> u32 {
        assert!(step > 0, "an epoch is trained by at least one step");
        self.position(step - 1).epoch
    }

    /// Steps of an epoch, counted from 0, as numbers of updates before each.
    pub fn steps_of(&self, epoch: u32) -> Range<u64> {
        let begun = u64::from(epoch) * self.steps_per_epoch;
        begun..(begun + self.steps_per_epoch).min(self.n_steps)
    }
}

fn as_u32(count: u64) -> u32 {
    u32::try_from(count).expect("epochs, and the steps of one, are counted in u32")
}

#[cfg(test)]
mod tests {
    use engine::sampler::{Order, Sampler};
    use proptest::prelude::*;

    use super::*;
    use crate::training::tests::recipe;

    #[test]
    fn epoch_and_run_end_with_validation() {
        let sums = |n_samples| Sums { n_samples, ..Sums::default() };
        let check = |max_steps, step, n_unvalidated, expected| {
            let recipe = Recipe { max_steps, ..recipe("2 epochs of 10 images in batches of 4, 2 shards") };
            assert_eq!(
                Schedule::new(&recipe, 10, 3, 500).next(step, &sums(n_unvalidated), None),
                expected,
                "step {step}"
            );
        };
        check(None, 0, 0, NextRound::Step);
        check(None, 1, 4, NextRound::Step);
        check(None, 3, 10, NextRound::Validate);
        check(None, 3, 0, NextRound::Step);
        check(None, 6, 10, NextRound::Validate);
        check(None, 6, 0, NextRound::End);
        check(Some(5), 5, 8, NextRound::Validate);
        check(Some(5), 5, 0, NextRound::End);
        check(Some(5), 7, 0, NextRound::End); // a resumed run that is asked for fewer steps than it has
    }

    #[test]
    fn run_ends_when_best_epoch_is_too_long_ago() {
        let recipe =
            Recipe { patience: NonZeroU32::new(2), ..recipe("9 epochs of 10 images in batches of 4, 2 shards") };
        let schedule = Schedule::new(&recipe, 10, 3, 500);
        let check = |step, n_samples, expected| {
            let best = Some(BestEpoch { epoch: 1, val_loss: 0.5 });
            let found = schedule.next(step, &Sums { n_samples, ..Sums::default() }, best);
            assert_eq!(found, expected, "step {step}");
        };
        check(9, 0, NextRound::Step); // one epoch after the best
        check(11, 8, NextRound::Step);
        check(12, 10, NextRound::Validate);
        check(12, 0, NextRound::End); // two
        check(27, 0, NextRound::End);
        assert_eq!(schedule.next(27, &Sums::default(), None), NextRound::End);
        assert_eq!(schedule.next(12, &Sums::default(), None), NextRound::Step);
    }

    proptest! {
        #[test]
        fn shard_sample_count_matches_sampler(n_train in 1_u32..200, batch in 1_u32..40, shards in 1_u32..9) {
            let recipe = recipe(&format!("1 epochs of {n_train} images in batches of {batch}, {shards} shards"));
            let schedule = Schedule::new(&recipe, n_train, 1, 500);
            let sampler = Sampler::new(0, 0, n_train, Order::AsIs, batch as usize, shards as usize);
            for step in 0..sampler.n_steps() {
                for shard in 0..shards {
                    let found = schedule.shard_samples(step as u64, shard);
                    prop_assert_eq!(found, sampler.shard(step, shard as usize).len() as u64);
                }
            }
        }
    }
}
