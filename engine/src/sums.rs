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

/// A figure beside the loss. It is made of a count, whose sum over samples is exact in any order and at most a whole that is known, or
/// of the mean loss.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name in files and messages, such as `accuracy`: lower-case letters, digits and underscores.
    pub name: &'static str,
    source: Source,
    shown_as: fn(f64) -> f64,
}

/// What a metric is made of.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// The mean loss of a sample; needs no count.
    Loss,
    /// The share that a count is of its whole, times the largest value.
    Count { of: Whole, parts: u64, value_max: f64 },
}

/// What a count's share is of, in parts.
#[derive(Clone, Copy, Debug)]
enum Whole {
    Samples,
    /// Another count, by its position.
    Count(usize),
}

/// Parts of the largest value of a mean, in which its values are counted: as fine as an f32 is. The sum over 2^40 values fits.
const MEAN_PARTS: u64 = 1 << 24;

impl Metric {
    /// The share of samples.
    pub const fn share_of_samples(name: &'static str) -> Self {
        Self::counted(name, Whole::Samples, 1, 1.0)
    }

    /// The share of the parts of samples that have `n_parts` each, such as 784 for the pixels of an image.
    pub const fn share_of_parts(name: &'static str, n_parts: u64) -> Self {
        Self::counted(name, Whole::Samples, n_parts, 1.0)
    }

    /// The share of the count at a position of [`Loss::counts`](crate::task::Loss::counts), such as tokens, of which each sample may
    /// have another number.
    pub const fn share_of_count(name: &'static str, position: usize) -> Self {
        Self::counted(name, Whole::Count(position), 1, 1.0)
    }

    /// The mean of values from 0 to `value_max`, one a sample. [`Metric::count`] makes its count of them.
    pub const fn mean_of_samples(name: &'static str, value_max: f64) -> Self {
        Self::counted(name, Whole::Samples, MEAN_PARTS, value_max)
    }

    /// The mean of values from 0 to `value_max`, of which there are as many as the count at a position of
    /// [`Loss::counts`](crate::task::Loss::counts) says. [`Metric::count`] makes its count of them.
    pub const fn mean_of_count(name: &'static str, position: usize, value_max: f64) -> Self {
        Self::counted(name, Whole::Count(position), MEAN_PARTS, value_max)
    }

    /// A function of the mean loss, such as [`f64::exp`] for the perplexity of a cross-entropy in nats. It has no count.
    pub const fn of_loss(name: &'static str, function: fn(f64) -> f64) -> Self {
        Self { name, source: Source::Loss, shown_as: function }
    }

    /// The same, shown and recorded as a function of it, such as [`f64::sqrt`] for the root of a mean of squares.
    #[must_use]
    pub const fn shown_as(self, function: fn(f64) -> f64) -> Self {
        Self { shown_as: function, ..self }
    }

    const fn counted(name: &'static str, of: Whole, parts: u64, value_max: f64) -> Self {
        assert!(parts > 0 && value_max > 0.0 && value_max.is_finite(), "a metric's bound is above 0 and finite");
        Self { name, source: Source::Count { of, parts, value_max }, shown_as: |value| value }
    }

    /// The count of these values: their sum as a whole number of parts of the largest one that there may be. A value beyond the
    /// bounds counts as the nearer one, and one that is NaN as the upper one.
    ///
    /// # Panics
    /// If the metric is [of the loss](Metric::of_loss).
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 to 2^24"
    )]
    pub fn count(&self, values: impl IntoIterator<Item = f32>) -> u64 {
        let Source::Count { parts, value_max, .. } = self.source else {
            panic!("the metric {} is made of the loss and has no count", self.name)
        };
        let share = |value: f32| if value.is_nan() { 1.0 } else { (f64::from(value) / value_max).clamp(0.0, 1.0) };
        values.into_iter().map(|value| (share(value) * parts as f64).round() as u64).fold(0, u64::saturating_add)
    }

    /// Whether a count belongs to it.
    pub const fn has_count(&self) -> bool {
        matches!(self.source, Source::Count { .. })
    }

    /// The position of the count that its own is a share of, if it is of one.
    pub const fn whole_position(&self) -> Option<usize> {
        match self.source {
            Source::Count { of: Whole::Count(position), .. } => Some(position),
            Source::Count { of: Whole::Samples, .. } | Source::Loss => None,
        }
    }

    /// What its count is at most for these sums.
    fn whole(&self, sums: &Sums) -> u64 {
        match self.source {
            Source::Loss => 0,
            Source::Count { of: Whole::Samples, parts, .. } => sums.n_samples.saturating_mul(parts),
            Source::Count { of: Whole::Count(position), parts, .. } => {
                sums.counts.get(position).copied().unwrap_or(0).saturating_mul(parts)
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "what a count above 2^53 loses shows in no figure")]
    fn value(&self, count: u64, sums: &Sums) -> f64 {
        (self.shown_as)(match self.source {
            Source::Loss => sums.loss(),
            Source::Count { value_max, .. } => count as f64 / self.whole(sums) as f64 * value_max,
        })
    }
}

/// Each metric with its count, in the task's order; 0 for one that has none.
fn with_counts<'a>(metrics: &'a [Metric], sums: &Sums) -> impl Iterator<Item = (&'a Metric, u64)> {
    let mut counts = sums.counts.into_iter();
    metrics.iter().map(move |metric| (metric, if metric.has_count() { counts.next().unwrap_or(0) } else { 0 }))
}

