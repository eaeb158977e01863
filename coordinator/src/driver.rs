//! The sole owner of the training core: events in, actions out. A state machine that never waits, over an [`Environment`] that
//! has the clock, the disk and what this process computes itself; the simulation plays it in virtual time. In a process of its
//! own it is a task beside the sessions, and not a thread: the session that reads a result can run the driver at once, where a
//! thread would have to be woken.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::task::Poll;
use std::time::{Duration, Instant};

use engine::params::params_blake3;
use engine::report::{epoch_record, step_record};
use engine::task::TaskSpec;
use engine::weights::Weights;
use events::{EpochRecord, RunEvent, StepCosts, StepEvent};
use prost::bytes::Bytes;
use proto::buffers::Buffers;
use proto::busy_poll::BusyPoll;
use proto::shared::Updates;
use proto::v1::coordinator_message::Kind;
use proto::v1::{self, Close, Encoding, Refusal, Update};
use proto::values;
use tokio::sync::mpsc;
use tokio::task::{block_in_place, yield_now};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::clock::Clock;
use crate::closing::OpenSessions;
use crate::config::{HashSteps, JournalSteps};
use crate::facts::Facts;
use crate::input::Input;
use crate::journal::Journal;
use crate::observe::{Entry, Observer, ObserverStopped};
use crate::outbox::{GradientPath, Outbox};
use crate::recompute::Recomputer;
use crate::saver::PendingCheckpoints;
use crate::timeline::Timeline;
use crate::training::{
    Action, CloseReason, EpochReport, Event, Outcome, Report, State, StepReport, Training, Work, WorkerId,
};

/// What the driver works with: time, what is kept, and what this process computes itself. Messages go to the workers' outboxes.
pub trait Environment {
    /// The core's time.
    fn now(&self) -> Duration;

    /// Has something recorded.
    ///
    /// # Errors
    /// If nothing is recorded any more; so the other ones.
    fn record(&mut self, entry: Entry) -> Result<(), ObserverStopped>;

    /// Keeps a checkpoint of a state, once all that was recorded before is on the disk.
    ///
    /// # Errors
    /// See [`Environment::record`].
    fn checkpoint(&mut self, state: &State) -> Result<(), ObserverStopped>;

    /// Waits until a state, and all that was recorded before, outlives this process.
    ///
    /// # Errors
    /// See [`Environment::record`].
    fn journal(&mut self, state: &State) -> Result<(), ObserverStopped>;

    /// Has tasks computed on the parameters of a state. Their results come as inputs.
    fn compute(&mut self, work: Work, state: &State);

    /// A message is dropped, since its worker is out.
    fn dropped(&mut self, _worker_id: WorkerId, _kind: Kind) {}
}

/// What is the same in the whole life of a driver.
#[derive(Debug)]
pub struct RunContext {
    /// What is trained.
    pub spec: TaskSpec,
    /// What sessions know of the run.
    pub facts: Arc<Facts>,
    /// Vectors for gradients.
    pub buffers: Arc<Buffers>,
    /// Where averaged gradients lie for workers of this machine, if they do.
    pub updates: Option<Updates>,
    /// Whether each step reaches the disk.
    pub journal: JournalSteps,
    /// Whether each step's parameters are named.
    pub hash_steps: HashSteps,
}

/// The core with what does its wishes.
#[derive(Debug)]
pub struct Driver<E> {
    /// The core.
    pub training: Training,
    /// What it works with.
    pub environment: E,
    /// Where messages for the workers go that are in.
    pub outboxes: BTreeMap<WorkerId, Outbox>,
    run: RunContext,
    /// Encoded once for all workers that need it.
    encoded_state: Option<EncodedState>,
    /// The state that is in the journal, by its updates and the images since the last validation.
    journaled: Option<(u64, u64)>,
    /// Whether deadlines were looked at since the last input: once for each, however many inputs wait.
    is_looked_at: bool,
    /// Since when it waits for an input, if it does.
    waiting_since: Option<Duration>,
    costs: StepCosts,
    timeline: Timeline,
}

