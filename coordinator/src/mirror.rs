//! A copy of the run's files in an object store, made behind the training: nothing waits for it. This file holds the state
//! that the run and the uploading thread share, and the end: how long the mirror may take to catch up, and what it lacks.

mod download;
mod error;
mod lag;
mod pending;
mod plan;
mod run_file;
mod store;
mod survey;
mod uploader;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use events::{EpochRecord, MirrorEvent, PictureFile, PictureName};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{Span, info, warn};

pub use download::download;
pub use error::MirrorError;
pub use plan::{MirrorPlan, prepare};
pub use run_file::RunFile;
pub use survey::{Owner, Survey, survey};

use crate::checkpoint::Checkpoint;
use crate::checkpoints::Checkpoints;
use crate::location::Location;
use lag::Lag;
use pending::{Change, Pending};
use store::{Store, StoreError};
use uploader::Uploader;

/// How long the mirror may make no progress after the run's end before it is given up.
/// Longer than one request may take, so that one that hangs is tried again.
const END_WAIT_MAX: Duration = Duration::from_mins(2);
/// How often it says that it is not done, at the run's end.
const MESSAGE_INTERVAL: Duration = Duration::from_secs(5);

/// The run whose files are mirrored.
#[derive(Clone, Debug)]
pub struct MirroredRun {
    /// Its folder.
    pub folder: PathBuf,
    /// Its name.
    pub run_id: String,
    /// Which process of the run's coordinator this is.
    pub incarnation: u32,
    /// How many checkpoints stay at the mirror.
    pub n_checkpoints_kept: usize,
    /// A run whose files may be overwritten.
    pub replaces: Option<String>,
    /// Steps of what has the name of a checkpoint at the mirror, and could not be used.
    pub unusable_steps: BTreeSet<u64>,
}

/// The mirror of a run, and the thread that uploads. The only owner of that thread.
#[derive(Debug)]
pub struct Mirror {
    location: Location,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

/// Tells the mirror which files are whole on the disk. Never blocks; without a mirror it does nothing.
#[derive(Clone, Debug, Default)]
pub struct MirrorHandle(Option<Arc<Shared>>);

/// What the mirror has at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorReport {
    /// Where it is.
    pub url: String,
    /// The step of its newest checkpoint.
    pub step: Option<u64>,
    /// The files that it lacks, or has in an older form.
    pub missing: Vec<String>,
    /// What kept it from having them.
    pub reason: Option<String>,
}

struct Shared {
    state: Mutex<State>,
    tell: Box<dyn Fn(MirrorEvent) + Send + Sync>,
    /// Wakes the uploader when there is something to upload.
    work: Notify,
    /// Wakes it from the pause after a failure.
    retry: Notify,
    /// Wakes the thread that waits for the end.
    settled: Condvar,
    closed: CancellationToken,
}

#[derive(Debug)]
struct State {
    pending: Pending,
    lag: Lag,
    /// Whether a round is under way, or has to be tried again.
    is_busy: bool,
    is_ahead_told: bool,
    /// The newest checkpoint that was listed at the mirror.
    newest_listed: Option<u64>,
    /// The newest checkpoints that were uploaded, as many as are kept.
    uploaded_steps: BTreeSet<u64>,
    failure: Option<String>,
    given_up: Option<MirrorError>,
    end_wait: EndWait,
    last_progress: Instant,
}

/// The wait for the mirror after the run's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EndWait {
    NotBegun,
    Begun,
    /// A signal has ended it.
    Over,
}

