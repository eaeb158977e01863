//! The sole owner of the training core: events in, actions out. The only place that reads the clock for it. A task beside the
//! sessions, and not a thread of its own: whoever reads a result can go on with the step at once, where a thread would have to
//! be woken.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use model::params::params_blake3;
use model::recipe::Recipe;
use model::report::{EpochRecord, StepRecord};
use model::weights::Weights;
use prost::bytes::Bytes;
use proto::buffers::Buffers;
use proto::limits::HEARTBEAT_INTERVAL;
use proto::shared::Updates;
use proto::v1::coordinator_message::Kind;
use proto::v1::{self, Dismissal, Encoding, Refusal, Update};
use proto::values;
use proto::watch::Watch;
use tokio::sync::mpsc;
use tokio::task::{block_in_place, yield_now};
use tokio::time::timeout_at;

use crate::config::{HashSteps, JournalSteps};
use crate::dismissal::OpenSessions;
use crate::observe::{Happening, Observer, StepCosts};
use crate::saver::Desk;
use crate::server::{Facts, GradientPath, Outbox};
use crate::training::{
    Action, Event, Farewell, Outcome, Profile, Report, ShardDone, StepReport, Training, Work, WorkerId,
};

/// Inputs that wait for the driver: some of each worker at most.
pub const INPUTS_MAX: usize = 4096;

/// A thread that wakes up later than this was held up, with all others of its machine.
const STALL: Duration = Duration::from_millis(250);

/// What the driver is told.
#[derive(Debug)]
pub enum Input {
    /// A worker introduced itself; its messages go here.
    Joined(WorkerId, Profile, Outbox),
    /// A worker has the data set and wants the state; its gradients travel so.
    Ready(WorkerId, GradientPath),
    /// A worker computed a shard, whose gradient took so long to decode.
    ShardDone(WorkerId, ShardDone, Duration),
    /// Anything else.
    Happened(Event),
}

/// What the driver works with.
#[derive(Debug)]
pub struct Driver {
    /// The core.
    pub training: Training,
    /// The recipe that it follows.
    pub recipe: Recipe,
    /// What it is told.
    pub inputs: mpsc::Receiver<Input>,
    /// What sessions know of the run.
    pub facts: Arc<Facts>,
    /// Vectors for gradients.
    pub buffers: Arc<Buffers>,
    /// Where averaged gradients lie for workers of this machine, if they do.
    pub updates: Option<Updates>,
    /// Who watches.
    pub observer: Observer,
    /// Where states for checkpoints are offered.
    pub desk: Arc<Desk>,
    /// Whether each step reaches the disk.
    pub journal: JournalSteps,
    /// Whether each step's parameters are named.
    pub hash_steps: HashSteps,
    /// Whether it waits without sleep at first.
    pub watches: bool,
}

/// How it went.
#[derive(Debug)]
pub struct Ended {
    /// How the run ended.
    pub outcome: Outcome,
    /// The core as it was then.
    pub training: Training,
    /// Who watched.
    pub observer: Observer,
    /// The workers that are still there.
    pub sessions: OpenSessions,
}

impl Driver {
    /// Runs until the core wishes to finish.
    pub async fn run(self) -> Ended {
        let Self { training, recipe, inputs, facts, buffers, updates, observer, desk, journal, hash_steps, watches } =
            self;
        let running = Running {
            training,
            recipe,
            facts,
            buffers,
            updates,
            observer,
            desk,
            journal,
            journaled: None,
            hash_steps,
            watches,
            outboxes: BTreeMap::new(),
            clock: Clock::start(),
            costs: StepCosts::default(),
        };
        running.run(inputs).await
    }
}

/// Why the driver does not go on at once.
enum Pause {
    /// What every worker waits for is on its way, which it goes first.
    Sent,
    /// The run is over.
    End(Outcome),
}

struct Running {
    training: Training,
    recipe: Recipe,
    facts: Arc<Facts>,
    buffers: Arc<Buffers>,
    updates: Option<Updates>,
    observer: Observer,
    desk: Arc<Desk>,
    journal: JournalSteps,
    /// The state that is in the journal, by its updates and the images since the last validation.
    journaled: Option<(u64, u64)>,
    hash_steps: HashSteps,
    watches: bool,
    outboxes: BTreeMap<WorkerId, Outbox>,
    clock: Clock,
    costs: StepCosts,
}

/// Time since the start, without the time in which this process was held up: nobody else is to blame for that.
struct Clock {
    start: Instant,
    stalled: Duration,
}

impl Clock {
    fn start() -> Self {
        Self { start: Instant::now(), stalled: Duration::ZERO }
    }

    fn now(&self) -> Duration {
        self.start.elapsed().saturating_sub(self.stalled)
    }

    /// The moment that the clock will show `time`, if nothing holds it up.
    fn moment(&self, time: Duration) -> Instant {
        self.start + self.stalled + time
    }

