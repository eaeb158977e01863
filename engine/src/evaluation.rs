//! The batches in which a split is evaluated, in order, so that losses are added in the same order everywhere.

use crate::data::Split;
use crate::sums::Sums;
use crate::task::{Evaluator, OpenTask};

/// Sums over a whole split. Those of all its batches, added in this order, are these in every bit, whoever computes which.
pub fn evaluate(task: &dyn OpenTask, evaluator: &dyn Evaluator, split: Split) -> Sums {
    let mut total = Sums::default();
    for batch in 0..n_batches(task.n_samples(split), task.spec().evaluation_batch) {
        total.add(evaluator.evaluate_batch(split, batch));
    }
    total
}

/// Batches in which a split of so many samples is evaluated.
pub fn n_batches(n_samples: u32, batch_size: u32) -> u32 {
    n_samples.div_ceil(batch_size)
}

/// The positions of a batch's samples in the split.
pub fn batch_samples(n_samples: u32, batch_size: u32, batch: u32) -> Vec<u32> {
    let start = batch.saturating_mul(batch_size).min(n_samples);
    (start..start.saturating_add(batch_size).min(n_samples)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_cover_every_sample_once_in_order() {
        for n_samples in [0, 1, 499, 500, 501, 5_000, 10_001] {
            let n_batches = n_batches(n_samples, 500);
            let all: Vec<u32> = (0..n_batches).flat_map(|batch| batch_samples(n_samples, 500, batch)).collect();
            assert!(all.iter().copied().eq(0..n_samples), "{n_samples}");
            assert!(batch_samples(n_samples, 500, n_batches).is_empty());
        }
    }
}
