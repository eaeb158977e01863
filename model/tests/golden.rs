//! The networks against Keras, number for number: outputs, gradients, 25 steps of training, on every backend there is.

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use engine::backend::ComputeDevice;
use engine::data::Split;
use engine::optimizer::{LrSchedule, Optimizer};
use engine::params::ParamLayout;
use engine::random::ShardKey;
use engine::recipe::Recipe;
use engine::reduce::{average, reduce};
use engine::shard::ShardResult;
use engine::sums::metrics;
use engine::training::{Continuation, ProgressEvent, train};
use engine::weights::Weights;
use model::arch::Architecture;
use model::data::Garments;
use model::layers::Noise;
use model::task::{book_task, task_on};
use model::trained::Trained;
use safetensors::SafeTensors;

/// A file of golden vectors.
struct Golden {
    architecture: Architecture,
    layout: Arc<ParamLayout>,
    learning_rate: f32,
    tensors: HashMap<String, Vec<f32>>,
}

impl Golden {
    fn read(architecture: Architecture) -> Self {
        let path = format!("{}/tests/golden/{architecture}.safetensors", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(Path::new(&path)).expect("golden vectors come with the project");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
        let metadata = header.metadata().clone().expect("golden vectors have metadata");
        let values =
            |data: &[u8]| data.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect();
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        Self {
            architecture,
            layout: Arc::clone(&book_task(architecture).spec().layout),
            learning_rate: metadata["lr"].parse().expect("a learning rate"),
            tensors: file.iter().map(|(name, tensor)| (name.to_owned(), values(tensor.data()))).collect(),
        }
    }

    /// `weights.NAME`, `grads.NAME` or `trained.NAME` for all names, in layout order.
    fn params(&self, group: &str) -> Vec<f32> {
        self.layout
            .entries()
            .iter()
            .flat_map(|entry| self.tensors[&format!("{group}.{}", entry.name)].clone())
            .collect()
    }

    /// The weights before training.
    fn weights(&self) -> Weights {
        let (task, layout) = (self.architecture.name().to_owned(), Arc::clone(&self.layout));
        Weights { task, settings: None, layout, params: self.params("weights"), epoch: None }
    }

    fn value(&self, name: &str) -> f64 {
        f64::from(self.tensors[name][0])
    }

    fn recipe(&self, shards: u32) -> Recipe {
        let count = |value: u32| value.try_into().expect("above 0");
        Recipe {
            task: self.architecture.name().to_owned(),
            settings: serde_json::json!({ "noise": "none" }),
            epochs: count(1),
            batch_size: count(32),
            shards: count(shards),
            optimizer: Optimizer::sgd(self.learning_rate, 0.0, false),
            lr_schedule: LrSchedule::default(),
            clip_norm: None,
            shuffle: false,
            seed: 0,
            max_steps: Some(25),
            patience: None,
            init_from: None,
            init_partial: false,
            init_map: Vec::new(),
        }
    }
}

/// Largest difference of two vectors, relative to the largest value of the expected one.
fn difference(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().all(|value| value.is_finite()), "a value is not finite");
    let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(f64::from(value.abs())));
    let apart = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    apart.fold(0.0, f64::max) / largest
}

fn assert_near(what: &str, found: &[f32], expected: &[f32], bound: f64) {
    let difference = difference(found, expected);
    assert!(difference <= bound, "{what}: {difference:.2e} apart, at most {bound:.0e} expected");
}

/// Checks each tensor of a flat vector by itself.
fn assert_params_near(golden: &Golden, what: &str, found: &[f32], expected: &[f32], bound: f64) {
    for entry in golden.layout.entries() {
        assert_near(&format!("{what} of {}", entry.name), &found[entry.range()], &expected[entry.range()], bound);
    }
}

/// Runs a check for every network on every backend, by fused operations and by plain ones.
fn check(check: fn(&Golden, &Arc<Garments>, &ComputeDevice, &str)) {
    let Some(data) = common::fashion_mnist().map(Arc::new) else { return };
    for (name, device) in common::devices() {
        for architecture in Architecture::ALL {
            let place = format!("{architecture} by {name}");
            check(&Golden::read(architecture), &data, &device, &place);
        }
    }
}

#[test]
fn outputs_and_codes_match_keras() {
    check(|golden, data, device, place| {
        let trained = Trained::new(golden.architecture, &golden.weights(), device);
        let places: Vec<u32> = (0..32).collect();
        let outputs = trained.reconstruct(data.images(Split::Train, &places));
        assert_eq!(outputs.len(), golden.tensors["output"].len());
        for (found, expected) in outputs.iter().zip(&golden.tensors["output"]) {
            assert!((found - expected).abs() <= 1e-5, "output of {place}: {found}, {expected} expected");
        }
        let codes = trained.encode(data.images(Split::Train, &places));
        assert_near(&format!("code of {place}"), &codes, &golden.tensors["code"], 1e-5);
    });
}

fn results(golden: &Golden, data: &Arc<Garments>, device: &ComputeDevice, n_shards: u32) -> ShardResult {
    let task = task_on(golden.architecture, Some(Noise::None), Arc::clone(data)).expect("a data set with images");
    let mut replica = task.replica(0, device);
    replica.params_mut().copy_from_slice(&golden.params("weights"));
    let sampler = golden.recipe(n_shards).sampler(0, 55_000);
    let mut results: Vec<_> = (0..n_shards)
        .map(|shard| {
            let mut gradient_sum = vec![f32::NAN; golden.layout.n_params()];
            let key = ShardKey { epoch: 0, step: 0, shard };
            let sums = replica.shard_result(key, sampler.shard(0, shard as usize), &mut gradient_sum);
            ShardResult { gradient_sum, sums }
        })
        .collect();
    let total = reduce(&mut results);
    average(&mut total.gradient_sum, total.sums.n_samples);
    total.clone()
}

