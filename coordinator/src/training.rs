//! The training core: who is in, what step it is, what the parameters are. A function of its events: time comes in as an
//! argument, wishes go out as actions, and nothing here opens a file, a socket or a thread.

mod action;
mod assign;
mod event;
mod feedback;
mod reduce;
mod report;
mod roster;
mod rules;
mod schedule;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use model::arch::N_PIXELS;
use model::loss::LossSums;
use model::params::params_fingerprint;
use model::reduce::average;

pub use action::{Action, Farewell, Outcome, Refusal, Work};
pub use event::{BatchDone, Computed, Event, ShardDone};
pub use report::{EpochReport, Report, StepReport};
pub use roster::{Profile, WorkerId};
pub use rules::{AfterStop, CheckpointEvery, Rounding, Rules, State};
pub use schedule::{Place, Schedule};

use assign::{Standing as TaskStanding, Tasks};
use feedback::round_with_feedback;
use reduce::Reduction;
use roster::{Roster, Standing};
use schedule::Next;

/// The core. Feed it with [`Training::handle_event`] and [`Training::handle_deadline`], and do what
/// [`Training::poll_action`] says until it says nothing.
#[derive(Debug)]
pub struct Training {
    rules: Rules,
    schedule: Schedule,
    state: State,
    fingerprint: u64,
    roster: Roster,
    phase: Phase,
    is_waiting: bool,
    classes: BTreeSet<String>,
    saved_at: Option<u64>,
    spent: Vec<Vec<f32>>,
    actions: VecDeque<Action>,
}

#[derive(Debug)]
enum Phase {
    /// Until the first worker is there.
    Gathering {
        deadline: Duration,
    },
    Stepping(Step),
    Validating(Validation),
    Finished,
}

#[derive(Debug)]
struct Step {
    place: Place,
    tasks: Tasks,
    reduction: Reduction,
    begun: Duration,
    computed: BTreeMap<WorkerId, Duration>,
}

#[derive(Debug)]
struct Validation {
    tasks: Tasks,
    results: Vec<LossSums>,
}

impl Phase {
    fn tasks_mut(&mut self) -> Option<&mut Tasks> {
        match self {
            Self::Stepping(step) => Some(&mut step.tasks),
            Self::Validating(validation) => Some(&mut validation.tasks),
            Self::Gathering { .. } | Self::Finished => None,
        }
    }

    fn tasks(&self) -> Option<&Tasks> {
        match self {
            Self::Stepping(step) => Some(&step.tasks),
            Self::Validating(validation) => Some(&validation.tasks),
            Self::Gathering { .. } | Self::Finished => None,
        }
    }
}

