//! A token bucket: how often something may happen.

use std::time::{Duration, Instant};

/// Tokens, which come back at an even rate.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    rate: BucketRate,
    n_tokens: f64,
    filled: Instant,
}

/// How often something may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketRate {
    /// At once, after a pause.
    pub n_max: u32,
    /// Each second from then on.
    pub per_second: u32,
}

impl Bucket {
    /// A full one.
    pub fn new(rate: BucketRate, now: Instant) -> Self {
        Self { rate, n_tokens: rate.n_max.into(), filled: now }
    }

    /// Takes a token; whether there was one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let has_one = self.n_tokens >= 1.0;
        if has_one {
            self.n_tokens -= 1.0;
        }
        has_one
    }

    /// Whether nothing was taken that has not come back.
    pub fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.n_tokens >= self.rate.n_max.into()
    }

    fn fill(&mut self, now: Instant) {
        let passed: Duration = now.saturating_duration_since(self.filled);
        self.filled = self.filled.max(now);
        self.n_tokens =
            (self.n_tokens + passed.as_secs_f64() * f64::from(self.rate.per_second)).min(self.rate.n_max.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_refill_at_rate_up_to_bound() {
        let begun = Instant::now();
        let mut bucket = Bucket::new(BucketRate { n_max: 3, per_second: 2 }, begun);
        let mut n_taken = |milliseconds| {
            let now = begun + Duration::from_millis(milliseconds);
            (0..10).filter(|_| bucket.take(now)).count()
        };
        assert_eq!([0, 400, 500, 1500, 60_000, 60_000].map(&mut n_taken), [3, 0, 1, 2, 3, 0]);
        assert!(!bucket.is_full(begun + Duration::from_secs(61)) && bucket.is_full(begun + Duration::from_secs(62)));
    }
}