/// Why the driver does not go on at once.
#[derive(Debug)]
pub enum Pause {
    /// What every worker waits for is on its way, which it goes first.
    Sent,
    /// There is nothing to do before the next input, or this deadline.
    Idle(Option<Duration>),
    /// The run is over.
    End(Outcome),
}

/// Parameters and what the optimizer keeps as they travel, after so many updates.
#[derive(Debug)]
struct EncodedState {
    step: u64,
    params: Bytes,
    slots: Bytes,
}

impl<E: Environment> Driver<E> {
    /// A driver without workers.
    pub fn new(training: Training, run: RunContext, environment: E) -> Self {
        Self {
            training,
            environment,
            outboxes: BTreeMap::new(),
            run,
            encoded_state: None,
            journaled: None,
            is_looked_at: false,
            waiting_since: None,
            costs: StepCosts::default(),
            timeline: Timeline::default(),
        }
    }

    /// Runs until the next pause: performs the core's actions and handles deadlines that are due. Ends the run when the core
    /// asks for it, at the latest when no more input can arrive.
    pub fn go_on(&mut self) -> Pause {
        self.end_wait();
        // Ends: deadlines are looked at once.
        loop {
            if let Some(pause) = self.act() {
                return pause;
            }
            if self.run.journal == JournalSteps::Yes && !self.write_journal() {
                continue; // and the run ends
            }
            let (now, deadline) = (self.now(), self.training.next_deadline());
            let is_due = deadline.is_some_and(|deadline| deadline <= now);
            self.is_looked_at = is_due && !self.is_looked_at;
            if !self.is_looked_at {
                self.waiting_since = Some(now);
                return Pause::Idle(deadline);
            }
            self.training.handle_deadline(now);
        }
    }

