//! A coordinator's process: the driver as it is, over an environment in virtual time. After each pause it is looked at what went
//! out and what was kept, and compared with the undisturbed run.

mod checks;
mod tape;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coordinator::closing::EndNotice;
use coordinator::config::JournalSteps;
use coordinator::driver::{Driver, Pause, RunContext};
use coordinator::facts::Facts;
use coordinator::input::{Input, ResultTimes};
use coordinator::observe::Entry;
use coordinator::outbox::GradientPath;
use coordinator::timeline::WorkerTimes;
use coordinator::training::{
    self, AfterStop, BatchDone, Computed, Event, Identity, Outcome, OwnTaskDone, Profile, ShardDone, State, TaskKind,
    Training, WorkerId,
};
use engine::params::ParamLayout;
use engine::shard::ShardResult;
use engine::task::{Defaults, TaskSpec};
use prost::bytes::Bytes;
use proto::buffers::Buffers;
use proto::shared::{UpdateSlots, Updates};
use proto::v1::Fence;
use proto::v1::coordinator_message::Kind;
use tokio::sync::Semaphore;

use super::coverage::{Coverage, CoverageCounts};
use super::describe;
use super::network::{ShardAnswer, ToCoordinator};
use super::plan::Plan;
use super::reference::{Problem, Reference};

pub use tape::{Noted, Tape};

/// How the reason begins for which an identity is not let in.
const KEPT_OUT: &str = "expected no worker of";

/// A coordinator's process.
pub struct Shell {
    pub driver: Driver<Tape>,
    pub incarnation: u32,
    pub sessions: BTreeMap<WorkerId, Session>,
    pub outcome: Option<Outcome>,
    /// Where workers of its machine find averaged gradients.
    updates: Option<Rc<UpdateSlots>>,
    /// Updates that were made, and epochs that were validated, in this process and those before it that it goes on from, as far as
    /// the tape was looked at.
    step: u64,
    n_validated: usize,
    begun: Duration,
    n_joined: u64,
    is_waiting: bool,
    /// When the driver wants to be woken.
    deadline: Option<Duration>,
    last_deadline: Option<Duration>,
    /// Who helps whom with a late task of this round.
    late: Vec<LateTask>,
    /// Who was evicted, and at which step.
    evicted: BTreeSet<(WorkerId, u64)>,
    /// Identities of which a worker was evicted.
    evicted_identities: BTreeSet<Identity>,
    /// The last step that was recorded.
    recorded: u64,
    /// How far the state was that was last kept in a checkpoint, and in the journal.
    kept: Option<(u64, usize)>,
    journaled: Option<(u64, usize)>,
    /// Who was dealt which shard of which step.
    dealt: BTreeSet<(WorkerId, u64, u32)>,
}

/// A task that two workers compute.
struct LateTask {
    task: u32,
    straggler: WorkerId,
    helper: WorkerId,
}

/// A worker that is in.
pub struct Session {
    pub connection: usize,
    pub process: u32,
    identity: Identity,
    path: GradientPath,
    pub is_ready: bool,
    is_leaving: bool,
    /// Updates that its replica was sent, once it was sent a state.
    step: Option<u64>,
    /// Its messages are not taken any more: the next one to it fails.
    unusable: Option<Coverage>,
    /// It was sent the last message.
    is_closed: bool,
}

/// What happens between two inputs.
#[derive(Default)]
struct Turn {
    effects: Vec<Effect>,
    /// Who could have been asked when it began, and that worker's process.
    helpers: BTreeMap<WorkerId, u32>,
    /// Who was lost because its messages are not taken.
    lost: BTreeSet<WorkerId>,
    /// Who is to be sent a state.
    lagging: BTreeSet<WorkerId>,
}

/// What a run goes on from.
#[derive(Clone)]
pub struct Saved {
    pub state: State,
    pub n_validated: usize,
}

/// What is to be done outside.
pub enum Effect {
    Send(usize, Kind),
    Close(usize),
    Save(Saved),
    Journal(Saved),
    Compute(OwnTaskDone),
    Finish(Outcome),
}

/// What is the same for all processes of a run.
pub struct Run {
    pub plan: Plan,
    pub problem: Problem,
    pub reference: Reference,
    spec: TaskSpec,
}

