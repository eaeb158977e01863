//! The training core: who is in, what step it is, what the parameters are. A function of its events: time comes in as an
//! argument, wishes go out as actions, and nothing here opens a file, a socket or a thread.

mod action;
mod assign;
mod audit;
mod event;
mod evicted;
mod feedback;
mod pace;
mod reduce;
mod report;
mod results;
mod roster;
mod round;
mod rules;
mod schedule;
mod size;
#[cfg(test)]
pub(crate) mod tests;
mod usual;
mod vote;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use engine::early_stopping::BestEpoch;
use engine::optimizer::LearningRates;
use engine::params::params_fingerprint;
use engine::shard::ShardResult;
use engine::sums::Sums;
use events::RunEvent;

pub use action::{Action, CloseReason, Outcome, ResultRefusal, Work};
pub use assign::Late;
pub use audit::AuditSecret;
pub use event::{BatchDone, Computed, Event, OwnTaskDone, ShardDone};
pub use report::{EpochReport, Report, StepReport, Tally};
pub use roster::{Identity, Profile, Roster, WorkerId};
pub use round::TaskKind;
pub use rules::{AfterStop, CheckpointEvery, Rounding, Rules, State};
pub use schedule::{Schedule, SchedulePosition};

use assign::Dealt;
use evicted::Evicted;
use feedback::round_with_feedback;
use pace::Pace;
use reduce::Reduction;
use results::TaskResult;
use roster::{MemberState, REFUSALS_MAX};
use round::{Round, RoundKind};
use schedule::NextRound;
use size::Sizes;

/// Compute classes that one identity may bring, so that names it makes up do not use up the limit for others.
const CLASSES_OF_IDENTITY_MAX: usize = 4;
/// Compute classes of a run at most: their names are kept to its end, and a peer can make up any number.
pub const COMPUTE_CLASSES_MAX: usize = 16;

/// The core. Feed it with [`Training::handle_event`] and [`Training::handle_deadline`], and do what
/// [`Training::poll_action`] says until it says nothing.
#[derive(Debug)]
pub struct Training {
    rules: Rules,
    schedule: Schedule,
    rates: LearningRates,
    state: State,
    /// Of the state's parameters, once it was asked for.
    fingerprint: OnceCell<u64>,
    roster: Roster,
    phase: Phase,
    is_waiting: bool,
    classes: BTreeSet<String>,
    /// How many of them each identity was the first one of.
    n_classes_of: BTreeMap<Identity, usize>,
    evicted: Evicted,
    saved_at: Option<u64>,
    shard_pace: Pace,
    batch_pace: Pace,
    shard_sizes: Sizes,
    batch_sizes: Sizes,
    tally: Tally,
    spent: Vec<Vec<f32>>,
    actions: VecDeque<Action>,
}

#[derive(Debug)]
enum Phase {
    /// Until the first worker is there.
    Gathering {
        deadline: Duration,
    },
    Working(Round),
    Finished,
}

impl Phase {
    fn round(&self) -> Option<&Round> {
        match self {
            Self::Working(round) => Some(round),
            Self::Gathering { .. } | Self::Finished => None,
        }
    }

    fn round_mut(&mut self) -> Option<&mut Round> {
        match self {
            Self::Working(round) => Some(round),
            Self::Gathering { .. } | Self::Finished => None,
        }
    }
}

impl Training {
    /// A run that goes on from a state, at the time `now` of its coordinator's clock.
    pub fn new(rules: Rules, state: State, now: Duration) -> Self {
        let mut training = Self {
            schedule: Schedule::new(&rules.recipe, rules.n_train, rules.n_valid, rules.evaluation_batch),
            rates: rules.recipe.learning_rates(rules.n_train.into()),
            fingerprint: OnceCell::new(),
            roster: Roster::new(rules.heartbeat_timeout),
            phase: Phase::Gathering { deadline: now + rules.join_timeout },
            is_waiting: false,
            classes: BTreeSet::new(),
            n_classes_of: BTreeMap::new(),
            evicted: Evicted::default(),
            saved_at: None,
            shard_pace: Pace::default(),
            batch_pace: Pace::default(),
            shard_sizes: Sizes::default(),
            batch_sizes: Sizes::default(),
            tally: Tally::default(),
            spent: Vec::new(),
            actions: VecDeque::new(),
            rules,
            state,
        };
        if training.next() == NextRound::End {
            training.conclude(Outcome::Completed);
        } else {
            // From here on there is something to resume from, whatever happens.
            training.checkpoint();
        }
        training
    }