    /// Handles an input; [`Self::go_on`] has to be called after it.
    pub fn take(&mut self, input: Input) {
        self.end_wait();
        let now = self.now();
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
            Input::ShardDone(worker_id, done, times, _waited) => {
                self.costs.decode += times.decode;
                let arrived = now.saturating_sub(times.decode);
                self.timeline.arrived(worker_id, done.step, done.shard, times.worker, arrived);
                let begun = self.now();
                self.training.handle_event(now, Event::ShardDone(worker_id, done));
                self.costs.reduce += self.since(begun);
            }
            Input::Happened(event) => {
                if let Event::Lost(worker_id, _) = &event {
                    self.outboxes.remove(worker_id);
                    self.timeline.left(*worker_id);
                }
                self.training.handle_event(now, event);
            }
        }
    }

    /// Does what the core wishes, up to the next pause.
    fn act(&mut self) -> Option<Pause> {
        // Ends: the core wishes for finitely many things between two events.
        loop {
            let begun = self.now();
            let action = self.training.poll_action(begun)?;
            let spent = self.since(begun);
            match action {
                Action::SendUpdate { gradient, work } => {
                    self.costs.update += spent;
                    if self.run.journal == JournalSteps::Yes {
                        // No worker may build on a step that could be lost. The step's line comes first, which is the next action.
                        let Some(Action::Report(report)) = self.training.poll_action(self.now()) else {
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
                    self.send(worker_id, Kind::Welcome(self.run.facts.welcome(worker_id, results)));
                }
                Action::SendState(worker_id, work) => self.send_state(worker_id, work),
                Action::SendWork(worker_id, work) => self.send(worker_id, Kind::Work(message_of(work))),
                Action::Refuse(worker_id, refusal) => {
                    self.send(worker_id, Kind::Refusal(Refusal { reason: refusal.to_string() }));
                }
                Action::Close(worker_id, close_reason, reason) => {
                    let close_reason = match close_reason {
                        CloseReason::ComeBack => v1::CloseReason::ComeBack,
                        // Not before the last files are on the disk: see `closing`.
                        CloseReason::End => continue,
                        CloseReason::Refused => v1::CloseReason::Refused,
                        CloseReason::Evicted => v1::CloseReason::Evicted,
                    };
                    self.send(worker_id, Kind::Close(Close { close_reason: close_reason.into(), reason }));
                    self.outboxes.remove(&worker_id);
                }
                Action::ComputeTask(work) => self.environment.compute(work, self.training.state()),
                Action::Checkpoint => {
                    let kept = self.environment.checkpoint(self.training.state());
                    self.stop_unless(kept.is_ok());
                }
                Action::Report(report) => self.report(report),
                Action::Finish(outcome) => return Some(Pause::End(outcome)),
            }
        }
    }

    /// Sends an update to all named: its gradient lies where those of this machine find it, and goes to others as bytes.
    fn send_update(&mut self, gradient: Vec<f32>, work: BTreeMap<WorkerId, Work>) {
        let begun = self.now();
        self.encoded_state = None;
        let step = self.training.state().step;
        let goes_by = |path| work.keys().any(|worker_id| self.path(*worker_id) == Some(path));
        let has_bytes = goes_by(GradientPath::Bytes);
        let has_slot = goes_by(GradientPath::SharedMemory);
        let slot = self.run.updates.as_mut().filter(|_| has_slot).map(|updates| updates.write(step, &gradient));
        // Messages hold it, and give it back when the last of them is on its way.
        let gradient = self.run.buffers.lend(gradient);
        let bytes = if has_bytes { values::encode_owned(self.run.facts.encoding, gradient) } else { Bytes::new() };
        self.costs.encode += self.since(begun);
        let begun = self.now();
        for (worker_id, work) in work {
            let (gradient, slot) = match self.path(worker_id) {
                Some(GradientPath::SharedMemory) => (Bytes::new(), slot),
                Some(GradientPath::Bytes) | None => (bytes.clone(), None),
            };
            self.send(worker_id, Kind::Update(Update { step, gradient, work: Some(message_of(work)), slot }));
        }
        self.run.buffers.give_back(self.training.take_spent());
        self.costs.send += self.since(begun);
    }

    fn path(&self, worker_id: WorkerId) -> Option<GradientPath> {
        self.outboxes.get(&worker_id).map(|outbox| outbox.path)
    }

    /// Sends all that a replica is. Always as f32: nothing may be lost here.
    fn send_state(&mut self, worker_id: WorkerId, work: Work) {
        let state = self.training.state();
        let encoded = self.encoded_state.take_if(|encoded| encoded.step == state.step);
        let encoded = encoded.unwrap_or_else(|| EncodedState {
            step: state.step,
            params: values::encode(Encoding::F32, &state.params),
            slots: values::encode(Encoding::F32, &state.slots.concat()),
        });
        if let Some(outbox) = self.outboxes.get(&worker_id) {
            let (peer, identity) = (&outbox.peer, outbox.peer.identity());
            info!(worker = %worker_id, %peer, %identity, step = encoded.step, "the state is sent");
        }
        let EncodedState { step, params, slots } = &encoded;
        let (params, slots) = (params.clone(), slots.clone());
        let kind = Kind::State(v1::State { step: *step, params, slots, work: Some(message_of(work)) });
        self.encoded_state = Some(encoded);
        self.send(worker_id, kind);
    }

    fn send(&mut self, worker_id: WorkerId, kind: Kind) {
        let Some(outbox) = self.outboxes.get(&worker_id) else { return self.environment.dropped(worker_id, kind) };
        let work = match &kind {
            Kind::Update(Update { work, .. }) | Kind::State(v1::State { work, .. }) => work.as_ref(),
            Kind::Work(work) => Some(work),
            Kind::Welcome(_) | Kind::Close(_) | Kind::Refusal(_) => None,
        };
        if let Some(work) = work.filter(|work| !work.shards.is_empty()) {
            self.timeline.assigned(worker_id, work.step, self.environment.now());
        }
        if outbox.send(kind).is_err() {
            let reason = if outbox.is_gone() { "it closed its connection" } else { "it does not take its messages" };
            let reason = reason.to_owned();
            self.outboxes.remove(&worker_id);
            self.training.handle_event(self.now(), Event::Lost(worker_id, reason));
        }
    }

    fn report(&mut self, report: Report) {
        let entry = match report {
            Report::Step(report) => {
                let event = self.step_event(report);
                let snapshot = self.timeline.snapshot(&event, self.training.roster(), self.now());
                self.record(Entry::Event(RunEvent::Step(event)));
                let Some(snapshot) = snapshot else { return };
                Entry::Event(snapshot)
            }
            Report::Epoch(report) => {
                // What the validation cost is no part of the next step.
                self.costs = StepCosts::default();
                let EpochReport { step, epoch, training, validation, duration, is_best } = report;
                let record = epoch_record(&self.run.spec, step, epoch + 1, &training, &validation, duration);
                let weights = Weights::new(&self.run.spec, self.training.state().params.clone());
                Entry::Epoch { record: EpochRecord { is_best, ..record }, weights }
            }
            Report::Event(event) => {
                match *event {
                    RunEvent::TaskLate { worker, .. } => self.timeline.late(WorkerId(worker)),
                    RunEvent::WorkerLeft { worker, .. } => self.timeline.left(WorkerId(worker)),
                    _ => {}
                }
                Entry::Event(*event)
            }
        };
        self.record(entry);
    }

    /// Waits until a state that is new outlives this process; whether it does.
    fn write_journal(&mut self) -> bool {
        let state = self.training.state();
        let key = (state.step, state.epoch_sums.n_samples);
        if self.journaled.replace(key) == Some(key) {
            return true;
        }
        let begun = self.now();
        let is_written = self.environment.journal(state).is_ok();
        self.stop_unless(is_written);
        self.costs.journal += self.since(begun);
        is_written
    }

    fn record(&mut self, entry: Entry) {
        let recorded = self.environment.record(entry);
        self.stop_unless(recorded.is_ok());
    }

    /// Ends the run where nothing would be kept of what is trained from here on.
    fn stop_unless(&mut self, is_kept: bool) {
        if !is_kept {
            self.training.handle_event(self.now(), Event::Stop);
        }
    }

    fn now(&self) -> Duration {
        self.environment.now()
    }

    fn since(&self, begun: Duration) -> Duration {
        self.now().saturating_sub(begun)
    }

    fn end_wait(&mut self) {
        if let Some(begun) = self.waiting_since.take() {
            self.costs.wait += self.since(begun);
        }
    }

    fn step_event(&mut self, report: StepReport) -> StepEvent {
        let StepReport { step, epoch, sums, begun, duration, workers, compute, n_active } = report;
        let mut record = step_record(&self.run.spec, step, epoch + 1, &sums, duration);
        if self.run.hash_steps == HashSteps::Yes {
            record.params_blake3 = Some(params_blake3(&self.training.state().params));
        }
        let costs = std::mem::take(&mut self.costs);
        // The first step begins with the first worker, the waiting before.
        let costs = StepCosts { compute, wait: costs.wait.min(duration), ..costs };
        let workers = workers.into_iter().map(|WorkerId(worker)| worker).collect();
        let mut event = StepEvent { record, workers, n_active, costs, begun, tasks: Vec::new() };
        self.timeline.finish_step(&mut event);
        event
    }
}

/// The environment of a driver in a coordinator's process, and its inputs.
#[derive(Debug)]
pub struct Process {
    /// The clock that the core sees.
    pub clock: Clock,
    /// Who watches.
    pub observer: Observer,
    /// Where states for checkpoints are offered.
    pub pending_checkpoints: Arc<PendingCheckpoints>,
    /// Where the newest state is written, if each is.
    pub journal: Option<Journal>,
    /// What computes the tasks that no worker is trusted with alone.
    pub recomputer: Recomputer,
    /// The inputs of the driver.
    pub inputs: mpsc::Receiver<Input>,
    /// Whether it waits without sleep at first.
    pub busy_poll: bool,
    /// Ends the run, with what it came to kept.
    pub stop: CancellationToken,
}

/// How it went.
#[derive(Debug)]
pub struct Ended {
    /// How the run ended.
    pub outcome: Result<Outcome, DriverPanicked>,
    /// The core as it was then.
    pub training: Training,
    /// Who watched.
    pub observer: Observer,
    /// The workers that are still there.
    pub sessions: OpenSessions,
}

/// The driver has panicked, which only a fault of the program can bring about.
#[derive(Debug, thiserror::Error)]
#[error(
    "the coordinator found a fault in itself and ended the run: {0}; --resume goes on from the newest checkpoint, and if it happens \
     again, please report it with run.log"
)]
pub struct DriverPanicked(String);

