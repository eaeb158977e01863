//! The reference loop: one process trains alone, with the sampler, shards, reduction order and update that a cluster
//! uses, so that the two can be compared bit for bit.

use std::sync::Arc;
use std::time::Instant;

use crate::backend::ComputeDevice;
use crate::data::Split;
use crate::early_stopping::BestEpoch;
use crate::evaluation::evaluate;
use crate::files::WriteError;
use crate::params::LayoutError;
use crate::random::ShardKey;
use crate::recipe::Recipe;
use crate::reduce::reduce;
use events::{EpochRecord, StepRecord};

use crate::report::{epoch_record, step_record};
use crate::shard::ShardResult;
use crate::sums::{ImpossibleCount, Sums, check_counts};
use crate::task::{AnyTask, Evaluator, OpenTask};
use crate::weights::{Weights, WeightsError, WeightsFile};

/// What a run tells while it goes on.
#[derive(Debug)]
pub enum ProgressEvent<'a> {
    /// An update was applied.
    Step {
        /// Its figures.
        record: StepRecord,
        /// The parameters after it, in layout order.
        params: &'a [f32],
    },
    /// An epoch, or what was trained of it, was validated.
    Epoch {
        /// Its figures.
        record: EpochRecord,
        /// The weights after it.
        weights: &'a Weights,
        /// The same in use.
        evaluator: &'a dyn Evaluator,
    },
}

/// Whether a run goes on after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Continuation {
    /// It does.
    Continue,
    /// This was the last step: what is trained of the epoch is validated, and the run ends.
    Stop,
}

