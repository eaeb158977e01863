//! The core in its shell, as `driver` and `server` are one: messages in, effects out. After each event it is looked at what
//! the core wishes and what it has come to, and compared with the undisturbed run.

mod checks;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use coordinator::events::RunEvent;
use coordinator::training::{
    Action, BatchDone, CloseReason, Computed, Event, Identity, Outcome, OwnTaskDone, Profile, Refusal, Report, Rules,
    ShardDone, State, TaskKind, Training, Work, WorkerId,
};
use engine::shard::ShardResult;

use super::coverage::{Coverage, CoverageCounts};
use super::describe;
use super::network::{ShardAnswer, ToCoordinator, ToWorker};
use super::reference::{Problem, Reference};

/// How the reason begins for which an identity is not let in.
const KEPT_OUT: &str = "expected no worker of";

/// A coordinator's process.
pub struct Shell {
    pub training: Training,
    pub incarnation: u32,
    pub sessions: BTreeMap<WorkerId, Session>,
    pub outcome: Option<Outcome>,
    /// Epochs that were validated, in this process and those before it that it goes on from.
    n_validated: usize,
    begun: Duration,
    n_joined: u64,
    is_waiting: bool,
    last_deadline: Option<Duration>,
    /// Who helps whom with a late task of this round.
    late: Vec<LateTask>,
    /// Who was evicted, and at which step.
    evicted: BTreeSet<(WorkerId, u64)>,
    /// Identities of whom somebody was evicted.
    evicted_identities: BTreeSet<Identity>,
    /// How far the state was that a checkpoint was last wished of.
    kept: (u64, usize),
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
    pub is_ready: bool,
    is_leaving: bool,
    /// Updates that its replica was told of, once it was sent a state.
    step: Option<u64>,
    /// Its messages are not taken any more: the next one to it fails.
    pub is_full: bool,
}

/// What happens between two events.
#[derive(Default)]
struct Turn {
    effects: Vec<Effect>,
    /// Who could have been asked when it began, and that worker's process.
    helpers: BTreeMap<WorkerId, u32>,
    had_ended: bool,
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
    Send(usize, ToWorker),
    Close(usize),
    Save(Saved),
    Compute(OwnTaskDone),
    Finish(Outcome),
}

/// What is the same for all processes of a run.
pub struct Run {
    pub rules: Rules,
    pub problem: Problem,
    pub reference: Reference,
    /// Whether messages may be lost, doubled or overtaken.
    pub is_rough: bool,
}

/// What happens in one schedule, counted and, if asked for, told.
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

impl Shell {
    pub fn start(run: &Run, saved: Saved, incarnation: u32, notes: &mut Notes) -> (Self, Vec<Effect>) {
        let Saved { state, n_validated } = saved;
        notes.tell(|| format!("coordinator {incarnation} starts from step {}", state.step));
        if state.step > 0 {
            notes.coverage.add(Coverage::Resumed, 1);
            let is_at_end = run.reference.validations.iter().any(|&(step, _)| step == state.step);
            notes
                .coverage
                .add(Coverage::ResumedBeforeValidation, u64::from(is_at_end && state.epoch_sums.n_samples > 0));
        }
        // There is nothing to go on from before the first checkpoint is written.
        // Nothing yet: what it goes on from may be in a journal.
        let kept = (u64::MAX, 0);
        let mut shell = Self {
            training: Training::new(run.rules.clone(), state, Duration::ZERO),
            incarnation,
            sessions: BTreeMap::new(),
            outcome: None,
            n_validated,
            begun: notes.now,
            n_joined: 0,
            is_waiting: false,
            last_deadline: None,
            late: Vec::new(),
            evicted: BTreeSet::new(),
            evicted_identities: BTreeSet::new(),
            kept,
            dealt: BTreeSet::new(),
        };
        let effects = shell.act(run, notes);
        (shell, effects)
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
        if self.outcome.is_none() {
            let (process, identity) = (profile.process, profile.identity.clone());
            let (is_ready, is_leaving, step, is_full) = (false, false, None, false);
            let session = Session { connection, process, identity, is_ready, is_leaving, step, is_full };
            self.sessions.insert(worker_id, session);
        }
        (worker_id, self.happen(run, Event::Joined(worker_id, profile), notes))
    }

