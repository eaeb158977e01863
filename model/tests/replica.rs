//! What a shard's result depends on: the parameters, its samples, and with noise every part of its key; nothing else.

mod common;

use engine::backend::reference_device;
use model::arch::Architecture;
use std::sync::Arc;

use engine::random::ShardKey;
use engine::shard::ShardResult;
use engine::task::Replica;
use model::data::Garments;
use model::layers::Noise;
use model::task::{initial_params, task_on};

const KEY: ShardKey = ShardKey { epoch: 1, step: 2, shard: 3 };

fn result(data: &Arc<Garments>, noise: Noise, seed: u64, key: ShardKey) -> ShardResult {
    let params = initial_params(Architecture::Denoising, 1);
    let task = task_on(Architecture::Denoising, Some(noise), Arc::clone(data)).expect("a data set with images");
    let mut replica = task.replica(seed, &reference_device());
    replica.params_mut().copy_from_slice(&params);
    let compute = |replica: &mut dyn Replica| {
        let mut gradient_sum = vec![0.0; params.len()];
        let sums = replica.shard_result(key, &[5, 0, 9, 2], &mut gradient_sum);
        ShardResult { gradient_sum, sums }
    };
    let result = compute(&mut *replica);
    // Whatever was prepared before: this shard, another one, or other images.
    let other = ShardKey { shard: key.shard + 1, ..key };
    for (key, samples) in [(key, [5, 0, 9, 2]), (other, [5, 0, 9, 2]), (key, [5, 0, 9, 3])] {
        replica.prepare(key, &samples);
        assert_eq!(compute(&mut *replica), result, "{key:?} and {samples:?} were prepared");
    }
    result
}

/// Seeds and keys of which each differs from the first in one thing.
const VARIANTS: [(u64, ShardKey); 5] = [
    (42, KEY),
    (43, KEY),
    (42, ShardKey { epoch: 2, ..KEY }),
    (42, ShardKey { step: 3, ..KEY }),
    (42, ShardKey { shard: 4, ..KEY }),
];

#[test]
fn noise_depends_on_seed_and_every_key_part() {
    let data = Arc::new(common::garments());
    let plain = result(&data, Noise::None, 42, KEY);
    for noise in [Noise::Gaussian { deviation: 0.2 }, Noise::Dropout { rate: 0.5 }] {
        let mut seen = vec![plain.clone()];
        for (seed, key) in VARIANTS {
            let noisy = result(&data, noise, seed, key);
            assert_eq!(noisy, result(&data, noise, seed, key), "{noise}, {key:?}: another replica");
            assert!(!seen.contains(&noisy), "{noise}, seed {seed}, {key:?}: the noise of another shard, or none");
            seen.push(noisy);
        }
    }
}

#[test]
fn result_without_noise_ignores_seed_and_key() {
    let data = Arc::new(common::garments());
    let plain = result(&data, Noise::None, 42, KEY);
    for (seed, key) in VARIANTS {
        assert_eq!(result(&data, Noise::None, seed, key), plain, "seed {seed}, {key:?}");
    }
}
