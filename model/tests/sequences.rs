//! The recurrent network on sequences of other lengths than an image's 28 rows, in use and in training.

mod common;

use engine::backend::ComputeDevice;
use engine::params::load;
use model::arch::{Architecture, Network};
use model::data::Batch;
use model::gradients::{evaluate, shard_result};
use model::images::Images;
use model::task::initial_params;

/// Two sequences of smooth values from 0 to 1.
fn sequences(n_rows: usize) -> Images {
    let n_values = u16::try_from(2 * n_rows * 28).expect("a short sequence");
    let values = (0..n_values).map(|place| 0.5 + 0.5 * (f32::from(place) / 9.0).sin()).collect();
    Images { values, shape: [2, n_rows, 28] }
}

fn network(params: &[f32], device: &ComputeDevice) -> Network {
    load(Network::new(Architecture::Recurrent, 0, device), params, device)
}

/// The slope of the loss along the gradient, by differences, against the gradient's own length.
fn check(n_rows: usize, device: &ComputeDevice) {
    let params = initial_params(Architecture::Recurrent, 5);
    let training_device = device.clone().autodiff();
    let network_with_tape = network(&params, &training_device);
    let mut gradient_sum = vec![0.0; params.len()];
    let batch = Batch { images: sequences(n_rows), noisy: None };
    shard_result(&network_with_tape, batch, &mut gradient_sum, &training_device);
    let length = gradient_sum.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    assert!(length > 1e-3, "{n_rows} rows: the gradient is {length} long");

    let loss_at = |distance: f32| {
        #[expect(clippy::cast_possible_truncation, reason = "a length of the order of 1")]
        let scale = distance / length as f32;
        let moved: Vec<f32> = params.iter().zip(&gradient_sum).map(|(w, g)| w + scale * g).collect();
        evaluate(&network(&moved, device), sequences(n_rows), device).loss_sum
    };
    let slope = (loss_at(0.01) - loss_at(-0.01)) / 0.02;
    assert!((slope / length - 1.0).abs() < 0.01, "{n_rows} rows: slope {slope}, gradient {length} long");
}

#[test]
fn gradients_are_correct_for_any_sequence_length() {
    for (_, device) in common::devices() {
        for n_rows in [1, 2, 5, 28, 40] {
            check(n_rows, &device);
        }
    }
}

#[test]
fn output_sequence_has_input_length() {
    for (_, device) in common::devices() {
        let network = network(&initial_params(Architecture::Recurrent, 5), &device);
        for n_rows in [1, 7, 40] {
            let images = sequences(n_rows).into_tensor(&device);
            assert_eq!(network.logits(images.clone()).dims(), [2, n_rows, 28]);
            assert_eq!(network.code(images).dims(), [2, 30]);
        }
    }
}