/// What happens in one schedule, counted and, if asked for, printed.
pub struct Notes {
    pub coverage: CoverageCounts,
    pub is_told: bool,
    pub now: Duration,
    /// Processes that have lied so far.
    pub liars: BTreeMap<u32, Coverage>,
    /// Processes that something has happened to so far, be it only that they were slow.
    pub hindered: BTreeSet<u32>,
}

impl Notes {
    pub fn tell(&self, text: impl FnOnce() -> String) {
        if self.is_told {
            println!("{:>12.6}  {}", self.now.as_secs_f64(), text());
        }
    }
}

impl Run {
    pub fn new(plan: Plan) -> Self {
        let problem = Problem::new(&plan.rules);
        let reference = Reference::new(&problem, &plan.initial);
        let spec = TaskSpec {
            name: "simulated",
            settings: serde_json::Value::Null,
            layout: Arc::new(ParamLayout::of_tensors([("params".to_owned(), vec![plan.initial.params.len()])])),
            metrics: plan.rules.metrics,
            samples: "images",
            evaluation_batch: plan.rules.evaluation_batch,
            defaults: Defaults::default(),
        };
        Self { plan, problem, reference, spec }
    }

    /// Whether messages may be lost, doubled or overtaken.
    fn is_rough(&self) -> bool {
        self.plan.network.is_rough()
    }

    fn n_params(&self) -> usize {
        self.spec.layout.n_params()
    }
}

impl Shell {
    pub fn start(run: &Run, saved: Saved, incarnation: u32, notes: &mut Notes) -> (Self, Vec<Effect>) {
        let Saved { state, n_validated } = saved;
        let step = state.step;
        notes.tell(|| format!("coordinator {incarnation} starts from step {step}"));
        if step > 0 {
            notes.coverage.add(Coverage::Resumed, 1);
            let is_at_end = run.reference.validations.iter().any(|&(at, _)| at == step);
            let is_unvalidated = is_at_end && state.epoch_sums.n_samples > 0;
            notes.coverage.add(Coverage::ResumedBeforeValidation, u64::from(is_unvalidated));
            let has_best = run.plan.rules.recipe.patience.is_some() && state.best.is_some();
            notes.coverage.add(Coverage::ResumedWithPatience, u64::from(has_best));
        }
        let updates = run.plan.has_shared_memory.then(|| Updates::create(run.n_params()).ok()).flatten();
        let region = updates.as_ref().map(Updates::message);
        let opened = region.as_ref().map(|region| UpdateSlots::open(std::process::id(), region, run.n_params()));
        let context = RunContext {
            spec: run.spec.clone(),
            facts: Arc::new(Facts {
                fence: Fence { run_id: "simulated".to_owned(), coordinator_id: incarnation.into() },
                recipe: Bytes::new(),
                data_fingerprint: String::new(),
                layout_fingerprint: run.spec.layout.fingerprint().0,
                encoding: run.problem.encoding,
                updates: region,
                heartbeat_timeout: run.plan.rules.heartbeat_timeout,
                token: None,
                reflection: false,
            }),
            buffers: Arc::new(Buffers::new(run.n_params(), 3)),
            updates,
            journal: run.plan.journal,
            hash_steps: run.plan.hash_steps,
        };
        let mut shell = Self {
            driver: Driver::new(Training::new(run.plan.rules.clone(), state, Duration::ZERO), context, Tape::default()),
            incarnation,
            sessions: BTreeMap::new(),
            outcome: None,
            updates: opened.map(|opened| Rc::new(opened.expect("this process can open its own memory"))),
            step,
            n_validated,
            begun: notes.now,
            n_joined: 0,
            is_waiting: false,
            deadline: None,
            last_deadline: None,
            late: Vec::new(),
            evicted: BTreeSet::new(),
            evicted_identities: BTreeSet::new(),
            recorded: step,
            // Nothing yet: what it goes on from may be in a journal.
            kept: None,
            journaled: None,
            dealt: BTreeSet::new(),
        };
        let effects = shell.go_on(run, notes);
        (shell, effects)
    }

    /// Where a worker's process finds averaged gradients, if it is on this machine: every other one is.
    pub fn updates_of(&self, process: u32) -> Option<Rc<UpdateSlots>> {
        self.updates.clone().filter(|_| process.is_multiple_of(2))
    }

