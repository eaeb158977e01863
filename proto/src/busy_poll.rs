//! Busy polling: a wait without sleep where CPUs are spare: to be woken takes longer than most messages take to come.

use std::thread;
use std::time::{Duration, Instant};

/// For so long at most. What comes later is worth less than a CPU.
const BUSY_POLL_MAX: Duration = Duration::from_millis(1);
/// A thread that has its turn back sooner was the only one that wanted the CPU.
const TURN_MAX: Duration = Duration::from_micros(15);

/// A wait that looks for a message again and again, instead of sleeping until it is woken.
#[derive(Debug)]
pub struct BusyPoll {
    begun: Instant,
}

impl BusyPoll {
    /// One that begins now.
    pub fn begin() -> Self {
        Self { begun: Instant::now() }
    }

    /// Yields this CPU to other threads; whether to poll again. Not if another thread ran, nor after a millisecond.
    pub fn should_continue(&self) -> bool {
        let asked = Instant::now();
        thread::yield_now();
        asked.elapsed() < TURN_MAX && self.begun.elapsed() < BUSY_POLL_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_poll_ends_after_limit() {
        let poll = BusyPoll::begin();
        let begun = Instant::now();
        while poll.should_continue() {}
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        thread::sleep(BUSY_POLL_MAX);
        assert!(!poll.should_continue(), "it is over for good");
    }
}
