//! The sole owner of the training core: events in, actions out. The only place that reads the clock for it. A task beside the
//! sessions, and not a thread of its own: whoever reads a result can go on with the step at once, where a thread would have to
//! be woken.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use engine::params::params_blake3;
use engine::report::{EpochRecord, StepRecord};
use engine::task::TaskSpec;
use engine::weights::Weights;
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
use crate::costs::StepCosts;
use crate::events::{RunEvent, StepEvent};
use crate::facts::Facts;
use crate::input::Input;
use crate::observe::{Entry, Observer};
use crate::outbox::{GradientPath, Outbox};
use crate::recompute::Recomputer;
use crate::saver::PendingCheckpoints;
use crate::training::{
    Action, CloseReason, EpochReport, Event, Outcome, Report, State, StepReport, Training, Work, WorkerId,
};

/// What the driver works with.
#[derive(Debug)]
pub struct Driver {
    /// The core.
    pub training: Training,
    /// What is trained.
    pub spec: TaskSpec,
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
    /// What computes the tasks that no worker is trusted with alone.
    pub recomputer: Recomputer,
    /// Where states for checkpoints are offered.
    pub pending_checkpoints: Arc<PendingCheckpoints>,
    /// Whether each step reaches the disk.
    pub journal: JournalSteps,
    /// Whether each step's parameters are named.
    pub hash_steps: HashSteps,
    /// Whether it waits without sleep at first.
    pub busy_poll: bool,
    /// Ends the run, with what it came to kept.
    pub stop: CancellationToken,
    /// The clock that the core sees.
    pub clock: Clock,
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
        let Self {
            training,
            spec,
            inputs,
            facts,
            buffers,
            updates,
            observer,
            recomputer,
            pending_checkpoints,
            journal,
            hash_steps,
            busy_poll,
            stop,
            clock,
        } = self;
        let running = Running {
            training,
            spec,
            facts,
            buffers,
            updates,
            observer,
            recomputer,
            pending_checkpoints,
            journal,
            journaled: None,
            spare_state: None,
            hash_steps,
            busy_poll,
            outboxes: BTreeMap::new(),
            encoded_state: None,
            stop,
            clock,
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
    spec: TaskSpec,
    facts: Arc<Facts>,
    buffers: Arc<Buffers>,
    updates: Option<Updates>,
    observer: Observer,
    recomputer: Recomputer,
    pending_checkpoints: Arc<PendingCheckpoints>,
    journal: JournalSteps,
    /// The state that is in the journal, by its updates and the images since the last validation.
    journaled: Option<(u64, u64)>,
    /// What was copied for the journal, to be copied over.
    spare_state: Option<Box<State>>,
    hash_steps: HashSteps,
    busy_poll: bool,
    outboxes: BTreeMap<WorkerId, Outbox>,
    /// Encoded once for all workers that need it.
    encoded_state: Option<EncodedState>,
    stop: CancellationToken,
    clock: Clock,
    costs: StepCosts,
}

/// Parameters and what the optimizer keeps as they travel, after so many updates.
struct EncodedState {
    step: u64,
    params: Bytes,
    slots: Bytes,
}

impl Running {
    async fn run(mut self, mut inputs: mpsc::Receiver<Input>) -> Ended {
        // Whether deadlines were looked at since the last input: once for each, however many inputs wait.
        let mut is_looked_at = false;
        // Ends when the core wishes to finish, which it does at the latest when nobody can tell it anything any more.
        loop {
            match self.act() {
                None => {}
                Some(Pause::Sent) => {
                    yield_now().await;
                    continue;
                }
                Some(Pause::End(outcome)) => {
                    let Self { training, observer, outboxes, stop, .. } = self;
                    return Ended { outcome, training, observer, sessions: OpenSessions::new(inputs, outboxes, stop) };
                }
            }
            if self.journal == JournalSteps::Yes {
                self.write_journal();
            }
            let (now, deadline) = (self.clock.now(), self.training.next_deadline());
            if !is_looked_at && deadline.is_some_and(|deadline| deadline <= now) {
                is_looked_at = true;
                self.training.handle_deadline(now);
                continue;
            }
            is_looked_at = false;
            let waiting = Instant::now();
            let moment = deadline.map(|deadline| self.clock.moment(deadline));
            if self.busy_poll {
                let poll = BusyPoll::begin();
                let is_due = || moment.is_some_and(|moment| moment <= Instant::now()) || self.stop.is_cancelled();
                while inputs.is_empty() && !is_due() && poll.should_continue() {
                    yield_now().await;
                }
            }
            let input = next_input(&self.stop, &mut inputs, moment).await;
            self.costs.wait += waiting.elapsed();
            if let Some(input) = input {
                self.take(input);
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
            Input::ShardDone(worker_id, done, decode, _waited) => {
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
                Action::ComputeTask(work) => self.recomputer.compute(work, self.training.state()),
                Action::Checkpoint => {
                    let offer = self.pending_checkpoints.offer(self.training.state().clone());
                    self.record(Entry::Checkpoint(offer));
                }
                Action::Report(report) => self.report(report),
                Action::Finish(outcome) => return Some(Pause::End(outcome)),
            }
        }
    }

    /// Sends an update to all named: its gradient lies where those of this machine find it, and goes to others as bytes.
    fn send_update(&mut self, gradient: Vec<f32>, work: BTreeMap<WorkerId, Work>) {
        let begun = Instant::now();
        self.encoded_state = None;
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
        let Some(outbox) = self.outboxes.get(&worker_id) else { return };
        if outbox.send(kind).is_err() {
            let reason = if outbox.is_gone() { "it closed its connection" } else { "it does not take its messages" };
            let reason = reason.to_owned();
            self.outboxes.remove(&worker_id);
            self.training.handle_event(self.clock.now(), Event::Lost(worker_id, reason));
        }
    }

    fn report(&mut self, report: Report) {
        let entry = match report {
            Report::Step(report) => Entry::Event(RunEvent::Step(self.step_event(report))),
            Report::Epoch(report) => {
                // What the validation cost is no part of the next step.
                self.costs = StepCosts::default();
                let EpochReport { step, epoch, training, validation, duration, is_best } = report;
                let record = EpochRecord::new(&self.spec, step, epoch + 1, &training, &validation, duration);
                let weights = Weights::new(&self.spec, self.training.state().params.clone());
                Entry::Epoch { record: EpochRecord { is_best, ..record }, weights }
            }
            Report::Event(event) => Entry::Event(event),
        };
        self.record(entry);
    }

    /// Waits until a state that is new outlives this process.
    fn write_journal(&mut self) {
        let state = self.training.state();
        let key = (state.step, state.epoch_sums.n_samples);
        if self.journaled.replace(key) == Some(key) {
            return;
        }
        let begun = Instant::now();
        let copy = match self.spare_state.take() {
            // Memory that was written before is written without a page fault for each of its pages.
            Some(mut copy) => {
                copy_state(&mut copy, state);
                copy
            }
            None => Box::new(state.clone()),
        };
        let (done, written) = sync_channel(1);
        self.record(Entry::Journal(copy, done));
        // Others go on meanwhile. An observer that is gone has been noticed by now.
        self.spare_state = block_in_place(|| written.recv()).ok();
        self.costs.journal += begun.elapsed();
    }

    fn record(&mut self, entry: Entry) {
        if self.observer.record(entry).is_err() {
            // Nothing would be kept of what is trained from here on.
            self.training.handle_event(self.clock.now(), Event::Stop);
        }
    }

    fn step_event(&mut self, report: StepReport) -> StepEvent {
        let StepReport { step, epoch, sums, duration, workers, compute, n_active } = report;
        let mut record = StepRecord::new(&self.spec, step, epoch + 1, &sums, duration);
        if self.hash_steps == HashSteps::Yes {
            record.params_blake3 = Some(params_blake3(&self.training.state().params));
        }
        let costs = std::mem::take(&mut self.costs);
        // The first step begins with the first worker, the waiting before.
        let costs = StepCosts { compute, wait: costs.wait.min(duration), ..costs };
        let workers = workers.into_iter().map(|WorkerId(worker)| worker).collect();
        StepEvent { record, workers, n_active, costs }
    }
}

/// What comes next; nothing if a moment comes before.
async fn next_input(
    stop: &CancellationToken,
    inputs: &mut mpsc::Receiver<Input>,
    moment: Option<Instant>,
) -> Option<Input> {
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

/// Copies a state to where another one lies.
fn copy_state(into: &mut State, from: &State) {
    let State { step, params, slots, residual, epoch_sums, epoch_time, best } = from;
    into.params.clone_from(params);
    into.slots.clone_from(slots);
    into.residual.clone_from(residual);
    (into.step, into.epoch_sums, into.epoch_time, into.best) = (*step, *epoch_sums, *epoch_time, *best);
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
