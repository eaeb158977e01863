//! How far the mirror is behind the run folder, and when that is worth a message: each state once, not each retry. A
//! function of its events; time is an argument.

use std::time::Instant;

use events::{MIRROR_LAG_MAX, MirrorEvent};

/// What is known of the mirror's checkpoints.
#[derive(Debug, Default)]
pub struct Lag {
    newest_local: Option<u64>,
    newest_mirrored: Option<u64>,
    /// Since when a checkpoint is missing at the mirror.
    due_since: Option<Instant>,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    InTime,
    Failing,
    Behind,
}

impl Lag {
    /// The step of the newest checkpoint in the run folder.
    pub fn newest_local(&self) -> Option<u64> {
        self.newest_local
    }

    /// The step of the newest checkpoint at the mirror.
    pub fn newest_mirrored(&self) -> Option<u64> {
        self.newest_mirrored
    }

    /// A checkpoint is whole in the run folder.
    pub fn saved(&mut self, step: u64, now: Instant) {
        self.newest_local = self.newest_local.max(Some(step));
        if self.is_missing() {
            self.due_since.get_or_insert(now);
        }
    }

    /// A checkpoint is whole at the mirror: the newest of a batch that was begun at a time.
    pub fn mirrored(&mut self, step: u64, batch_begun: Instant) {
        self.newest_mirrored = self.newest_mirrored.max(Some(step));
        // What is newer was saved after the batch had begun.
        self.due_since = self.due_since.filter(|_| self.is_missing()).map(|since| since.max(batch_begun));
    }

    /// An attempt has failed.
    pub fn failed(&mut self, reason: &str) -> Option<MirrorEvent> {
        if self.state != State::InTime {
            return None;
        }
        self.state = State::Failing;
        Some(MirrorEvent::Failing { reason: reason.to_owned() })
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) -> Option<MirrorEvent> {
        if !self.is_late(now) || self.state == State::Behind {
            return None;
        }
        self.state = State::Behind;
        Some(MirrorEvent::Behind { local: self.newest_local, mirrored: self.newest_mirrored })
    }

    /// All files of a batch are at the mirror. Others may have changed since, or been added: that is no lag yet.
    pub fn batch_done(&mut self, now: Instant) -> Option<MirrorEvent> {
        if self.state == State::InTime || self.is_late(now) {
            return None;
        }
        self.state = State::InTime;
        Some(MirrorEvent::CaughtUp { mirrored: self.newest_mirrored })
    }

    fn is_late(&self, now: Instant) -> bool {
        self.due_since.is_some_and(|since| now.saturating_duration_since(since) >= MIRROR_LAG_MAX)
    }

    fn is_missing(&self) -> bool {
        self.newest_local > self.newest_mirrored
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn failure_and_recovery_are_reported_once() {
        let (mut lag, now) = (Lag::default(), Instant::now());
        assert_eq!(lag.failed("no route"), Some(MirrorEvent::Failing { reason: "no route".to_owned() }));
        assert_eq!(lag.failed("no route"), None);
        assert_eq!(lag.batch_done(now), Some(MirrorEvent::CaughtUp { mirrored: None }));
        assert_eq!(lag.batch_done(now), None);
    }

    #[test]
    fn lag_is_reported_once_after_one_minute() {
        let begun = Instant::now();
        let mut lag = Lag::default();
        lag.saved(10, begun);
        assert_eq!(lag.tick(begun + 59 * SECOND), None);
        lag.saved(20, begun + 59 * SECOND);
        let behind = MirrorEvent::Behind { local: Some(20), mirrored: None };
        assert_eq!(lag.tick(begun + 60 * SECOND), Some(behind));
        assert_eq!(lag.tick(begun + 61 * SECOND), None);
        assert_eq!(lag.failed("no route"), None, "that it is behind has been told");
        lag.saved(30, begun + 62 * SECOND);
        lag.mirrored(20, begun + 61 * SECOND);
        assert_eq!(lag.batch_done(begun + 121 * SECOND), None, "30 is late by now");
        lag.mirrored(30, begun + 121 * SECOND);
        let caught_up = MirrorEvent::CaughtUp { mirrored: Some(30) };
        assert_eq!(lag.batch_done(begun + 122 * SECOND), Some(caught_up));
        assert_eq!(lag.tick(begun + 600 * SECOND), None);
    }

    /// The goal: a mirror that is always one checkpoint behind, but never long, is in time.
    #[test]
    fn steady_lag_below_one_minute_is_not_reported() {
        let begun = Instant::now();
        let mut lag = Lag::default();
        lag.saved(0, begun);
        for step in 1..100 {
            let batch_begun = begun + 40 * step * SECOND;
            lag.saved(u64::from(step), batch_begun + SECOND);
            lag.mirrored(u64::from(step) - 1, batch_begun);
            assert_eq!(lag.tick(batch_begun + 39 * SECOND), None);
        }
    }
}