#[test]
fn losses_and_gradients_match_keras() {
    check(|golden, data, device, place| {
        let found = results(golden, data, device, 1);
        let loss = golden.value("loss");
        assert!(
            (found.sums.loss() / loss - 1.0).abs() <= 1e-5,
            "loss of {place}: {}, {loss} expected",
            found.sums.loss()
        );
        let task = book_task(golden.architecture);
        let accuracy = metrics(task.spec().metrics, &found.sums).next().expect("its one metric");
        let expected = golden.value("rounded_accuracy");
        assert!((accuracy - expected).abs() <= 1e-6, "rounded accuracy of {place}: {accuracy}, {expected} expected");
        assert_params_near(golden, &format!("gradient ({place})"), &found.gradient_sum, &golden.params("grads"), 1e-5);
    });
}

#[test]
fn sharded_batch_gradient_matches_whole_batch() {
    check(|golden, data, device, place| {
        let whole = results(golden, data, device, 1);
        for n_shards in [2, 3, 4, 8] {
            let cut = results(golden, data, device, n_shards);
            assert_eq!((cut.sums.n_samples, cut.sums.counts), (32, whole.sums.counts), "{place}");
            assert!((cut.sums.loss() / whole.sums.loss() - 1.0).abs() <= 1e-6, "loss in {n_shards} shards of {place}");
            let what = format!("gradient in {n_shards} shards ({place})");
            assert_params_near(golden, &what, &cut.gradient_sum, &whole.gradient_sum, 1e-5);
        }
    });
}

/// How far a trajectory may be from Keras', relatively.
struct Bounds {
    /// Each step's loss.
    loss: f64,
    /// The weights of one cut of the steps.
    nearest: f64,
    /// Those of every cut.
    farthest: f64,
}

impl Bounds {
    fn of(architecture: Architecture) -> Self {
        match architecture {
            Architecture::Conv => Self { loss: 2e-4, nearest: 2e-4, farthest: 1e-3 },
            Architecture::Recurrent | Architecture::Denoising => Self { loss: 1e-4, nearest: 1e-4, farthest: 1e-4 },
        }
    }
}

/// Trains for the golden 25 steps, checks every loss and the validation, and gives how far the weights are apart.
fn train_like_keras(golden: &Golden, data: &Arc<Garments>, device: &ComputeDevice, n_shards: u32, place: &str) -> f64 {
    let task = task_on(golden.architecture, Some(Noise::None), Arc::clone(data)).expect("a data set with images");
    let (mut losses, mut last_epoch) = (Vec::new(), None);
    let trained = train(&golden.recipe(n_shards), &task, device, golden.weights(), &mut |event| {
        match event {
            ProgressEvent::Step { record, .. } => losses.push(record.loss),
            ProgressEvent::Epoch { record, .. } => last_epoch = Some(record),
        }
        Ok(Continuation::Continue)
    });
    let trained = trained.expect("the run does not diverge").weights.params;

    let bounds = Bounds::of(golden.architecture);
    let expected_losses = &golden.tensors["sgd_losses"];
    assert_eq!(losses.len(), expected_losses.len());
    for (step, (found, &expected)) in losses.iter().zip(expected_losses).enumerate() {
        let apart = (found / f64::from(expected) - 1.0).abs();
        assert!(apart <= bounds.loss, "loss of step {step} of {place}: {found}, {expected} expected");
    }
    let epoch = last_epoch.expect("the run ends with a validation");
    let (loss, accuracy) = (golden.value("trained_val_loss"), golden.value("trained_val_rounded_accuracy"));
    assert!((epoch.val_loss / loss - 1.0).abs() <= 1e-4, "validation of {place}: {}, {loss} expected", epoch.val_loss);
    assert!((epoch.val_metrics.0[0].1 - accuracy).abs() <= 1e-4, "validation of {place}");

    let expected = golden.params("trained");
    let tensors = golden.layout.entries().iter();
    tensors.map(|entry| difference(&trained[entry.range()], &expected[entry.range()])).fold(0.0, f64::max)
}

/// SELU's slope jumps at 0, and a pooling window may have two largest values: of the eight million activations of 25
/// steps of `conv`, one or two lie within a last bit of such a place, so that the order of a sum decides on which side,
/// and at learning rate 1 the two ways are up to 8e-4 of a weight apart. So each cut of `conv`, and Keras, goes one of a
/// few ways, which depend on the CPU's vectors too: every cut must have Keras' losses, and one must have gone a way that
/// stays close to Keras'. The other networks have one way.
#[test]
fn training_for_25_steps_matches_keras() {
    check(|golden, data, device, place| {
        let cuts = [1, 2, 3, 4, 8];
        let apart = cuts.map(|n_shards| train_like_keras(golden, data, device, n_shards, place));
        let highest = apart.iter().copied().fold(0.0, f64::max);
        let lowest = apart.iter().copied().fold(f64::INFINITY, f64::min);
        let Bounds { nearest, farthest, .. } = Bounds::of(golden.architecture);
        assert!(
            lowest <= nearest && highest <= farthest,
            "trained weights of {place}: {apart:?} apart in {cuts:?} shards, {farthest} expected, and {nearest} once"
        );
    });
}
