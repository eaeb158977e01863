//! The evaluation of a whole split: its batches one after the other, so that losses are added in the same order everywhere.

use crate::data::Split;
use crate::sampler::n_batches;
use crate::sums::{ImpossibleCount, Sums, check_counts};
use crate::task::{Evaluator, OpenTask};

/// Sums over a whole split. The sums of all its batches, added in this order, equal these in every bit, whichever worker computes
/// which batch.
///
/// # Errors
/// If the task's counts of a batch are impossible.
pub fn evaluate(task: &dyn OpenTask, evaluator: &dyn Evaluator, split: Split) -> Result<Sums, ImpossibleCount> {
    let spec = task.spec();
    let mut total = Sums::default();
    for batch in 0..n_batches(task.n_samples(split), spec.evaluation_batch) {
        let sums = evaluator.evaluate_batch(split, batch);
        check_counts(spec.metrics, &sums, || match split {
            Split::Valid => format!("validation batch {batch}"),
            Split::Train | Split::Test => format!("{split} batch {batch}"),
        })?;
        total.add(sums);
    }
    Ok(total)
}
