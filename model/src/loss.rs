//! Binary cross-entropy and rounded accuracy of reconstructions, from the logits, so that no logit is too large.

use burn::tensor::Tensor;
use burn::tensor::activation::sigmoid;
use engine::sums::{Sums, counts};

/// The sums of a batch, and what its loss pulls at each logit.
pub(crate) struct BatchLoss {
    /// Sum over the samples of the mean binary cross-entropy of each one's pixels, in nats; correct pixels.
    pub sums: Sums,
    /// Gradient of the sum over samples of the mean over pixels with respect to the logits, (σ(z) − x) / pixels:
    /// [batch, rows, columns].
    pub logits_gradient: Tensor<3>,
}

/// Compares logits with targets, both [batch, rows, columns], targets from 0 to 1, both without autodiff.
///
/// The loss of a pixel with logit z and target x is max(z, 0) − z x + ln(1 + e^−|z|): finite for any finite z.
pub(crate) fn binary_cross_entropy(logits: Tensor<3>, targets: Tensor<3>) -> BatchLoss {
    let [n_samples, n_rows, n_columns] = logits.dims();
    let n_pixels = n_rows * n_columns;

    let softplus = logits.clone().abs().neg().exp().log1p();
    let pixels = logits.clone().clamp_min(0.0) - logits.clone() * targets.clone() + softplus;
    let losses: Tensor<2> = pixels.reshape([n_samples, n_pixels]).mean_dim(1); // [batch, 1]

    let outputs = sigmoid(logits);
    // An output of exactly 0.5 rounds to 0, as does a target.
    let is_correct = outputs.clone().greater_elem(0.5).equal(targets.clone().greater_elem(0.5));
    let n_correct = is_correct.int().sum(); // [1]

    let logits_gradient = (outputs - targets).div_scalar(u32::try_from(n_pixels).unwrap_or(u32::MAX));
    let loss_sum = losses.into_data().iter::<f32>().map(f64::from).sum();
    let correct_sum = n_correct.into_data().iter::<u64>().sum();
    let sums = Sums { loss_sum, counts: counts(&[correct_sum]), n_samples: n_samples as u64 };
    BatchLoss { sums, logits_gradient }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::backend::reference_device;

    fn check(logit: f32, target: f32, loss: f64, gradient: f32, is_correct: bool) {
        let device = reference_device();
        let tensor = |value: f32| Tensor::<3>::from_floats([[[value]]], &device);
        let found = binary_cross_entropy(tensor(logit), tensor(target));
        let found_gradient = found.logits_gradient.into_data().as_slice::<f32>().expect("f32")[0];
        assert!((found.sums.loss_sum - loss).abs() <= 1e-6 * loss.max(1e-3), "loss {} at {logit}", found.sums.loss_sum);
        assert!((found_gradient - gradient).abs() <= 1e-6, "gradient {found_gradient} at {logit}");
        assert_eq!(found.sums.counts[0] == 1, is_correct, "rounding at {logit}");
    }

    #[test]
    fn loss_is_finite_and_correct_at_extreme_logits() {
        check(0.0, 0.0, std::f64::consts::LN_2, 0.5, true); // 0.5 rounds to 0
        check(0.0, 1.0, std::f64::consts::LN_2, -0.5, false);
        check(2.0, 1.0, 0.126_928_011, -0.119_202_92, true);
        check(-2.0, 0.25, 0.626_928_011, -0.130_797_08, true);
        check(100.0, 1.0, 0.0, 0.0, true);
        check(100.0, 0.0, 100.0, 1.0, false);
        check(-1e4, 1.0, 1e4, -1.0, false);
        check(1e4, 0.0, 1e4, 1.0, false);
        check(3e38, 0.0, f64::from(3e38_f32), 1.0, false);
        check(-3e38, 0.0, 0.0, 0.0, true);
    }

    #[test]
    fn batch_sums_add_up_to_whole() {
        let device = reference_device();
        let sums = |values: Vec<f32>| {
            let n_samples = values.len() / 2;
            let logits = Tensor::<1>::from_floats(values.as_slice(), &device).reshape([n_samples, 1, 2]);
            binary_cross_entropy(logits.clone(), logits.abs()).sums
        };
        let mut parts = sums(vec![0.1, -0.7]);
        parts.add(sums(vec![0.3, 0.9, -0.2, 0.8]));
        let whole = sums(vec![0.1, -0.7, 0.3, 0.9, -0.2, 0.8]);
        assert!((parts.loss_sum - whole.loss_sum).abs() < 1e-9);
        assert_eq!((parts.counts, parts.n_samples), (whole.counts, whole.n_samples));
        // Targets above 0.5, and so 1: 0.7, 0.9, 0.8; logits above 0, and so 1: 0.1, 0.3, 0.9, 0.8. Three agree.
        assert_eq!(whole.counts[0], 3, "{whole:?}");
    }
}