    /// What the run has come to.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Where steps lie.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Whether the run has ended before its last step, since the best epoch is too long ago.
    pub fn has_stopped_early(&self) -> bool {
        let State { step, epoch_sums, best, .. } = &self.state;
        let is_validated = epoch_sums.n_samples == 0;
        *step < self.schedule.n_steps() && is_validated && self.schedule.is_exhausted(*step, *best)
    }

    fn next(&self) -> NextRound {
        let State { step, epoch_sums, best, .. } = &self.state;
        self.schedule.next(*step, epoch_sums, *best)
    }

    /// The compute classes of all workers that took part.
    pub fn compute_classes(&self) -> &BTreeSet<String> {
        &self.classes
    }

    /// The workers.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// What the run went through.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Vectors of gradients that are free again.
    pub fn take_spent(&mut self) -> Vec<Vec<f32>> {
        std::mem::take(&mut self.spent)
    }

    /// Handles one event. Events from workers that have left are ignored.
    pub fn handle_event(&mut self, now: Duration, event: Event) {
        match event {
            Event::Joined(worker_id, profile) => self.handle_joined(now, worker_id, profile),
            Event::Stop => self.handle_stop(),
            Event::OwnTaskDone(done) => self.handle_own_task(now, done),
            Event::Ready(worker_id)
            | Event::ShardDone(worker_id, _)
            | Event::BatchDone(worker_id, _)
            | Event::Lagging(worker_id, _)
            | Event::Leaving(worker_id, _)
            | Event::Heartbeat(worker_id, _)
            | Event::Lost(worker_id, _)
                if !self.roster.heard_from(worker_id, now) => {}
            Event::Ready(worker_id) => self.handle_ready(now, worker_id),
            Event::ShardDone(worker_id, _) | Event::BatchDone(worker_id, _) if self.roster.is_preparing(worker_id) => {
                let reason = "expected it to say that it is ready, found results".to_owned();
                self.close_session(now, worker_id, CloseReason::Refused, reason);
            }
            Event::ShardDone(worker_id, done) => {
                let ShardDone { step, shard, computed, gradient_norm, params_fingerprint, compute } = done;
                let (kind, task) = (TaskKind::Shard, shard);
                let task_result = TaskResult { kind, step, task, computed, gradient_norm, params_fingerprint, compute };
                self.handle_result(now, worker_id, task_result);
            }
            Event::BatchDone(worker_id, done) => {
                let BatchDone { step, batch, sums, params_fingerprint } = done;
                let (kind, task, gradient_norm, compute) = (TaskKind::Batch, batch, 0.0, Duration::ZERO);
                let computed = Computed::Finite(ShardResult { gradient_sum: Vec::new(), sums });
                let task_result = TaskResult { kind, step, task, computed, gradient_norm, params_fingerprint, compute };
                self.handle_result(now, worker_id, task_result);
            }
            Event::Lagging(worker_id, reason) => self.send_state_anew(now, worker_id, reason),
            Event::Leaving(worker_id, _) => self.handle_leaving(now, worker_id),
            Event::Heartbeat(worker_id, step) => self.handle_heartbeat(now, worker_id, step),
            Event::Lost(worker_id, reason) => self.remove(now, worker_id, reason),
        }
    }

    /// When [`Training::handle_deadline`] is to be called, if no event comes before.
    pub fn next_deadline(&self) -> Option<Duration> {
        let of_phase = match &self.phase {
            // A worker that is there but not ready yet is on its way.
            Phase::Gathering { deadline } if self.roster.n_members() == 0 => Some(*deadline),
            Phase::Working(round) => round.deadline,
            Phase::Gathering { .. } | Phase::Finished => None,
        };
        let preparing = self.roster.next_joined().map(|joined| joined + self.rules.join_timeout);
        [of_phase, preparing, self.roster.next_deadline()].into_iter().flatten().min()
    }

