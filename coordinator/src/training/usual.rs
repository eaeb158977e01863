//! What is usual, by the recent values of each identity. The median identity's limit counts: a malicious identity moves only
//! its own, however much of the work it does.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::roster::Identity;

/// Values of an identity that are looked back on.
const N_RECENT: usize = 128;
/// Values that have to be known before their spread says something.
const N_KNOWN_MIN: usize = 16;
/// Rounds after which an identity that gave nothing does not count any more, if others did.
const N_ROUNDS: u64 = 128;
/// Identities that are looked back on.
const N_IDENTITIES_MAX: usize = 256;

/// Something that results are measured by.
pub trait Measure: Copy {
    /// Which of two comes first in order.
    fn order(&self, other: &Self) -> Ordering;
    /// How far two are apart.
    fn distance(self, other: Self) -> Self;
}

impl Measure for f64 {
    fn order(&self, other: &Self) -> Ordering {
        self.total_cmp(other)
    }

    fn distance(self, other: Self) -> Self {
        (self - other).abs()
    }
}

impl Measure for Duration {
    fn order(&self, other: &Self) -> Ordering {
        self.cmp(other)
    }

    fn distance(self, other: Self) -> Self {
        self.abs_diff(other)
    }
}

/// Recent values by identity.
#[derive(Clone, Debug)]
pub struct Usual<T> {
    by_identity: BTreeMap<Identity, Recent<T>>,
    /// Rounds that have begun.
    round: u64,
}

/// The recent values of one identity.
#[derive(Clone, Debug)]
struct Recent<T> {
    in_turn: VecDeque<T>,
    in_order: Vec<T>,
    /// The round of the last one.
    newest: u64,
}

impl<T> Default for Usual<T> {
    fn default() -> Self {
        Self { by_identity: BTreeMap::new(), round: 0 }
    }
}

impl<T: Measure> Usual<T> {
    /// A round begins.
    pub fn begin_round(&mut self) {
        self.round += 1;
    }

    /// Takes note of a value. Where too many identities are looked back on, the one whose last value is the oldest is forgotten.
    pub fn note(&mut self, identity: &Identity, value: T) {
        if let Some(recent) = self.by_identity.get_mut(identity) {
            return recent.note(self.round, value);
        }
        if self.by_identity.len() == N_IDENTITIES_MAX {
            let oldest = self.by_identity.iter().min_by_key(|(_, recent)| recent.newest);
            let oldest = oldest.map(|(identity, _)| identity.clone());
            oldest.and_then(|identity| self.by_identity.remove(&identity));
        }
        let recent = self.by_identity.entry(identity.clone()).or_default();
        recent.note(self.round, value);
    }

    /// Whether enough values are known to say what is usual.
    pub fn is_known(&self) -> bool {
        self.by_identity.values().any(Recent::is_known) || self.values().nth(N_KNOWN_MIN - 1).is_some()
    }

    /// All values that are looked back on.
    pub fn values(&self) -> impl Iterator<Item = T> {
        self.by_identity.values().flat_map(|recent| recent.in_order.iter().copied())
    }

    /// Up to where a value is usual, as `limit` has it of the median of values and the median of their distances from it: the
    /// lower median over identities. Before enough is known of one, that of the values of all; none before enough are known.
    pub fn limit(&self, limit: impl Fn(T, T) -> T) -> Option<T> {
        let of = |recent: &Recent<T>| limit(recent.median(), recent.median_distance());
        let mut limits: Vec<T> = self.known().map(of).collect();
        if let Some(last) = limits.len().checked_sub(1) {
            return Some(*limits.select_nth_unstable_by(last / 2, T::order).1);
        }
        let mut all = Recent { in_order: self.values().collect(), ..Recent::default() };
        all.in_order.sort_unstable_by(T::order);
        all.is_known().then(|| of(&all))
    }

    /// Identities that count.
    fn known(&self) -> impl Iterator<Item = &Recent<T>> {
        let known = self.by_identity.values().filter(|recent| recent.is_known());
        let newest = known.clone().map(|recent| recent.newest).max().unwrap_or_default();
        known.filter(move |recent| recent.newest + N_ROUNDS >= newest)
    }
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { in_turn: VecDeque::new(), in_order: Vec::new(), newest: 0 }
    }
}

impl<T: Measure> Recent<T> {
    fn note(&mut self, round: u64, value: T) {
        self.newest = round;
        if self.in_turn.len() == N_RECENT
            && let Some(oldest) = self.in_turn.pop_front()
        {
            self.in_order.remove(self.place(oldest));
        }
        self.in_turn.push_back(value);
        self.in_order.insert(self.place(value), value);
    }

    fn is_known(&self) -> bool {
        self.in_order.len() >= N_KNOWN_MIN
    }

    /// Where in order a value is, or would be.
    fn place(&self, value: T) -> usize {
        self.in_order.partition_point(|other| other.order(&value).is_lt())
    }

    fn median(&self) -> T {
        self.in_order[self.in_order.len() / 2]
    }

