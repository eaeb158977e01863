//! Posts progress and metrics to Kubeflow Trainer, by the protocol of its proposal KEP-2779, where the environment names
//! its server. Kubernetes then shows them in the `TrainJob`'s `status.trainerStatus`. A thread of its own posts the newest
//! state; the run replaces that state in every step and never waits for a request until it is over.
//!
//! Not here: what is posted (`progress`), and how one request is sent (`server`).

mod progress;
mod server;

use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use events::{EpochRecord, StepRecord};
use tracing::{Span, info, warn};

pub use progress::{Progress, RunEnd, TrainerMetric, TrainerStatus};
pub use server::{PostError, Server, SettingError};

use server::REQUEST_TIMEOUT;

/// Least time from the end of one post to the start of the next one, the last post of a run apart. Measured from the end,
/// so that requests also arrive that far apart, however long one was on its way.
const POST_INTERVAL: Duration = Duration::from_secs(5);
/// How long a run that is over waits for its last post: for the timeout of the post under way and for that of the last
/// one, and a second for the rest.
const LAST_POST_WAIT_MAX: Duration = Duration::from_secs(2 * REQUEST_TIMEOUT.as_secs() + 1);

/// The thread that posts.
#[derive(Debug)]
pub struct TrainJob {
    latest: Arc<Latest>,
    ended: Receiver<()>,
    span: Span,
}

/// The newest state of the run: replaced by the run, read by the thread that posts. It holds one state, and no queue.
#[derive(Debug)]
pub struct Latest {
    content: Mutex<Content>,
    changed: Condvar,
}

#[derive(Debug)]
struct Content {
    progress: Progress,
    n_changes: u64,
    end: Option<RunEnd>,
    /// Whether the thread waits for a change. While it only lets time pass, a step does not wake it.
    is_awaited: bool,
}

/// A state to post now.
#[derive(Debug)]
struct Due {
    status: TrainerStatus,
    n_changes: u64,
    is_last: bool,
}

/// What the last post came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connection {
    Untried,
    Works,
    Fails,
}

impl TrainJob {
    /// Starts the thread, which logs in `span`. None where the environment names no server, or lacks what a request needs,
    /// which a warning says: training needs no posts.
    pub fn start(progress: Progress, span: &Span) -> Option<Self> {
        let span = span.clone();
        let server = match Server::from_environment(|name| std::env::var_os(name)) {
            Ok(server) => server?,
            Err(error) => {
                span.in_scope(|| warn!(%error, "nothing is posted to Kubeflow Trainer; training goes on"));
                return None;
            }
        };
        let latest = Arc::new(Latest::new(progress));
        let (ended_sender, ended) = sync_channel(1);
        let post_all = {
            let (latest, span) = (Arc::clone(&latest), span.clone());
            move || {
                span.in_scope(|| post_all(&latest, &server));
                // The run may have waited long enough.
                let _ = ended_sender.send(());
            }
        };
        let thread = std::thread::Builder::new().name("trainjob".to_owned());
        thread.spawn(post_all).expect("the system has a thread to give");
        Some(Self { latest, ended, span })
    }

    /// Where the run writes its state.
    pub fn latest(&self) -> Arc<Latest> {
        Arc::clone(&self.latest)
    }

    /// Posts the last state, and waits for that, though not for a server that does not answer.
    pub fn finish(self, end: RunEnd) {
        self.latest.end(end);
        if self.ended.recv_timeout(LAST_POST_WAIT_MAX) == Err(RecvTimeoutError::Timeout) {
            let seconds = LAST_POST_WAIT_MAX.as_secs();
            self.span.in_scope(|| warn!(seconds, "the last post to Kubeflow Trainer is not through in time"));
        }
    }
}

impl Latest {
    fn new(progress: Progress) -> Self {
        // What is known at the start is the first change.
        let content = Content { progress, n_changes: 1, end: None, is_awaited: false };
        Self { content: Mutex::new(content), changed: Condvar::new() }
    }

    /// Adds a step.
    pub fn add_step(&self, record: &StepRecord) {
        self.change(|progress| progress.add_step(record, Instant::now()));
    }

