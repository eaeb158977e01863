//! What people see while it happens: the screen, and the log.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use engine::bucket::{Bucket, Rate};
use engine::report::Screen;
use events::{MirrorEvent, RunEvent, StepEvent};
use serde_json::json;
use tracing::{Span, debug, info, warn};

/// Events that wait to be shown. Where nobody takes them from the screen, more are lost.
const EVENTS_MAX: usize = 4096;
/// How often it is shown that a run waits or goes on: a lone worker can make it do so as often as it likes.
const CHANGES: Rate = Rate { n_max: 100, per_second: 1 };
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
                let mut changes = Bucket::new(CHANGES, Instant::now());
                while let Ok(event) = inbox.recv() {
                    let is_change = matches!(event, RunEvent::Waiting | RunEvent::Continuing);
                    if !is_change || changes.take(Instant::now()) {
                        show(&mut screen, event, n_expected);
                    }
                }
            });
            // Whoever started the thread may have waited long enough.
            let _ = shown.send(screen);
        };
        // Nobody waits for its end: it may never come, where nobody reads what it prints.
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

    /// The screen, when all is shown; None if nobody takes it.
    pub fn finish(self) -> Option<Screen> {
        drop(self.events);
        self.screen.recv_timeout(LAST_EVENTS_WAIT_MAX).ok()
    }
}

fn show(screen: &mut Screen, event: RunEvent, n_expected: u32) {
    match event {
        RunEvent::Step(StepEvent { record, n_active, .. }) => {
            debug!(step = record.step, n_active, "step done");
            screen.step(&record, &format!("{n_active}/{n_expected} workers"));
        }
        RunEvent::Epoch(record) => screen.epoch(&record),
        RunEvent::Snapshot(_) | RunEvent::Started { .. } | RunEvent::Ended { .. } => {}
        RunEvent::Waiting => {
            screen.tell("waiting: no worker is there; the run goes on when one joins");
            screen.json_line(&json!(event));
        }
        RunEvent::Continuing => {
            screen.tell("going on: a worker is there");
            screen.json_line(&json!(event));
        }
        RunEvent::Mirror(ref mirror) => {
            screen.tell(&mirror.to_string());
            screen.json_line(&json!(event));
        }
        RunEvent::WorkerJoined { worker, host, process, backend, n_threads, n_active, .. } => {
            info!(%worker, host, process, backend, threads = n_threads, n_active, "worker joined");
        }
        RunEvent::WorkerLeft { worker, reason, n_active, n_reassigned } => {
            info!(%worker, reason, n_active, n_reassigned, "worker left");
        }
        RunEvent::WorkerEvicted { worker, host, process, reason, .. } => {
            warn!(%worker, host, process, reason, "worker evicted");
        }
        RunEvent::TaskLate { step, task, worker, helper, milliseconds } => {
            info!(step, %worker, task, milliseconds, %helper, "worker is late: another one computes the same");
        }
        RunEvent::ReplicaResent { worker, reason } => warn!(%worker, reason, "replica sent anew"),
        RunEvent::ResultRefused { worker, reason } => warn!(%worker, reason, "message not used"),
        RunEvent::ComputeClassAdded { class, n_classes } => {
            warn!(class, n_classes, "one more compute class takes part: bits may depend on which worker computes what");
        }
    }
}