impl Driver<Process> {
    /// Runs until the core wishes to finish. A panic ends the run too, with all that was recorded before.
    pub async fn run(mut self) -> Ended {
        let outcome = caught(self.run_to_outcome()).await;
        let Self { training, outboxes, environment: Process { observer, inputs, stop, .. }, .. } = self;
        Ended { outcome, training, observer, sessions: OpenSessions::new(inputs, outboxes, stop) }
    }

    async fn run_to_outcome(&mut self) -> Outcome {
        // Ends with the run.
        loop {
            match self.go_on() {
                Pause::Sent => yield_now().await,
                Pause::Idle(deadline) => {
                    if let Some(input) = self.environment.next_input(deadline).await {
                        self.take(input);
                    }
                }
                Pause::End(outcome) => return outcome,
            }
        }
    }
}

/// What a future gives, or what it said when it panicked.
async fn caught<T>(future: impl Future<Output = T>) -> Result<T, DriverPanicked> {
    let mut future = pin!(future);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref().map(String::as_str));
            Poll::Ready(Err(DriverPanicked(text.unwrap_or("without a message").to_owned())))
        }
    })
    .await
}

impl Process {
    /// What comes next; nothing if the deadline comes before.
    async fn next_input(&mut self, deadline: Option<Duration>) -> Option<Input> {
        let Self { clock, inputs, busy_poll, stop, .. } = self;
        let moment = deadline.map(|deadline| clock.moment(deadline));
        if *busy_poll {
            let poll = BusyPoll::begin();
            let is_due = || moment.is_some_and(|moment| moment <= Instant::now()) || stop.is_cancelled();
            while inputs.is_empty() && !is_due() && poll.should_continue() {
                yield_now().await;
            }
        }
        let is_due = async {
            match moment {
                Some(moment) => sleep_until(moment.into()).await,
                None => std::future::pending().await,
            }
        };
        let stopped = || Input::Happened(Event::Stop);
        tokio::select! {
            biased;
            () = stop.cancelled() => Some(stopped()),
            input = inputs.recv() => Some(input.unwrap_or_else(stopped)),
            () = is_due => None,
        }
    }
}

