//! What happened in schedules, counted, so that a simulation that has ceased to disturb anything is noticed.

use std::collections::BTreeMap;

/// Something that has to happen in some schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seen {
    // What is done to the cluster.
    Kill,
    Stall,
    Slowness,
    Break,
    HalfOpen,
    Leaving,
    Overflow,
    AllAtOnce,
    LetterLost,
    LetterDoubled,
    LetterOvertaken,
    Crash,
    Stop,
    Resumed,
    ResumedBeforeValidation,
    CheckpointPassedOver,
    Journal,
    OldIncarnation,
    UnknownWorker,
    LateLetter,
    LieNotFinite,
    LieLength,
    LieCount,
    LieStray,
    LieBits,
    LieNonsense,
    LieUndealt,
    LieGuess,
    LieSilent,
    LieFlood,
    TwoOfOneIdentity,
    // What the core makes of it.
    HandedOn,
    Waiting,
    Lagging,
    LaggingTwice,
    Silent,
    NotReady,
    NoAnswer,
    Released,
    RefusedStale,
    RefusedDuplicate,
    RefusedNotDealt,
    RefusedForGood,
    Late,
    HelperFirst,
    StragglerFirst,
    Audited,
    NotAudited,
    Own,
    OwnCounts,
    OwnTooLate,
    EvictedNotFinite,
    EvictedLength,
    EvictedCount,
    EvictedBits,
    EvictedNonsense,
    EvictedByTwo,
    EvictedByCoordinator,
    KeptOut,
    MixedClasses,
    NobodyCame,
}

impl Seen {
    /// Every one.
    pub const ALL: [Self; 61] = [
        Self::Kill,
        Self::Stall,
        Self::Slowness,
        Self::Break,
        Self::HalfOpen,
        Self::Leaving,
        Self::Overflow,
        Self::AllAtOnce,
        Self::LetterLost,
        Self::LetterDoubled,
        Self::LetterOvertaken,
        Self::Crash,
        Self::Stop,
        Self::Resumed,
        Self::ResumedBeforeValidation,
        Self::CheckpointPassedOver,
        Self::Journal,
        Self::OldIncarnation,
        Self::UnknownWorker,
        Self::LateLetter,
        Self::LieNotFinite,
        Self::LieLength,
        Self::LieCount,
        Self::LieStray,
        Self::LieBits,
        Self::LieNonsense,
        Self::LieUndealt,
        Self::LieGuess,
        Self::LieSilent,
        Self::LieFlood,
        Self::TwoOfOneIdentity,
        Self::HandedOn,
        Self::Waiting,
        Self::Lagging,
        Self::LaggingTwice,
        Self::Silent,
        Self::NotReady,
        Self::NoAnswer,
        Self::Released,
        Self::RefusedStale,
        Self::RefusedDuplicate,
        Self::RefusedNotDealt,
        Self::RefusedForGood,
        Self::Late,
        Self::HelperFirst,
        Self::StragglerFirst,
        Self::Audited,
        Self::NotAudited,
        Self::Own,
        Self::OwnCounts,
        Self::OwnTooLate,
        Self::EvictedNotFinite,
        Self::EvictedLength,
        Self::EvictedCount,
        Self::EvictedBits,
        Self::EvictedNonsense,
        Self::EvictedByTwo,
        Self::EvictedByCoordinator,
        Self::KeptOut,
        Self::MixedClasses,
        Self::NobodyCame,
    ];
}

/// How often each was seen.
#[derive(Clone, Debug, Default)]
pub struct Counts(BTreeMap<Seen, u64>);

impl Counts {
    /// It was seen so many times more.
    pub fn add(&mut self, seen: Seen, n_times: u64) {
        *self.0.entry(seen).or_default() += n_times;
    }

    /// Takes over what was seen elsewhere.
    pub fn add_all(&mut self, other: &Self) {
        other.0.iter().for_each(|(&seen, &n_times)| self.add(seen, n_times));
    }

    /// How often it was seen.
    pub fn of(&self, seen: Seen) -> u64 {
        self.0.get(&seen).copied().unwrap_or_default()
    }
}