    /// Does what is due at a time.
    pub fn handle_deadline(&mut self, now: Duration) {
        for worker_id in self.roster.silent(now) {
            let reason = format!("silent for {} ms", self.rules.heartbeat_timeout.as_millis());
            self.close_session(now, worker_id, CloseReason::ComeBack, reason);
        }
        let wait_max = self.rules.join_timeout;
        for worker_id in self.roster.late(now, wait_max) {
            let reason = format!("not ready for {} s", wait_max.as_secs_f64());
            self.close_session(now, worker_id, CloseReason::ComeBack, reason);
        }
        for worker_id in self.stuck(now) {
            let reason = format!("no answer for {} s, the --join-timeout", wait_max.as_secs_f64());
            self.close_session(now, worker_id, CloseReason::ComeBack, reason);
        }
        let nobody_came =
            self.roster.n_members() == 0 && matches!(self.phase, Phase::Gathering { deadline } if deadline <= now);
        if nobody_came {
            return self.finish(Outcome::NobodyCame);
        }
        if self.phase.round().is_some_and(|round| round.deadline.is_some_and(|deadline| deadline <= now)) {
            // A worker that was waited for may be late by now, so another one, or the coordinator, has to answer.
            self.decide(now);
            self.deal_more(now);
        }
    }

    /// The next thing to do. When a step's results are all there, this applies the update.
    pub fn poll_action(&mut self, now: Duration) -> Option<Action> {
        if self.actions.is_empty() && self.phase.round().is_some_and(|round| round.tasks.is_complete()) {
            let Phase::Working(round) = std::mem::replace(&mut self.phase, Phase::Finished) else {
                unreachable!("a round was there the line before")
            };
            self.finish_round(now, round);
        }
        let action = self.actions.pop_front();
        if action.is_none() {
            // The first result needs it, and nothing waits until then.
            self.fingerprint();
        }
        action
    }

    /// The name of the parameters that results have to be computed on.
    fn fingerprint(&self) -> u64 {
        *self.fingerprint.get_or_init(|| params_fingerprint(&self.state.params))
    }

    fn handle_joined(&mut self, now: Duration, worker_id: WorkerId, profile: Profile) {
        if matches!(self.phase, Phase::Finished) {
            let reason = "the run has ended".to_owned();
            return self.actions.push_back(Action::Close(worker_id, CloseReason::End, reason));
        }
        if let Err(reason) = self.evicted.check(&profile.identity, now) {
            return self.actions.push_back(Action::Close(worker_id, CloseReason::ComeBack, reason));
        }
        if let Err(reason) = self.check_class(&profile) {
            return self.actions.push_back(Action::Close(worker_id, CloseReason::Refused, reason));
        }
        self.roster.add(worker_id, profile, now);
        self.actions.push_back(Action::Welcome(worker_id));
    }

    /// Whether a worker's compute class may take part.
    fn check_class(&self, profile: &Profile) -> Result<(), String> {
        let Profile { identity, compute_class, .. } = profile;
        if self.classes.contains(compute_class) || *compute_class == self.rules.own_class {
            return Ok(());
        }
        if self.n_classes_of.get(identity).is_some_and(|&n_classes| n_classes >= CLASSES_OF_IDENTITY_MAX) {
            return Err(format!(
                "expected at most {CLASSES_OF_IDENTITY_MAX} new compute classes from {identity}, found one more, `{compute_class}`"
            ));
        }
        if self.classes.len() < COMPUTE_CLASSES_MAX {
            return Ok(());
        }
        Err(format!(
            "expected at most {COMPUTE_CLASSES_MAX} compute classes in a run, found one more, `{}`; start the worker on a \
             machine and with a backend like those of the others",
            profile.compute_class
        ))
    }

    fn handle_ready(&mut self, now: Duration, worker_id: WorkerId) {
        let Some(member) = self.roster.member_mut(worker_id) else { return };
        if member.state != MemberState::Preparing {
            return self.send_state_anew(now, worker_id, "it said twice that it is ready".to_owned());
        }
        let profile = member.profile.clone();
        // Others may have become ready since it joined.
        if let Err(reason) = self.check_class(&profile) {
            return self.close_session(now, worker_id, CloseReason::Refused, reason);
        }
        let Some(member) = self.roster.member_mut(worker_id) else { return };
        member.state = MemberState::Active { lagged_at: None };
        let class = profile.compute_class.clone();
        if !self.classes.contains(&class) {
            *self.n_classes_of.entry(profile.identity.clone()).or_default() += 1;
        }
        let n_active = self.roster.n_active();
        let Profile { identity, host, process, backend, n_threads, .. } = profile;
        let (worker, identity) = (worker_id.0, identity.to_string());
        self.tell(RunEvent::WorkerJoined { worker, identity, host, process, backend, n_threads, n_active });
        self.add_class(class);
        if std::mem::take(&mut self.is_waiting) {
            self.tell(RunEvent::Continuing);
        }
        if matches!(self.phase, Phase::Gathering { .. }) {
            self.begin_round(now);
        }
        let mut dealt = self.deal(now);
        self.actions.push_back(Action::SendState(worker_id, dealt.remove(&worker_id).unwrap_or(Work::Nothing)));
        self.send_work(dealt);
    }