impl Environment for Process {
    fn now(&self) -> Duration {
        self.clock.now()
    }

    fn record(&mut self, entry: Entry) -> Result<(), ObserverStopped> {
        self.observer.record(entry)
    }

    fn checkpoint(&mut self, state: &State) -> Result<(), ObserverStopped> {
        let offer = self.pending_checkpoints.offer(state.clone());
        self.observer.record(Entry::Checkpoint(offer))
    }

    fn journal(&mut self, state: &State) -> Result<(), ObserverStopped> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let (done, flushed) = sync_channel(1);
        self.observer.record(Entry::FlushLines(done))?;
        // While the lines are written: a run resumed from a state has all lines up to it.
        let parts = journal.parts_of(state);
        // Other tasks run meanwhile. The sync to disk, against a crash of the machine, follows while workers compute.
        let written = block_in_place(|| {
            flushed.recv().map_err(|_| ObserverStopped)?;
            Ok(journal.write(&parts))
        })?;
        self.observer.record(Entry::Journal(written))
    }

    fn compute(&mut self, work: Work, state: &State) {
        self.recomputer.compute(work, state);
    }
}

fn message_of(work: Work) -> v1::Work {
    match work {
        Work::Nothing => v1::Work::default(),
        Work::Shards { step, position, shards } => {
            v1::Work { step, epoch: position.epoch, step_of_epoch: position.step_of_epoch, shards, batches: Vec::new() }
        }
        Work::Batches { step, batches } => v1::Work { step, batches, ..v1::Work::default() },
    }
}
