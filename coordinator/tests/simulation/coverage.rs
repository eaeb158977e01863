//! What happened in schedules, counted, so that a simulation that has ceased to disturb anything is noticed.

use std::collections::BTreeMap;

/// Something that has to happen in some schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Coverage {
    // What is done to the cluster.
    Kill,
    Stall,
    Slowness,
    Break,
    HalfOpen,
    Leaving,
    Overflow,
    AllAtOnce,
    MessageLost,
    MessageDoubled,
    MessageOvertaken,
    Crash,
    Stop,
    Resumed,
    ResumedBeforeValidation,
    CheckpointPassedOver,
    Journal,
    OldIncarnation,
    UnknownWorker,
    LateMessage,
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
    Reassigned,
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

impl Coverage {
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
        Self::MessageLost,
        Self::MessageDoubled,
        Self::MessageOvertaken,
        Self::Crash,
        Self::Stop,
        Self::Resumed,
        Self::ResumedBeforeValidation,
        Self::CheckpointPassedOver,
        Self::Journal,
        Self::OldIncarnation,
        Self::UnknownWorker,
        Self::LateMessage,
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
        Self::Reassigned,
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
pub struct CoverageCounts(BTreeMap<Coverage, u64>);

impl CoverageCounts {
    /// It was seen so many times more.
    pub fn add(&mut self, coverage: Coverage, n_times: u64) {
        *self.0.entry(coverage).or_default() += n_times;
    }

    /// Takes over what was seen elsewhere.
    pub fn add_all(&mut self, other: &Self) {
        other.0.iter().for_each(|(&coverage, &n_times)| self.add(coverage, n_times));
    }

    /// How often it was seen.
    pub fn of(&self, coverage: Coverage) -> u64 {
        self.0.get(&coverage).copied().unwrap_or_default()
    }
}
