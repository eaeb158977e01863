//! The evaluation of a whole split: its batches one after the other, so that losses are added in the same order everywhere.

use crate::data::Split;
use crate::sampler::n_batches;
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