/// Why training ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    /// The loss or the gradient is NaN or infinite.
    #[error(
        "the run diverged: at step {step}, in epoch {epoch}, the {what} is not finite, at learning rate {learning_rate}; \
         try a lower --learning-rate, more --warmup-steps or a --clip-norm"
    )]
    Diverged {
        /// The step, counted from 1.
        step: u64,
        /// The epoch, counted from 1.
        epoch: u32,
        /// Which loss or gradient, and of which shard.
        what: String,
        /// The learning rate, before any schedule.
        learning_rate: f32,
    },
    /// The task counts what cannot be, for which a coordinator evicts each of its workers.
    #[error("{0}; the task's `loss` counts wrongly")]
    Count(#[from] ImpossibleCount),
    /// What listens could not write.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Weights that a run cannot start from.
#[derive(Debug, thiserror::Error)]
pub enum InitialWeightsError {
    /// The file of `--init-from` cannot be used.
    #[error(transparent)]
    File(#[from] WeightsError),
    /// The network that was made has other parameters than before.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// The weights that a recipe starts from: read from its file, or drawn from its seed, or some of both. The text says what came
/// from the file if not all did.
///
/// # Errors
/// If the file cannot be read, is damaged, or holds another network's weights.
pub fn initial_weights(recipe: &Recipe, task: &dyn AnyTask) -> Result<(Weights, Option<String>), InitialWeightsError> {
    let spec = task.spec();
    let drawn = || Ok::<_, InitialWeightsError>(Weights::new(spec, task.initial_params(recipe.seed)?));
    match &recipe.init_from {
        None => Ok((drawn()?, None)),
        Some(path) if recipe.init_partial => {
            let mut weights = drawn()?;
            let n_copied = WeightsFile::read(path)?.copy_known(&spec.layout, &recipe.init_map, &mut weights.params)?;
            let n_tensors = spec.layout.entries().len();
            let others = if n_copied == n_tensors { "" } else { ", others drawn" };
            let text = format!("initial values: {n_copied} of {n_tensors} tensors from {}{others}", path.display());
            Ok((weights, Some(text)))
        }
        Some(path) => Ok((Weights::read_of(spec.name, &spec.layout, path)?, None)),
    }
}

/// What a run has come to.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// The weights after its last step.
    pub weights: Weights,
    /// The epoch with the lowest validation loss.
    pub best: Option<BestEpoch>,
    /// Whether it ended since that epoch was too long ago.
    pub has_stopped_early: bool,
}

/// Trains along the recipe from the weights given, and gives what comes out. `device` is without autodiff. Every event
/// goes to `listen`, which may end the run.
///
/// # Errors
/// If the run diverges, or `listen` fails.
pub fn train(
    recipe: &Recipe,
    task: &Arc<dyn OpenTask>,
    device: &ComputeDevice,
    weights: Weights,
    listen: &mut dyn FnMut(ProgressEvent) -> Result<Continuation, TrainingError>,
) -> Result<Trained, TrainingError> {
    let (spec, n_samples) = (task.spec(), task.n_samples(Split::Train));
    let n_params = weights.params.len();
    let (mut slots, rates) = (recipe.optimizer.slots(n_params), recipe.learning_rates(n_samples.into()));
    let mut replica = Arc::clone(task).replica(recipe.seed, device);
    replica.params_mut().copy_from_slice(&weights.params);
    let mut buffers: Vec<Vec<f32>> = (0..recipe.shards.get()).map(|_| vec![0.0; n_params]).collect();
    let mut n_steps: u64 = 0;
    let (mut best, mut has_stopped_early) = (None, false);

    for epoch in 0..recipe.epochs.get() {
        let epoch_begun = Instant::now();
        let sampler = recipe.sampler(epoch, n_samples);
        let mut epoch_sums = Sums::default();
        let mut next = Continuation::Continue;
        for step in 0..sampler.n_steps() {
            let step_begun = Instant::now();
            let mut results = Vec::with_capacity(buffers.len());
            for (shard, mut gradient_sum) in (0..).zip(buffers.drain(..)) {
                let key = ShardKey { epoch, step: n_steps, shard };
                let samples = sampler.shard(step, shard as usize);
                let sums = replica.shard_result(key, samples, &mut gradient_sum);
                let result = ShardResult { gradient_sum, sums };
                check_finite(&result, key, recipe)?;
                check_counts(spec.metrics, &sums, || format!("shard {shard}"))?;
                results.push(result);
            }
            let total = reduce(&mut results);
            // Each shard's was looked at; that their sum is finite shows in the next losses.
            recipe.average_gradient(&mut total.gradient_sum, total.sums.n_samples);
            let rate = rates.at(n_steps);
            let is_finite = recipe.optimizer.apply(rate, replica.params_mut(), &mut slots, 0, &total.gradient_sum);
            if !is_finite {
                return Err(diverged(n_steps + 1, epoch, "second moment of the optimizer".to_owned(), recipe));
            }
            let sums = total.sums;
            buffers.extend(results.into_iter().map(|result| result.gradient_sum));

            n_steps += 1;
            epoch_sums.add(sums);
            let record = step_record(spec, n_steps, epoch + 1, &sums, step_begun.elapsed());
            next = listen(ProgressEvent::Step { record, params: replica.params() })?;
            if recipe.max_steps == Some(n_steps) {
                next = Continuation::Stop;
            }
            if next == Continuation::Stop {
                break;
            }
        }
        let seconds_training = epoch_begun.elapsed();
        let weights = Weights::new(spec, replica.params().to_vec());
        let evaluator = Arc::clone(task).evaluator(&weights.params, device);
        let validation = evaluate(&**task, &*evaluator, Split::Valid)?;
        if !validation.loss_sum.is_finite() {
            return Err(diverged(n_steps, epoch, "validation loss".to_owned(), recipe));
        }
        let before = best;
        best = BestEpoch::after(before, epoch, validation.loss());
        let record = EpochRecord {
            is_best: best != before,
            ..epoch_record(spec, n_steps, epoch + 1, &epoch_sums, &validation, seconds_training)
        };
        let after_epoch = listen(ProgressEvent::Epoch { record, weights: &weights, evaluator: &*evaluator })?;
        if next == Continuation::Stop || after_epoch == Continuation::Stop {
            break;
        }
        let is_exhausted = |patience| best.is_some_and(|best: BestEpoch| best.exhausts(patience, epoch));
        if epoch + 1 < recipe.epochs.get() && recipe.patience.is_some_and(is_exhausted) {
            has_stopped_early = true;
            break;
        }
    }
    let weights = Weights::new(spec, replica.params().to_vec());
    Ok(Trained { weights, best, has_stopped_early })
}

fn check_finite(result: &ShardResult, key: ShardKey, recipe: &Recipe) -> Result<(), TrainingError> {
    let what = if !result.sums.loss_sum.is_finite() {
        "loss"
    } else if !result.gradient_sum.iter().fold(true, |is_finite, value| is_finite & value.is_finite()) {
        "gradient"
    } else {
        return Ok(());
    };
    Err(diverged(key.step + 1, key.epoch, format!("{what} of shard {}", key.shard), recipe))
}

/// The step is counted from 1, the epoch from 0.
fn diverged(step: u64, epoch: u32, what: String, recipe: &Recipe) -> TrainingError {
    TrainingError::Diverged { step, epoch: epoch + 1, what, learning_rate: recipe.optimizer.learning_rate }
}
