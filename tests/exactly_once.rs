//! Every image of an epoch is computed by one worker, once, however many workers come and go in the middle of it.

use engine::recipe::Recipe;
use serde_json::Value;

use crate::harness::{Run, SHORT_RUN, Stream, TestDir};

/// Images for training: 2,400 without a twelfth.
const N_TRAIN: u32 = 2_200;

/// The images of an epoch, counted from 1, in the order in which they were trained on.
fn images_of_epoch(run: &Run, recipe: &Recipe, epoch: u32) -> Vec<u32> {
    let sampler = recipe.sampler(epoch - 1, N_TRAIN);
    let n_shards = recipe.shards.get() as usize;
    let is_of_epoch = |step: &&Value| step["epoch"] == epoch;
    let steps: Vec<&Value> = run.steps.iter().filter(is_of_epoch).collect();
    assert_eq!(steps.len(), sampler.n_steps());
    let mut images = Vec::new();
    for (step_of_epoch, step) in steps.into_iter().enumerate() {
        let before = images.len();
        for shard in 0..n_shards {
            images.extend_from_slice(sampler.shard(step_of_epoch, shard));
        }
        assert_eq!(step["n_samples"], images.len() - before, "{step}");
    }
    images
}

#[test]
fn each_image_is_computed_once_per_epoch() {
    let dir = TestDir::new();
    let flags = format!("--arch conv {SHORT_RUN} --checkpoint-every 20 --run-dir run");
    let (coordinator, address) = dir.external(&flags);
    let mut workers: Vec<_> = (1..=3).map(|nth| dir.worker(&format!("worker {nth}"), &address)).collect();
    coordinator.wait_for_nth_line(Stream::Err, "worker joined", 3);
    coordinator.wait_for_checkpoint(40);
    workers.remove(0).kill();
    coordinator.wait_for_checkpoint(80);
    workers.push(dir.worker("worker 4", &address));
    coordinator.wait_for_nth_line(Stream::Err, "worker joined", 4);
    coordinator.wait_for_checkpoint(180);
    workers.remove(0).kill();
    let run = dir.run("run", &coordinator.end());

    let recipe = run.recipe();
    let steps: Vec<u64> = run.steps.iter().map(|step| step["step"].as_u64().expect("a step")).collect();
    assert_eq!(steps, (1..=276).collect::<Vec<u64>>());
    for epoch in [1, 2] {
        let mut images = images_of_epoch(&run, &recipe, epoch);
        images.sort_unstable();
        assert_eq!(images, (0..N_TRAIN).collect::<Vec<u32>>(), "the images of epoch {epoch}");
    }

    let workers = run.workers();
    assert!(workers.iter().all(|of_step| of_step.len() == 4), "each shard of each step has one worker");
    let mut known: Vec<u64> = workers.concat();
    known.sort_unstable();
    known.dedup();
    assert_eq!(known, [1, 2, 3, 4], "all that were there took part");
}
