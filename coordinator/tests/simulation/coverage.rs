//! What happened in schedules, counted, so that a simulation that has ceased to disturb anything is noticed.

use std::collections::BTreeMap;

macro_rules! coverage {
    ($($kind:ident,)*) => {
        /// Something that has to happen in some schedule.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Coverage {
            $($kind,)*
        }

        impl Coverage {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];
        }
    };
}

coverage! {
    // What is done to the cluster.
    Kill,
    Stall,
    Slowness,
    Break,
    HalfOpen,
    Leaving,
    Overflow,
    Gone,
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
    ResumedWithPatience,
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
    UpdateOverwritten,
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
    StoppedEarly,
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
