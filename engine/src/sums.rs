//! What a batch adds to the figures of a step or an epoch: sums, never means, so that batches can be put together.

/// Counts that a task may have.
pub const COUNTS_MAX: usize = 8;

/// The counts of a task that has only these.
///
/// # Panics
/// If there are more than [`COUNTS_MAX`].
pub fn counts(first: &[u64]) -> [u64; COUNTS_MAX] {
    let mut counts = [0; COUNTS_MAX];
    counts[..first.len()].copy_from_slice(first);
    counts
}

/// Sums over some samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// Sum of the samples' losses.
    pub loss_sum: f64,
    /// Sums of the counts that the task's [metrics](Metric) are made from, in the task's order; zeros behind its last one.
    pub counts: [u64; COUNTS_MAX],
    /// Samples summed over.
    pub n_samples: u64,
}

impl Sums {
    /// Adds what another batch has.
    pub fn add(&mut self, other: Self) {
        self.loss_sum += other.loss_sum;
        for (count, other) in self.counts.iter_mut().zip(other.counts) {
            *count = count.saturating_add(other);
        }
        self.n_samples += other.n_samples;
    }

    /// Mean loss of a sample; NaN if nothing was summed.
    #[expect(clippy::cast_precision_loss, reason = "counts of samples are far below 2^53")]
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.n_samples as f64
    }
}

/// A figure beside the loss: the share that one of the task's counts is of something, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name in files and messages, such as `accuracy`: lower-case letters, digits and underscores.
    pub name: &'static str,
    /// What the count is a share of.
    pub of: Whole,
}

/// What a metric's count is a share of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whole {
    /// The samples, of which each counts up to this much: 1 for a label, 784 for the pixels of an image.
    Samples(u64),
    /// Another count of the task, by its position; such as tokens, of which each sample may have another number.
    Count(usize),
}

impl Metric {
    /// The share of samples.
    pub const fn share_of_samples(name: &'static str) -> Self {
        Self { name, of: Whole::Samples(1) }
    }

    /// The share of the parts of samples that have `n_parts` each.
    pub const fn share_of_parts(name: &'static str, n_parts: u64) -> Self {
        Self { name, of: Whole::Samples(n_parts) }
    }

    /// The share of the count at a position of [`Loss::counts`](crate::task::Loss::counts).
    pub const fn share_of_count(name: &'static str, position: usize) -> Self {
        Self { name, of: Whole::Count(position) }
    }

    /// What the count at `position` is at most for these sums.
    fn whole(&self, sums: &Sums) -> u64 {
        match self.of {
            Whole::Samples(n_parts) => sums.n_samples.saturating_mul(n_parts),
            Whole::Count(position) => sums.counts.get(position).copied().unwrap_or(0),
        }
    }
}

/// The metrics of some sums, in the task's order; NaN where the whole is 0.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
pub fn metrics(of: &[Metric], sums: &Sums) -> impl Iterator<Item = f64> {
    of.iter().zip(sums.counts).map(|(metric, count)| count as f64 / metric.whole(sums) as f64)
}

/// The first metric whose count is more than its whole, with both: sums that no batch can have.
pub fn impossible_metric(of: &[Metric], sums: &Sums) -> Option<(&'static str, u64, u64)> {
    let counted = of.iter().zip(sums.counts).map(|(metric, count)| (metric.name, count, metric.whole(sums)));
    counted.into_iter().find(|(_, count, whole)| count > whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: [Metric; 3] = [
        Metric::share_of_samples("accuracy"),
        Metric::share_of_parts("rounded_accuracy", 4),
        Metric::share_of_count("token_accuracy", 3),
    ];

    #[test]
    fn metrics_divide_counts_by_their_wholes() {
        let mut sums = Sums { loss_sum: 3.0, counts: [1, 4, 5, 20, 0, 0, 0, 0], n_samples: 2 };
        assert_eq!(metrics(&METRICS, &sums).collect::<Vec<_>>(), [0.5, 0.5, 0.25]);
        sums.add(Sums { loss_sum: 1.0, counts: [2, 0, 0, 5, 0, 0, 0, 0], n_samples: 2 });
        assert_eq!(metrics(&METRICS, &sums).collect::<Vec<_>>(), [0.75, 0.25, 0.2]);
        assert!((sums.loss() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn count_above_its_whole_is_reported_impossible() {
        let sums = |first: [u64; 4]| Sums { loss_sum: 0.0, counts: counts(&first), n_samples: 2 };
        assert_eq!(impossible_metric(&METRICS, &sums([2, 8, 5, 5])), None);
        assert_eq!(impossible_metric(&METRICS, &sums([3, 8, 5, 5])), Some(("accuracy", 3, 2)));
        assert_eq!(impossible_metric(&METRICS, &sums([2, 9, 5, 5])), Some(("rounded_accuracy", 9, 8)));
        assert_eq!(impossible_metric(&METRICS, &sums([2, 8, 6, 5])), Some(("token_accuracy", 6, 5)));
    }

    #[test]
    fn sum_counts_saturate_on_overflow() {
        let mut sums = Sums { counts: [u64::MAX; COUNTS_MAX], ..Sums::default() };
        sums.add(Sums { counts: [1; COUNTS_MAX], ..Sums::default() });
        assert_eq!(sums.counts, [u64::MAX; COUNTS_MAX]);
    }
}
