//! That no bit changes without the [numerics revision](engine::numerics::REVISION).

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write;
    use std::sync::Arc;

    use engine::backend::{Operations, reference_device, vector_level};
    use engine::data::Split;
    use engine::numerics::REVISION;
    use engine::params::little_endian;
    use engine::random::ShardKey;
    use engine::recipe::{Recipe, RecipeArgs};
    use engine::reduce::{average, reduce};
    use engine::shard::ShardResult;

    use crate::arch::Architecture;
    use crate::data::{DataChoice, DownloadBar, Garments, open};
    use crate::layers::fused::HALF_VECTORS;
    use crate::task::{book_task, initial_params, task_on};

    const N_STEPS: u64 = 3;
    const N_SHARDS: u32 = 2;

    /// Revision → width of vectors → network → hash.
    type Golden = BTreeMap<u32, BTreeMap<String, BTreeMap<String, String>>>;

    fn recipe(architecture: Architecture) -> Recipe {
        let args = RecipeArgs {
            batch_size: Some(32),
            momentum: Some(0.5),
            nesterov: true,
            seed: Some(7),
            max_steps: Some(N_STEPS),
            ..RecipeArgs::default()
        };
        Recipe::new(args, book_task(architecture).spec(), N_SHARDS).expect("the book's recipe with momentum")
    }

    /// The hash of every number that a short run and a batch of its validation give.
    fn short_run(architecture: Architecture, data: &Arc<Garments>) -> String {
        let (recipe, device) = (recipe(architecture), reference_device().with_operations(Operations::Fused));
        let mut hasher = blake3::Hasher::new();
        let mut params = initial_params(architecture, recipe.seed);
        let mut slots = recipe.optimizer.slots(params.len());
        let task = task_on(architecture, None, Arc::clone(data)).expect("a data set with images");
        let mut replica = Arc::clone(&task).replica(recipe.seed, &device);
        let n_samples = task.n_samples(Split::Train);
        let (sampler, rates) = (recipe.sampler(0, n_samples), recipe.learning_rates(n_samples.into()));
        for step in 0..N_STEPS {
            replica.params_mut().copy_from_slice(&params);
            let mut results: Vec<ShardResult> = (0..N_SHARDS)
                .map(|shard| {
                    let key = ShardKey { epoch: 0, step, shard };
                    let samples = sampler.shard(usize::try_from(step).expect("a few steps"), shard as usize);
                    let mut gradient_sum = vec![0.0; params.len()];
                    let sums = replica.shard_result(key, samples, &mut gradient_sum);
                    hasher.update(&sums.loss_sum.to_le_bytes()).update(&sums.counts[0].to_le_bytes());
                    hasher.update(&little_endian(&gradient_sum));
                    ShardResult { gradient_sum, sums }
                })
                .collect();
            let total = reduce(&mut results);
            average(&mut total.gradient_sum, total.sums.n_samples);
            let rate = rates.at(step);
            recipe.optimizer.apply(rate, &mut params, &mut slots, 0, &total.gradient_sum);
            hasher.update(&little_endian(&params));
        }
        let sums = task.evaluator(&params, &device).evaluate_batch(Split::Valid, 0);
        hasher.update(&sums.loss_sum.to_le_bytes()).update(&sums.counts[0].to_le_bytes());
        hasher.finalize().to_hex().to_string()
    }

    /// The hashes of all networks, computed on one thread with vectors of half the CPU's width or of all of it.
    fn hashes(data: &Arc<Garments>, takes_half_vectors: bool) -> BTreeMap<String, String> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
        pool.install(|| {
            HALF_VECTORS.set(takes_half_vectors);
            Architecture::ALL
                .iter()
                .map(|architecture| (architecture.to_string(), short_run(*architecture, data)))
                .collect()
        })
    }

    /// The goal: no bit changes without a new revision number. Every x86-64 CPU since 2013 has vectors of 256 bits, and
    /// wider ones are computed on as those are, so that this compares wherever programs are built.
    #[test]
    fn bits_of_short_run_change_only_with_revision() {
        let golden = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/numerics.json"));
        let golden: Golden = serde_json::from_slice(&golden.expect("it comes with the project")).expect("hashes");
        let data = open(&DataChoice::Synthetic, &mut DownloadBar::default()).expect("garments are drawn, not fetched");
        let data = Arc::new(data);
        let levels: &[(&str, bool)] = match vector_level() {
            "avx512" => &[("avx2", true), ("avx512", false)],
            level => &[(level, false)],
        };
        for &(level, takes_half_vectors) in levels {
            let found = hashes(&data, takes_half_vectors);
            let json = serde_json::to_string_pretty(&found).expect("texts");
            match golden.get(&REVISION).and_then(|levels| levels.get(level)) {
                Some(expected) => assert_eq!(
                    &found, expected,
                    "the bits are not those of revision {REVISION} on {level}; if they are meant to change, raise REVISION in \
                     engine/src/numerics.rs and add these under its number, as `{level}`, to \
                     model/tests/golden/numerics.json:\n{json}"
                ),
                None if level == "avx2" => panic!(
                    "expected the hashes of revision {REVISION} on {level} in model/tests/golden/numerics.json, found none; \
                     add:\n{json}"
                ),
                // Not through the print macros, which the test runner keeps back.
                None => drop(writeln!(
                    std::io::stderr(),
                    "skipped: no golden hashes of revision {REVISION} on {level}; add to model/tests/golden/numerics.json, as \
                     `{level}`:\n{json}"
                )),
            }
        }
    }
}
