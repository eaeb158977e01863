//! What the core tells those who watch.

use std::collections::BTreeSet;
use std::time::Duration;

use model::loss::LossSums;

use super::action::Refusal;
use super::roster::{Profile, WorkerId};

/// What those who watch are told.
#[derive(Clone, Debug)]
pub enum Report {
    /// A worker takes part.
    Joined {
        /// Which.
        worker_id: WorkerId,
        /// What it is.
        profile: Profile,
        /// Workers that take part.
        n_active: usize,
    },
    /// A worker is out.
    Left {
        /// Which.
        worker_id: WorkerId,
        /// Why.
        reason: String,
        /// Workers that take part.
        n_active: usize,
        /// Shards or batches that it had and that others compute now.
        n_handed_on: usize,
    },
    /// A worker's replica is sent anew.
    Lagging {
        /// Which.
        worker_id: WorkerId,
        /// Why.
        reason: String,
    },
    /// Something a worker sent was not used.
    Refused {
        /// Which.
        worker_id: WorkerId,
        /// Why.
        refusal: Refusal,
    },
    /// Workers of several compute classes take part: bits may depend on which computes what.
    MixedClasses(BTreeSet<String>),
    /// Nobody is there to compute.
    Waiting,
    /// Somebody is there again.
    GoingOn,
    /// An update was applied.
    Step(StepReport),
    /// An epoch, or what was trained of it, was validated.
    Epoch(EpochReport),
}

/// An update.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Updates applied, this one included.
    pub step: u64,
    /// The epoch, counted from 0.
    pub epoch: u32,
    /// Losses of its images, before it.
    pub sums: LossSums,
    /// From the dealing of its shards to their sum.
    pub duration: Duration,
    /// Who computed each shard.
    pub workers: Vec<WorkerId>,
    /// The longest that a worker computed for it.
    pub compute: Duration,
    /// Workers that take part.
    pub n_active: usize,
}

/// An epoch.
#[derive(Clone, Debug)]
pub struct EpochReport {
    /// Updates applied.
    pub step: u64,
    /// The epoch, counted from 0.
    pub epoch: u32,
    /// Losses of its steps, each before its update.
    pub training: LossSums,
    /// Losses of the validation images after it.
    pub validation: LossSums,
    /// How long its steps took.
    pub duration: Duration,
}
