//! Keeps checkpoints on a thread of its own, so that no step waits for a disk. While one is written, the newest that is
//! wished for waits, and an older one that waits gives way.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use model::files::WriteError;
use model::recipe::Recipe;
use tracing::{Span, debug, info, warn};

use crate::checkpoint::{Checkpoint, Checkpoints};
use crate::training::State;

/// The thread, and what it is to write next.
#[derive(Debug)]
pub struct Saver {
    run: RunFacts,
    desk: Arc<Desk>,
    thread: JoinHandle<Result<Option<PathBuf>, WriteError>>,
}

/// What is the same in all checkpoints of a run.
#[derive(Clone, Debug)]
pub struct RunFacts {
    /// The run.
    pub run_id: String,
    /// What it trains.
    pub recipe: Recipe,
    /// blake3 of what it trains on.
    pub data_fingerprint: String,
}

#[derive(Debug, Default)]
struct Desk {
    next: Mutex<Next>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Next {
    checkpoint: Option<Checkpoint>,
    is_last: bool,
}

impl Saver {
    /// Starts the thread, which logs in `span`.
    pub fn start(checkpoints: Checkpoints, run: RunFacts, span: Span) -> Self {
        let desk = Arc::new(Desk::default());
        let thread = {
            let desk = Arc::clone(&desk);
            std::thread::Builder::new()
                .name("saver".to_owned())
                .spawn(move || span.in_scope(|| desk.write_all(&checkpoints)))
        };
        Self { run, desk, thread: thread.expect("the system has a thread to give") }
    }

    /// Wishes for a checkpoint of a state.
    pub fn save(&self, state: State) {
        let RunFacts { run_id, recipe, data_fingerprint } = self.run.clone();
        let checkpoint = Checkpoint { run_id, recipe, data_fingerprint, state };
        let mut next = self.desk.next.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(older) = next.checkpoint.replace(checkpoint) {
            debug!(
                step = older.state.step,
                "checkpoint passed over for a newer one: the disk is slower than the steps"
            );
        }
        self.desk.changed.notify_one();
    }

    /// Waits for what is wished for; gives where the last checkpoint is, if there is one.
    ///
    /// # Errors
    /// If the last one could not be written.
    pub fn finish(self) -> Result<Option<PathBuf>, WriteError> {
        self.desk.next.lock().unwrap_or_else(PoisonError::into_inner).is_last = true;
        self.desk.changed.notify_one();
        self.thread.join().expect("the saver's thread writes or tells why not")
    }
}

impl Desk {
    /// Writes what is wished for, until the last one; what became of that.
    fn write_all(&self, checkpoints: &Checkpoints) -> Result<Option<PathBuf>, WriteError> {
        let mut last = Ok(None);
        while let Some(checkpoint) = self.take() {
            last = checkpoints.save(&checkpoint).map(Some);
            match &last {
                Ok(path) => {
                    let path = path.as_deref().unwrap_or_else(|| std::path::Path::new("")).display();
                    info!(step = checkpoint.state.step, %path, "checkpoint saved");
                }
                Err(error) => warn!(step = checkpoint.state.step, %error, "checkpoint not saved; training goes on"),
            }
        }
        last
    }

    fn take(&self) -> Option<Checkpoint> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        // Ends: whoever changes something says so.
        loop {
            if let Some(checkpoint) = next.checkpoint.take() {
                return Some(checkpoint);
            }
            if next.is_last {
                return None;
            }
            next = self.changed.wait(next).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
