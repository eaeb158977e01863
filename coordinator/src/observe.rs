//! What happened, for those who watch: the run folder's files, which miss nothing, and the screen and the log. All on a
//! thread of its own, so that none of them can slow a step.

mod costs;
mod history;

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use model::files::WriteError;
use model::report::{EpochRecord, Screen, StepRecord};
use model::weights::Weights;
use tracing::{Span, info, warn};

pub use costs::{CostTotals, StepCosts};
pub use history::{ClusterStepRecord, History};

use crate::saver::Saver;
use crate::training::{Report, State, WorkerId};

/// Happenings that wait to be told: minutes of steps.
const HAPPENINGS_MAX: usize = 1 << 16;

/// Something to tell.
#[derive(Debug)]
pub enum Happening {
    /// An update was applied.
    Step {
        /// Its figures.
        record: StepRecord,
        /// Where its time went.
        costs: StepCosts,
        /// Who computed each shard.
        workers: Vec<WorkerId>,
        /// Workers that take part.
        n_active: usize,
    },
    /// An epoch, or what was trained of it, was validated.
    Epoch {
        /// Its figures.
        record: EpochRecord,
        /// The weights after it.
        weights: Weights,
    },
    /// A checkpoint of this state is due.
    Checkpoint(Box<State>),
    /// Something about the workers.
    Told(Report),
}

/// The thread that tells.
#[derive(Debug)]
pub struct Observer {
    happenings: SyncSender<Happening>,
    thread: JoinHandle<Told>,
}

/// What is left when all is told.
#[derive(Debug)]
pub struct Told {
    /// The files.
    pub history: History,
    /// The checkpoints.
    pub saver: Saver,
    /// The screen.
    pub screen: Screen,
    /// Where the time of all steps went.
    pub costs: CostTotals,
    /// Figures of the last epoch.
    pub last_epoch: Option<EpochRecord>,
    /// What could not be written.
    pub failure: Option<WriteError>,
}

impl Observer {
    /// Starts the thread, which logs in `span`. When a file cannot be written, `give_up` is called, once.
    pub fn start(
        history: History,
        saver: Saver,
        screen: Screen,
        n_expected: u32,
        span: Span,
        give_up: impl FnOnce() + Send + 'static,
    ) -> Self {
        let (happenings, inbox) = sync_channel(HAPPENINGS_MAX);
        let told = Told { history, saver, screen, costs: CostTotals::default(), last_epoch: None, failure: None };
        let thread = std::thread::Builder::new().name("observer".to_owned());
        let thread = thread.spawn(move || span.in_scope(|| told.tell_all(&inbox, n_expected, give_up)));
        Self { happenings, thread: thread.expect("the system has a thread to give") }
    }

    /// Tells something.
    pub fn tell(&self, happening: Happening) {
        // A thread that is gone has panicked; that is told when it is joined.
        let _ = self.happenings.send(happening);
    }

    /// Waits until all is told.
    pub fn finish(self) -> Told {
        drop(self.happenings);
        self.thread.join().expect("the observer's thread tells, or keeps what it could not write")
    }
}

impl Told {
    fn tell_all(mut self, inbox: &Receiver<Happening>, n_expected: u32, give_up: impl FnOnce()) -> Self {
        let mut give_up = Some(give_up);
        while let Ok(happening) = inbox.recv() {
            if let Err(error) = self.tell(happening, n_expected)
                && let Some(give_up) = give_up.take()
            {
                self.failure = Some(error);
                give_up();
            }
        }
        self
    }

    fn tell(&mut self, happening: Happening, n_expected: u32) -> Result<(), WriteError> {
        match happening {
            Happening::Step { record, costs, workers, n_active } => {
                self.costs.add(&record, &costs);
                self.screen.step(&record, &format!("{n_active}/{n_expected} workers"));
                self.history.add_step(record, costs, workers)
            }
            Happening::Epoch { record, weights } => {
                self.screen.epoch(&record);
                let written = self.history.add_epoch(&record, &weights);
                self.last_epoch = Some(record);
                written
            }
            Happening::Checkpoint(state) => {
                // A run that goes on from it has all its lines up to there.
                let synced = self.history.folder.sync_lines();
                self.saver.save(*state);
                synced
            }
            Happening::Told(report) => {
                self.log(&report);
                Ok(())
            }
        }
    }

    fn log(&mut self, report: &Report) {
        match report {
            Report::Joined { worker_id, profile, n_active } => info!(
                worker = %worker_id, host = profile.host, process = profile.process, backend = profile.backend,
                threads = profile.n_threads, n_active, "worker joined"
            ),
            Report::Left { worker_id, reason, n_active, n_handed_on } => {
                info!(worker = %worker_id, reason, n_active, n_handed_on, "worker left");
            }
            Report::Lagging { worker_id, reason } => {
                warn!(worker = %worker_id, reason, "replica sent anew");
            }
            Report::Refused { worker_id, refusal } => {
                warn!(worker = %worker_id, reason = %refusal, "message not used");
            }
            Report::MixedClasses(classes) => {
                let classes = classes.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                warn!(classes, "workers of several compute classes: bits may depend on which computes what");
            }
            Report::Waiting => self.screen.tell("waiting: no worker is there; the run goes on when one joins"),
            Report::GoingOn => self.screen.tell("going on: a worker is there"),
            Report::Step(_) | Report::Epoch(_) => unreachable!("steps and epochs come with their figures"),
        }
    }
}