    /// The median distance from the median. As many values as are no further away than that follow each other in order, and
    /// one of both ends is the furthest.
    fn median_distance(&self) -> T {
        let (median, n_further) = (self.median(), self.in_order.len() / 2);
        let ends = |first: usize| [first, first + n_further].map(|place| self.in_order[place].distance(median));
        // The later they begin, the nearer is the first one, and the further the last one: looks for where they change places.
        let (mut begin, mut end) = (0, self.in_order.len() - n_further - 1);
        while begin < end {
            let middle = usize::midpoint(begin, end);
            let [first, last] = ends(middle);
            if last.order(&first).is_lt() { begin = middle + 1 } else { end = middle }
        }
        let [first, last] = ends(begin);
        let furthest = if first.order(&last).is_lt() { last } else { first };
        match begin.checked_sub(1).map(|before| ends(before)[0]) {
            Some(before) if before.order(&furthest).is_lt() => before,
            Some(_) | None => furthest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The middle and the spread of values, each of which is one identity's.
    fn middle_and_spread(values: impl IntoIterator<Item = (usize, f64)>) -> Option<[f64; 2]> {
        let mut usual = Usual::default();
        for (identity, value) in values {
            usual.note(&Identity::new(identity.to_string()), value);
        }
        Some([usual.limit(|median, _| median)?, usual.limit(|_, distance| distance)?])
    }

    #[test]
    fn median_and_spread_use_recent_values() {
        let mut stream = 1_u64;
        for n_values in [16, 17, 50, 127, 128, 129, 400] {
            let draw = || {
                stream = stream.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                f64::from(u8::try_from(stream >> 58).expect("six bits"))
            };
            let values: Vec<f64> = std::iter::repeat_with(draw).take(n_values).collect();
            let median = |mut values: Vec<f64>| {
                values.sort_by(f64::total_cmp);
                values[values.len() / 2]
            };
            let recent = values[n_values.saturating_sub(N_RECENT)..].to_vec();
            let middle = median(recent.clone());
            let spread = median(recent.iter().map(|value| (value - middle).abs()).collect());
            let found = middle_and_spread(values.into_iter().map(|value| (0, value)));
            assert_eq!(found, Some([middle, spread]), "{n_values} values");
        }
    }

    #[test]
    fn median_over_identities_is_lower_of_two() {
        let check = |middles: &[f64], expected: Option<f64>| {
            let all = middles.iter().enumerate().flat_map(|value| std::iter::repeat_n(value, N_KNOWN_MIN));
            let found = middle_and_spread(all.map(|(identity, &middle)| (identity, middle)));
            assert_eq!(found.map(|[middle, _]| middle), expected, "{middles:?}");
        };
        check(&[], None);
        check(&[3.0], Some(3.0));
        check(&[3.0, 9.0], Some(3.0));
        check(&[9.0, 3.0, 1.0], Some(3.0));
        check(&[1.0, 1.0, 9.0, 9.0], Some(1.0));
        check(&[1.0, 1.0, 9.0, 9.0, 9.0], Some(9.0));
    }

    #[test]
    fn values_are_pooled_until_one_identity_has_sixteen() {
        let few = |n_identities| (0..n_identities).flat_map(|identity| std::iter::repeat_n((identity, 1.0), 15));
        assert_eq!(middle_and_spread(few(1)), None);
        assert_eq!(middle_and_spread(few(2)), Some([1.0, 0.0]));
        let with = |n_values| few(10).chain(std::iter::repeat_n((10, 5.0), n_values));
        assert_eq!(middle_and_spread(with(15)), Some([1.0, 0.0]));
        assert_eq!(middle_and_spread(with(16)), Some([5.0, 0.0]));
    }

    #[test]
    fn inactive_identity_is_ignored_if_others_are_active() {
        let names = ["gone", "there"].map(Identity::new);
        let mut usual = Usual::default();
        let limit = |usual: &Usual<f64>| usual.limit(|median, _| median);
        for _ in 0..N_KNOWN_MIN {
            usual.note(&names[0], 1.0);
        }
        for _ in 0..1_000 {
            usual.begin_round();
        }
        assert_eq!(limit(&usual), Some(1.0), "nobody knows better");
        for _ in 1..N_KNOWN_MIN {
            usual.note(&names[1], 5.0);
        }
        assert_eq!(limit(&usual), Some(1.0), "nobody else is known yet");
        usual.note(&names[1], 5.0);
        assert_eq!(limit(&usual), Some(5.0));
        usual.note(&names[0], 1.0);
        assert_eq!(limit(&usual), Some(1.0), "it is back");
    }

    #[test]
    fn full_identity_list_drops_longest_inactive() {
        let name = |number: usize| Identity::new(number.to_string());
        let mut usual = Usual::default();
        for number in 0..N_IDENTITIES_MAX {
            usual.begin_round();
            usual.note(&name(number), 1.0);
        }
        usual.note(&name(0), 1.0);
        for number in N_IDENTITIES_MAX..N_IDENTITIES_MAX + 2 {
            usual.note(&name(number), 1.0);
        }
        assert_eq!(usual.by_identity.len(), N_IDENTITIES_MAX);
        let is_there = [0, 1, 2, 3].map(|number| usual.by_identity.contains_key(&name(number)));
        assert_eq!(is_there, [true, false, false, true]);
    }
}