    /// A message on the stream of a worker, which may be out.
    pub fn read(&mut self, run: &Run, worker_id: WorkerId, message: ToCoordinator, notes: &mut Notes) -> Vec<Effect> {
        let event = event_of(worker_id, message, run.rules_n_params());
        if let Some(session) = self.sessions.get_mut(&worker_id) {
            match &event {
                Event::Ready(_) => session.is_ready = true,
                Event::Leaving(_, _) => session.is_leaving = true,
                _ => {}
            }
            return self.happen(run, event, notes);
        }
        let effects = self.happen(run, event, notes);
        assert!(effects.is_empty(), "an event of worker {worker_id}, who is out, has no effect");
        effects
    }

    pub fn lose(&mut self, run: &Run, worker_id: WorkerId, reason: &str, notes: &mut Notes) -> Vec<Effect> {
        self.sessions.remove(&worker_id);
        self.happen(run, Event::Lost(worker_id, reason.to_owned()), notes)
    }

    /// The coordinator has computed a task itself.
    pub fn own_task_done(&mut self, run: &Run, done: OwnTaskDone, notes: &mut Notes) -> Vec<Effect> {
        notes.coverage.add(Coverage::OwnTooLate, u64::from(done.step < self.training.state().step));
        self.happen(run, Event::OwnTaskDone(done), notes)
    }

    pub fn stop(&mut self, run: &Run, notes: &mut Notes) -> Vec<Effect> {
        self.happen(run, Event::Stop, notes)
    }

    /// What the run has come to.
    pub fn save(&self) -> Saved {
        Saved { state: self.training.state().clone(), n_validated: self.n_validated }
    }

    /// How far it has come: updates, and validations.
    pub fn age(&self) -> (u64, usize) {
        (self.training.state().step, self.n_validated)
    }

