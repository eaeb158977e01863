//! What the core reports.

use std::time::Duration;

use engine::sums::Sums;
use events::RunEvent;
use serde::Serialize;

use super::roster::WorkerId;

/// What the core reports. Steps and epochs are sums, which the driver makes records of.
#[derive(Clone, Debug)]
pub enum Report {
    /// An update was applied.
    Step(StepReport),
    /// An epoch, or what was trained of it, was validated.
    Epoch(EpochReport),
    /// Anything else.
    Event(Box<RunEvent>),
}

/// An update.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Updates applied, this one included.
    pub step: u64,
    /// The epoch, counted from 0.
    pub epoch: u32,
    /// Losses of its images, before it.
    pub sums: Sums,
    /// When its shards were dealt.
    pub begun: Duration,
    /// From then to their sum.
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
    pub training: Sums,
    /// Losses of the validation images after it.
    pub validation: Sums,
    /// How long its steps took.
    pub duration: Duration,
    /// Whether its validation loss is below those of all epochs before.
    pub is_best: bool,
}

/// What a run went through.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tally {
    /// Shards and batches of workers that were lost, which others computed.
    #[serde(rename = "n_handed_on")]
    pub n_reassigned: u64,
    /// Shards and batches that were dealt once more, since those who had them were late.
    pub n_late: u64,
    /// Shards that two computed, to the same bits.
    pub n_audited: u64,
    /// Shards that two should have computed to the same bits, where the only second one was the coordinator, of another compute
    /// class.
    pub n_not_audited: u64,
    /// Shards and batches that the coordinator computed too.
    pub n_own: u64,
    /// Workers that were evicted.
    pub n_evicted: u64,
    /// The first of them, each with the reason.
    pub evicted: Vec<String>,
}

/// Evicted workers that are named: one may come again as often as it likes.
const N_NAMED_MAX: usize = 100;

impl Tally {
    /// Counts a worker that is evicted, and why.
    pub fn add_evicted(&mut self, text: String) {
        self.n_evicted += 1;
        if self.evicted.len() < N_NAMED_MAX {
            self.evicted.push(text);
        }
    }

    /// What people should know of it.
    pub fn describe(&self) -> Vec<String> {
        let Self { n_audited, n_not_audited, evicted, .. } = self;
        let mut lines: Vec<String> = evicted.iter().map(|text| format!("evicted: {text}")).collect();
        if n_audited + n_not_audited > 0 {
            let without = match n_not_audited {
                0 => String::new(),
                _ => format!("; {n_not_audited} more are near what the coordinator computed, which has other bits"),
            };
            lines.push(format!("audit: {n_audited} shards were computed twice, to the same bits{without}"));
        }
        lines
    }
}
