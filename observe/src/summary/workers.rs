//! Who takes part, from their joining and leaving and from snapshots.

use std::sync::Arc;

use events::{Snapshot, WorkerStatus};

use super::{Summary, as_f64, push_bounded};

/// Workers that have left and are still listed; the newest.
pub const LEFT_WORKERS_MAX: usize = 32;
/// Snapshots that are kept, for the timeline: two minutes.
pub const SNAPSHOTS_MAX: usize = 120;

/// What [`Worker::shards_per_second`] is the mean over, in seconds.
const SHARD_RATE_SECONDS: f64 = 10.0;
/// Why a worker is listed as left whose leaving was not seen.
pub(super) const NOT_IN_SNAPSHOT: &str = "it takes part no more";

/// A worker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Worker {
    /// Its machine.
    pub host: String,
    /// Its process there.
    pub process: u32,
    /// What computes, such as `flex on cpu`.
    pub backend: String,
    /// Threads that it computes with.
    pub n_threads: u32,
    /// When it joined, in seconds since 1970.
    pub joined: f64,
    /// When it left and why, if it has.
    pub left: Option<(f64, String)>,
    /// Seconds since it was last heard of, at the newest snapshot.
    pub silent_seconds: f64,
    /// Shards of its that counted.
    pub n_shards: u64,
    /// Shards per second, over the snapshots of the last ten seconds.
    pub shards_per_second: f64,
    /// Tasks of its that were late.
    pub n_late: u64,
    /// Tasks of its that others computed after it had left.
    pub n_reassigned: u64,
}

impl Summary {
    pub(super) fn remove_worker(&mut self, worker: u64, time: f64, reason: &str, n_reassigned: u64) {
        self.faults.n_reassigned += n_reassigned;
        if self.outcome.is_none() {
            self.faults.n_left += 1;
            self.n_lost += 1;
        }
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.left = Some((time, reason.to_owned()));
            worker.shards_per_second = 0.0;
            worker.n_reassigned += n_reassigned;
        }
        self.bound_left_workers();
    }

    fn bound_left_workers(&mut self) {
        let left = self.workers.iter().filter_map(|(number, worker)| Some((worker.left.as_ref()?.0, *number)));
        let mut left: Vec<(f64, u64)> = left.collect();
        left.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        for (_, number) in &left[..left.len().saturating_sub(LEFT_WORKERS_MAX)] {
            self.workers.remove(number);
        }
    }

    pub(super) fn add_snapshot(&mut self, time: f64, snapshot: &Snapshot) {
        for status in &snapshot.workers {
            let shards_per_second = self.shard_rate(time, status);
            // One whose joining was not seen takes part as well.
            let joined_now = || Worker { joined: time, ..Worker::default() };
            let worker = self.workers.entry(status.worker).or_insert_with(joined_now);
            worker.silent_seconds = status.silent_milliseconds / 1e3;
            worker.n_shards = status.n_shards;
            worker.n_late = status.n_late;
            worker.left = None;
            worker.shards_per_second = shards_per_second.unwrap_or(worker.shards_per_second);
        }
        // A listener that is too slow may have lost that one left. An older version names none at all.
        if !snapshot.workers.is_empty() {
            for (number, worker) in self.workers.iter_mut().filter(|(_, worker)| worker.left.is_none()) {
                if !snapshot.workers.iter().any(|status| status.worker == *number) {
                    worker.left = Some((time, NOT_IN_SNAPSHOT.to_owned()));
                    worker.shards_per_second = 0.0;
                }
            }
            self.bound_left_workers();
        }
        push_bounded(&mut self.snapshots, (time, Arc::new(snapshot.clone())), SNAPSHOTS_MAX);
    }

    /// Shards per second of a worker, since the oldest snapshot of the last ten seconds that it is in.
    fn shard_rate(&self, time: f64, status: &WorkerStatus) -> Option<f64> {
        // Half a second more, since snapshots are not a second apart to the millisecond.
        let recent = self.snapshots.iter().filter(|(then, _)| time - then <= SHARD_RATE_SECONDS + 0.5);
        let mut known = recent.filter_map(|(then, snapshot)| {
            Some((*then, snapshot.workers.iter().find(|known| known.worker == status.worker)?.n_shards))
        });
        let (then, n_shards) = known.next()?;
        let has_grown = status.n_shards >= n_shards && time > then;
        has_grown.then(|| as_f64(status.n_shards - n_shards) / (time - then))
    }
}
