//! The same bits for any number of threads, and from one run to the next.

mod common;

use engine::backend::{ComputeDevice, reference_device};
use model::arch::Architecture;
use std::sync::Arc;

use engine::data::Split;
use engine::random::ShardKey;
use model::data::Garments;
use model::task::{initial_params, task_on};

/// The gradient of a shard and the losses of a batch, on so many threads.
fn bits(
    architecture: Architecture,
    data: &Arc<Garments>,
    device: &ComputeDevice,
    n_images: u32,
    n_threads: usize,
) -> Vec<u64> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().expect("threads");
    pool.install(|| {
        let params = initial_params(architecture, 1);
        let task = task_on(architecture, None, Arc::clone(data)).expect("a data set with images");
        let mut replica = Arc::clone(&task).replica(3, device);
        replica.params_mut().copy_from_slice(&params);
        let samples: Vec<u32> = (0..n_images).collect();
        let mut gradient_sum = vec![f32::NAN; params.len()];
        let sums = replica.shard_result(ShardKey { epoch: 0, step: 0, shard: 0 }, &samples, &mut gradient_sum);
        let evaluated = task.evaluator(&params, device).evaluate_batch(Split::Valid, 1);
        let numbers = [sums.loss_sum.to_bits(), sums.counts[0], evaluated.loss_sum.to_bits(), evaluated.counts[0]];
        gradient_sum.into_iter().map(|value| value.to_bits().into()).chain(numbers).collect()
    })
}

/// The goal: a shard of any number of parts has the same bits on one thread, on two and on three.
#[test]
fn bits_are_independent_of_thread_count() {
    let data = Arc::new(common::garments());
    for architecture in Architecture::ALL {
        let part = u32::try_from(architecture.part()).expect("a few images");
        for n_images in [1, part, part + 1, 3 * part + part / 2] {
            let check = |n_threads| bits(architecture, &data, &reference_device(), n_images, n_threads);
            let alone = check(1);
            for n_threads in [1, 2, 3] {
                assert!(check(n_threads) == alone, "{architecture}, {n_images} images, {n_threads} threads");
            }
        }
    }
}
