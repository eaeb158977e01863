//! A cluster against Keras, number for number: 25 steps of every network, with one worker and with several.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use engine::params::ParamLayout;
use engine::weights::Weights;
use model::arch::Architecture;
use model::task::book_task;
use model::weights::read_any;
use safetensors::SafeTensors;

use crate::harness::{SMALL_DATA, TestDir};

/// A file of golden vectors.
struct Golden {
    architecture: Architecture,
    layout: Arc<ParamLayout>,
    learning_rate: String,
    tensors: HashMap<String, Vec<f32>>,
}

impl Golden {
    fn read(architecture: Architecture) -> Self {
        let path = format!("{}/../model/tests/golden/{architecture}.safetensors", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(Path::new(&path)).expect("golden vectors come with the project");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
        let metadata = header.metadata().clone().expect("golden vectors have metadata");
        let values = |data: &[u8]| data.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        Self {
            architecture,
            layout: Arc::clone(&book_task(architecture).spec().layout),
            learning_rate: metadata["lr"].clone(),
            tensors: file.iter().map(|(name, tensor)| (name.to_owned(), values(tensor.data()))).collect(),
        }
    }

    /// `weights.NAME` or `trained.NAME` for all names, in layout order.
    fn params(&self, group: &str) -> Vec<f32> {
        let names = self.layout.entries().iter().map(|entry| format!("{group}.{}", entry.name));
        names.flat_map(|name| self.tensors[&name].clone()).collect()
    }

    /// How far weights are from Keras' trained ones: the largest difference in a tensor, relative to its largest value.
    fn distance(&self, trained: &[f32]) -> f64 {
        let expected = self.params("trained");
        let tensors = self.layout.entries().iter().map(|entry| {
            let (found, expected) = (&trained[entry.range()], &expected[entry.range()]);
            let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(f64::from(value.abs())));
            let apart = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
            apart.fold(0.0, f64::max) / largest
        });
        tensors.fold(0.0, f64::max)
    }
}

/// Trains with so many workers, checks the loss of every step, and gives how far the weights are from Keras'.
fn train_like_keras(dir: &TestDir, golden: &Golden, n_workers: u32) -> f64 {
    let Golden { architecture, learning_rate, tensors, .. } = golden;
    let run = format!("run-{n_workers}");
    let flags = format!(
        "--arch {architecture} --init-from initial.safetensors --learning-rate {learning_rate} --no-shuffle \
         --noise none --batch-size 32 --max-steps 25 --data small --workers {n_workers}"
    );
    let steps = dir.train(&flags, &run).steps;
    let expected = &tensors["sgd_losses"];
    assert_eq!(steps.len(), expected.len());
    for (step, &expected) in steps.iter().zip(expected) {
        let found = step["loss"].as_f64().expect("a loss");
        let apart = (found / f64::from(expected) - 1.0).abs();
        assert!(apart <= 2e-4, "{architecture}, {n_workers} workers: {expected} expected, found {step}");
    }
    let weights = read_any(&dir.path(&run).join("model.safetensors")).expect("whole weights").1;
    golden.distance(&weights.params)
}

/// As many shards as workers: each number of workers cuts the steps in its own way. The golden vectors' other tests explain
/// why `conv` may go one of several ways, each as good as Keras' own.
fn check(architecture: Architecture, nearest: f64, farthest: f64) {
    let dir = TestDir::new();
    if !SMALL_DATA.is_real {
        return; // reported where the data set was looked for
    }
    let golden = Golden::read(architecture);
    let initial = Weights::new(book_task(architecture).spec(), golden.params("weights"));
    initial.write(&dir.path("initial.safetensors")).expect("the folder can be written");
    let apart = [1, 2, 3, 4].map(|n_workers| train_like_keras(&dir, &golden, n_workers));
    let is_near = apart.iter().any(|&apart| apart <= nearest) && apart.iter().all(|&apart| apart <= farthest);
    assert!(is_near, "{apart:?} from Keras with 1, 2, 3 and 4 workers, {farthest} expected, and {nearest} once");
}

#[test]
fn conv_training_matches_keras() {
    check(Architecture::Conv, 2e-4, 1e-3);
}

#[test]
fn recurrent_training_matches_keras() {
    check(Architecture::Recurrent, 1e-4, 1e-4);
}

#[test]
fn denoising_training_matches_keras() {
    check(Architecture::Denoising, 1e-4, 1e-4);
}
