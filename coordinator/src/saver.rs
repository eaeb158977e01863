//! Keeps checkpoints on a thread of its own, so that no step waits for a disk. A state is first offered, by the driver, and
//! then released, by the observer, when the run folder's lines are on the disk up to it: a run resumed from it has all
//! lines. Where the disk is slower than the steps, a newer state takes the place of an older one that waits, but for the one
//! that is released next: otherwise each would give way before its turn, and none would be kept.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use engine::files::WriteError;
use tracing::{Span, debug, info, warn};

use crate::checkpoint::{Checkpoint, RunFacts};
use crate::checkpoints::Checkpoints;
use crate::mirror::MirrorHandle;
use crate::training::State;

/// The thread that writes.
#[derive(Debug)]
pub struct Saver {
    pending_checkpoints: Arc<PendingCheckpoints>,
    thread: JoinHandle<Result<Option<PathBuf>, WriteError>>,
}

/// States that wait to be written: at most two that are offered, and one that is released.
#[derive(Debug, Default)]
pub struct PendingCheckpoints {
    states: Mutex<States>,
    changed: Condvar,
}

/// Which offer a state was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfferId(u64);

#[derive(Debug, Default)]
struct States {
    n_offers: u64,
    /// The older one, which stays until it is released.
    offered: Option<(OfferId, State)>,
    /// The newest, if there is an older one.
    newest: Option<(OfferId, State)>,
    released: Option<State>,
    is_last: bool,
}

impl Saver {
    /// Starts the thread, which logs in `span` and tells the mirror of each checkpoint that is whole.
    pub fn start(checkpoints: Checkpoints, run: RunFacts, mirror: MirrorHandle, span: Span) -> Self {
        let pending_checkpoints = Arc::new(PendingCheckpoints::default());
        let thread = {
            let pending_checkpoints = Arc::clone(&pending_checkpoints);
            let write = move || span.in_scope(|| pending_checkpoints.write_all(checkpoints, &run, &mirror));
            std::thread::Builder::new().name("saver".to_owned()).spawn(write)
        };
        Self { pending_checkpoints, thread: thread.expect("the system has a thread to give") }
    }

    /// Where states are offered.
    pub fn pending_checkpoints(&self) -> Arc<PendingCheckpoints> {
        Arc::clone(&self.pending_checkpoints)
    }

    /// Releases an offer, if no newer one has taken its place.
    pub fn release(&self, offer: OfferId) {
        self.pending_checkpoints.release(offer);
    }

    /// Waits for what was released; gives where the last checkpoint is, if there is one.
    ///
    /// # Errors
    /// If the last one could not be written.
    pub fn finish(self) -> Result<Option<PathBuf>, WriteError> {
        self.pending_checkpoints.lock().is_last = true;
        self.pending_checkpoints.changed.notify_one();
        self.thread.join().expect("the saver's thread writes or tells why not")
    }
}

impl PendingCheckpoints {
    /// Offers a state.
    pub fn offer(&self, state: State) -> OfferId {
        let mut states = self.lock();
        states.n_offers += 1;
        let offer = OfferId(states.n_offers);
        if states.offered.is_none() {
            states.offered = Some((offer, state));
        } else {
            states.newest = Some((offer, state));
        }
        offer
    }

    /// Releases an offer, if no newer one has taken its place. Those that are older can be resumed from too, and are not
    /// needed any more.
    fn release(&self, offer: OfferId) {
        let mut states = self.lock();
        let newest = states.newest.take_if(|(found, _)| *found == offer);
        if newest.is_some() {
            states.offered = None;
        }
        if let Some((_, state)) = newest.or_else(|| states.offered.take_if(|(found, _)| *found == offer)) {
            if states.offered.is_none() {
                states.offered = states.newest.take();
            }
            if let Some(older) = states.released.replace(state) {
                debug!(step = older.step, "checkpoint passed over for a newer one: the disk is slower than the steps");
            }
            self.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, States> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is released, until the last one; what became of that.
    fn write_all(
        &self,
        mut checkpoints: Checkpoints,
        run: &RunFacts,
        mirror: &MirrorHandle,
    ) -> Result<Option<PathBuf>, WriteError> {
        let mut last = Ok(None);
        while let Some(state) = self.take() {
            let checkpoint = Checkpoint { facts: run.clone(), state };
            let step = checkpoint.state.step;
            last = match checkpoints.save(&checkpoint) {
                Ok(path) => {
                    info!(step, path = %path.display(), "checkpoint saved");
                    mirror.checkpoint_saved(step);
                    Ok(Some(path))
                }
                Err(error) => {
                    warn!(step, %error, "checkpoint not saved; training goes on");
                    Err(error)
                }
            };
        }
        last
    }

    fn take(&self) -> Option<State> {
        let mut states = self.lock();
        // Ends: every change of the states notifies `changed`.
        loop {
            if let Some(state) = states.released.take() {
                return Some(state);
            }
            if states.is_last {
                return None;
            }
            states = self.changed.wait(states).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use engine::recipe::Recipe;

    use super::*;
    use crate::training::{AuditSecret, Rounding};
    use model::arch::Architecture;

    fn recipe() -> Recipe {
        crate::training::tests::recipe("1 epochs of 10 images in batches of 4, 2 shards")
    }

    fn state(step: u64) -> State {
        let params = model::task::initial_params(Architecture::Denoising, 1);
        State { step, ..State::new(&recipe(), Rounding::None, params) }
    }

    #[test]
    fn released_checkpoint_is_written_and_older_one_skipped() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (numerics, audit_secret) = (vec![engine::numerics::REVISION], Some(AuditSecret::new([7; 32])));
        let (run_id, data_fingerprint) = ("1".to_owned(), String::new());
        let layout = Arc::clone(&model::task::book_task(Architecture::Denoising).spec().layout);
        let run = RunFacts { run_id, recipe: recipe(), layout, data_fingerprint, numerics, audit_secret };
        let saver = Saver::start(Checkpoints::of(folder.path(), 9), run, MirrorHandle::default(), Span::none());
        let pending_checkpoints = saver.pending_checkpoints();
        let [_first, second, third] = [1, 2, 3].map(|step| pending_checkpoints.offer(state(step)));
        saver.release(third);
        saver.release(second);
        pending_checkpoints.offer(state(4)); // never released
        let last = saver.finish().expect("the folder can be written").expect("one was written");
        assert!(last.ends_with("step-00000003.safetensors"), "{}", last.display());
        assert_eq!(std::fs::read_dir(last.parent().expect("a folder")).expect("a folder").count(), 1);
    }

    /// The goal: however far the lines are behind the steps, checkpoints are kept, and the last one is.
    #[test]
    fn late_releases_still_save_checkpoints() {
        let pending_checkpoints = PendingCheckpoints::default();
        let mut waiting = VecDeque::new();
        let mut released = Vec::new();
        let mut release = |offer| {
            pending_checkpoints.release(offer);
            released.extend(pending_checkpoints.lock().released.take().map(|state| state.step));
        };
        for step in 1..=35 {
            waiting.push_back(pending_checkpoints.offer(state(step)));
            if waiting.len() > 10 {
                release(waiting.pop_front().expect("eleven wait"));
            }
        }
        waiting.into_iter().for_each(&mut release);
        assert_eq!(released, [1, 11, 21, 31, 35]);
    }
}
