//! The thread that uploads: rounds of files in order, each begun with a look at whose mirror this is, retried without end
//! while the run is on.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use events::MirrorEvent;
use tokio::time::{interval, sleep};
use tracing::{debug, info};

use super::survey::owner;
use super::{Change, MirrorError, MirroredRun, RunFile, Shared, Store, StoreError};
use crate::location::Location;

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
        // Ends: on a final error, or when `closed` cancels it.
        loop {
            self.wait_for_work().await;
            let Err(error) = self.round().await else {
                n_failures = 0;
                self.settle();
                continue;
            };
            let error = match error {
                RoundError::Final(error) => return self.shared.give_up(error),
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
        // Ends: `work` is notified when a file is added.
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
        let listed = self.store.list().await?.into_keys().filter_map(RunFile::checkpoint_step);
        let listed: Vec<u64> = listed.filter(|step| !self.run.unusable_steps.contains(step)).collect();
        let (batch, event) = self.take_batch(listed.first().copied());
        self.shared.tell(event);
        // Held open from here on: while the lines are uploaded, newer checkpoints may take the place of these.
        let (checkpoints, others): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|(file, _)| file.checkpoint_step().is_some());
        let checkpoints: Vec<_> = checkpoints
            .into_iter()
            .map(|(file, change)| Ok((file, change, self.open(file)?)))
            .collect::<Result<_, StoreError>>()?;
        for (file, change) in others {
            let content = self.open(file)?;
            self.upload(file, change, content).await?;
        }
        for (file, change, content) in checkpoints {
            // Large lines take long, and meanwhile another coordinator may have taken over.
            self.check_owner().await?;
            let is_uploaded = self.upload(file, change, content).await?;
            if let Some(step) = file.checkpoint_step().filter(|_| is_uploaded) {
                info!(step, "checkpoint mirrored");
                let mut state = self.shared.lock();
                state.lag.mirrored(step, begun);
                state.uploaded_steps.insert(step);
            }
        }
        self.remove_old(&listed).await
    }

    /// A file of the run folder; None if it is not there any more.
    fn open(&self, file: RunFile) -> Result<Option<File>, StoreError> {
        match File::open(self.run.folder.join(file.path())) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some).map_err(|error| StoreError::File(format!("{}: {error}", file.path()))),
        }
    }

    /// Uploads a file, if it is still there; whether it was.
    async fn upload(&self, file: RunFile, change: Change, content: Option<File>) -> Result<bool, StoreError> {
        let is_there = content.is_some();
        if let Some(content) = content {
            self.store.upload(file, content, |part| self.note_part(file, part)).await?;
        }
        self.shared.lock().pending.done(file, change);
        self.note_progress();
        Ok(is_there)
    }

    /// Removes the checkpoints that are older than all kept ones. Only uploads of this process count as kept: other files with the
    /// name of a checkpoint may be damaged.
    async fn remove_old(&self, listed: &[u64]) -> Result<(), RoundError> {
        let oldest_kept = {
            let mut state = self.shared.lock();
            let n_too_many = state.uploaded_steps.len().saturating_sub(self.run.n_checkpoints_kept);
            for _ in 0..n_too_many {
                state.uploaded_steps.pop_first();
            }
            let is_full = state.uploaded_steps.len() == self.run.n_checkpoints_kept;
            state.uploaded_steps.first().copied().filter(|_| is_full)
        };
        let Some(oldest_kept) = oldest_kept else { return Ok(()) };
        // Those of earlier rounds are listed by now, and those of this one are as new as any.
        for &step in listed.iter().filter(|&&step| step < oldest_kept) {
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
    fn take_batch(&self, newest: Option<u64>) -> (Vec<(RunFile, Change)>, Option<MirrorEvent>) {
        let mut state = self.shared.lock();
        state.newest_listed = newest;
        let is_ahead = state.is_ahead();
        let is_new = is_ahead && !std::mem::replace(&mut state.is_ahead_told, is_ahead);
        let event = newest.filter(|_| is_new).map(|mirrored| MirrorEvent::Ahead { mirrored });
        (state.batch(), event)
    }

    /// A part of a file has arrived. The same part once more, after a failure, is no progress.
    fn note_part(&self, file: RunFile, part: u64) {
        let is_new = self.shared.lock().pending.reach(file, part);
        if is_new {
            self.note_progress();
        }
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
    use std::fs;
    use std::sync::{Condvar, Mutex};

    use tokio::sync::Notify;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::checkpoint::tests::checkpoint;
    use crate::checkpoints::Checkpoints;
    use crate::mirror::State;

    const N_KEPT: usize = 2;

    /// An uploader of a run with checkpoints of steps 10 and 20 to a mirror in a folder.
    fn uploader(unusable_steps: &[u64]) -> (tempfile::TempDir, Uploader) {
        let root = tempfile::tempdir().expect("a temporary folder");
        let folder = root.path().join("run");
        let mut checkpoints = Checkpoints::of(&folder, 9);
        for step in [10, 20] {
            checkpoints.save(&checkpoint(step, 0.0)).expect("it can be written");
        }
        let description = r#"{"run_id":"0123","incarnation":1}"#;
        for (name, content) in [("run.json", description), ("steps.jsonl", "{}\n"), ("history.jsonl", "{}\n")] {
            fs::write(folder.join(name), content).expect("a file");
        }
        let url = format!("file://{}", root.path().join("mirror").display());
        let location = Location::parse("--mirror", &url).expect("a URL");
        let run = MirroredRun {
            folder,
            run_id: "0123".to_owned(),
            incarnation: 1,
            n_checkpoints_kept: N_KEPT,
            replaces: None,
            unusable_steps: unusable_steps.iter().copied().collect(),
        };
        let mut state = State::new(N_KEPT);
        state.add_all(&run);
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            tell: Box::new(|_| ()),
            work: Notify::new(),
            retry: Notify::new(),
            settled: Condvar::new(),
            closed: CancellationToken::new(),
        });
        let store = Store::open(&location).expect("a folder needs no settings");
        (root, Uploader::new(location, store, run, shared))
    }

    fn round(uploader: &Uploader) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(uploader.round()).expect("a folder can be written");
    }

    /// The steps of what has the name of a checkpoint at the mirror.
    fn steps_at_mirror(root: &tempfile::TempDir) -> Vec<u64> {
        let entries = fs::read_dir(root.path().join("mirror/checkpoints")).expect("a folder");
        let name =
            |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name().into_string().expect("text");
        let files = entries.filter_map(|entry| RunFile::parse(&format!("checkpoints/{}", name(entry))));
        let mut steps: Vec<u64> = files.filter_map(RunFile::checkpoint_step).collect();
        steps.sort_unstable();
        steps
    }

    fn write_torn(root: &tempfile::TempDir, steps: &[u64]) {
        let folder = root.path().join("mirror/checkpoints");
        fs::create_dir_all(&folder).expect("a folder");
        for &step in steps {
            fs::write(folder.join(format!("step-{step:08}.safetensors")), "torn").expect("a file");
        }
    }

    #[test]
    fn newer_checkpoint_replaces_oldest_at_mirror() {
        let (root, uploader) = uploader(&[]);
        round(&uploader);
        assert_eq!(steps_at_mirror(&root), [10, 20]);
        Checkpoints::of(&uploader.run.folder, 9).save(&checkpoint(30, 0.0)).expect("it can be written");
        uploader.shared.lock().pending.add_checkpoint(30);
        round(&uploader);
        assert_eq!(steps_at_mirror(&root), [20, 30]);
    }

    /// The goal: what was not uploaded never pushes out what was.
    #[test]
    fn deleted_checkpoint_is_not_reported_as_mirrored() {
        let (root, uploader) = uploader(&[]);
        round(&uploader);
        for step in [30, 40, 50] {
            let mut state = uploader.shared.lock();
            state.pending.add_checkpoint(step);
            state.lag.saved(step, Instant::now());
        }
        round(&uploader);
        assert_eq!(steps_at_mirror(&root), [10, 20]);
        assert_eq!(uploader.shared.lock().lag.newest_mirrored(), Some(20));
    }

    #[test]
    fn unusable_objects_do_not_displace_checkpoints() {
        let (root, uploader) = uploader(&[997, 998]);
        write_torn(&root, &[997, 998]);
        round(&uploader);
        assert_eq!(steps_at_mirror(&root), [10, 20, 997, 998]);
        let report = uploader.shared.lock().report(&uploader.location);
        assert_eq!((report.step, report.missing), (Some(20), vec![]));
    }

    #[test]
    fn mirror_ahead_of_run_is_reported_incomplete() {
        let (root, uploader) = uploader(&[]);
        write_torn(&root, &[998]);
        round(&uploader);
        assert_eq!(steps_at_mirror(&root), [998]);
        let report = uploader.shared.lock().report(&uploader.location);
        assert_eq!(report.step, None);
        assert!(report.missing.contains(&"checkpoints/step-00000020.safetensors".to_owned()), "{report:?}");
        assert!(report.reason.expect("a reason").contains("a checkpoint of step 998"));
    }

    #[test]
    fn retry_pause_doubles_up_to_bound() {
        let milliseconds = [0, 1, 2, 5, 6, 60, u32::MAX].map(|n_failures| pause(n_failures, 1.0).as_millis());
        assert_eq!(milliseconds, [500, 1_000, 2_000, 16_000, 20_000, 20_000, 20_000]);
        assert_eq!(pause(0, 0.0).as_millis(), 250);
        assert!((0.0..=1.0).contains(&jitter()));
    }
}
