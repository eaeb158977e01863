//! All that is drawn in a schedule, from one generator that its seed begins.

use std::ops::RangeInclusive;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The generator of one schedule.
pub struct SimRng(ChaCha8Rng);

impl SimRng {
    /// That of a seed.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A number of a range. The slight bias does not matter here.
    pub fn number(&mut self, range: RangeInclusive<u64>) -> u64 {
        range.start() + self.0.next_u64() % (range.end() - range.start() + 1)
    }

    /// A small number of a range.
    pub fn count(&mut self, range: RangeInclusive<u32>) -> u32 {
        let range = u64::from(*range.start())..=u64::from(*range.end());
        u32::try_from(self.number(range)).expect("it is of a range of such numbers")
    }

    /// A time between two numbers of milliseconds, to the microsecond.
    pub fn time(&mut self, milliseconds: RangeInclusive<u64>) -> Duration {
        Duration::from_micros(self.number(1000 * milliseconds.start()..=1000 * milliseconds.end()))
    }

    /// Whether something happens that happens in one of `n` cases.
    pub fn is_one_in(&mut self, n: u64) -> bool {
        self.number(1..=n) == 1
    }

    /// Whether something happens that happens in so many of a thousand cases.
    pub fn is_of_thousand(&mut self, n: u64) -> bool {
        n > 0 && self.number(1..=1000) <= n
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        let place = self.number(1..=from.len() as u64) - 1;
        from[usize::try_from(place).expect("it is below a length")]
    }
}