    /// A worker's stream begins.
    pub fn join(
        &mut self,
        run: &Run,
        profile: Profile,
        connection: usize,
        notes: &mut Notes,
    ) -> (WorkerId, Vec<Effect>) {
        self.n_joined += 1;
        let worker_id = WorkerId(self.n_joined);
        let (process, identity) = (profile.process, profile.identity.clone());
        let path = if self.updates_of(process).is_some() { GradientPath::SharedMemory } else { GradientPath::Bytes };
        let (is_ready, is_leaving, step, unusable, is_closed) = (false, false, None, None, false);
        let session = Session { connection, process, identity, path, is_ready, is_leaving, step, unusable, is_closed };
        self.sessions.insert(worker_id, session);
        let outbox = self.driver.environment.open(worker_id, process, run.n_params());
        (worker_id, self.happen(run, Input::Joined(worker_id, profile, outbox), notes))
    }

    /// A message on the stream of a worker, which may be out.
    pub fn read(&mut self, run: &Run, worker_id: WorkerId, message: ToCoordinator, notes: &mut Notes) -> Vec<Effect> {
        let input = self.input_of(worker_id, message, run.n_params());
        let is_due = self.deadline.is_some_and(|deadline| deadline <= self.now(notes));
        let session = self.sessions.get_mut(&worker_id);
        let is_in = session.is_some();
        if let Some(session) = session {
            session.is_ready |= matches!(input, Input::Ready(..));
            session.is_leaving |= matches!(input, Input::Happened(Event::Leaving(..)));
        }
        let effects = self.happen(run, input, notes);
        assert!(is_in || is_due || effects.is_empty(), "an event of worker {worker_id}, who is out, has no effect");
        effects
    }

    pub fn lose(&mut self, run: &Run, worker_id: WorkerId, reason: &str, notes: &mut Notes) -> Vec<Effect> {
        self.sessions.remove(&worker_id);
        self.driver.environment.forget(worker_id);
        self.happen(run, Input::Happened(Event::Lost(worker_id, reason.to_owned())), notes)
    }

    /// The next message to these processes fails: some do not read, of others the connection is gone.
    pub fn disable(&mut self, processes: &[usize]) {
        let is_meant = |session: &Session| processes.contains(&(session.process as usize - 1));
        for (&worker_id, session) in self.sessions.iter_mut().filter(|(_, session)| is_meant(session)) {
            let does_read = session.process.is_multiple_of(3);
            session.unusable = Some(if does_read { Coverage::Gone } else { Coverage::Overflow });
            if does_read {
                self.driver.environment.cut(worker_id);
            } else {
                self.driver.environment.fill(worker_id);
            }
        }
    }

    /// The coordinator has computed a task itself.
    pub fn own_task_done(&mut self, run: &Run, done: OwnTaskDone, notes: &mut Notes) -> Vec<Effect> {
        notes.coverage.add(Coverage::OwnTooLate, u64::from(done.step < self.step));
        self.happen(run, Input::Happened(Event::OwnTaskDone(done)), notes)
    }

    pub fn stop(&mut self, run: &Run, notes: &mut Notes) -> Vec<Effect> {
        self.happen(run, Input::Happened(Event::Stop), notes)
    }

    /// How far it has come: updates, and validations.
    fn age(&self) -> (u64, usize) {
        (self.step, self.n_validated)
    }

