//! How long tasks take, and when one is late. Learnt from the run itself, so that there is nothing to set.

use std::time::Duration;

use super::roster::Identity;
use super::usual::Usual;

/// Until a pace is known a task is late after so many times the fastest, which counts as at least [`FASTEST_MIN`]: a worker's first
/// tasks take longer than later ones.
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
    recent: Usual<Duration>,
}

impl Pace {
    /// A round begins; gives the time after which a task of it is late.
    pub fn begin_round(&mut self) -> Duration {
        self.recent.begin_round();
        self.late_after()
    }

    /// Takes note of the time that a worker of an identity took for a task.
    pub fn note(&mut self, identity: &Identity, time: Duration) {
        self.recent.note(identity, time);
    }

    /// Whether enough times are known to say what is usual.
    pub fn is_known(&self) -> bool {
        self.recent.is_known()
    }

    /// The time after which a task is late: median + 8 · MAD, the median absolute deviation from the median, of the times of the
    /// identity in the middle. Before enough is known, some times the fastest, or a second.
    pub fn late_after(&self) -> Duration {
        let late_after = |middle: Duration, deviation: Duration| {
            middle + N_DEVIATIONS * deviation.max(DEVIATION_MIN).max(middle / 8)
        };
        self.recent.limit(late_after).unwrap_or_else(|| {
            let fastest = self.recent.values().min();
            fastest.map_or(FIRST_WAIT, |fastest| N_FASTEST * fastest.max(FASTEST_MIN))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_threshold_follows_recent_task_times() {
        let check = |milliseconds: &[u64], expected: u64| {
            let (mut pace, one) = (Pace::default(), Identity::new("one"));
            for &time in milliseconds {
                pace.note(&one, Duration::from_millis(time));
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

    #[test]
    fn slow_identity_with_most_tasks_does_not_raise_late_threshold() {
        let names = ["first", "second", "third"].map(Identity::new);
        let mut pace = Pace::default();
        let mut time = 0.1;
        for _ in 0..200 {
            pace.note(&names[0], Duration::from_millis(100));
            pace.note(&names[1], Duration::from_millis(100));
            for _ in 0..4 {
                pace.note(&names[2], Duration::from_secs_f64(time));
            }
            time *= 1.02;
        }
        assert_eq!(pace.begin_round(), Duration::from_millis(200));
    }
}
