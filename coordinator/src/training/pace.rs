//! How long tasks take, and when one is late. Learnt from the run itself, so that there is nothing to set.

use std::collections::VecDeque;
use std::time::Duration;

/// Times that are looked back on.
const N_RECENT: usize = 128;
/// Times that have to be known before their spread says something.
const N_KNOWN_MIN: usize = 16;
/// Until then a task is late after so many times the fastest, which counts as at least [`FASTEST_MIN`]: a worker's first tasks
/// take longer than later ones.
const N_FASTEST: u32 = 4;
const FASTEST_MIN: Duration = Duration::from_millis(25);
/// When a task is late before any time is known.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Deviations from the median after which a task is late: with a normal spread, one in ten million.
const N_DEVIATIONS: u32 = 8;
/// A deviation counts as at least this, and as an eighth of the median: a system may let a process wait for some turns.
const DEVIATION_MIN: Duration = Duration::from_millis(5);

/// Times that tasks of one kind took lately.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    recent: VecDeque<Duration>,
}

impl Pace {
    /// Takes note of a task's time.
    pub fn note(&mut self, time: Duration) {
        if self.recent.len() == N_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(time);
    }

    /// Whether enough times are known to say what is usual.
    pub fn is_known(&self) -> bool {
        self.recent.len() >= N_KNOWN_MIN
    }

    /// The time after which a task is late: median + 8 · MAD, the median absolute deviation from the median. Before enough is
    /// known, some times the fastest, or a second.
    pub fn late_after(&self) -> Duration {
        if !self.is_known() {
            let fastest = self.recent.iter().min();
            return fastest.map_or(FIRST_WAIT, |&fastest| N_FASTEST * fastest.max(FASTEST_MIN));
        }
        let mut times: Vec<Duration> = self.recent.iter().copied().collect();
        let middle = median(&mut times);
        let mut deviations: Vec<Duration> = times.iter().map(|time| time.abs_diff(middle)).collect();
        let deviation = median(&mut deviations).max(DEVIATION_MIN).max(middle / 8);
        middle + N_DEVIATIONS * deviation
    }
}

fn median(times: &mut [Duration]) -> Duration {
    let place = times.len() / 2;
    *times.select_nth_unstable(place).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_is_late_by_the_times_of_others() {
        let check = |milliseconds: &[u64], expected: u64| {
            let mut pace = Pace::default();
            for &time in milliseconds {
                pace.note(Duration::from_millis(time));
            }
            assert_eq!(pace.late_after(), Duration::from_millis(expected));
        };
        check(&[], 1_000);
        check(&[9_000, 3_000, 5_000], 4 * 3_000);
        check(&[10; 15], 4 * 25);
        check(&[10; 16], 10 + 8 * 5);
        check(&[800; 16], 800 + 8 * 100);
        check(&[[60, 100, 140, 5_000].as_slice(); 8].concat(), 140 + 8 * 80);
        check(&[vec![9_000; 200], vec![10; 128]].concat(), 50); // only the recent ones count
    }
}
