//! Records and shows what happened. The run folder's files miss nothing, and are written on a thread of their own; the screen
//! and the log follow on another thread, and may drop events if their reader stalls; what is posted to Kubeflow Trainer leaves
//! on a third. None can slow a step.

mod code_space;
mod history;
mod view;
mod watchers;

use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread::{JoinHandle, park_timeout};
use std::time::{Duration, Instant};

use engine::bucket::{Bucket, BucketRate};
use engine::files::WriteError;
use engine::weights::Weights;
use events::{CostTotals, EpochRecord, RecordedEvent, RunEvent, seconds_since_1970};
use tokio::task::block_in_place;
use tracing::Span;

pub use code_space::CodeSpace;
pub use history::{EpochPictures, History};
pub use view::{View, ViewHandle};
pub use watchers::Watchers;

use crate::journal::JournalFile;
use crate::saver::{OfferId, Saver};

/// Entries that wait to be written: a minute of the shortest steps.
const ENTRIES_MAX: usize = 1 << 16;
/// How long the thread sleeps when it has recorded everything, unless an entry is urgent. Steps are recorded some at a time: waking
/// the thread for each would take a CPU from a worker in the middle of a step.
const SLEEP: Duration = Duration::from_millis(20);

/// Something to record.
#[derive(Debug)]
pub enum Entry {
    /// An event; epochs are an entry of their own.
    Event(RunEvent),
    /// An epoch, or what was trained of it, was validated.
    Epoch {
        /// Its figures.
        record: EpochRecord,
        /// The weights after it.
        weights: Weights,
    },
    /// A checkpoint is due, whose state was offered.
    Checkpoint(OfferId),
    /// Flushes all lines up to here, so that they outlive this process, and then signals the waiter, unless writing fails.
    FlushLines(SyncSender<()>),
    /// A state was written to the journal, or could not be; it is to reach the disk after all lines up to here.
    Journal(Result<JournalFile, WriteError>),
}

/// The thread that writes, and what it passes on to the view.
#[derive(Debug)]
pub struct Observer {
    /// Each with its time, in seconds since 1970.
    entries: SyncSender<(f64, Entry)>,
    thread: JoinHandle<Recorder>,
}

/// The thread that wrote is no more, which only a panic can bring about.
#[derive(Debug)]
pub struct ObserverStopped;

/// What records: the state of the thread, which is left when all is recorded.
#[derive(Debug)]
pub struct Recorder {
    /// The files.
    pub history: History,
    /// The checkpoints.
    pub saver: Saver,
    /// Where the time of all steps went.
    pub costs: CostTotals,
    /// Figures of the last epoch.
    pub last_epoch: Option<EpochRecord>,
    /// What could not be written.
    pub failure: Option<WriteError>,
    /// What people see on the screen.
    pub view: View,
    /// What else is made of the events.
    pub watchers: Watchers,
    /// How often lines are added of what workers can bring about.
    lines: EventLimit,
}

impl Observer {
    /// Starts the thread, which logs in `span`. When a file cannot be written, `give_up` is called, once.
    pub fn start(
        history: History,
        saver: Saver,
        view: View,
        watchers: Watchers,
        span: Span,
        give_up: impl FnOnce() + Send + 'static,
    ) -> Self {
        let (entries, inbox) = sync_channel(ENTRIES_MAX);
        let costs = CostTotals::default();
        let lines = EventLimit::new();
        let recorder = Recorder { history, saver, costs, last_epoch: None, failure: None, view, watchers, lines };
        let thread = std::thread::Builder::new().name("observer".to_owned());
        let thread = thread.spawn(move || span.in_scope(|| recorder.record_all(&inbox, give_up)));
        Self { entries, thread: thread.expect("the system has a thread to give") }
    }

    /// Has something recorded.
    ///
    /// # Errors
    /// If the thread is gone.
    pub fn record(&self, entry: Entry) -> Result<(), ObserverStopped> {
        let is_urgent = !matches!(entry, Entry::Event(RunEvent::Step(_) | RunEvent::Snapshot(_)));
        match self.entries.try_send((seconds_since_1970(), entry)) {
            Ok(()) => {
                if is_urgent {
                    self.thread.thread().unpark();
                }
                Ok(())
            }
            // A disk that hangs holds up the run, but not the tasks that serve connections.
            Err(TrySendError::Full(entry)) => {
                self.thread.thread().unpark();
                block_in_place(|| self.entries.send(entry).map_err(|_| ObserverStopped))
            }
            Err(TrySendError::Disconnected(_)) => Err(ObserverStopped),
        }
    }

    /// Waits until all is written.
    pub fn finish(self) -> Recorder {
        drop(self.entries);
        self.thread.thread().unpark();
        self.thread.join().expect("the observer's thread writes, or keeps what it could not write")
    }
}

