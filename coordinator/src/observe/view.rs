//! What people see while it happens: the screen, and the log.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use engine::bucket::{Bucket, BucketRate};
use engine::report::Screen;
use events::{MirrorEvent, RunEvent, StepEvent};
use serde_json::json;
use tracing::{Span, debug, info, warn};

/// Events that wait to be shown. If the terminal does not accept output, more are dropped.
const EVENTS_MAX: usize = 4096;
/// How often it is shown what workers can bring about as often as they like.
const LINES: BucketRate = BucketRate { n_max: 200, per_second: 2 };
/// How long the last events may take, when the run is over.
const LAST_EVENTS_WAIT_MAX: Duration = Duration::from_secs(1);

/// Shows what others than the observer have to show, until the view's end is waited for.
#[derive(Clone, Debug)]
pub struct ViewHandle(Weak<SyncSender<RunEvent>>);

impl ViewHandle {
    /// Shows something about the mirror, unless too much waits to be shown.
    pub fn mirror(&self, event: MirrorEvent) {
        if let Some(events) = self.0.upgrade() {
            let _ = events.try_send(RunEvent::Mirror(event));
        }
    }
}

/// The thread that shows.
#[derive(Debug)]
pub struct View {
    /// Its only owner, so that the thread ends when this is dropped.
    events: Arc<SyncSender<RunEvent>>,
    screen: Receiver<Screen>,
}

impl View {
    /// Starts the thread, which logs in `span`.
    pub fn start(mut screen: Screen, n_expected: u32, span: Span) -> Self {
        let (events, inbox) = sync_channel(EVENTS_MAX);
        let (shown, back) = sync_channel(1);
        let show_all = move || {
            span.in_scope(|| {
                let mut lines = Bucket::new(LINES, Instant::now());
                while let Ok(event) = inbox.recv() {
                    let is_step = matches!(event, RunEvent::Step(_) | RunEvent::Epoch(_) | RunEvent::Snapshot(_));
                    if is_step || lines.take(Instant::now()) {
                        show(&mut screen, event, n_expected);
                    }
                }
            });
            // `View::finish` may have timed out.
            let _ = shown.send(screen);
        };
        // Never joined: it may never end, where its output is not read.
        std::thread::Builder::new().name("view".to_owned()).spawn(show_all).expect("the system has a thread to give");
        Self { events: Arc::new(events), screen: back }
    }

    /// Shows something, unless too much waits to be shown.
    pub fn show(&self, event: RunEvent) {
        let _ = self.events.try_send(event);
    }

    /// What others may show something with.
    pub fn handle(&self) -> ViewHandle {
        ViewHandle(Arc::downgrade(&self.events))
    }

    /// The screen, when all is shown; None if that takes too long.
    pub fn finish(self) -> Option<Screen> {
        drop(self.events);
        self.screen.recv_timeout(LAST_EVENTS_WAIT_MAX).ok()
    }
}

/// Log target of events that the screen shows as lines of its own, so that a terminal does not show them twice.
const ON_SCREEN: &str = "on_screen";

fn show(screen: &mut Screen, event: RunEvent, n_expected: u32) {
    // What the run's beginning and end come to has lines of its own.
    if !matches!(event, RunEvent::Started { .. } | RunEvent::Ended { .. })
        && let Some(line) = event.describe()
    {
        screen.tell(&line);
    }
    match event {
        RunEvent::Step(StepEvent { record, n_active, .. }) => {
            debug!(step = record.step, n_active, "step done");
            screen.step(&record, &format!("{n_active}/{n_expected} workers"));
        }
        RunEvent::Epoch(record) => screen.epoch(&record),
        RunEvent::Snapshot(_) | RunEvent::Started { .. } | RunEvent::Ended { .. } => {}
        RunEvent::Waiting | RunEvent::Continuing | RunEvent::Mirror(_) => screen.json_line(&json!(event)),
        RunEvent::WorkerJoined { worker, host, process, backend, n_threads, n_active, .. } => {
            info!(target: ON_SCREEN, %worker, host, process, backend, threads = n_threads, n_active, "worker joined");
        }
        RunEvent::WorkerLeft { worker, reason, n_active, n_reassigned } => {
            info!(target: ON_SCREEN, %worker, reason, n_active, n_reassigned, "worker left");
        }
        RunEvent::WorkerEvicted { worker, host, process, reason, .. } => {
            warn!(target: ON_SCREEN, %worker, host, process, reason, "worker evicted");
        }
        RunEvent::TaskLate { step, task, worker, helper, milliseconds } => {
            info!(target: ON_SCREEN, step, %worker, task, milliseconds, %helper, "worker is late: another one computes the same");
        }
        RunEvent::ReplicaResent { worker, reason } => warn!(target: ON_SCREEN, %worker, reason, "replica sent anew"),
        RunEvent::ResultRefused { worker, reason } => warn!(target: ON_SCREEN, %worker, reason, "message not used"),
        RunEvent::ComputeClassAdded { class, n_classes } => {
            warn!(target: ON_SCREEN, class, n_classes, "one more compute class takes part: bits may depend on which worker computes what");
        }
    }
}
