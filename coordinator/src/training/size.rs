//! How large results are, and when one is far larger than those before it. Such a result may be right, but one worker's word
//! for it is not enough.

use std::collections::VecDeque;

use model::loss::LossSums;

/// Results that are looked back on.
const N_RECENT: usize = 128;
/// Results that have to be known before their spread says something.
const N_KNOWN_MIN: usize = 16;
/// Deviations from the median up to which a result is usual. A deviation counts as at least an eighth of the median, so that
/// everything up to nine times the median is.
const N_DEVIATIONS: f64 = 64.0;
/// What is usual before enough is known: far beyond what networks with fresh parameters give, and far below what overflows.
const FIRST_LIMIT: f64 = 1e6;

/// How large a result is, for each image that it is of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    /// Euclidean norm of the gradient.
    pub gradient_norm: f64,
    /// Loss.
    pub loss: f64,
}

impl Size {
    /// The size of a result with a gradient of this norm. Where there are no images, there is nothing to be divided.
    #[expect(clippy::cast_precision_loss, reason = "counts of images are far below 2^53")]
    pub fn new(gradient_norm: f64, sums: &LossSums) -> Self {
        let n_samples = sums.n_samples.max(1) as f64;
        Self { gradient_norm: gradient_norm / n_samples, loss: sums.loss_sum / n_samples }
    }

    /// Whether it is within a limit.
    pub fn is_within(&self, limit: &Self) -> bool {
        self.gradient_norm <= limit.gradient_norm && self.loss <= limit.loss
    }
}

/// Sizes of the recent results of one kind.
#[derive(Clone, Debug, Default)]
pub struct Sizes {
    gradient_norms: Recent,
    losses: Recent,
}

impl Sizes {
    /// Takes note of the size of a result that counts.
    pub fn note(&mut self, size: Size) {
        self.gradient_norms.note(size.gradient_norm);
        self.losses.note(size.loss);
    }

    /// Up to where a result is usual: median + 64 · MAD, the median absolute deviation from the median, for both numbers.
    pub fn limit(&self) -> Size {
        Size { gradient_norm: self.gradient_norms.limit(), loss: self.losses.limit() }
    }
}

#[derive(Clone, Debug, Default)]
struct Recent(VecDeque<f64>);

impl Recent {
    fn note(&mut self, value: f64) {
        if self.0.len() == N_RECENT {
            self.0.pop_front();
        }
        self.0.push_back(value);
    }

    fn limit(&self) -> f64 {
        if self.0.len() < N_KNOWN_MIN {
            return FIRST_LIMIT;
        }
        let mut values: Vec<f64> = self.0.iter().copied().collect();
        let middle = median(&mut values);
        for value in &mut values {
            *value = (*value - middle).abs();
        }
        middle + N_DEVIATIONS * median(&mut values).max(middle / 8.0)
    }
}

fn median(values: &mut [f64]) -> f64 {
    let place = values.len() / 2;
    *values.select_nth_unstable_by(place, f64::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_is_what_is_near_the_recent_ones() {
        let check = |norms: &[f64], expected: f64| {
            let mut sizes = Sizes::default();
            for &gradient_norm in norms {
                sizes.note(Size { gradient_norm, loss: 0.5 });
            }
            let limit = sizes.limit();
            assert!((limit.gradient_norm - expected).abs() < 1e-9 * expected, "{limit:?}, expected {expected}");
            let is_within = |gradient_norm| Size { gradient_norm, loss: 0.5 }.is_within(&limit);
            assert!(is_within(expected) && !is_within(1.001 * expected) && !is_within(f64::INFINITY));
        };
        check(&[], 1e6);
        check(&[2.0; 15], 1e6);
        check(&[2.0; 16], 18.0);
        check(&[[1.0, 2.0, 3.0].as_slice(); 20].concat(), 2.0 + 64.0);
        check(&[vec![1e5; 500], vec![2.0; 128]].concat(), 18.0); // only the recent ones count
    }

    #[test]
    fn size_is_for_each_image() {
        let sums = |n_samples| LossSums { loss_sum: 6.0, correct_sum: 0, n_samples };
        assert_eq!(Size::new(12.0, &sums(4)), Size { gradient_norm: 3.0, loss: 1.5 });
        assert_eq!(Size::new(12.0, &sums(0)), Size { gradient_norm: 12.0, loss: 6.0 });
        let limit = Size { gradient_norm: 3.0, loss: 1.0 };
        assert!(!Size::new(12.0, &sums(4)).is_within(&limit), "its loss is beyond");
    }
}