impl Recorder {
    /// Records something that is no epoch, when it has happened.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn record_event(&mut self, event: RunEvent) -> Result<(), WriteError> {
        self.add_event(RecordedEvent { time: seconds_since_1970(), event })
    }

    fn add_event(&mut self, recorded: RecordedEvent) -> Result<(), WriteError> {
        self.watchers.apply(&recorded);
        let written = match &recorded.event {
            RunEvent::Step(step) => {
                self.costs.add(&step.record, &step.costs);
                self.history.add_step(step)
            }
            event if self.lines.lets_through(event) => self.history.folder.add_event(&recorded),
            _ => Ok(()),
        };
        self.view.show(recorded.event);
        written
    }

    fn record_all(mut self, inbox: &Receiver<(f64, Entry)>, give_up: impl FnOnce()) -> Self {
        let mut give_up = Some(give_up);
        let mut n_sleeps = 0;
        // Ends when the sender is gone and all its entries are recorded.
        loop {
            // Blocks while nothing happens.
            let next = if n_sleeps > 1 { inbox.recv().map_err(TryRecvError::from) } else { inbox.try_recv() };
            match next {
                Ok((time, entry)) => {
                    n_sleeps = 0;
                    if let Err(error) = self.record(time, entry)
                        && let Some(give_up) = give_up.take()
                    {
                        self.failure = Some(error);
                        give_up();
                    }
                }
                Err(TryRecvError::Empty) => {
                    n_sleeps += 1;
                    park_timeout(SLEEP);
                }
                Err(TryRecvError::Disconnected) => return self,
            }
        }
    }

    fn record(&mut self, time: f64, entry: Entry) -> Result<(), WriteError> {
        match entry {
            Entry::Event(event) => self.add_event(RecordedEvent { time, event }),
            Entry::Epoch { record, weights } => {
                let recorded = RecordedEvent { time, event: RunEvent::Epoch(record.clone()) };
                self.watchers.apply(&recorded);
                self.view.show(recorded.event);
                let written = self.history.add_epoch(&record, &weights);
                let written = written.map(|pictures| self.watchers.add_pictures(&record, &pictures));
                self.last_epoch = Some(record);
                written
            }
            Entry::Checkpoint(offer) => {
                // A run resumed from it has all its lines up to there.
                let synced = self.history.folder.sync_lines();
                self.saver.release(offer);
                synced
            }
            Entry::FlushLines(waiting) => {
                self.history.folder.flush_lines()?;
                // Fails if the driver is gone.
                let _ = waiting.try_send(());
                Ok(())
            }
            Entry::Journal(written) => {
                let file = written?;
                // The lines first, as for a checkpoint.
                self.history.folder.sync_lines()?;
                file.sync()
            }
        }
    }
}

/// How many lines are added of what workers can bring about as often as they like, and of snapshots.
#[derive(Debug)]
struct EventLimit {
    results: Bucket,
    roster: Bucket,
    last_snapshot: Option<Instant>,
}

impl EventLimit {
    /// Lines about results and replicas.
    const RESULTS: BucketRate = BucketRate { n_max: 500, per_second: 5 };
    /// Lines about who takes part.
    const ROSTER: BucketRate = BucketRate { n_max: 1000, per_second: 20 };
    /// A page that is open gets each snapshot; the file needs fewer.
    const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(5);

    fn new() -> Self {
        let now = Instant::now();
        Self { results: Bucket::new(Self::RESULTS, now), roster: Bucket::new(Self::ROSTER, now), last_snapshot: None }
    }

    /// Whether a line is added for an event.
    fn lets_through(&mut self, event: &RunEvent) -> bool {
        let now = Instant::now();
        match event {
            RunEvent::Step(_) | RunEvent::Epoch(_) => false, // which have files of their own
            RunEvent::Started { .. } | RunEvent::Ended { .. } | RunEvent::Mirror(_) => true,
            RunEvent::Snapshot(_) => {
                let is_due = self.last_snapshot.is_none_or(|last| now - last >= Self::SNAPSHOT_INTERVAL);
                if is_due {
                    self.last_snapshot = Some(now);
                }
                is_due
            }
            RunEvent::ResultRefused { .. } | RunEvent::ReplicaResent { .. } | RunEvent::TaskLate { .. } => {
                self.results.take(now)
            }
            RunEvent::WorkerJoined { .. }
            | RunEvent::WorkerLeft { .. }
            | RunEvent::WorkerEvicted { .. }
            | RunEvent::ComputeClassAdded { .. }
            | RunEvent::Waiting
            | RunEvent::Continuing => self.roster.take(now),
        }
    }
}