    /// Whether a wait for a moment ended much later. If so, the clock is set back, and for a sign of life of each worker more:
    /// those that came in the meantime are still to be read.
    fn was_held_up(&mut self, moment: Instant) -> bool {
        let late = moment.elapsed();
        let is_late = late > STALL;
        if is_late {
            self.stalled += late + HEARTBEAT_INTERVAL;
        }
        is_late
    }
}

impl Running {
    async fn run(mut self, mut inputs: mpsc::Receiver<Input>) -> Ended {
        // Ends when the core wishes to finish, which it does at the latest when nobody can tell it anything any more.
        loop {
            match self.act() {
                None => {}
                Some(Pause::Sent) => {
                    yield_now().await;
                    continue;
                }
                Some(Pause::End(outcome)) => {
                    let Self { training, observer, outboxes, .. } = self;
                    return Ended { outcome, training, observer, sessions: OpenSessions::new(inputs, outboxes) };
                }
            }
            if self.journal == JournalSteps::Yes {
                self.write_journal();
            }
            let waiting = Instant::now();
            let moment = self.training.next_deadline().map(|deadline| self.clock.moment(deadline));
            if self.watches {
                let watch = Watch::begin();
                let is_due = || moment.is_some_and(|moment| moment <= Instant::now());
                while inputs.is_empty() && !is_due() && watch.goes_on() {
                    yield_now().await;
                }
            }
            let input = match moment {
                None => Some(inputs.recv().await),
                Some(moment) => timeout_at(moment.into(), inputs.recv()).await.ok(),
            };
            self.costs.wait += waiting.elapsed();
            let was_held_up = moment.is_some_and(|moment| self.clock.was_held_up(moment));
            match input {
                Some(input) => self.take(input.unwrap_or(Input::Happened(Event::Stop))),
                None if was_held_up => {}
                None => self.training.handle_deadline(self.clock.now()),
            }
        }
    }

    fn take(&mut self, input: Input) {
        let now = self.clock.now();
        match input {
            Input::Joined(worker_id, profile, outbox) => {
                self.outboxes.insert(worker_id, outbox);
                self.training.handle_event(now, Event::Joined(worker_id, profile));
            }
            Input::Ready(worker_id, path) => {
                if let Some(outbox) = self.outboxes.get_mut(&worker_id) {
                    outbox.path = path;
                }
                self.training.handle_event(now, Event::Ready(worker_id));
            }
            Input::ShardDone(worker_id, done, decode) => {
                self.costs.decode += decode;
                let begun = Instant::now();
                self.training.handle_event(now, Event::ShardDone(worker_id, done));
                self.costs.reduce += begun.elapsed();
            }
            Input::Happened(event) => {
                if let Event::Lost(worker_id, _) = &event {
                    self.outboxes.remove(worker_id);
                }
                self.training.handle_event(now, event);
            }
        }
    }

    /// Does what the core wishes, up to the next pause.
    fn act(&mut self) -> Option<Pause> {
        // Ends: the core wishes for finitely many things between two events.
        loop {
            let begun = Instant::now();
            let action = self.training.poll_action(self.clock.now())?;
            let spent = begun.elapsed();
            match action {
                Action::SendUpdate { gradient, work } => {
                    self.costs.update += spent;
                    if self.journal == JournalSteps::Yes {
                        // Nobody builds on a step that could be lost. Its line comes first, which is the next action.
                        let Some(Action::Report(report)) = self.training.poll_action(self.clock.now()) else {
                            unreachable!("an update is followed by the report of its step")
                        };
                        self.report(report);
                        self.write_journal();
                    }
                    self.send_update(gradient, work);
                    return Some(Pause::Sent);
                }
                Action::Welcome(worker_id) => {
                    let results = self.outboxes.get_mut(&worker_id).and_then(|outbox| outbox.results.take());
                    self.send(worker_id, Kind::Welcome(self.facts.welcome(worker_id, results)));
                }
                Action::SendState(worker_id, work) => self.send(worker_id, self.state(work)),
                Action::SendWork(worker_id, work) => self.send(worker_id, Kind::Work(message_of(work))),
                Action::Refuse(worker_id, refusal) => {
                    self.send(worker_id, Kind::Refusal(Refusal { reason: refusal.to_string() }));
                }
                Action::Dismiss(worker_id, farewell, reason) => {
                    let farewell = match farewell {
                        Farewell::ComeBack => v1::Farewell::ComeBack,
                        // Not before the last files are on the disk: see `dismissal`.
                        Farewell::End => continue,
                        Farewell::Refused => v1::Farewell::Refused,
                        Farewell::Evicted => v1::Farewell::Evicted,
                    };
                    self.send(worker_id, Kind::Dismissal(Dismissal { farewell: farewell.into(), reason }));
                    self.outboxes.remove(&worker_id);
                }
                Action::Checkpoint => {
                    let offer = self.desk.offer(self.training.state().clone());
                    self.tell(Happening::Checkpoint(offer));
                }
                Action::Report(report) => self.report(report),
                Action::Finish(outcome) => return Some(Pause::End(outcome)),
            }
        }
    }

