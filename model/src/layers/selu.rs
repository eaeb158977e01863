//! The scaled exponential linear unit.

use burn::tensor::Tensor;

/// α and λ of Klambauer et al., "Self-Normalizing Neural Networks", 2017, as Keras has them.
pub(super) const ALPHA: f64 = 1.673_263_242_354_377_2;
pub(super) const SCALE: f64 = 1.050_700_987_355_480_5;

/// SELU, element by element: λx where eˣ rounds to 1 or above, λα(eˣ − 1) below. So the slope is λ at 0, and also a last
/// bit below it: as in TensorFlow, which decides by the output's sign. It matters: the slope jumps there by two thirds.
///
/// Burn's own takes eˣ of the positive side too, so that its gradient is NaN from x = 89 on; here the exponent is
/// bounded first.
pub fn selu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let below = x.clone().clamp_max(0.0).exp().sub_scalar(1.0); // from -1 to 0
    let is_below = below.clone().lower_elem(0.0);
    x.mul_scalar(SCALE).mask_where(is_below, below.mul_scalar(ALPHA * SCALE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::backend::reference_device;

    #[test]
    fn selu_and_gradient_are_correct_at_extreme_inputs() {
        let device = reference_device().autodiff();
        let x = Tensor::<1>::from_floats([-200.0, -1.0, 0.0, 1.0, 200.0], &device).require_grad();
        let y = selu(x.clone());
        let slopes = x.grad(&y.clone().sum().backward()).expect("x takes part").into_data();
        let expected_values = [-1.758_099_3_f32, -1.111_330_7, 0.0, 1.050_701, 210.140_2];
        let expected_slopes = [0.0_f32, 0.646_768_6, 1.050_701, 1.050_701, 1.050_701];
        for (found, expected) in [(y.into_data(), expected_values), (slopes, expected_slopes)] {
            for (a, b) in found.as_slice::<f32>().expect("f32").iter().zip(expected) {
                assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{a} is not {b}");
            }
        }
    }
}