    /// When the core wants to be woken.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.training.next_deadline().map(|deadline| self.begun + deadline)
    }

    /// Wakes the core.
    pub fn wake(&mut self, run: &Run, notes: &mut Notes) -> Vec<Effect> {
        let deadline = self.training.next_deadline();
        let (now, step) = (self.now(notes), self.training.state().step);
        notes.tell(|| format!("deadline {deadline:?}"));
        self.training.handle_deadline(now);
        let n_before = self.sessions.len();
        let effects = self.act(run, notes);
        let has_acted = !effects.is_empty() || self.sessions.len() < n_before || self.training.state().step > step;
        let is_same = self.last_deadline.replace(deadline.expect("it is woken when it wants to be")) == deadline;
        assert!(!is_same || has_acted, "the core wakes for the same deadline twice, and does nothing");
        let next = self.training.next_deadline();
        assert!(next.is_none_or(|next| next > now) || has_acted, "woken at {now:?}, it wants to be woken at {next:?}");
        effects
    }

    fn happen(&mut self, run: &Run, event: Event, notes: &mut Notes) -> Vec<Effect> {
        if !matches!(event, Event::Heartbeat(..)) {
            notes.tell(|| describe::of_event(&event));
        }
        let step = self.training.state().step;
        self.training.handle_event(self.now(notes), event);
        assert_eq!(self.training.state().step, step, "the parameters change when the core is polled");
        self.act(run, notes)
    }

    fn now(&self, notes: &Notes) -> Duration {
        notes.now.saturating_sub(self.begun)
    }

    /// Does what the core wishes, and looks at it.
    fn act(&mut self, run: &Run, notes: &mut Notes) -> Vec<Effect> {
        let active = self.sessions.iter().filter(|(_, session)| session.is_active());
        let helpers = active.map(|(&worker_id, session)| (worker_id, session.process)).collect();
        let (had_ended, age) = (self.outcome.is_some(), self.age());
        let mut turn = Turn { helpers, had_ended, ..Turn::default() };
        // Ends: the core wishes for finitely many things between two events.
        for n_actions in 0.. {
            assert!(n_actions < 10_000, "the core wishes for things without end");
            let step = self.training.state().step;
            let Some(action) = self.training.poll_action(self.now(notes)) else { break };
            let is_update = matches!(action, Action::SendUpdate { .. });
            assert_eq!(self.training.state().step, step + u64::from(is_update), "a step is one update");
            notes.tell(|| format!("    {}", describe::of_action(&action)));
            let is_for_late_joiner = matches!(action, Action::Close(_, CloseReason::End, _));
            assert!(self.outcome.is_none() || (had_ended && is_for_late_joiner), "after the end, {action:?}");
            self.take(run, action, &mut turn, notes);
        }
        assert!(turn.lagging.is_subset(&turn.lost), "expected a state for each of {:?}", turn.lagging);
        self.check_kept(run, age);
        turn.effects
    }

    fn take(&mut self, run: &Run, action: Action, turn: &mut Turn, notes: &mut Notes) {
        match action {
            Action::Welcome(worker_id) => self.send(worker_id, turn, notes, |_| ToWorker::Welcome),
            Action::SendState(worker_id, work) => {
                turn.lagging.remove(&worker_id);
                self.check_work(run, &work);
                self.note_dealt(worker_id, &work);
                let State { step, params, slots, .. } = self.training.state();
                let (step, params, slots) = (*step, params.as_slice().into(), slots.as_slice().into());
                self.send(worker_id, turn, notes, |session| {
                    session.step = Some(step);
                    ToWorker::State { step, params, slots, work }
                });
            }
            Action::SendUpdate { gradient, work } => self.send_update(run, gradient.into(), work, turn, notes),
            Action::SendWork(worker_id, work) => {
                self.check_work(run, &work);
                self.note_dealt(worker_id, &work);
                assert_ne!(work, Work::Nothing, "to do nothing is no order by itself");
                let step = self.training.state().step;
                self.send(worker_id, turn, notes, |session| {
                    assert_eq!(session.step, Some(step), "work is for those who have the parameters");
                    assert!(!session.is_leaving, "who leaves gets nothing new");
                    ToWorker::Work(work)
                });
            }
            Action::Refuse(worker_id, refusal) => {
                match refusal {
                    Refusal::Stale { .. } => notes.coverage.add(Coverage::RefusedStale, 1),
                    Refusal::Duplicate { .. } => notes.coverage.add(Coverage::RefusedDuplicate, 1),
                    Refusal::NotDealt { .. } => {
                        notes.coverage.add(Coverage::RefusedNotDealt, 1);
                        let is_honest = |session: &Session| !notes.liars.contains_key(&session.process);
                        let is_expected = run.is_rough || !self.sessions.get(&worker_id).is_some_and(is_honest);
                        assert!(is_expected, "worker {worker_id} is honest, and not listened to: {refusal}");
                    }
                    Refusal::NoSuchTask { .. } => panic!("nobody computes what there is not: {refusal}"),
                }
                self.send(worker_id, turn, notes, |_| ToWorker::Refusal);
            }
            Action::Close(worker_id, close_reason, reason) => {
                self.close_session(run, worker_id, close_reason, &reason, turn, notes);
            }
            Action::ComputeTask(work) => turn.effects.push(Effect::Compute(self.own_task(run, &work))),
            Action::Checkpoint => {
                self.check_state(run);
                assert_ne!(self.kept, self.age(), "a state is kept once");
                self.kept = self.age();
                turn.effects.push(Effect::Save(self.save()));
            }
            Action::Report(report) => {
                if let Report::Event(RunEvent::ReplicaResent { worker, .. }) = &report {
                    turn.lagging.insert(WorkerId(*worker));
                }
                self.check_report(run, report, notes);
            }
            Action::Finish(outcome) => {
                let helpers = turn.helpers.iter().filter(|(worker_id, _)| !turn.lost.contains(worker_id));
                self.check_end(run, &outcome, &helpers.map(|(_, &process)| process).collect(), notes);
                self.outcome = Some(outcome.clone());
                turn.effects.push(Effect::Finish(outcome));
            }
        }
    }

    fn send_update(
        &mut self,
        run: &Run,
        gradient: Rc<[f32]>,
        work: BTreeMap<WorkerId, Work>,
        turn: &mut Turn,
        notes: &mut Notes,
    ) {
        self.check_state(run);
        let following = self.sessions.iter().filter(|(_, session)| session.step.is_some());
        let following: BTreeSet<WorkerId> = following.map(|(&worker_id, _)| worker_id).collect();
        let told: BTreeSet<WorkerId> = work.keys().copied().filter(|id| !turn.lost.contains(id)).collect();
        assert_eq!(told, following, "an update goes to each replica");
        let n_spent = self.training.take_spent().len();
        assert!(n_spent < 1_000, "vectors are used again, found {n_spent} of them");
        let step = self.training.state().step;
        for (worker_id, work) in work {
            self.check_work(run, &work);
            self.note_dealt(worker_id, &work);
            let gradient = Rc::clone(&gradient);
            self.send(worker_id, turn, notes, |session| {
                assert_eq!(session.step.replace(step), Some(step - 1), "a replica misses no update");
                assert!(!session.is_leaving || work == Work::Nothing, "who leaves gets nothing new");
                ToWorker::Update { step, gradient, work }
            });
        }
    }

    /// What comes of a task, as the coordinator computes it.
    fn own_task(&self, run: &Run, work: &Work) -> OwnTaskDone {
        let params = &self.training.state().params;
        match work {
            Work::Nothing => panic!("nothing is no task"),
            Work::Shards { step, position, shards } => {
                let [task] = shards[..] else { panic!("expected one shard, found {shards:?}") };
                let result = run.problem.shard(params, *position, *step, task);
                OwnTaskDone { step: *step, kind: TaskKind::Shard, task, result }
            }
            Work::Batches { step, batches } => {
                let [task] = batches[..] else { panic!("expected one batch, found {batches:?}") };
                let sums = run.problem.batch(params, *step, task);
                let result = ShardResult { gradient_sum: Vec::new(), sums };
                OwnTaskDone { step: *step, kind: TaskKind::Batch, task, result }
            }
        }
    }

    fn note_dealt(&mut self, worker_id: WorkerId, work: &Work) {
        if let Work::Shards { step, shards, .. } = work {
            self.dealt.extend(shards.iter().map(|&shard| (worker_id, *step, shard)));
        }
    }

    fn close_session(
        &mut self,
        run: &Run,
        worker_id: WorkerId,
        close_reason: CloseReason,
        reason: &str,
        turn: &mut Turn,
        notes: &mut Notes,
    ) {
        note_close(close_reason, reason, &mut notes.coverage);
        if close_reason != CloseReason::End {
            turn.helpers.remove(&worker_id);
        }
        let Some(session) = self.sessions.remove(&worker_id) else {
            let is_known_to_be_out = turn.had_ended || turn.lost.contains(&worker_id);
            return assert!(is_known_to_be_out, "the session of worker {worker_id} is closed, and it is out: {reason}");
        };
        let is_given_up = reason.starts_with("silent for") || reason.starts_with("no answer for");
        let is_hindered = run.is_rough || notes.hindered.contains(&session.process);
        assert!(is_hindered || !is_given_up, "worker {worker_id} is well and is given up: {reason}");
        let is_free = !self.evicted_identities.contains(&session.identity);
        assert!(!is_free || !reason.starts_with(KEPT_OUT), "worker {worker_id} is of no evicted identity: {reason}");
        if reason.contains("results in a row were not used") {
            notes.coverage.add(Coverage::RefusedForGood, 1);
            assert!(
                notes.liars.contains_key(&session.process) || run.is_rough,
                "worker {worker_id} is honest: {reason}"
            );
        } else if matches!(close_reason, CloseReason::Refused | CloseReason::Evicted) {
            let lie = notes.liars.get(&session.process).copied();
            let lie = lie.unwrap_or_else(|| panic!("worker {worker_id} never lied: {reason}"));
            notes.coverage.add(evicted_for(lie), 1);
            notes.coverage.add(Coverage::EvictedByTwo, u64::from(reason.contains("and of another one")));
            notes.coverage.add(Coverage::EvictedByCoordinator, u64::from(reason.ends_with("that of the coordinator")));
            self.evicted.insert((worker_id, self.training.state().step));
        }
        turn.effects.push(Effect::Send(session.connection, ToWorker::Close(close_reason)));
        turn.effects.push(Effect::Close(session.connection));
    }

    /// Sends a worker that is in something; one whose messages are not taken is lost by that, as `driver` has it.
    fn send(
        &mut self,
        worker_id: WorkerId,
        turn: &mut Turn,
        notes: &mut Notes,
        message: impl FnOnce(&mut Session) -> ToWorker,
    ) {
        let Some(session) = self.sessions.get_mut(&worker_id) else {
            return assert!(turn.lost.contains(&worker_id), "worker {worker_id} is spoken to, and is out");
        };
        let message = message(session);
        let connection = session.connection;
        if !session.is_full {
            return turn.effects.push(Effect::Send(connection, message));
        }
        notes.coverage.add(Coverage::Overflow, 1);
        self.sessions.remove(&worker_id);
        turn.lost.insert(worker_id);
        turn.effects.push(Effect::Close(connection));
        let event = Event::Lost(worker_id, "it does not take its messages".to_owned());
        notes.tell(|| format!("    {}", describe::of_event(&event)));
        self.training.handle_event(self.now(notes), event);
    }
}

