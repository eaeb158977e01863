//! What a shard's result depends on: the parameters, its samples, and with noise every part of its key; nothing else.

mod common;

use model::arch::Architecture;
use model::backend::reference_device;
use model::data::Dataset;
use model::gradients::ShardResult;
use model::layers::Noise;
use model::optimizer::{LrSchedule, Optimizer};
use model::params::initial_params;
use model::random::ShardKey;
use model::recipe::Recipe;
use model::replica::Replica;

const KEY: ShardKey = ShardKey { epoch: 1, step: 2, shard: 3 };

fn result(data: &Dataset, noise: Noise, seed: u64, key: ShardKey) -> ShardResult {
    let count = |value: u32| value.try_into().expect("above 0");
    let recipe = Recipe {
        architecture: Architecture::Denoising,
        epochs: count(1),
        batch_size: count(4),
        shards: count(1),
        optimizer: Optimizer::sgd(1.0, 0.0, false),
        lr_schedule: LrSchedule::default(),
        clip_norm: None,
        noise,
        shuffle: true,
        seed,
        max_steps: None,
        init_from: None,
    };
    let params = initial_params(Architecture::Denoising, 1);
    let mut replica = Replica::new(&recipe, &reference_device());
    replica.load(&params);
    let compute = |replica: &mut Replica| {
        let mut gradient_sum = vec![0.0; params.len()];
        let sums = replica.shard_result(data, key, &[5, 0, 9, 2], &mut gradient_sum);
        ShardResult { gradient_sum, sums }
    };
    let result = compute(&mut replica);
    // Whatever was prepared before: this shard, another one, or other images.
    let other = ShardKey { shard: key.shard + 1, ..key };
    for (key, samples) in [(key, [5, 0, 9, 2]), (other, [5, 0, 9, 2]), (key, [5, 0, 9, 3])] {
        replica.prepare(data, key, &samples);
        assert_eq!(compute(&mut replica), result, "{key:?} and {samples:?} were prepared");
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
fn noise_depends_on_the_seed_and_on_every_part_of_the_key() {
    let data = common::garments();
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
fn without_noise_the_key_does_not_matter() {
    let data = common::garments();
    let plain = result(&data, Noise::None, 42, KEY);
    for (seed, key) in VARIANTS {
        assert_eq!(result(&data, Noise::None, seed, key), plain, "seed {seed}, {key:?}");
    }
}
