//! The driver's clock: time since its start, without the time in which this process was stalled. A stall of this
//! process must not count as silence of a peer.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// How long the clock's thread sleeps.
const PERIOD: Duration = Duration::from_millis(50);
/// A thread that oversleeps by more than this was held up, with all others of its process.
const STALL: Duration = Duration::from_millis(250);

/// A clock that stops while its process is stalled. A thread that only sleeps detects stalls: how late a busy thread reads
/// the clock says nothing, since a peer can keep it busy.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    ticks: Arc<Mutex<Ticks>>,
}

#[derive(Clone, Copy, Debug)]
struct Ticks {
    last: Instant,
    stalled: Duration,
}

impl Ticks {
    /// Time since the start that counts. It runs on from the last tick, but not beyond the moment when the next one would show
    /// that the process was held up.
    fn time(&self, start: Instant, now: Instant) -> Duration {
        let since_last = now.saturating_duration_since(self.last).min(PERIOD + STALL);
        (self.last + since_last).saturating_duration_since(start).saturating_sub(self.stalled)
    }

    /// The thread is awake.
    fn tick(&mut self, now: Instant) {
        // What goes beyond the moment at which `time` stopped does not count.
        self.stalled += now.saturating_duration_since(self.last).saturating_sub(PERIOD + STALL);
        self.last = now;
    }
}

impl Clock {
    /// Starts it.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start() -> std::io::Result<Self> {
        let start = Instant::now();
        let ticks = Arc::new(Mutex::new(Ticks { last: start, stalled: Duration::ZERO }));
        let weak = Arc::downgrade(&ticks);
        thread::Builder::new().name("clock".to_owned()).spawn(move || tick(&weak))?;
        Ok(Self { start, ticks })
    }

    /// The time.
    pub fn now(&self) -> Duration {
        self.ticks().time(self.start, Instant::now())
    }

    /// The moment at which the clock will show `time`, if nothing holds it up.
    pub fn moment(&self, time: Duration) -> Instant {
        self.start + self.ticks().stalled + time
    }

    fn ticks(&self) -> Ticks {
        *self.ticks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends with the clock.
fn tick(ticks: &Weak<Mutex<Ticks>>) {
    while let Some(ticks) = ticks.upgrade() {
        ticks.lock().unwrap_or_else(PoisonError::into_inner).tick(Instant::now());
        drop(ticks);
        thread::sleep(PERIOD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_stops_while_process_is_stalled() {
        let start = Instant::now();
        let mut ticks = Ticks { last: start, stalled: Duration::ZERO };
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let check = |ticks: &Ticks, now, expected| assert_eq!(ticks.time(start, at(now)).as_millis(), expected);
        check(&ticks, 40, 40);
        ticks.tick(at(50));
        ticks.tick(at(300)); // late, but not by a stall
        check(&ticks, 340, 340);
        // Stalled from here on: a read before the next tick returns no more than what passes without a stall.
        check(&ticks, 600, 600);
        check(&ticks, 5_300, 600);
        ticks.tick(at(5_301));
        check(&ticks, 5_301, 600);
        check(&ticks, 5_341, 640);
    }
}
