//! What is trained, in place of a network and its data, and the run as it goes when nothing disturbs it: a plain loop that
//! knows no core.

use engine::early_stopping::BestEpoch;
use engine::optimizer::{LearningRates, clip_norm};
use engine::params::params_fingerprint;
use engine::recipe::Recipe;
use engine::reduce::{average, reduce};
use engine::shard::ShardResult;
use engine::sums::{COUNTS_MAX, Sums, counts};
use half::bf16;
use proto::v1::Encoding;

use coordinator::training::{Rounding, Rules, SchedulePosition, State};

/// What every worker knows: how many samples are where, and what comes out of them.
pub struct Problem {
    pub recipe: Recipe,
    pub rates: LearningRates,
    pub rounding: Rounding,
    pub encoding: Encoding,
    /// Samples of each shard, by step of an epoch.
    pub shard_samples: Vec<Vec<u64>>,
    /// Samples of each batch of the validation split.
    pub batch_samples: Vec<u64>,
}

impl Problem {
    pub fn new(rules: &Rules) -> Self {
        let sampler = rules.recipe.sampler(0, rules.n_train);
        let shards = 0..rules.recipe.shards.get() as usize;
        let of_step = |step| shards.clone().map(|shard| sampler.shard(step, shard).len() as u64).collect();
        let mut n_left = u64::from(rules.n_valid);
        let mut batch_samples = Vec::new();
        while n_left > 0 {
            batch_samples.push(n_left.min(500));
            n_left -= n_left.min(500);
        }
        Self {
            recipe: rules.recipe.clone(),
            rates: rules.recipe.learning_rates(rules.n_train.into()),
            rounding: rules.rounding,
            encoding: match rules.rounding {
                Rounding::None => Encoding::F32,
                Rounding::Bf16 => Encoding::Bf16,
            },
            shard_samples: (0..sampler.n_steps()).map(of_step).collect(),
            batch_samples,
        }
    }

    /// The result of a shard: a pure function of the parameters and of its place. Its numbers are of such different size that
    /// each order of addition gives other bits.
    pub fn shard(&self, params: &[f32], position: SchedulePosition, step: u64, shard: u32) -> ShardResult {
        let n_samples = self.shard_samples[position.step_of_epoch as usize][shard as usize];
        if n_samples == 0 {
            return ShardResult { gradient_sum: vec![0.0; params.len()], sums: Sums::default() };
        }
        let key = [1, params_fingerprint(params), position.epoch.into(), step, shard.into()];
        let value = |(nth, param): (u64, &f32)| {
            let [a, b, power, ..] = mixed(&[key.as_slice(), &[nth]].concat()).to_le_bytes();
            let mantissa = f32::from(u16::from_le_bytes([a, b])) / 65_536.0 - 0.5;
            let value = mantissa.mul_add(10_f32.powi(i32::from(power % 9) - 4), 0.01 * param);
            match self.rounding {
                Rounding::None => value,
                Rounding::Bf16 => bf16::from_f32(value).to_f32(),
            }
        };
        let gradient_sum = (0..).zip(params).map(value).collect();
        ShardResult { gradient_sum, sums: sums(&key, n_samples) }
    }

    /// The losses of a batch of the validation split.
    pub fn batch(&self, params: &[f32], step: u64, batch: u32) -> Sums {
        sums(&[2, params_fingerprint(params), step, batch.into()], self.batch_samples[batch as usize])
    }
}

/// Parts of a sample that the metric of the drawn rules is a share of.
const N_PIXELS: u64 = 784;

fn sums(key: &[u64], n_samples: u64) -> Sums {
    let [a, b, power, ..] = mixed(&[key, &[u64::MAX]].concat()).to_le_bytes();
    let loss_sum = f64::from(u16::from_le_bytes([a, b])) / 3.0 * 10_f64.powi(i32::from(power % 7) - 3);
    Sums { loss_sum, counts: counts(&[u64::from(a) * n_samples * N_PIXELS / 255]), n_samples }
}

/// Numbers stirred into one, as `SplitMix64` does it.
fn mixed(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0, |sum, &number| {
        let mut z = (sum ^ number).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

/// What an undisturbed run comes to.
pub struct Reference {
    /// The state after so many updates; its sums are those of the epoch up to there, before they are validated.
    pub states: Vec<State>,
    /// The losses of each step, that after `n` updates at place `n`.
    pub step_sums: Vec<Sums>,
    /// Each epoch's end: updates, and the losses of the validation.
    pub validations: Vec<(u64, Sums)>,
    /// The best epoch after so many validations.
    pub best: Vec<Option<BestEpoch>>,
}

impl Reference {
    pub fn new(problem: &Problem, initial: &State) -> Self {
        let recipe = &problem.recipe;
        let (mut states, mut step_sums, mut validations) = (vec![initial.clone()], Vec::new(), Vec::new());
        let mut best: Vec<Option<BestEpoch>> = vec![None];
        let mut state = initial.clone();
        let n_steps_max = recipe.max_steps.unwrap_or(u64::MAX);
        for epoch in 0..recipe.epochs.get() {
            if state.step == n_steps_max {
                break;
            }
            state.epoch_sums = Sums::default();
            for step_of_epoch in (0..).take(problem.shard_samples.len()) {
                if state.step == n_steps_max {
                    break;
                }
                let position = SchedulePosition { epoch, step_of_epoch };
                let shard = |shard| problem.shard(&state.params, position, state.step, shard);
                let mut results: Vec<ShardResult> = (0..recipe.shards.get()).map(shard).collect();
                let ShardResult { gradient_sum, sums } = reduce(&mut results);
                average(gradient_sum, sums.n_samples);
                if let Some(norm_max) = recipe.clip_norm {
                    clip_norm(gradient_sum, norm_max);
                }
                if problem.rounding == Rounding::Bf16 {
                    for (value, residual) in gradient_sum.iter_mut().zip(&mut state.residual) {
                        let wanted = *value + *residual;
                        *value = bf16::from_f32(wanted).to_f32();
                        *residual = wanted - *value;
                    }
                }
                let rate = problem.rates.at(state.step);
                recipe.optimizer.apply(rate, &mut state.params, &mut state.slots, 0, gradient_sum);
                state.step += 1;
                state.epoch_sums.add(*sums);
                step_sums.push(*sums);
                states.push(state.clone());
            }
            let mut validation = Sums::default();
            for batch in (0..).take(problem.batch_samples.len()) {
                validation.add(problem.batch(&state.params, state.step, batch));
            }
            validations.push((state.step, validation));
            let (val_loss, lowest) = (validation.loss(), state.best.map_or(f64::INFINITY, |best| best.val_loss));
            if val_loss < lowest {
                state.best = Some(BestEpoch { epoch, val_loss });
            }
            best.push(state.best);
            let n_worse = state.best.map_or(0, |best| epoch - best.epoch);
            if recipe.patience.is_some_and(|patience| n_worse >= patience.get()) {
                break;
            }
        }
        Self { states, step_sums, validations, best }
    }

    pub fn last(&self) -> &State {
        self.states.last().expect("a run begins with a state")
    }
}

/// Losses as bits.
pub fn bits(sums: &Sums) -> (u64, [u64; COUNTS_MAX], u64) {
    (sums.loss_sum.to_bits(), sums.counts, sums.n_samples)
}

/// Numbers as bits.
pub fn all_bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
