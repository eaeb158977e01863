//! Gradients in half the bytes: rounding to bf16 with error feedback, after Seide et al., "1-Bit Stochastic Gradient
//! Descent" (2014): what rounding takes from one step's gradient is added to the next one's.

use half::bf16;

/// Rounds each value, with what earlier roundings took from its place, to bf16, and keeps what that takes.
///
/// # Panics
/// If the slices' lengths differ.
pub fn round_with_feedback(gradient: &mut [f32], residual: &mut [f32]) {
    assert_eq!(gradient.len(), residual.len(), "every value has its residual");
    for (value, residual) in gradient.iter_mut().zip(residual) {
        let wanted = *value + *residual;
        let rounded = bf16::from_f32(wanted).to_f32();
        *residual = wanted - rounded;
        *value = rounded;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_error_is_added_to_later_steps() {
        let value = 1.0 + 1.0 / 1024.0; // an eighth of bf16's step at 1: rounded away by itself
        let (mut sum, mut residual) = (0.0_f64, [0.0]);
        for _ in 0..1024 {
            let mut gradient = [value];
            round_with_feedback(&mut gradient, &mut residual);
            assert_eq!(gradient[0].to_bits() & 0xFFFF, 0, "{} is a bf16", gradient[0]);
            sum += f64::from(gradient[0]);
        }
        assert!((sum - 1025.0).abs() <= 1.0 / 128.0, "{sum}");
    }
}