    /// When the driver wants to be woken.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.deadline.map(|deadline| self.begun + deadline)
    }

    /// Wakes the driver.
    pub fn wake(&mut self, run: &Run, notes: &mut Notes) -> Vec<Effect> {
        let (now, step, deadline) = (self.now(notes), self.step, self.deadline);
        notes.tell(|| format!("deadline {deadline:?}"));
        let n_before = self.sessions.len();
        let effects = self.go_on(run, notes);
        let has_acted = !effects.is_empty() || self.sessions.len() < n_before || self.step > step;
        let is_same = self.last_deadline.replace(deadline.expect("it is woken when it wants to be")) == deadline;
        assert!(!is_same || has_acted, "the core wakes for the same deadline twice, and does nothing");
        let next = self.deadline;
        assert!(next.is_none_or(|next| next > now) || has_acted, "woken at {now:?}, it wants to be woken at {next:?}");
        effects
    }

    fn happen(&mut self, run: &Run, input: Input, notes: &mut Notes) -> Vec<Effect> {
        if !matches!(input, Input::Happened(Event::Heartbeat(..))) {
            notes.tell(|| describe::of_input(&input));
        }
        self.driver.environment.set_time(self.now(notes));
        self.driver.take(input);
        self.go_on(run, notes)
    }

    fn now(&self, notes: &Notes) -> Duration {
        notes.now.saturating_sub(self.begun)
    }

    /// Lets the driver go on until it waits, and looks at what it does.
    fn go_on(&mut self, run: &Run, notes: &mut Notes) -> Vec<Effect> {
        self.driver.environment.set_time(self.now(notes));
        let active = self.sessions.iter().filter(|(_, session)| session.is_active());
        let helpers = active.map(|(&worker_id, session)| (worker_id, session.process)).collect();
        let (age, mut turn) = (self.age(), Turn { helpers, ..Turn::default() });
        // Ends: a step is made by results, of which there was one at most.
        loop {
            assert_eq!(self.driver.training.state().step, self.step, "the parameters change when the core is polled");
            let pause = self.driver.go_on();
            self.look_at_tape(run, &mut turn, notes);
            match pause {
                Pause::Sent => self.check_sent(run),
                Pause::Idle(deadline) => {
                    self.deadline = deadline;
                    let is_in = self.driver.outboxes.keys().eq(self.sessions.keys());
                    assert!(is_in, "who is in has an outbox, and nobody else");
                    let is_due = run.plan.journal == JournalSteps::Yes;
                    assert!(!is_due || self.journaled == Some(self.age()), "a state is lost that others build on");
                    break;
                }
                Pause::End(outcome) => {
                    self.end(run, outcome, &mut turn, notes);
                    break;
                }
            }
        }
        assert!(turn.lagging.is_subset(&turn.lost), "expected a state for each of {:?}", turn.lagging);
        self.check_kept(run, age);
        turn.effects
    }

    fn look_at_tape(&mut self, run: &Run, turn: &mut Turn, notes: &mut Notes) {
        for noted in self.driver.environment.take() {
            notes.tell(|| format!("    {}", describe::of_noted(&noted)));
            self.look_at(run, noted, turn, notes);
        }
    }

    fn look_at(&mut self, run: &Run, noted: Noted, turn: &mut Turn, notes: &mut Notes) {
        match noted {
            Noted::Sent(worker_id, kind) => {
                self.check_message(run, worker_id, &kind, turn, notes);
                let connection = self.sessions[&worker_id].connection;
                turn.effects.push(Effect::Send(connection, kind));
            }
            Noted::Closed(worker_id) => {
                let session = self.sessions.remove(&worker_id).expect("a session is closed once");
                if !session.is_closed {
                    let unusable = session.unusable.expect("who takes its messages is told why it is out");
                    notes.coverage.add(unusable, 1);
                    turn.lost.insert(worker_id);
                }
                turn.effects.push(Effect::Close(session.connection));
            }
            Noted::Dropped(worker_id, kind) => {
                assert!(turn.lost.contains(&worker_id), "worker {worker_id} is out, and is sent {kind:?}");
            }
            Noted::Recorded(Entry::Event(event)) => self.check_event(run, event, turn, notes),
            Noted::Recorded(Entry::Epoch { record, weights }) => self.check_epoch(run, &record, &weights),
            Noted::Recorded(entry) => unreachable!("{entry:?} is another call"),
            Noted::Checkpoint(state) => {
                let saved = self.check_saved(run, state);
                let kept = self.kept.replace(self.age());
                assert_ne!(kept, self.kept, "a state is kept once");
                turn.effects.push(Effect::Save(saved));
            }
            Noted::Journal(state) => {
                let saved = self.check_saved(run, state);
                self.journaled = Some(self.age());
                turn.effects.push(Effect::Journal(saved));
            }
            Noted::Compute(work, params) => turn.effects.push(Effect::Compute(own_task(run, &work, &params))),
        }
    }

    /// The run is over, and its last files are written.
    fn end(&mut self, run: &Run, outcome: Outcome, turn: &mut Turn, notes: &mut Notes) {
        let helpers = turn.helpers.iter().filter(|(worker_id, _)| !turn.lost.contains(worker_id));
        self.check_end(run, &outcome, &helpers.map(|(_, &process)| process).collect(), notes);
        self.outcome = Some(outcome.clone());
        let notice = match run.plan.rules.after_stop {
            AfterStop::End => EndNotice::of_local_workers(),
            AfterStop::ComeBack => EndNotice::of(&outcome, true),
        };
        for outbox in std::mem::take(&mut self.driver.outboxes).into_values() {
            notice.send(&outbox);
        }
        self.look_at_tape(run, turn, notes);
        assert!(self.sessions.is_empty(), "every session is closed at the end");
        turn.effects.push(Effect::Finish(outcome));
    }

    /// What `session` makes of a message.
    fn input_of(&self, worker_id: WorkerId, message: ToCoordinator, n_params: usize) -> Input {
        Input::Happened(match event_of(worker_id, message, n_params) {
            Event::Ready(worker_id) => {
                let session = self.sessions.get(&worker_id);
                return Input::Ready(worker_id, session.map_or(GradientPath::Bytes, |session| session.path));
            }
            Event::ShardDone(worker_id, done) => {
                let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("nobody else has it");
                let times = absurd_times(&done);
                return Input::ShardDone(worker_id, done, times, permit);
            }
            event => event,
        })
    }
}