    /// A compute class takes part.
    fn add_class(&mut self, class: String) {
        let is_new = self.classes.insert(class.clone());
        let n_classes = self.classes.len();
        if is_new && n_classes > 1 {
            self.tell(RunEvent::ComputeClassAdded { class, n_classes });
        }
    }

    fn handle_leaving(&mut self, now: Duration, worker_id: WorkerId) {
        let Some(member) = self.roster.member_mut(worker_id) else { return };
        if member.state == MemberState::Preparing {
            return self.close_session(now, worker_id, CloseReason::ComeBack, "it wanted to leave".to_owned());
        }
        member.state = MemberState::Leaving;
        self.release_leavers(now);
        self.decide(now);
    }

    fn handle_stop(&mut self) {
        if !matches!(self.phase, Phase::Finished) {
            self.conclude(Outcome::Stopped);
        }
    }

    /// Begins what comes next, without dealing it.
    fn begin_round(&mut self, now: Duration) {
        let step = self.state.step;
        let Rules { audit, audit_secret, .. } = &self.rules;
        let is_audited = |kind| move |task| audit_secret.draws(step, kind, task, *audit);
        let mut round = match self.next() {
            NextRound::Step => {
                let position = self.schedule.position(step);
                Round::of_step(position, self.schedule.n_shards(), is_audited(TaskKind::Shard))
            }
            NextRound::Validate => Round::of_validation(self.schedule.n_batches(), is_audited(TaskKind::Batch)),
            NextRound::End => return self.conclude(Outcome::Completed),
        };
        round.begun = now;
        let (pace, sizes) = match round.task_kind() {
            TaskKind::Shard => (&mut self.shard_pace, &mut self.shard_sizes),
            TaskKind::Batch => (&mut self.batch_pace, &mut self.batch_sizes),
        };
        (round.late_after, round.usual) = (pace.begin_round(), sizes.begin_round());
        self.phase = Phase::Working(round);
    }

    /// Begins the round at hand anew. Who computes one of its tasks goes on, and is listened to when it answers.
    fn begin_round_again(&mut self, now: Duration) {
        let before = std::mem::replace(&mut self.phase, Phase::Finished);
        self.begin_round(now);
        if let (Phase::Working(before), Some(round)) = (before, self.phase.round_mut()) {
            round.tasks.take_over_holders(&before.tasks);
        }
    }

    /// Deals what wants a worker.
    fn deal(&mut self, now: Duration) -> BTreeMap<WorkerId, Work> {
        let step = self.state.step;
        let Some(round) = self.phase.round_mut() else { return BTreeMap::new() };
        let Dealt { tasks, late, is_short } = round.tasks.deal(&self.roster, step, now, round.late_after);
        round.is_short = is_short;
        for (&worker_id, new) in &tasks {
            let has_only_these = round.tasks.of(worker_id).count() == new.len();
            if let Some(member) = self.roster.member_mut(worker_id).filter(|_| has_only_these) {
                member.began = now;
            }
        }
        round.set_deadline(&self.roster, now, self.rules.join_timeout);
        let work = tasks.into_iter().map(|(worker_id, tasks)| (worker_id, round.work(step, tasks))).collect();
        let helped: BTreeSet<(u32, WorkerId)> = late.iter().map(|late| (late.task, late.helper)).collect();
        self.tally.n_late += helped.len() as u64;
        for late in late {
            if let Some(straggler) = self.roster.member_mut(late.straggler) {
                straggler.note_late(step);
            }
            self.tell(late.event(step));
        }
        let is_waiting = self.roster.n_active() == 0 && !self.phase.round().is_some_and(Round::is_awaited);
        if is_waiting && !std::mem::replace(&mut self.is_waiting, true) {
            self.tell(RunEvent::Waiting);
        }
        work
    }

    /// Deals what wants a worker, and sends it.
    fn deal_more(&mut self, now: Duration) {
        let dealt = self.deal(now);
        self.send_work(dealt);
    }

    fn deal_if_short(&mut self, now: Duration) {
        if self.phase.round().is_some_and(|round| round.is_short) {
            self.deal_more(now);
        }
    }

