//! How large results are, and when one is far larger than those before it. Such a result may be right, but one worker's word
//! for it is not enough.

use engine::sums::Sums;

use super::roster::Identity;
use super::usual::Usual;

/// Deviations from the median up to which a result is usual. A deviation counts as at least an eighth of the median, so that
/// everything up to nine times the median is.
const N_DEVIATIONS: f64 = 64.0;
/// What is usual before enough is known: far beyond what networks with fresh parameters give, and far below what overflows.
const FIRST_LIMIT: f64 = 1e6;

/// How large a result is, for each image that it is of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResultSize {
    /// Euclidean norm of the gradient.
    pub gradient_norm: f64,
    /// Loss.
    pub loss: f64,
}

impl ResultSize {
    /// The size of a result with a gradient of this norm. Where there are no images, there is nothing to be divided.
    #[expect(clippy::cast_precision_loss, reason = "counts of images are far below 2^53")]
    pub fn new(gradient_norm: f64, sums: &Sums) -> Self {
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
    gradient_norms: Usual<f64>,
    losses: Usual<f64>,
}

impl Sizes {
    /// A round begins; gives what is usual in it.
    pub fn begin_round(&mut self) -> ResultSize {
        self.gradient_norms.begin_round();
        self.losses.begin_round();
        self.limit()
    }

    /// Takes note of the size of a result that counts, by a worker of an identity.
    pub fn note(&mut self, identity: &Identity, size: ResultSize) {
        self.gradient_norms.note(identity, size.gradient_norm);
        self.losses.note(identity, size.loss);
    }

    /// Up to where a result is usual: median + 64 · MAD, the median absolute deviation from the median, of the results of the
    /// identity in the middle, for both numbers.
    fn limit(&self) -> ResultSize {
        let limit = |recent: &Usual<f64>| {
            let limit = |middle: f64, deviation: f64| middle + N_DEVIATIONS * deviation.max(middle / 8.0);
            recent.limit(limit).unwrap_or(FIRST_LIMIT)
        };
        ResultSize { gradient_norm: limit(&self.gradient_norms), loss: limit(&self.losses) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_limit_follows_recent_gradient_norms() {
        let check = |norms: &[f64], expected: f64| {
            let (mut sizes, one) = (Sizes::default(), Identity::new("one"));
            for &gradient_norm in norms {
                sizes.note(&one, ResultSize { gradient_norm, loss: 0.5 });
            }
            let limit = sizes.limit();
            assert!((limit.gradient_norm - expected).abs() < 1e-9 * expected, "{limit:?}, expected {expected}");
            let is_within = |gradient_norm| ResultSize { gradient_norm, loss: 0.5 }.is_within(&limit);
            assert!(is_within(expected) && !is_within(1.001 * expected) && !is_within(f64::INFINITY));
        };
        check(&[], 1e6);
        check(&[2.0; 15], 1e6);
        check(&[2.0; 16], 18.0);
        check(&[[1.0, 2.0, 3.0].as_slice(); 20].concat(), 2.0 + 64.0);
        check(&[vec![1e5; 500], vec![2.0; 128]].concat(), 18.0); // only the recent ones count
    }

    #[test]
    fn identity_with_most_results_does_not_raise_size_limit() {
        let names = ["first", "second", "third"].map(Identity::new);
        let mut sizes = Sizes::default();
        let mut push = |n_honest: usize| {
            let (mut limit, mut pushed) = (sizes.begin_round(), 2.0);
            for _ in 0..1_000 {
                for identity in &names[..n_honest] {
                    sizes.note(identity, ResultSize { gradient_norm: 2.0, loss: 0.5 });
                }
                // As large as goes.
                for _ in 0..4 {
                    sizes.note(&names[2], ResultSize { gradient_norm: pushed, loss: 0.5 });
                }
                limit = sizes.begin_round();
                pushed = limit.gradient_norm.min(1e30);
            }
            limit
        };
        assert_eq!(push(2), ResultSize { gradient_norm: 18.0, loss: 4.5 }, "against two others");
        let mut sizes = Sizes::default();
        for gradient_norm in [2.0, 18.0, 162.0] {
            for _ in 0..64 {
                sizes.note(&names[2], ResultSize { gradient_norm, loss: 0.5 });
            }
        }
        assert!(sizes.begin_round().gradient_norm > 100.0, "alone, it moves it");
    }

    #[test]
    fn size_is_normalized_per_sample() {
        let sums = |n_samples| Sums { loss_sum: 6.0, n_samples, ..Sums::default() };
        assert_eq!(ResultSize::new(12.0, &sums(4)), ResultSize { gradient_norm: 3.0, loss: 1.5 });
        assert_eq!(ResultSize::new(12.0, &sums(0)), ResultSize { gradient_norm: 12.0, loss: 6.0 });
        let limit = ResultSize { gradient_norm: 3.0, loss: 1.0 };
        assert!(!ResultSize::new(12.0, &sums(4)).is_within(&limit), "its loss is beyond");
    }
}