    /// Sends an update to all named: its gradient lies where those of this machine find it, and goes to others as bytes.
    fn send_update(&mut self, gradient: Vec<f32>, work: BTreeMap<WorkerId, Work>) {
        let begun = Instant::now();
        let step = self.training.state().step;
        let goes_by = |path| work.keys().any(|worker_id| self.path(*worker_id) == Some(path));
        let has_bytes = goes_by(GradientPath::Bytes);
        let has_slot = goes_by(GradientPath::SharedMemory);
        let slot = self.updates.as_mut().filter(|_| has_slot).map(|updates| updates.write(step, &gradient));
        // Messages hold it, and give it back when the last of them is on its way.
        let gradient = self.buffers.lend(gradient);
        let bytes = if has_bytes { values::encode_owned(self.facts.encoding, gradient) } else { Bytes::new() };
        self.costs.encode += begun.elapsed();
        let begun = Instant::now();
        for (worker_id, work) in work {
            let (gradient, slot) = match self.path(worker_id) {
                Some(GradientPath::SharedMemory) => (Bytes::new(), slot),
                Some(GradientPath::Bytes) | None => (bytes.clone(), None),
            };
            self.send(worker_id, Kind::Update(Update { step, gradient, work: Some(message_of(work)), slot }));
        }
        self.buffers.give_back(self.training.take_spent());
        self.costs.send += begun.elapsed();
    }

    fn path(&self, worker_id: WorkerId) -> Option<GradientPath> {
        self.outboxes.get(&worker_id).map(|outbox| outbox.path)
    }

    /// All that a replica is. Always as f32: nothing may be lost here.
    fn state(&self, work: Work) -> Kind {
        let state = self.training.state();
        Kind::State(v1::State {
            step: state.step,
            params: values::encode(Encoding::F32, &state.params),
            velocity: values::encode(Encoding::F32, &state.velocity),
            work: Some(message_of(work)),
        })
    }

    fn send(&mut self, worker_id: WorkerId, kind: Kind) {
        let Some(outbox) = self.outboxes.get(&worker_id) else { return };
        if outbox.send(kind).is_err() {
            let reason = if outbox.is_gone() { "it closed its connection" } else { "it does not take its messages" };
            let reason = reason.to_owned();
            self.outboxes.remove(&worker_id);
            self.training.handle_event(self.clock.now(), Event::Lost(worker_id, reason));
        }
    }

    fn report(&mut self, report: Report) {
        let happening = match report {
            Report::Step(report) => self.step_happening(report),
            Report::Epoch(report) => {
                // What the validation cost is no part of the next step.
                self.costs = StepCosts::default();
                Happening::Epoch {
                    record: EpochRecord::new(
                        report.step,
                        report.epoch + 1,
                        &report.training,
                        &report.validation,
                        report.duration,
                    ),
                    weights: Weights {
                        architecture: self.recipe.architecture,
                        params: self.training.state().params.clone(),
                    },
                }
            }
            other => Happening::Told(other),
        };
        self.tell(happening);
    }

    /// Waits until a state that is new outlives this process.
    fn write_journal(&mut self) {
        let state = self.training.state();
        let key = (state.step, state.epoch_sums.n_samples);
        if self.journaled.replace(key) == Some(key) {
            return;
        }
        let (done, written) = sync_channel(1);
        self.tell(Happening::Journal(Box::new(self.training.state().clone()), done));
        let begun = Instant::now();
        // Others go on meanwhile. An observer that is gone has been noticed by now.
        let _ = block_in_place(|| written.recv());
        self.costs.journal += begun.elapsed();
    }

    fn tell(&mut self, happening: Happening) {
        if self.observer.tell(happening).is_err() {
            // Nothing would be kept of what is trained from here on.
            self.training.handle_event(self.clock.now(), Event::Stop);
        }
    }

    fn step_happening(&mut self, report: StepReport) -> Happening {
        let StepReport { step, epoch, sums, duration, workers, compute, n_active } = report;
        let mut record = StepRecord::new(step, epoch + 1, &sums, duration);
        if self.hash_steps == HashSteps::Yes {
            record.params_blake3 = Some(params_blake3(&self.training.state().params));
        }
        let costs = std::mem::take(&mut self.costs);
        // The first step begins with the first worker, the waiting before.
        let costs = StepCosts { compute, wait: costs.wait.min(duration), ..costs };
        Happening::Step { record, costs, workers, n_active }
    }
}

fn message_of(work: Work) -> v1::Work {
    match work {
        Work::Nothing => v1::Work::default(),
        Work::Shards { step, place, shards } => {
            v1::Work { step, epoch: place.epoch, step_of_epoch: place.step_of_epoch, shards, batches: Vec::new() }
        }
        Work::Batches { step, batches } => v1::Work { step, batches, ..v1::Work::default() },
    }
}