    fn send_work(&mut self, dealt: BTreeMap<WorkerId, Work>) {
        self.actions.extend(dealt.into_iter().map(|(worker_id, work)| Action::SendWork(worker_id, work)));
    }

    fn finish_round(&mut self, now: Duration, round: Round) {
        let step = self.state.step;
        for straggler in round.tasks.holders() {
            if let Some(member) = self.roster.member_mut(straggler) {
                member.note_overtaken(step);
            }
        }
        let Round { kind, tasks, begun, .. } = round;
        match kind {
            RoundKind::Step { position, reduction, computed } => {
                let compute = computed.into_values().max().unwrap_or_default();
                self.finish_step(now, position, reduction, begun, compute, tasks.workers());
            }
            RoundKind::Validation { results } => self.finish_validation(now, &results),
        }
    }

    fn finish_step(
        &mut self,
        now: Duration,
        position: SchedulePosition,
        reduction: Reduction,
        begun: Duration,
        compute: Duration,
        workers: Vec<WorkerId>,
    ) {
        let (mut total, spent) = reduction.finish();
        self.spent.extend(spent);
        if !self.rules.recipe.average_gradient(&mut total.gradient_sum, total.sums.n_samples) {
            return self.diverge(self.state.step + 1, "sum of the shards' gradients");
        }
        if self.rules.rounding == Rounding::Bf16 {
            round_with_feedback(&mut total.gradient_sum, &mut self.state.residual);
        }
        let State { step, params, slots, .. } = &mut self.state;
        let is_finite = self.rules.recipe.optimizer.apply(self.rates.at(*step), params, slots, 0, &total.gradient_sum);
        if !is_finite {
            return self.diverge(self.state.step + 1, "second moment of the optimizer");
        }
        self.fingerprint = OnceCell::new();
        self.state.step += 1;
        self.state.epoch_sums.add(total.sums);
        let duration = now.saturating_sub(begun);
        self.state.epoch_time += duration;

        // What every replica needs goes out before anything else is done.
        let step_report = StepReport {
            step: self.state.step,
            epoch: position.epoch,
            sums: total.sums,
            begun,
            duration,
            workers,
            compute,
            n_active: self.roster.n_active(),
        };
        let following = self.roster.following().into_iter();
        self.begin_round(now);
        let mut dealt = self.deal(now);
        let work = following.map(|worker_id| (worker_id, dealt.remove(&worker_id).unwrap_or(Work::Nothing))).collect();
        self.actions.push_front(Action::Report(Report::Step(step_report)));
        self.actions.push_front(Action::SendUpdate { gradient: total.gradient_sum, work });
        let is_due = match self.rules.checkpoint_every {
            CheckpointEvery::Epoch => false,
            CheckpointEvery::Steps(n_steps) => self.state.step.is_multiple_of(n_steps),
        };
        if is_due {
            self.checkpoint();
        }
    }

    fn finish_validation(&mut self, now: Duration, results: &[Sums]) {
        let mut validation = Sums::default();
        for &sums in results {
            validation.add(sums);
        }
        let epoch = self.schedule.trained_epoch(self.state.step);
        let best = BestEpoch::after(self.state.best, epoch, validation.loss());
        let report = EpochReport {
            step: self.state.step,
            epoch,
            training: std::mem::take(&mut self.state.epoch_sums),
            validation,
            duration: std::mem::take(&mut self.state.epoch_time),
            is_best: best != self.state.best,
        };
        self.state.best = best;
        self.actions.push_back(Action::Report(Report::Epoch(report)));
        // The state is another one now, without sums that wait for their validation.
        self.saved_at = None;
        self.begin_round(now);
        self.deal_more(now);
        if self.rules.checkpoint_every == CheckpointEvery::Epoch {
            self.checkpoint();
        }
    }

    /// Wishes for a checkpoint, unless the state is saved already.
    fn checkpoint(&mut self) {
        if self.saved_at != Some(self.state.step) {
            self.saved_at = Some(self.state.step);
            self.actions.push_back(Action::Checkpoint);
        }
    }

    /// Ends the run with all it came to kept.
    fn conclude(&mut self, outcome: Outcome) {
        self.checkpoint();
        self.finish(outcome);
    }

    /// The step is counted from 1.
    fn diverge(&mut self, step: u64, what: &str) {
        let epoch = self.schedule.trained_epoch(step);
        self.finish(Outcome::Diverged { step, epoch, what: what.to_owned() });
    }

