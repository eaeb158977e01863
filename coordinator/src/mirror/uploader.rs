//! The thread that uploads: rounds of files in order, each begun with a look at whose mirror this is, retried without end
//! while the run is on.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{interval, sleep};
use tracing::{debug, info};

use super::survey::owner;
use super::{Location, MirrorError, MirrorEvent, MirroredRun, RunFile, Shared, Store, StoreError};

/// The pause after the first failure; each one more doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(20);
/// How often the mirror's lag is looked at.
const LAG_INTERVAL: Duration = Duration::from_secs(1);

/// Uploads what is pending.
#[derive(Debug)]
pub(super) struct Uploader {
    location: Location,
    store: Store,
    run: MirroredRun,
    shared: Arc<Shared>,
}

/// Why a round has ended before its time.
#[derive(Debug)]
enum RoundError {
    /// It is tried again.
    Store(StoreError),
    /// It makes no sense to.
    Final(MirrorError),
}

impl From<StoreError> for RoundError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Uploader {
    pub(super) fn new(location: Location, store: Store, run: MirroredRun, shared: Arc<Shared>) -> Self {
        Self { location, store, run, shared }
    }

    /// Uploads until it is closed, or another coordinator has taken over.
    pub(super) fn run(self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("the system has a timer and a poll to give");
        runtime.block_on(async {
            tokio::select! {
                () = self.upload_all() => {}
                () = self.watch_lag() => {}
                () = self.shared.closed.cancelled() => {}
            }
        });
        // A name that is still being looked up is not waited for.
        runtime.shutdown_background();
    }

    async fn upload_all(&self) {
        let mut n_failures = 0;
        // Ends: only a final error ends it, or whoever closes it from outside.
        loop {
            self.wait_for_work().await;
            let Err(error) = self.round().await else {
                n_failures = 0;
                self.settle();
                continue;
            };
            let error = match error {
                RoundError::Final(error) => return self.give_up(error),
                RoundError::Store(error) => error,
            };
            let pause = pause(n_failures, jitter());
            n_failures += 1;
            debug!(%error, n_failures, pause_ms = pause.as_millis(), "mirror: attempt failed");
            let reason = error.to_string();
            let event = {
                let mut state = self.shared.lock();
                let event = state.lag.failed(&reason);
                state.failure = Some(reason);
                event
            };
            self.shared.tell(event);
            tokio::select! {
                () = sleep(pause) => {}
                () = self.shared.retry.notified() => {}
            }
        }
    }

    /// Waits until a file can be uploaded. After a failure that is at once: the round is not over.
    async fn wait_for_work(&self) {
        // Ends: whoever adds a file says so.
        loop {
            {
                let mut state = self.shared.lock();
                state.is_busy |= state.missing().next().is_some();
                if state.is_busy {
                    return;
                }
            }
            self.shared.work.notified().await;
        }
    }

    /// Uploads what is pending, and removes what is too old.
    async fn round(&self) -> Result<(), RoundError> {
        let begun = Instant::now();
        self.check_owner().await?;
        let mut checkpoints: Vec<u64> =
            self.store.list().await?.into_keys().filter_map(RunFile::checkpoint_step).collect();
        let (batch, event) = self.take_batch(checkpoints.first().copied(), begun);
        self.shared.tell(event);
        for (file, change) in batch {
            if file.checkpoint_step().is_some() {
                // Large lines take long, and meanwhile another coordinator may have taken over.
                self.check_owner().await?;
            }
            self.store.upload(file, &self.run.folder, || self.note_progress()).await?;
            let step = file.checkpoint_step();
            {
                let mut state = self.shared.lock();
                state.pending.done(file, change);
                if let Some(step) = step {
                    state.lag.mirrored(step, begun);
                }
            }
            if let Some(step) = step {
                info!(step, "checkpoint mirrored");
                checkpoints.push(step);
            }
        }
        // The newest ones are whole there by now.
        checkpoints.sort_unstable();
        checkpoints.dedup();
        for &step in checkpoints.iter().rev().skip(self.run.n_checkpoints_kept) {
            self.store.remove(RunFile::checkpoint(step)).await?;
            self.note_progress();
        }
        Ok(())
    }

    /// Another run's mirror, or one that a later process of this run has taken over, is left alone.
    async fn check_owner(&self) -> Result<(), RoundError> {
        let Some(owner) = owner(&self.store).await? else { return Ok(()) };
        let url = self.location.to_string();
        // Only until this run has left its own mark.
        let is_first = self.shared.lock().pending.files().next() == Some(RunFile::Description);
        if is_first && self.run.replaces.as_ref() == Some(&owner.run_id) {
            return Ok(());
        }
        if owner.run_id != self.run.run_id {
            let (expected, found) = (self.run.run_id.clone(), format!("run {}", owner.run_id));
            return Err(RoundError::Final(MirrorError::OtherRun { url, expected, found }));
        }
        if owner.incarnation > self.run.incarnation {
            let (ours, found) = (self.run.incarnation, owner.incarnation);
            return Err(RoundError::Final(MirrorError::Superseded { url, ours, found }));
        }
        Ok(())
    }

    /// The files to upload, now that the mirror's newest checkpoint is known.
    fn take_batch(&self, newest: Option<u64>, begun: Instant) -> (Vec<(RunFile, super::Change)>, Option<MirrorEvent>) {
        let mut state = self.shared.lock();
        if let Some(step) = newest {
            state.lag.mirrored(step, begun);
        }
        let is_ahead = state.is_ahead();
        let is_new = is_ahead && !std::mem::replace(&mut state.is_ahead_told, is_ahead);
        let event = newest.filter(|_| is_new).map(|mirrored| MirrorEvent::Ahead { mirrored });
        (state.batch(), event)
    }

    fn note_progress(&self) {
        self.shared.lock().last_progress = Instant::now();
        self.shared.settled.notify_all();
    }

    /// A round is over.
    fn settle(&self) {
        let event = {
            let mut state = self.shared.lock();
            state.is_busy = false;
            state.failure = None;
            state.lag.batch_done(Instant::now())
        };
        self.shared.tell(event);
        self.shared.settled.notify_all();
    }

    fn give_up(&self, error: MirrorError) {
        self.shared.tell(Some(MirrorEvent::GivenUp { reason: error.to_string() }));
        self.shared.lock().given_up = Some(error);
        self.shared.settled.notify_all();
    }

    async fn watch_lag(&self) {
        let mut ticks = interval(LAG_INTERVAL);
        // Ends with the uploader.
        loop {
            ticks.tick().await;
            let event = self.shared.lock().lag.tick(Instant::now());
            self.shared.tell(event);
        }
    }
}

/// The pause after so many failures, between a half and the whole of what doubles each time.
fn pause(n_failures: u32, jitter: f64) -> Duration {
    let longest = PAUSE_MIN.saturating_mul(1 << n_failures.min(16)).min(PAUSE_MAX);
    longest.mul_f64(0.5 + 0.5 * jitter)
}

/// From 0 to 1, so that coordinators that lost a store together do not come back together. Decides nothing in training.
#[expect(clippy::cast_precision_loss, reason = "a coarse number is enough")]
fn jitter() -> f64 {
    RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound() {
        let milliseconds = [0, 1, 2, 5, 6, 60, u32::MAX].map(|n_failures| pause(n_failures, 1.0).as_millis());
        assert_eq!(milliseconds, [500, 1_000, 2_000, 16_000, 20_000, 20_000, 20_000]);
        assert_eq!(pause(0, 0.0).as_millis(), 250);
        assert!((0.0..=1.0).contains(&jitter()));
    }
}