    /// Adds an epoch's validation.
    pub fn add_epoch(&self, record: &EpochRecord) {
        self.change(|progress| progress.add_epoch(record));
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        let mut content = self.lock();
        change(&mut content.progress);
        content.n_changes += 1;
        if std::mem::take(&mut content.is_awaited) {
            self.changed.notify_one();
        }
    }

    fn end(&self, end: RunEnd) {
        self.lock().end = Some(end);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `earliest` has passed and there are other changes than the first `n_posted`; or until the run is over.
    fn next_due(&self, n_posted: u64, earliest: Instant) -> Due {
        let mut content = self.lock();
        // Ends: each change is signalled where it is awaited, and the end always.
        loop {
            let is_last = content.end.is_some();
            let pause = earliest.saturating_duration_since(Instant::now());
            let is_new = content.n_changes != n_posted;
            if is_last || (pause.is_zero() && is_new) {
                let status = content.progress.status(content.end, SystemTime::now());
                return Due { status, n_changes: content.n_changes, is_last };
            }
            content = if pause.is_zero() {
                content.is_awaited = true;
                self.changed.wait(content).unwrap_or_else(PoisonError::into_inner)
            } else {
                self.changed.wait_timeout(content, pause).unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }
}

/// Posts until the run is over. A state that did not arrive is posted again, or the one that has replaced it.
fn post_all(latest: &Latest, server: &Server) {
    let mut connection = Connection::Untried;
    let (mut n_posted, mut earliest) = (0, Instant::now());
    loop {
        let due = latest.next_due(n_posted, earliest);
        let result = server.post(&due.status);
        if result.is_ok() {
            n_posted = due.n_changes;
        }
        connection = connection.after(&result, server);
        if due.is_last {
            return;
        }
        earliest = Instant::now() + POST_INTERVAL;
    }
}

impl Connection {
    /// What it is after a post. A change is logged, and not each post.
    fn after(self, result: &Result<(), PostError>, server: &Server) -> Self {
        match (self, result) {
            (Self::Untried, Ok(())) => info!(url = server.url(), "progress is posted to Kubeflow Trainer"),
            (Self::Fails, Ok(())) => info!(url = server.url(), "progress is posted to Kubeflow Trainer again"),
            (Self::Untried | Self::Works, Err(error)) => {
                warn!(url = server.url(), %error, "progress is not posted to Kubeflow Trainer; training goes on");
            }
            (Self::Works, Ok(())) | (Self::Fails, Err(_)) => {}
        }
        if result.is_ok() { Self::Works } else { Self::Fails }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::report::step_record;

    fn latest() -> Latest {
        Latest::new(Progress::new("images", 100, 2, 0))
    }

    fn step(step: u64) -> StepRecord {
        let sums = engine::sums::Sums { n_samples: 32, ..Default::default() };
        step_record(
            model::task::book_task(model::arch::Architecture::Conv).spec(),
            step,
            1,
            &sums,
            Duration::from_millis(10),
        )
    }

    fn percentage(due: &Due) -> u32 {
        due.status.progress_percentage
    }

    #[test]
    fn first_status_is_due_immediately() {
        let due = latest().next_due(0, Instant::now());
        assert_eq!((percentage(&due), due.n_changes, due.is_last), (0, 1, false));
    }

    #[test]
    fn status_change_is_due_after_pause_and_replaces_older() {
        let latest = latest();
        latest.add_step(&step(1));
        latest.add_step(&step(2));
        let earliest = Instant::now() + Duration::from_millis(50);
        let due = latest.next_due(1, earliest);
        assert!(Instant::now() >= earliest);
        assert_eq!((percentage(&due), due.n_changes), (2, 3));
    }

    #[test]
    fn status_change_wakes_waiting_thread() {
        let latest = Arc::new(latest());
        let waiting = {
            let latest = Arc::clone(&latest);
            std::thread::spawn(move || latest.next_due(1, Instant::now()))
        };
        // Whether it waits already or comes later, it sees the change.
        latest.add_step(&step(7));
        assert_eq!(percentage(&waiting.join().expect("it ends")), 7);
    }

    #[test]
    fn final_status_is_due_immediately_despite_pause() {
        let latest = latest();
        latest.end(RunEnd::Completed);
        let due = latest.next_due(1, Instant::now() + Duration::from_hours(1));
        assert_eq!((percentage(&due), due.is_last), (100, true));
    }
}