impl Session {
    /// Whether it takes work, as far as can be seen.
    pub fn is_active(&self) -> bool {
        self.is_ready && !self.is_leaving
    }
}

/// Times that cannot be: nothing may depend on what a worker says of them.
fn absurd_times(done: &ShardDone) -> ResultTimes {
    let mixed = (done.step + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ u64::from(done.shard) << 40;
    let [received, started, finished] = [3, 17, 29].map(|n| Duration::from_nanos(mixed.rotate_left(n)));
    ResultTimes { decode: Duration::from_micros(mixed % 5_000), worker: WorkerTimes { received, started, finished } }
}

/// What comes of a task, as the coordinator computes it.
fn own_task(run: &Run, work: &training::Work, params: &[f32]) -> OwnTaskDone {
    match work {
        training::Work::Nothing => panic!("nothing is no task"),
        training::Work::Shards { step, position, shards } => {
            let [task] = shards[..] else { panic!("expected one shard, found {shards:?}") };
            let result = run.problem.shard(params, *position, *step, task);
            OwnTaskDone { step: *step, kind: TaskKind::Shard, task, result }
        }
        training::Work::Batches { step, batches } => {
            let [task] = batches[..] else { panic!("expected one batch, found {batches:?}") };
            let sums = run.problem.batch(params, *step, task);
            let result = ShardResult { gradient_sum: Vec::new(), sums };
            OwnTaskDone { step: *step, kind: TaskKind::Batch, task, result }
        }
    }
}

/// What a message means.
pub fn event_of(worker_id: WorkerId, message: ToCoordinator, n_params: usize) -> Event {
    match message {
        ToCoordinator::Join(_) => unreachable!("a stream has one join, which is no event of a session"),
        ToCoordinator::Ready => Event::Ready(worker_id),
        ToCoordinator::Shard(answer) => {
            let ShardAnswer { step, shard, gradient_sum, sums, params_fingerprint, compute } = answer;
            let gradient_norm = gradient_sum.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
            let computed = if gradient_sum.len() != n_params {
                Computed::WrongLength { expected: 4 * n_params, found: 4 * gradient_sum.len() }
            } else if gradient_sum.iter().all(|value| value.is_finite()) {
                Computed::Finite(ShardResult { gradient_sum, sums })
            } else {
                Computed::NotFinite("gradient")
            };
            Event::ShardDone(worker_id, ShardDone { step, shard, computed, gradient_norm, params_fingerprint, compute })
        }
        ToCoordinator::Batch { step, batch, sums, params_fingerprint } => {
            Event::BatchDone(worker_id, BatchDone { step, batch, sums, params_fingerprint })
        }
        ToCoordinator::Lagging(reason) => Event::Lagging(worker_id, reason),
        ToCoordinator::Leaving => Event::Leaving(worker_id, "a signal".to_owned()),
        ToCoordinator::Heartbeat(step) => Event::Heartbeat(worker_id, step),
    }
}
