//! Gradients of bounded length, as `torch.nn.utils.clip_grad_norm_` makes them.

/// Values that are added side by side.
const N_LANES: usize = 8;
/// What PyTorch adds to the norm, so that nothing is divided by zero.
const EPSILON: f64 = 1e-6;

/// Shortens a gradient to a Euclidean norm if it is longer; gives the norm that it had. Sums are in f64 and of a fixed order, so
/// that the same bits come out everywhere.
#[expect(clippy::cast_possible_truncation, reason = "gradients are f32")]
pub fn clip_norm(gradient: &mut [f32], norm_max: f64) -> f64 {
    let mut lanes = [0.0_f64; N_LANES];
    let (chunks, rest) = gradient.as_chunks::<N_LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(*value) * f64::from(*value);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(*value) * f64::from(*value);
    }
    let norm = lanes.iter().sum::<f64>().sqrt();
    let factor = norm_max / (norm + EPSILON);
    if factor < 1.0 {
        let factor = factor as f32;
        for value in gradient {
            *value *= factor;
        }
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_gradient_above_max_norm_is_clipped() {
        let check = |norm_max: f64, expected: [f32; 2]| {
            let mut gradient = [3.0, -4.0];
            assert!((clip_norm(&mut gradient, norm_max) - 5.0).abs() < 1e-12);
            for (found, expected) in gradient.iter().zip(expected) {
                assert!((found - expected).abs() <= 1e-6, "{gradient:?}");
            }
        };
        check(10.0, [3.0, -4.0]);
        check(5.0001, [3.0, -4.0]);
        check(1.0, [0.6, -0.8]);
    }

    #[test]
    fn norm_beyond_f32_range_is_clipped() {
        let mut gradient = [3e38; 100];
        clip_norm(&mut gradient, 1.0);
        assert!(gradient.iter().all(|value| (value - 0.1).abs() < 1e-6), "{gradient:?}");
    }
}