impl Mirror {
    /// Starts to mirror a run, which logs in `span`. All files that are in its folder are uploaded, except checkpoints that
    /// are damaged. `tell` is called with each change of the mirror's state, and must not block.
    ///
    /// # Errors
    /// If the store cannot be opened, or is the run folder itself.
    pub fn start(
        location: Location,
        run: MirroredRun,
        tell: impl Fn(MirrorEvent) + Send + Sync + 'static,
        span: Span,
    ) -> Result<Self, MirrorError> {
        check_apart(&location, &run.folder)?;
        let store = Store::open(&location).map_err(|error| MirrorError::of(&location, error))?;
        let mut state = State::new(run.n_checkpoints_kept);
        state.add_all(&run);
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            tell: Box::new(tell),
            work: Notify::new(),
            retry: Notify::new(),
            settled: Condvar::new(),
            closed: CancellationToken::new(),
        });
        let uploader = Uploader::new(location.clone(), store, run, Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("mirror".to_owned());
        let (failed, failed_location) = (Arc::clone(&shared), location.clone());
        let upload_all = move || {
            // A fault of a client must not pass for a mirror that is in time.
            if catch_unwind(AssertUnwindSafe(|| uploader.run())).is_err() {
                let error = StoreError::Settings("the client has failed".to_owned());
                failed.give_up(MirrorError::of(&failed_location, error));
            }
        };
        let thread = thread.spawn(move || span.in_scope(upload_all));
        Ok(Self { location, shared, thread: thread.expect("the system has a thread to give") })
    }

    /// Where changes are reported.
    pub fn handle(&self) -> MirrorHandle {
        MirrorHandle(Some(Arc::clone(&self.shared)))
    }

    /// Blocks until the mirror has all files, has made no progress for two minutes, has given up, or is not to be waited for.
    pub fn drain(&self) -> MirrorReport {
        let mut next_message = Instant::now() + MESSAGE_INTERVAL;
        let mut state = self.shared.lock();
        state.last_progress = Instant::now();
        if state.end_wait == EndWait::NotBegun {
            state.end_wait = EndWait::Begun;
        }
        self.shared.retry.notify_one();
        // Ends: without progress the deadline comes, and there is no progress without end in files that do not change.
        while !state.is_settled() {
            let (now, deadline) = (Instant::now(), state.last_progress + END_WAIT_MAX);
            if now >= deadline {
                break;
            }
            if now >= next_message {
                next_message = now + MESSAGE_INTERVAL;
                let n_files = state.missing().count();
                (self.shared.tell)(MirrorEvent::Finishing { n_files });
            }
            let wait_max = deadline.min(next_message).saturating_duration_since(now);
            state = self.shared.settled.wait_timeout(state, wait_max).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.report(&self.location)
    }

    /// Uploads the run's last file, its description, unless others are missing; then ends the thread.
    pub fn finish(self) -> MirrorReport {
        let is_whole = self.shared.lock().missing().next().is_none();
        self.handle().written(RunFile::Description);
        let report = if is_whole { self.drain() } else { self.shared.lock().report(&self.location) };
        self.shared.closed.cancel();
        if self.thread.join().is_err() {
            warn!("the mirror's thread has ended with a fault");
        }
        report
    }
}

impl MirrorHandle {
    /// A checkpoint is whole on the disk, after the lines that it needs.
    pub fn checkpoint_saved(&self, step: u64) {
        self.change(|state| {
            state.pending.add_checkpoint(step);
            state.lag.saved(step, Instant::now());
        });
    }

    /// An epoch's weights, lines and pictures are on the disk.
    pub fn epoch_written(&self, record: &EpochRecord, pictures: &[PictureFile]) {
        let pictures = pictures.iter().copied().map(RunFile::Picture);
        let best = record.is_best.then_some(RunFile::BestWeights);
        self.change(|state| {
            for file in pictures.chain(best).chain([RunFile::Weights, RunFile::History, RunFile::Steps]) {
                state.pending.add(file);
            }
        });
    }

    /// A file is whole on the disk.
    pub fn written(&self, file: RunFile) {
        self.change(|state| state.pending.add(file));
    }

