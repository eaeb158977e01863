//! Identities whose workers were evicted. Each is kept out for a while, and longer each time: an eviction may cost the run a
//! step, which is computed anew.

use std::collections::BTreeMap;
use std::time::Duration;

use super::roster::Identity;

/// How long an identity is kept out after its first eviction; each further one doubles that, up to the longest.
const WAIT_MIN: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_mins(5);
/// Doublings after which the longest is reached.
const N_DOUBLINGS_MAX: u32 = 9;
/// Time without an eviction after which an identity is as good as any other.
const MEMORY: Duration = Duration::from_mins(10);
/// Identities that are remembered.
const N_IDENTITIES_MAX: usize = 1024;

/// Who was evicted lately.
#[derive(Clone, Debug, Default)]
pub struct Evicted(BTreeMap<Identity, Record>);

#[derive(Clone, Copy, Debug)]
struct Record {
    n_times: u32,
    last: Duration,
    /// Until when it is kept out.
    until: Duration,
}

impl Evicted {
    /// Takes note of an eviction. Where too many identities are remembered, the one that is free the soonest is forgotten.
    pub fn note(&mut self, identity: &Identity, now: Duration) {
        self.0.retain(|_, record| !record.is_over(now));
        if self.0.len() >= N_IDENTITIES_MAX && !self.0.contains_key(identity) {
            let soonest = self.0.iter().min_by_key(|(_, record)| record.until).map(|(identity, _)| identity.clone());
            soonest.and_then(|identity| self.0.remove(&identity));
        }
        let n_before = self.0.get(identity).map_or(0, |record| record.n_times);
        let wait = (WAIT_MIN * 2_u32.pow(n_before.min(N_DOUBLINGS_MAX))).min(WAIT_MAX);
        let record = Record { n_times: n_before.saturating_add(1), last: now, until: now + wait };
        self.0.insert(identity.clone(), record);
    }

    /// Whether a worker of an identity may join.
    pub fn check(&self, identity: &Identity, now: Duration) -> Result<(), String> {
        let Some(&Record { n_times, until, .. }) = self.0.get(identity) else { return Ok(()) };
        let wait = until.saturating_sub(now);
        if wait.is_zero() {
            return Ok(());
        }
        let (wait, times) = (describe(wait), if n_times == 1 { "eviction" } else { "evictions" });
        Err(format!("expected no worker of {identity} for {wait} more, after {n_times} {times}, found one"))
    }
}

impl Record {
    /// Whether it is long ago.
    fn is_over(&self, now: Duration) -> bool {
        self.last + MEMORY <= now
    }
}

/// A time to wait, rounded up the more the longer it is: a worker that tries again and again logs each reason once.
fn describe(wait: Duration) -> String {
    let seconds = wait.as_millis().div_ceil(1_000);
    match seconds {
        0..=10 => format!("{seconds} s"),
        11..=60 => format!("{} s", seconds.next_multiple_of(10)),
        _ => format!("{} min", seconds.div_ceil(60)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The millisecond from which on a worker of an identity may join, at the earliest at `now`.
    fn free_from(evicted: &Evicted, identity: &Identity, now: u64) -> u64 {
        let is_free = |&moment: &u64| evicted.check(identity, Duration::from_millis(moment)).is_ok();
        (now..=now + 600_000).find(is_free).expect("it is free some day")
    }

    #[test]
    fn eviction_wait_doubles_and_resets_after_ten_minutes() {
        let one = Identity::new("one");
        let (mut evicted, mut now, mut waits) = (Evicted::default(), 7, Vec::new());
        for _ in 0..12 {
            evicted.note(&one, Duration::from_millis(now));
            let free = free_from(&evicted, &one, now);
            waits.push((free - now) / 1_000);
            now = free;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        let (last, other) = (now - 300_000, Identity::new("other"));
        let check = |identity: &Identity, after: u64, expected: u64| {
            let mut evicted = evicted.clone();
            evicted.note(identity, Duration::from_millis(last + after));
            assert_eq!(free_from(&evicted, identity, last + after) - last - after, expected, "after {after} ms");
        };
        check(&one, 599_999, 300_000);
        check(&one, 600_000, 1_000);
        check(&other, 1, 1_000);
        assert_eq!(free_from(&evicted, &other, last), last, "it is nobody else's fault");
    }

    #[test]
    fn evictions_during_wait_also_count() {
        let (one, mut evicted) = (Identity::new("one"), Evicted::default());
        for _ in 0..3 {
            evicted.note(&one, Duration::ZERO);
        }
        assert_eq!(free_from(&evicted, &one, 0), 4_000);
    }

    #[test]
    fn eviction_reason_states_remaining_wait() {
        let check = |n_times: u32, now_ms: u64, expected: &str| {
            let (one, mut evicted) = (Identity::new("one"), Evicted::default());
            for _ in 0..n_times {
                evicted.note(&one, Duration::ZERO);
            }
            let reason = evicted.check(&one, Duration::from_millis(now_ms)).expect_err("it is kept out");
            assert_eq!(reason, format!("expected no worker of one for {expected}, found one"));
        };
        check(1, 0, "1 s more, after 1 eviction");
        check(1, 999, "1 s more, after 1 eviction");
        check(5, 5_999, "20 s more, after 5 evictions");
        check(5, 6_000, "10 s more, after 5 evictions");
        check(7, 4_000, "60 s more, after 7 evictions");
        check(7, 3_999, "2 min more, after 7 evictions");
        check(100, 0, "5 min more, after 100 evictions");
    }

    #[test]
    fn full_eviction_list_drops_earliest_expiring_identity() {
        let mut evicted = Evicted::default();
        let name = |number: usize| Identity::new(format!("identity {number}"));
        evicted.note(&name(0), Duration::ZERO);
        for number in 0..N_IDENTITIES_MAX {
            evicted.note(&name(number), Duration::ZERO); // the first one for the second time
        }
        assert_eq!(evicted.0.len(), N_IDENTITIES_MAX);
        evicted.note(&name(N_IDENTITIES_MAX), Duration::from_millis(1));
        assert_eq!(evicted.0.len(), N_IDENTITIES_MAX);
        assert!(evicted.0.contains_key(&name(0)) && evicted.0.contains_key(&name(N_IDENTITIES_MAX)));
        assert!(!evicted.0.contains_key(&name(1)));
        // Long after, all of them are.
        evicted.note(&name(0), Duration::from_mins(11));
        assert_eq!(evicted.0.len(), 1);
    }
}