impl Training {
    /// A run that goes on from a state, at the time `now` of its coordinator's clock.
    pub fn new(rules: Rules, state: State, now: Duration) -> Self {
        let mut training = Self {
            schedule: Schedule::new(&rules.recipe, rules.n_train, rules.n_valid),
            fingerprint: params_fingerprint(&state.params),
            roster: Roster::new(rules.silence_max),
            phase: Phase::Gathering { deadline: now + rules.join_wait_max },
            is_waiting: false,
            classes: BTreeSet::new(),
            saved_at: (state.step > 0).then_some(state.step),
            spent: Vec::new(),
            actions: VecDeque::new(),
            rules,
            state,
        };
        if training.schedule.next(training.state.step, &training.state.epoch_sums) == Next::End {
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

    /// The compute classes of all workers that took part.
    pub fn compute_classes(&self) -> &BTreeSet<String> {
        &self.classes
    }

    /// Vectors of gradients that are free again.
    pub fn take_spent(&mut self) -> Vec<Vec<f32>> {
        std::mem::take(&mut self.spent)
    }

    /// Takes note of an event. Those of workers that are out are of no account.
    pub fn handle_event(&mut self, now: Duration, event: Event) {
        match event {
            Event::Joined(worker_id, profile) => self.handle_joined(now, worker_id, profile),
            Event::Stop => self.handle_stop(),
            Event::Ready(worker_id)
            | Event::ShardDone(worker_id, _)
            | Event::BatchDone(worker_id, _)
            | Event::Lagging(worker_id, _)
            | Event::Leaving(worker_id, _)
            | Event::Heard(worker_id)
            | Event::Lost(worker_id, _)
                if !self.roster.hear(worker_id, now) => {}
            Event::Ready(worker_id) => self.handle_ready(now, worker_id),
            Event::ShardDone(worker_id, _) | Event::BatchDone(worker_id, _) if self.roster.is_preparing(worker_id) => {
                let reason = "expected it to say that it is ready, found results".to_owned();
                self.dismiss(worker_id, Farewell::Refused, reason);
            }
            Event::ShardDone(worker_id, done) => self.handle_shard_done(worker_id, done),
            Event::BatchDone(worker_id, done) => self.handle_batch_done(worker_id, &done),
            Event::Lagging(worker_id, reason) => self.send_state_anew(worker_id, reason),
            Event::Leaving(worker_id, _) => self.handle_leaving(worker_id),
            Event::Heard(_) => {}
            Event::Lost(worker_id, reason) => self.strike_off(worker_id, reason),
        }
    }

    /// When [`Training::handle_deadline`] is to be called, if no event comes before.
    pub fn next_deadline(&self) -> Option<Duration> {
        let gathering = match self.phase {
            // A worker that is there but not ready yet is on its way.
            Phase::Gathering { deadline } if self.roster.n_members() == 0 => Some(deadline),
            _ => None,
        };
        let preparing = self.roster.next_joined().map(|joined| joined + self.rules.join_wait_max);
        [gathering, preparing, self.roster.next_deadline()].into_iter().flatten().min()
    }

    /// Does what is due at a time.
    pub fn handle_deadline(&mut self, now: Duration) {
        for worker_id in self.roster.silent(now) {
            let reason = format!("silent for {} ms", self.rules.silence_max.as_millis());
            self.dismiss(worker_id, Farewell::ComeBack, reason);
        }
        for worker_id in self.roster.late(now, self.rules.join_wait_max) {
            let reason = format!("not ready for {} s", self.rules.join_wait_max.as_secs_f64());
            self.dismiss(worker_id, Farewell::ComeBack, reason);
        }
        let nobody_came =
            self.roster.n_members() == 0 && matches!(self.phase, Phase::Gathering { deadline } if deadline <= now);
        if nobody_came {
            self.finish(Outcome::NobodyCame);
        }
    }

    /// The next thing to do. When a step's results are all there, this applies the update.
    pub fn poll_action(&mut self, now: Duration) -> Option<Action> {
        if self.actions.is_empty() && self.phase.tasks().is_some_and(Tasks::is_complete) {
            match std::mem::replace(&mut self.phase, Phase::Finished) {
                Phase::Stepping(step) => self.finish_step(now, step),
                Phase::Validating(validation) => self.finish_validation(now, &validation),
                Phase::Gathering { .. } | Phase::Finished => unreachable!("only a round has tasks"),
            }
        }
        self.actions.pop_front()
    }

    fn handle_joined(&mut self, now: Duration, worker_id: WorkerId, profile: Profile) {
        if matches!(self.phase, Phase::Finished) {
            let reason = "the run has ended".to_owned();
            return self.actions.push_back(Action::Dismiss(worker_id, Farewell::End, reason));
        }
        self.roster.add(worker_id, profile, now);
        self.actions.push_back(Action::Welcome(worker_id));
    }

    fn handle_ready(&mut self, now: Duration, worker_id: WorkerId) {
        let Some(member) = self.roster.member_mut(worker_id) else { return };
        if member.standing != Standing::Preparing {
            return self.send_state_anew(worker_id, "it said twice that it is ready".to_owned());
        }
        member.standing = Standing::Active { lagged_at: None };
        let profile = member.profile.clone();
        let is_new_class = self.classes.insert(profile.compute_class.clone());
        let n_active = self.roster.active().len();
        self.report(Report::Joined { worker_id, profile, n_active });
        if is_new_class && self.classes.len() > 1 {
            self.report(Report::MixedClasses(self.classes.clone()));
        }
        if std::mem::take(&mut self.is_waiting) {
            self.report(Report::GoingOn);
        }
        if matches!(self.phase, Phase::Gathering { .. }) {
            self.begin_round(now);
        }
        let mut dealt = self.deal();
        self.actions.push_back(Action::SendState(worker_id, dealt.remove(&worker_id).unwrap_or(Work::Nothing)));
        self.send_work(dealt);
    }

    fn handle_shard_done(&mut self, worker_id: WorkerId, done: ShardDone) {
        let ShardDone { step, shard, computed, params_fingerprint, compute } = done;
        let Phase::Stepping(round) = &mut self.phase else {
            return self.refuse_stale(worker_id, step, computed);
        };
        if step != self.state.step {
            return self.refuse_stale(worker_id, step, computed);
        }
        let refusal = match round.tasks.standing(shard) {
            TaskStanding::First => None,
            TaskStanding::Duplicate => Some(Refusal::Duplicate { step, task: shard }),
            TaskStanding::Unknown => Some(Refusal::NoSuchTask { step, task: shard }),
        };
        if let Some(refusal) = refusal {
            self.keep_spent(computed);
            return self.refuse(worker_id, refusal);
        }
        if params_fingerprint != self.fingerprint {
            self.keep_spent(computed);
            return self.send_state_anew(worker_id, self.stray(params_fingerprint));
        }
        let result = match computed {
            Computed::Finite(result) if result.sums.loss_sum.is_finite() => result,
            Computed::Finite(_) => return self.diverge(step + 1, &format!("loss of shard {shard}")),
            Computed::NotFinite(what) => return self.diverge(step + 1, &format!("{what} of shard {shard}")),
        };
        let expected = self.schedule.shard_samples(step, shard);
        if let Err(reason) = check_counts(&result.sums, expected, "shard", shard) {
            self.spent.push(result.gradient_sum);
            return self.dismiss(worker_id, Farewell::Refused, reason);
        }
        round.tasks.complete(shard, worker_id);
        round.reduction.add(shard, result);
        *round.computed.entry(worker_id).or_default() += compute;
        self.release_leavers();
    }

    fn handle_batch_done(&mut self, worker_id: WorkerId, done: &BatchDone) {
        let BatchDone { step, batch, sums, params_fingerprint } = *done;
        let Phase::Validating(round) = &mut self.phase else {
            return self.refuse(worker_id, Refusal::Stale { expected: self.state.step, found: step });
        };
        if step != self.state.step {
            return self.refuse(worker_id, Refusal::Stale { expected: self.state.step, found: step });
        }
        match round.tasks.standing(batch) {
            TaskStanding::Duplicate => return self.refuse(worker_id, Refusal::Duplicate { step, task: batch }),
            TaskStanding::Unknown => return self.refuse(worker_id, Refusal::NoSuchTask { step, task: batch }),
            TaskStanding::First => {}
        }
        if params_fingerprint != self.fingerprint {
            return self.send_state_anew(worker_id, self.stray(params_fingerprint));
        }
        if !sums.loss_sum.is_finite() {
            return self.diverge(step, "validation loss");
        }
        if let Err(reason) = check_counts(&sums, self.schedule.batch_samples(batch), "batch", batch) {
            return self.dismiss(worker_id, Farewell::Refused, reason);
        }
        round.tasks.complete(batch, worker_id);
        round.results[batch as usize] = sums;
        self.release_leavers();
    }

    fn handle_leaving(&mut self, worker_id: WorkerId) {
        let Some(member) = self.roster.member_mut(worker_id) else { return };
        if member.standing == Standing::Preparing {
            return self.dismiss(worker_id, Farewell::End, "it wanted to leave".to_owned());
        }
        member.standing = Standing::Leaving;
        self.release_leavers();
    }

    fn handle_stop(&mut self) {
        if !matches!(self.phase, Phase::Finished) {
            self.conclude(Outcome::Stopped);
        }
    }

    /// Begins what comes next, without dealing it.
    fn begin_round(&mut self, now: Duration) {
        let step = self.state.step;
        self.phase = match self.schedule.next(step, &self.state.epoch_sums) {
            Next::Step => Phase::Stepping(Step {
                place: self.schedule.place(step),
                tasks: Tasks::new(self.schedule.n_shards()),
                reduction: Reduction::new(self.schedule.n_shards()),
                begun: now,
                computed: BTreeMap::new(),
            }),
            Next::Validate => Phase::Validating(Validation {
                tasks: Tasks::new(self.schedule.n_batches()),
                results: vec![LossSums::default(); self.schedule.n_batches() as usize],
            }),
            Next::End => return self.conclude(Outcome::Completed),
        };
    }

    /// Deals what is open to those who take work.
    fn deal(&mut self) -> BTreeMap<WorkerId, Work> {
        let active = self.roster.active();
        let Some(tasks) = self.phase.tasks_mut() else { return BTreeMap::new() };
        let dealt = tasks.deal(&active);
        if active.is_empty() && !std::mem::replace(&mut self.is_waiting, true) {
            self.report(Report::Waiting);
        }
        dealt.into_iter().map(|(worker_id, tasks)| (worker_id, self.work(tasks))).collect()
    }

    /// Tasks of the round at hand, as work.
    fn work(&self, tasks: Vec<u32>) -> Work {
        let step = self.state.step;
        match &self.phase {
            _ if tasks.is_empty() => Work::Nothing,
            Phase::Stepping(round) => Work::Shards { step, place: round.place, shards: tasks },
            Phase::Validating(_) => Work::Batches { step, batches: tasks },
            Phase::Gathering { .. } | Phase::Finished => Work::Nothing,
        }
    }

    fn send_work(&mut self, dealt: BTreeMap<WorkerId, Work>) {
        self.actions.extend(dealt.into_iter().map(|(worker_id, work)| Action::SendWork(worker_id, work)));
    }

    fn finish_step(&mut self, now: Duration, round: Step) {
        let (mut total, spent) = round.reduction.finish();
        self.spent.extend(spent);
        average(&mut total.gradient_sum, total.sums.n_samples);
        if !total.gradient_sum.iter().fold(true, |is_finite, value| is_finite & value.is_finite()) {
            return self.diverge(self.state.step + 1, "sum of the shards' gradients");
        }
        if self.rules.rounding == Rounding::Bf16 {
            round_with_feedback(&mut total.gradient_sum, &mut self.state.residual);
        }
        let State { params, velocity, .. } = &mut self.state;
        self.rules.recipe.sgd.apply(params, velocity, &total.gradient_sum);
        self.fingerprint = params_fingerprint(params);
        self.state.step += 1;
        self.state.epoch_sums.add(total.sums);
        let duration = now.saturating_sub(round.begun);
        self.state.epoch_time += duration;

        // What every replica needs goes out before anything else is done.
        let step_report = StepReport {
            step: self.state.step,
            epoch: round.place.epoch,
            sums: total.sums,
            duration,
            workers: round.tasks.workers(),
            compute: round.computed.values().max().copied().unwrap_or_default(),
            n_active: self.roster.active().len(),
        };
        let following = self.roster.following().into_iter();
        self.begin_round(now);
        let mut dealt = self.deal();
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

    fn finish_validation(&mut self, now: Duration, round: &Validation) {
        let mut validation = LossSums::default();
        for &sums in &round.results {
            validation.add(sums);
        }
        let report = EpochReport {
            step: self.state.step,
            epoch: self.schedule.trained_epoch(self.state.step),
            training: std::mem::take(&mut self.state.epoch_sums),
            validation,
            duration: std::mem::take(&mut self.state.epoch_time),
        };
        self.report(Report::Epoch(report));
        // The state is another one now, without sums that wait for their validation.
        self.saved_at = None;
        self.begin_round(now);
        let dealt = self.deal();
        self.send_work(dealt);
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
        let (farewell, reason) = match outcome {
            Outcome::Completed => (Farewell::End, "the run is complete"),
            Outcome::NobodyCame | Outcome::Diverged { .. } => (Farewell::End, "the run has failed"),
            Outcome::Stopped => match self.rules.after_stop {
                AfterStop::End => (Farewell::End, "the run is stopped"),
                AfterStop::ComeBack => (Farewell::ComeBack, "the coordinator is stopped; the run may be resumed"),
            },
        };
        self.phase = Phase::Finished;
        for worker_id in self.roster.all() {
            self.roster.remove(worker_id);
            self.actions.push_back(Action::Dismiss(worker_id, farewell, reason.to_owned()));
        }
        self.actions.push_back(Action::Finish(outcome));
    }

    /// Closes a worker's session, and strikes it off.
    fn dismiss(&mut self, worker_id: WorkerId, farewell: Farewell, reason: String) {
        self.actions.push_back(Action::Dismiss(worker_id, farewell, reason.clone()));
        self.strike_off(worker_id, reason);
    }

    /// A worker is out: what it has is dealt to the others.
    fn strike_off(&mut self, worker_id: WorkerId, reason: String) {
        let Some(member) = self.roster.remove(worker_id) else { return };
        if member.standing == Standing::Preparing {
            return;
        }
        let n_handed_on = self.phase.tasks_mut().map_or(0, |tasks| tasks.take_back(worker_id));
        let n_active = self.roster.active().len();
        self.report(Report::Left { worker_id, reason, n_active, n_handed_on });
        let dealt = self.deal();
        self.send_work(dealt);
    }

    /// Lets those go who wanted to and have nothing left to do.
    fn release_leavers(&mut self) {
        for worker_id in self.roster.leaving() {
            let has_work = self.phase.tasks().is_some_and(|tasks| tasks.of(worker_id).next().is_some());
            if !has_work {
                self.dismiss(worker_id, Farewell::End, "it wanted to leave".to_owned());
            }
        }
    }

    /// Sends a replica anew, with what its worker has to compute; a worker that needs this twice in a step goes.
    fn send_state_anew(&mut self, worker_id: WorkerId, reason: String) {
        let step = self.state.step;
        let Some(member) = self.roster.member_mut(worker_id) else { return };
        match &mut member.standing {
            Standing::Preparing => return,
            Standing::Active { lagged_at } if *lagged_at != Some(step) => *lagged_at = Some(step),
            Standing::Active { .. } | Standing::Leaving => {
                return self.dismiss(worker_id, Farewell::ComeBack, reason);
            }
        }
        self.report(Report::Lagging { worker_id, reason });
        let tasks = self.phase.tasks().map(|tasks| tasks.of(worker_id).collect()).unwrap_or_default();
        self.actions.push_back(Action::SendState(worker_id, self.work(tasks)));
    }

    /// What is wrong with a replica of these parameters.
    fn stray(&self, found: u64) -> String {
        format!("expected parameters {:016x} at step {}, found {found:016x}", self.fingerprint, self.state.step)
    }

    fn refuse_stale(&mut self, worker_id: WorkerId, found: u64, computed: Computed) {
        self.keep_spent(computed);
        self.refuse(worker_id, Refusal::Stale { expected: self.state.step, found });
    }

    fn refuse(&mut self, worker_id: WorkerId, refusal: Refusal) {
        self.report(Report::Refused { worker_id, refusal: refusal.clone() });
        self.actions.push_back(Action::Refuse(worker_id, refusal));
    }

    fn keep_spent(&mut self, computed: Computed) {
        if let Computed::Finite(result) = computed {
            self.spent.push(result.gradient_sum);
        }
    }

    fn report(&mut self, report: Report) {
        self.actions.push_back(Action::Report(report));
    }
}

/// Whether sums are over as many images as they should be, and possible for them.
fn check_counts(sums: &LossSums, expected: u64, what: &str, task: u32) -> Result<(), String> {
    if sums.n_samples != expected {
        return Err(format!(
            "expected {expected} images in {what} {task}, found {}: its data is another",
            sums.n_samples
        ));
    }
    let n_pixels = expected.saturating_mul(N_PIXELS as u64);
    if sums.correct_sum > n_pixels || sums.loss_sum < 0.0 {
        return Err(format!(
            "expected a loss of at least 0 and at most {n_pixels} right pixels in {what} {task}, found {} and {}",
            sums.loss_sum, sums.correct_sum
        ));
    }
    Ok(())
}
