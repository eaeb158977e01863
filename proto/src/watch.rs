//! Waiting without sleep, for a while, where CPUs are spare: to be woken takes longer than most messages take to come.

use std::thread;
use std::time::{Duration, Instant};

/// For so long at most. What comes later is worth less than a CPU.
const WATCH_MAX: Duration = Duration::from_millis(1);
/// A thread that has its turn back sooner was the only one that wanted the CPU.
const TURN_MAX: Duration = Duration::from_micros(15);

/// A wait in which somebody looks again and again, instead of being woken.
#[derive(Debug)]
pub struct Watch {
    begun: Instant,
}

impl Watch {
    /// One that begins now.
    pub fn begin() -> Self {
        Self { begun: Instant::now() }
    }

    /// Gives others a turn on this CPU; whether to look again. Not if somebody took the turn, nor after a millisecond.
    pub fn goes_on(&self) -> bool {
        let asked = Instant::now();
        thread::yield_now();
        asked.elapsed() < TURN_MAX && self.begun.elapsed() < WATCH_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_has_an_end() {
        let watch = Watch::begin();
        let begun = Instant::now();
        while watch.goes_on() {}
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        thread::sleep(WATCH_MAX);
        assert!(!watch.goes_on(), "it is over for good");
    }
}
