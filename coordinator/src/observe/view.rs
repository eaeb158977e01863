//! What people see while it happens: the screen, and the log.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use engine::bucket::{Bucket, Rate};
use engine::report::{EpochRecord, Screen, StepRecord};
use serde_json::json;
use tracing::{Span, debug, info, warn};

use crate::mirror::MirrorEvent;
use crate::training::Report;

/// Sights that wait to be shown. Where nobody takes them from the screen, more are lost.
const SIGHTS_MAX: usize = 4096;
/// How often it is shown that a run waits or goes on: a lone worker can make it do so as often as it likes.
const CHANGES: Rate = Rate { n_max: 100, per_second: 1 };
/// How long the last sights may take, when the run is over.
const LAST_SIGHTS_WAIT_MAX: Duration = Duration::from_secs(1);

/// Something to show.
#[derive(Debug)]
pub enum Sight {
    /// A step, and how many workers take part.
    Step(StepRecord, usize),
    /// An epoch.
    Epoch(EpochRecord),
    /// Something about the workers.
    Told(Report),
    /// Something about the mirror.
    Mirror(MirrorEvent),
}

/// Shows what others than the observer have to show, until the view's end is waited for.
#[derive(Clone, Debug)]
pub struct Teller(Weak<SyncSender<Sight>>);

impl Teller {
    /// Shows something about the mirror, unless too much waits to be shown.
    pub fn mirror(&self, event: MirrorEvent) {
        if let Some(sights) = self.0.upgrade() {
            let _ = sights.try_send(Sight::Mirror(event));
        }
    }
}

/// The thread that shows.
#[derive(Debug)]
pub struct View {
    /// Its only owner, so that the thread ends when this is dropped.
    sights: Arc<SyncSender<Sight>>,
    screen: Receiver<Screen>,
}

impl View {
    /// Starts the thread, which logs in `span`.
    pub fn start(mut screen: Screen, n_expected: u32, span: Span) -> Self {
        let (sights, inbox) = sync_channel(SIGHTS_MAX);
        let (shown, back) = sync_channel(1);
        let show_all = move || {
            span.in_scope(|| {
                let mut changes = Bucket::new(CHANGES, Instant::now());
                while let Ok(sight) = inbox.recv() {
                    let is_change = matches!(sight, Sight::Told(Report::Waiting | Report::GoingOn));
                    if !is_change || changes.take(Instant::now()) {
                        show(&mut screen, sight, n_expected);
                    }
                }
            });
            // Whoever started the thread may have waited long enough.
            let _ = shown.send(screen);
        };
        // Nobody waits for its end: it may never come, where nobody reads what it prints.
        std::thread::Builder::new().name("view".to_owned()).spawn(show_all).expect("the system has a thread to give");
        Self { sights: Arc::new(sights), screen: back }
    }

    /// Shows something, unless too much waits to be shown.
    pub fn show(&self, sight: Sight) {
        let _ = self.sights.try_send(sight);
    }

    /// What others may show something with.
    pub fn teller(&self) -> Teller {
        Teller(Arc::downgrade(&self.sights))
    }

    /// The screen, when all is shown; None if nobody takes it.
    pub fn finish(self) -> Option<Screen> {
        drop(self.sights);
        self.screen.recv_timeout(LAST_SIGHTS_WAIT_MAX).ok()
    }
}

fn show(screen: &mut Screen, sight: Sight, n_expected: u32) {
    match sight {
        Sight::Step(record, n_active) => {
            debug!(step = record.step, n_active, "step done");
            screen.step(&record, &format!("{n_active}/{n_expected} workers"));
        }
        Sight::Epoch(record) => screen.epoch(&record),
        Sight::Told(Report::Waiting) => {
            screen.tell("waiting: no worker is there; the run goes on when one joins");
            screen.json_line(&json!({ "event": "waiting" }));
        }
        Sight::Told(Report::GoingOn) => {
            screen.tell("going on: a worker is there");
            screen.json_line(&json!({ "event": "going on" }));
        }
        Sight::Told(report) => log(&report),
        Sight::Mirror(event) => {
            screen.tell(&event.to_string());
            screen.json_line(&event.json());
        }
    }
}

fn log(report: &Report) {
    match report {
        Report::Joined { worker_id, profile, n_active } => info!(
            worker = %worker_id, host = profile.host, process = profile.process, backend = profile.backend,
            threads = profile.n_threads, n_active, "worker joined"
        ),
        Report::Left { worker_id, reason, n_active, n_handed_on } => {
            info!(worker = %worker_id, reason, n_active, n_handed_on, "worker left");
        }
        Report::Evicted { worker_id, profile, reason } => warn!(
            worker = %worker_id, host = profile.host, process = profile.process, reason, "worker evicted"
        ),
        Report::Late { step, late } => info!(
            step, worker = %late.straggler, task = late.task, milliseconds = late.waited.as_millis(), helper = %late.helper,
            "worker is late: another one computes the same"
        ),
        Report::Lagging { worker_id, reason } => warn!(worker = %worker_id, reason, "replica sent anew"),
        Report::Refused { worker_id, refusal } => warn!(worker = %worker_id, reason = %refusal, "message not used"),
        Report::MixedClasses { class, n_classes } => {
            warn!(class, n_classes, "one more compute class takes part: bits may depend on which worker computes what");
        }
        Report::Waiting | Report::GoingOn | Report::Step(_) | Report::Epoch(_) => {
            unreachable!("these are for the screen")
        }
    }
}
