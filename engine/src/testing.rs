//! For tests of tasks: contexts to call a task's functions with, and a check of what the engine relies on.

use crate::backend::{ComputeDevice, reference_device};
use crate::data::{Dataset, Split};
use crate::params::{ParamLayout, load};
use crate::random::{ShardKey, lock_generator};
use crate::sums::{Sums, check_counts};
use crate::task::{BoxError, Context, Task, TaskEntry, Tasks};

const SEED: u64 = 42;
/// Samples that [`check`] computes with, from both ends of the training split.
const N_SAMPLES_MAX: usize = 6;
/// How far a sum over parts may be from that over the whole, relatively: f32 rounds differently in batches of other sizes.
const TOLERANCE: f64 = 1e-3;

/// The context of a shard in training: the first one of a run with the seed 42.
pub fn training_context(device: &ComputeDevice, n_samples: usize) -> Context<'_> {
    Context::training(device, SEED, shard_key(0), n_samples)
}

/// The context of a batch in evaluation: the first one of the validation split.
pub fn evaluation_context(device: &ComputeDevice, n_samples: usize) -> Context<'_> {
    Context::evaluation(device, Split::Valid, 0, n_samples)
}

fn shard_key(step: u64) -> ShardKey {
    ShardKey { epoch: 0, step, shard: 0 }
}

/// Checks on a few training samples what the engine relies on: settings that can be stored, a network that can be trained, a
/// gradient that is the same each time, losses, counts and gradients of shards that add up to those of a batch, and counts that are
/// possible. Where a task draws random numbers, only what does not depend on them is compared.
///
/// # Errors
/// A sentence about the first thing that is not as it should be.
///
/// # Panics
/// As [`TaskEntry::new`].
pub fn check<T: Task>(task: T, data: T::Data) -> Result<(), BoxError> {
    let settings = serde_json::to_value(&task)?;
    // Checked, and as a worker reads it.
    let known = Tasks::new([TaskEntry::new(task)]).build(T::NAME, &settings)?;
    let task: T = serde_json::from_value(known.spec().settings.clone())?;
    let n_train = u32::try_from(data.len(Split::Train))?;
    let n_ends = u32::try_from(N_SAMPLES_MAX / 2)?;
    let samples: Vec<u32> =
        (0..n_train).filter(|&sample| sample < n_ends || sample >= n_train - n_ends.min(n_train)).collect();
    if samples.is_empty() {
        return Err("expected samples to train on, found none".into());
    }
    let params = known.initial_params(SEED)?;
    for mode in [Mode::Training, Mode::Evaluation] {
        let device = match mode {
            Mode::Training => reference_device().autodiff(),
            Mode::Evaluation => reference_device(),
        };
        let network = {
            let _alone = lock_generator();
            load(task.network(&device, SEED), &params, &device)
        };
        Trial { task: &task, data: &data, layout: &known.spec().layout, network, device, mode }.check(&samples)?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Mode {
    Training,
    Evaluation,
}

/// A network in one mode, to be tried on samples.
struct Trial<'a, T: Task> {
    task: &'a T,
    data: &'a T::Data,
    layout: &'a ParamLayout,
    network: T::Network,
    device: ComputeDevice,
    mode: Mode,
}

/// What some samples give; no gradient in evaluation.
#[derive(PartialEq)]
struct Found {
    sums: Sums,
    gradient: Vec<f32>,
}

impl<T: Task> Trial<'_, T> {
    fn check(&self, samples: &[u32]) -> Result<(), BoxError> {
        let whole = self.compute(0, samples);
        if !whole.sums.loss_sum.is_finite() || whole.gradient.iter().any(|value| !value.is_finite()) {
            return Err(format!("expected a finite loss and gradient, found the loss {}", whole.sums.loss_sum).into());
        }
        check_counts(T::METRICS, &whole.sums, || format!("a batch of {} samples", samples.len()))?;
        let drawn_otherwise = self.compute(1, samples);
        let again = self.compute(0, samples);
        if again != whole {
            let places = again
                .gradient
                .iter()
                .zip(&whole.gradient)
                .position(|(again, first)| again.to_bits() != first.to_bits());
            let entry =
                places.and_then(|place| self.layout.entries().iter().find(|entry| entry.range().contains(&place)));
            let what = entry.map_or("loss or counts".to_owned(), |entry| format!("gradient of {}", entry.name));
            return Err(format!(
                "expected the same bits when samples are computed again, found another {what}: `gather`, `augment` and `loss` may \
                 depend on their arguments, the settings and the data set alone"
            )
            .into());
        }
        let is_random = drawn_otherwise != whole;
        if samples.len() > 1 && !is_random { self.check_parts(samples, &whole) } else { Ok(()) }
    }

    /// Whether two parts, in another order, add up to the whole.
    fn check_parts(&self, samples: &[u32], whole: &Found) -> Result<(), BoxError> {
        let (first, second) = samples.split_at(samples.len() / 2);
        let first: Vec<u32> = first.iter().rev().copied().collect();
        let [first, second] = [&first[..], second].map(|part| self.compute(0, part));
        let mut sums = first.sums;
        sums.add(second.sums);
        let is_near = |found: f64, expected: f64, scale: f64| (found - expected).abs() <= TOLERANCE * scale + 1e-6;
        if !is_near(whole.sums.loss_sum, sums.loss_sum, sums.loss_sum.abs()) {
            return Err(format!(
                "expected the loss of {} samples as the sum over two parts of them, {}, found {}: `Loss::sum` takes the sum of the \
                 samples' losses, `Loss::mean` their mean and how many they are",
                samples.len(),
                sums.loss_sum,
                whole.sums.loss_sum
            )
            .into());
        }
        for (position, (found, expected)) in whole.sums.counts.into_iter().zip(sums.counts).enumerate() {
            #[expect(clippy::cast_precision_loss, reason = "they are compared with a tolerance")]
            let [found_number, expected_number] = [found as f64, expected as f64];
            if !is_near(found_number, expected_number, expected_number) {
                return Err(format!(
                    "expected count {position} of {} samples as the sum over two parts of them, {expected}, found {found}",
                    samples.len()
                )
                .into());
            }
        }
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
        let added = || first.gradient.iter().zip(&second.gradient).map(|(a, b)| f64::from(*a) + f64::from(*b));
        let difference = norm(&mut whole.gradient.iter().zip(added()).map(|(found, added)| f64::from(*found) - added));
        let size = norm(&mut added());
        if !is_near(difference, 0.0, size) {
            return Err(format!(
                "expected the gradient of {} samples as the sum over two parts of them, of norm {size}, found one that is {difference} \
                 away: a sample's loss may not depend on the others of its batch",
                samples.len()
            )
            .into());
        }
        Ok(())
    }

    /// As a worker computes a shard of a step, or a batch of the evaluation.
    fn compute(&self, step: u32, samples: &[u32]) -> Found {
        let Self { task, data, network, device, .. } = self;
        let batch = data.gather(Split::Train, samples);
        match self.mode {
            Mode::Training => {
                let context = Context::training(device, SEED, shard_key(step.into()), samples.len());
                let mut gradient = vec![f32::NAN; self.layout.n_params()];
                let sums = task.gradient(network, task.augment(batch, &context), &context, &mut gradient);
                Found { sums, gradient }
            }
            Mode::Evaluation => {
                let context = Context::evaluation(device, Split::Train, step, samples.len());
                Found { sums: task.evaluate(network, batch, &context), gradient: Vec::new() }
            }
        }
    }
}