/// The metrics of some sums, in the task's order; NaN where the whole is 0.
pub fn metrics(of: &[Metric], sums: &Sums) -> impl Iterator<Item = f64> {
    with_counts(of, sums).map(|(metric, count)| metric.value(count, sums))
}

/// A count above its whole: sums that no batch can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a count of at most {whole} for {metric} in {what}, found {count}")]
pub struct ImpossibleCount {
    /// The metric that it belongs to.
    pub metric: &'static str,
    /// The shard or the batch that was summed over.
    pub what: String,
    /// The count.
    pub count: u64,
    /// What it is a share of.
    pub whole: u64,
}

/// Whether each metric's count is at most its whole; `what` says what was summed over.
///
/// # Errors
/// The first one that is not.
pub fn check_counts(of: &[Metric], sums: &Sums, what: impl FnOnce() -> String) -> Result<(), ImpossibleCount> {
    let mut wholes = with_counts(of, sums).map(|(metric, count)| (metric.name, count, metric.whole(sums)));
    match wholes.find(|(_, count, whole)| count > whole) {
        Some((metric, count, whole)) => Err(ImpossibleCount { metric, what: what(), count, whole }),
        None => Ok(()),
    }
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
        let check = |metrics: &[Metric], first: [u64; 4], expected: Option<(&'static str, u64, u64)>| {
            let sums = Sums { loss_sum: 0.0, counts: counts(&first), n_samples: 2 };
            let found = check_counts(metrics, &sums, || "shard 3".to_owned()).err();
            let what = "shard 3".to_owned();
            assert_eq!(found, expected.map(|(metric, count, whole)| ImpossibleCount { metric, what, count, whole }));
        };
        check(&METRICS, [2, 8, 5, 5], None);
        check(&METRICS, [3, 8, 5, 5], Some(("accuracy", 3, 2)));
        check(&METRICS, [2, 9, 5, 5], Some(("rounded_accuracy", 9, 8)));
        check(&METRICS, [2, 8, 6, 5], Some(("token_accuracy", 6, 5)));
        let means = [
            Metric::of_loss("perplexity", f64::exp),
            Metric::mean_of_samples("error", 4.0),
            Metric::mean_of_count("bits", 2, 8.0),
        ];
        check(&means, [2 << 24, 3 << 24, 3, 0], None);
        check(&means, [(2 << 24) + 1, 0, 0, 0], Some(("error", (2 << 24) + 1, 2 << 24)));
        check(&means, [0, (3 << 24) + 1, 3, 0], Some(("bits", (3 << 24) + 1, 3 << 24)));
    }

    /// The goal: figures that are no shares, whose sums do not depend on the order in which workers answer.
    #[test]
    fn mean_is_same_in_any_order_and_bounded() {
        const ERROR: Metric = Metric::mean_of_samples("error", 10.0);
        let values = [0.1_f32, 9.7, 1e-3, 4.2, 0.3, 7.7, 2.5, 0.1];
        let sum_of = |parts: &[&[f32]]| {
            let mut total = Sums::default();
            for part in parts {
                let counts = counts(&[ERROR.count(part.iter().copied())]);
                total.add(Sums { loss_sum: 0.0, counts, n_samples: part.len() as u64 });
            }
            total
        };
        let whole = sum_of(&[&values]);
        for cut in 1..values.len() {
            let (first, second) = values.split_at(cut);
            assert_eq!(sum_of(&[second, first]), whole, "cut at {cut}");
        }
        let mean = metrics(&[ERROR], &whole).next().expect("one");
        let expected = values.iter().copied().map(f64::from).sum::<f64>() / 8.0;
        assert!((mean - expected).abs() < 1e-6, "{mean} instead of {expected}");
        let root = ERROR.shown_as(f64::sqrt);
        assert_eq!(metrics(&[root], &whole).next().map(f64::to_bits), Some(mean.sqrt().to_bits()));
        // Beyond the bounds, and no number.
        let counts = [-1.0, f32::NEG_INFINITY, 11.0, f32::INFINITY, f32::NAN].map(|value| ERROR.count([value]));
        assert_eq!(counts, [0, 0, MEAN_PARTS, MEAN_PARTS, MEAN_PARTS]);
        assert_eq!(check_counts(&[ERROR], &sum_of(&[&[f32::NAN, 99.0]]), String::new), Ok(()));
    }

    #[test]
    fn metric_of_loss_takes_no_count() {
        let metrics_of = [
            Metric::share_of_count("right", 2),
            Metric::of_loss("perplexity", f64::exp2),
            Metric::mean_of_count("bits", 2, 16.0),
        ];
        let bits = metrics_of[2].count([1.0, 2.0, 3.0, 2.0]);
        let sums = Sums { loss_sum: 6.0, counts: counts(&[3, bits, 4]), n_samples: 2 };
        assert_eq!(metrics(&metrics_of, &sums).collect::<Vec<_>>(), [0.75, 8.0, 2.0]);
    }

    #[test]
    fn sum_counts_saturate_on_overflow() {
        let mut sums = Sums { counts: [u64::MAX; COUNTS_MAX], ..Sums::default() };
        sums.add(Sums { counts: [1; COUNTS_MAX], ..Sums::default() });
        assert_eq!(sums.counts, [u64::MAX; COUNTS_MAX]);
    }
}