    fn finish(&mut self, outcome: Outcome) {
        let (close_reason, reason) = match outcome {
            Outcome::Completed => (CloseReason::End, "the run is complete"),
            Outcome::NobodyCame | Outcome::Diverged { .. } => (CloseReason::End, "the run has failed"),
            Outcome::Stopped => match self.rules.after_stop {
                AfterStop::End => (CloseReason::End, "the run is stopped"),
                AfterStop::ComeBack => (CloseReason::ComeBack, "the coordinator is stopped; the run may be resumed"),
            },
        };
        self.phase = Phase::Finished;
        for worker_id in self.roster.all() {
            self.roster.remove(worker_id);
            self.actions.push_back(Action::Close(worker_id, close_reason, reason.to_owned()));
        }
        self.actions.push_back(Action::Finish(outcome));
    }

    /// Closes a worker's session, and removes the worker.
    fn close_session(&mut self, now: Duration, worker_id: WorkerId, close_reason: CloseReason, reason: String) {
        if self.roster.member(worker_id).is_none() {
            return; // what became of another one has ended the run
        }
        self.actions.push_back(Action::Close(worker_id, close_reason, reason.clone()));
        self.remove(now, worker_id, reason);
    }

    /// A worker is out: what it has is dealt to the others.
    fn remove(&mut self, now: Duration, worker_id: WorkerId, reason: String) {
        let Some(member) = self.roster.remove(worker_id) else { return };
        if member.state == MemberState::Preparing {
            return;
        }
        let n_reassigned = self.phase.round_mut().map_or(0, |round| round.tasks.take_back(worker_id));
        self.tally.n_reassigned += n_reassigned as u64;
        let n_active = self.roster.n_active();
        self.tell(RunEvent::WorkerLeft { worker: worker_id.0, reason, n_active, n_reassigned });
        // Who was to give a second vote may have been the last one who could.
        self.decide(now);
        self.deal_more(now);
    }

    /// Lets those go who wanted to and have nothing left to do.
    fn release_leavers(&mut self, now: Duration) {
        for worker_id in self.roster.leaving() {
            let has_work = self.phase.round().is_some_and(|round| round.tasks.of(worker_id).next().is_some());
            if !has_work {
                self.close_session(now, worker_id, CloseReason::ComeBack, "it wanted to leave".to_owned());
            }
        }
    }

    /// Workers that the run waits for, and that have not answered for too long.
    fn stuck(&self, now: Duration) -> BTreeSet<WorkerId> {
        let Some(round) = self.phase.round() else { return BTreeSet::new() };
        let is_stuck = |worker_id: &WorkerId| {
            let member = self.roster.member(*worker_id);
            member.is_some_and(|member| member.began + self.rules.join_timeout <= now)
        };
        round.tasks.awaited().filter(is_stuck).collect()
    }

    /// Sends a replica anew, with what its worker has to compute; a worker that needs this twice in a step goes.
    fn send_state_anew(&mut self, now: Duration, worker_id: WorkerId, reason: String) {
        let step = self.state.step;
        let Some(member) = self.roster.member_mut(worker_id) else { return };
        match &mut member.state {
            MemberState::Preparing => return,
            MemberState::Active { lagged_at } if *lagged_at != Some(step) => *lagged_at = Some(step),
            MemberState::Active { .. } | MemberState::Leaving => {
                return self.close_session(now, worker_id, CloseReason::ComeBack, reason);
            }
        }
        self.tell(RunEvent::ReplicaResent { worker: worker_id.0, reason });
        let work = self.phase.round().map(|round| round.work(step, round.tasks.of(worker_id).collect()));
        self.actions.push_back(Action::SendState(worker_id, work.unwrap_or(Work::Nothing)));
    }

    /// A result is not used. A worker that has sent too many such in a row is of no use itself.
    fn refuse(&mut self, now: Duration, worker_id: WorkerId, refusal: ResultRefusal) {
        let Some(member) = self.roster.member_mut(worker_id) else { return };
        let is_useless = member.note_refused();
        self.tell(RunEvent::ResultRefused { worker: worker_id.0, reason: refusal.to_string() });
        if is_useless {
            let reason = format!("{REFUSALS_MAX} results in a row were not used, the last one since: {refusal}");
            return self.close_session(now, worker_id, CloseReason::Refused, reason);
        }
        self.actions.push_back(Action::Refuse(worker_id, refusal));
    }

    fn tell(&mut self, event: RunEvent) {
        self.actions.push_back(Action::Report(Report::Event(Box::new(event))));
    }
}