    /// Ends the wait for the mirror at the run's end, if that has begun.
    pub fn end_wait(&self) {
        self.change(|state| {
            if state.end_wait == EndWait::Begun {
                state.end_wait = EndWait::Over;
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let Some(shared) = &self.0 else { return };
        change(&mut shared.lock());
        shared.work.notify_one();
        shared.settled.notify_all();
    }
}

impl MirrorReport {
    /// As `run.json` and the last line have it.
    pub fn json(&self) -> Value {
        json!({ "url": self.url, "step": self.step, "missing": self.missing })
    }

    /// The error of a mirror that is not whole.
    pub fn error(&self) -> Option<MirrorError> {
        let Self { url, missing, reason, .. } = self;
        (!missing.is_empty()).then(|| MirrorError::Incomplete {
            url: url.clone(),
            missing: missing.join(", "),
            reason: reason.clone().unwrap_or_else(|| "it has not had the time".to_owned()),
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is uploaded any more.
    fn give_up(&self, error: MirrorError) {
        self.tell(Some(MirrorEvent::GivenUp { reason: error.to_string() }));
        self.lock().given_up = Some(error);
        self.settled.notify_all();
    }

    /// Logs an event, and passes it on.
    fn tell(&self, event: Option<MirrorEvent>) {
        let Some(event) = event else { return };
        match &event {
            MirrorEvent::CaughtUp { .. } | MirrorEvent::Finishing { .. } => info!("{event}"),
            _ => warn!("{event}"),
        }
        (self.tell)(event);
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Shared").field("state", &self.state).finish_non_exhaustive()
    }
}

impl State {
    fn new(n_checkpoints_kept: usize) -> Self {
        Self {
            pending: Pending::new(n_checkpoints_kept),
            lag: Lag::default(),
            is_busy: false,
            is_ahead_told: false,
            newest_listed: None,
            uploaded_steps: BTreeSet::new(),
            failure: None,
            given_up: None,
            end_wait: EndWait::NotBegun,
            last_progress: Instant::now(),
        }
    }

    /// Adds the files that are in the run folder. A damaged checkpoint stays here, and does not take the place of a whole
    /// one there.
    fn add_all(&mut self, run: &MirroredRun) {
        for file in RunFile::SINGLE {
            if run.folder.join(file.path()).is_file() {
                self.pending.add(file);
            }
        }
        for name in PictureName::all_in(&run.folder).unwrap_or_default() {
            for entry in std::fs::read_dir(run.folder.join(name.as_str())).into_iter().flatten().flatten() {
                let file = PictureFile::of(name.as_str(), &entry.file_name().to_string_lossy());
                if let Some(file) = file.filter(|_| entry.file_type().is_ok_and(|kind| kind.is_file())) {
                    self.pending.add(RunFile::Picture(file));
                }
            }
        }
        let checkpoints = Checkpoints::of(&run.folder, run.n_checkpoints_kept).by_age();
        let whole = checkpoints.into_iter().filter(|(_, path)| Checkpoint::read(path).is_ok());
        for (step, _) in whole.take(run.n_checkpoints_kept) {
            self.pending.add_checkpoint(step);
            self.lag.saved(step, Instant::now());
        }
    }

    /// Whether the mirror has a later checkpoint than the run folder. Lines that end before it would leave a gap then: they
    /// wait until the run is as far.
    fn is_ahead(&self) -> bool {
        self.newest_listed > self.lag.newest_local()
    }

    /// The files that can be uploaded now.
    fn batch(&self) -> Vec<(RunFile, Change)> {
        let is_ahead = self.is_ahead();
        self.pending.batch().into_iter().filter(|(file, _)| !is_ahead || *file == RunFile::Description).collect()
    }

    /// The files that the mirror lacks.
    fn missing(&self) -> impl Iterator<Item = RunFile> + use<> {
        self.batch().into_iter().map(|(file, _)| file)
    }

    fn is_settled(&self) -> bool {
        let is_whole = !self.is_busy && self.missing().next().is_none();
        is_whole || self.end_wait == EndWait::Over || self.given_up.is_some()
    }

    fn report(&self, location: &Location) -> MirrorReport {
        let given_up = self.given_up.as_ref().map(ToString::to_string);
        let ahead = self.newest_listed.filter(|_| self.is_ahead());
        let ahead = ahead.map(|step| format!("it has a checkpoint of step {step}, which this run has not come to"));
        MirrorReport {
            url: location.to_string(),
            step: self.lag.newest_mirrored(),
            // Also what is held back while the mirror is ahead.
            missing: self.pending.files().map(RunFile::path).collect(),
            reason: given_up.or_else(|| self.failure.clone()).or(ahead),
        }
    }
}

/// A mirror in the run folder itself would replace files that are open.
fn check_apart(location: &Location, folder: &Path) -> Result<(), MirrorError> {
    let Some(mirror) = location.folder() else { return Ok(()) };
    // What is not there yet has no other name than the one given.
    let whole = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path)).ok();
    if whole(&mirror).zip(whole(folder)).is_some_and(|(mirror, folder)| mirror.starts_with(folder)) {
        return Err(MirrorError::RunFolder { url: location.to_string() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State::new(3)
    }

    fn paths(state: &State) -> Vec<String> {
        state.missing().map(RunFile::path).collect()
    }

    #[test]
    fn line_files_wait_while_mirror_has_newer_checkpoint() {
        let mut state = state();
        let now = Instant::now();
        state.newest_listed = Some(20);
        state.pending.add(RunFile::Description);
        state.pending.add_checkpoint(10);
        state.lag.saved(10, now);
        assert_eq!(paths(&state), ["run.json"]);
        state.pending.add_checkpoint(20);
        state.lag.saved(20, now);
        assert_eq!(paths(&state).len(), 6, "{:?}", paths(&state));
    }

    #[test]
    fn all_pictures_and_whole_checkpoints_are_uploaded() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut checkpoints = Checkpoints::of(folder.path(), 9);
        let whole = crate::checkpoint::tests::checkpoint(3, 0.0);
        let bytes = std::fs::read(checkpoints.save(&whole).expect("it can be written")).expect("a file");
        std::fs::write(folder.path().join("checkpoints/step-00000004.safetensors"), &bytes[..999]).expect("a file");
        for name in ["codes/epoch-01.png", "maps/epoch-02.png", "maps/other.png", "tensorboard/epoch-01.png"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, "").expect("a file");
        }
        let mut state = state();
        let run = MirroredRun {
            folder: folder.path().to_owned(),
            run_id: String::new(),
            incarnation: 1,
            n_checkpoints_kept: 3,
            replaces: None,
            unusable_steps: BTreeSet::new(),
        };
        state.add_all(&run);
        let found = paths(&state);
        let expected = [
            "codes/epoch-01.png",
            "maps/epoch-02.png",
            "history.jsonl",
            "steps.jsonl",
            "checkpoints/step-00000003.safetensors",
            "events.jsonl",
        ];
        assert_eq!(found, expected);
        assert_eq!(state.lag.newest_local(), Some(3));
    }
}