impl Session {
    /// Whether it takes work, as far as can be seen.
    pub fn is_active(&self) -> bool {
        self.is_ready && !self.is_leaving
    }
}

impl Run {
    fn rules_n_params(&self) -> usize {
        self.reference.last().params.len()
    }
}

/// What `server` makes of a message.
fn event_of(worker_id: WorkerId, message: ToCoordinator, n_params: usize) -> Event {
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

fn note_close(close_reason: CloseReason, reason: &str, coverage: &mut CoverageCounts) {
    let kinds = [
        ("silent for", Coverage::Silent),
        ("not ready for", Coverage::NotReady),
        ("no answer for", Coverage::NoAnswer),
        ("it wanted to leave", Coverage::Released),
        (KEPT_OUT, Coverage::KeptOut),
    ];
    for (begin, kind) in kinds {
        coverage.add(kind, u64::from(reason.starts_with(begin)));
    }
    let is_of_replica = reason.starts_with("expected parameters") || reason.starts_with("expected the update");
    coverage.add(Coverage::LaggingTwice, u64::from(close_reason == CloseReason::ComeBack && is_of_replica));
}

fn evicted_for(lie: Coverage) -> Coverage {
    match lie {
        Coverage::LieNotFinite => Coverage::EvictedNotFinite,
        Coverage::LieLength => Coverage::EvictedLength,
        Coverage::LieCount => Coverage::EvictedCount,
        Coverage::LieBits | Coverage::LieGuess => Coverage::EvictedBits,
        Coverage::LieNonsense => Coverage::EvictedNonsense,
        other => panic!("nobody is evicted for {other:?}"),
    }
}
