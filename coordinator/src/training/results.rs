//! What becomes of workers' results: each is checked, settles its task or waits for another vote, and costs its worker the
//! place if others, or the coordinator itself, show that it is wrong.

use std::time::Duration;

use engine::sums::{self, Metric, Sums};
use events::RunEvent;

use super::Training;
use super::action::{Action, CloseReason, ResultRefusal};
use super::assign::AnswerStatus;
use super::event::{Computed, OwnTaskDone};
use super::roster::{Identity, Profile, WorkerId};
use super::round::TaskKind;
use super::size::ResultSize;
use super::vote::{Answer, Vote, VoteOutcome, Winner};

/// Vectors of results that were not used, kept for the next update to give back.
const SPENT_MAX: usize = 64;

/// A result as it came, be it of a shard or of a batch.
pub(super) struct TaskResult {
    pub kind: TaskKind,
    pub step: u64,
    pub task: u32,
    pub computed: Computed,
    pub gradient_norm: f64,
    pub params_fingerprint: u64,
    pub compute: Duration,
}

impl Training {
    pub(super) fn handle_result(&mut self, now: Duration, worker_id: WorkerId, task_result: TaskResult) {
        let TaskResult { kind, step, task, computed, gradient_norm, params_fingerprint, compute } = task_result;
        let is_of_now = step == self.state.step;
        let expected_fingerprint = self.fingerprint();
        let round = self.phase.round_mut().filter(|round| is_of_now && round.task_kind() == kind);
        let Some(round) = round else {
            self.keep_spent(computed);
            return self.handle_stale(now, worker_id, step);
        };
        let refusal = match round.tasks.answer_status(task, worker_id) {
            AnswerStatus::Wanted => None,
            AnswerStatus::Spare => {
                self.keep_spent(computed);
                return self.handle_answered(now, worker_id, task);
            }
            AnswerStatus::Duplicate => Some(ResultRefusal::Duplicate { step, task }),
            AnswerStatus::NotDealt => Some(ResultRefusal::NotDealt { step, task }),
            AnswerStatus::Unknown => Some(ResultRefusal::NoSuchTask { step, task }),
        };
        if let Some(refusal) = refusal {
            self.keep_spent(computed);
            return self.refuse(now, worker_id, refusal);
        }
        if params_fingerprint != expected_fingerprint {
            self.keep_spent(computed);
            return self.send_state_anew(now, worker_id, self.stray(params_fingerprint));
        }
        let expected = match kind {
            TaskKind::Shard => self.schedule.shard_samples(step, task),
            TaskKind::Batch => self.schedule.batch_samples(task),
        };
        let answer = match computed {
            Computed::NotFinite(what) => Answer::NotFinite(what),
            Computed::Finite(result) if !result.sums.loss_sum.is_finite() => Answer::NotFinite("loss"),
            Computed::Finite(result) => {
                if let Err(reason) = check_counts(&result.sums, self.rules.metrics, expected, || round.describe(task)) {
                    self.spent.push(result.gradient_sum);
                    return self.evict(now, worker_id, self.roster.profile(worker_id), reason);
                }
                Answer::Finite(result)
            }
            Computed::WrongLength { expected, found } => {
                let task = round.describe(task);
                let reason = format!("expected {expected} bytes in the gradient of {task}, found {found}");
                return self.evict(now, worker_id, self.roster.profile(worker_id), reason);
            }
        };
        round.add_compute(worker_id, compute);
        let size = match &answer {
            Answer::Finite(result) => Some(ResultSize::new(gradient_norm, &result.sums)),
            Answer::NotFinite(_) => None,
        };
        // A gradient of no images at all is zero.
        let usual = if expected > 0 { round.usual } else { ResultSize { gradient_norm: 0.0, loss: 0.0 } };
        let is_usual = size.is_some_and(|size| size.is_within(&usual));
        if !is_usual {
            round.tasks.suspect(task);
        }
        match answer {
            Answer::Finite(result) if round.tasks.is_simple(task) => {
                round.settle(task, worker_id, result);
                if let (Some(size), Some(member)) = (size, self.roster.member(worker_id)) {
                    let identity = member.profile.identity.clone();
                    self.note_size(kind, &identity, size, expected);
                }
                self.handle_answered(now, worker_id, task);
            }
            answer => {
                let profile = self.roster.profile(worker_id);
                round.tasks.add_vote(task, Vote { worker_id, profile, answer, gradient_norm });
                self.note_answered(now, worker_id, task);
                self.decide(now);
                self.deal_more(now);
                self.release_leavers(now);
            }
        }
    }

    /// A worker has one task less, whatever came of it.
    fn handle_answered(&mut self, now: Duration, worker_id: WorkerId, task: u32) {
        let is_pace_known = self.note_answered(now, worker_id, task);
        if is_pace_known {
            self.deal_if_short(now);
        } else {
            self.deal_more(now);
        }
        self.release_leavers(now);
    }

    /// Notes that a worker has answered, and how long that took; whether the pace was known before. Until it is, what is late is
    /// decided anew with each time.
    fn note_answered(&mut self, now: Duration, worker_id: WorkerId, task: u32) -> bool {
        let (Some(round), Some(member)) = (self.phase.round_mut(), self.roster.member_mut(worker_id)) else {
            return true;
        };
        let pace = match round.task_kind() {
            TaskKind::Shard => &mut self.shard_pace,
            TaskKind::Batch => &mut self.batch_pace,
        };
        let is_pace_known = pace.is_known();
        if round.tasks.answered(task, worker_id) {
            pace.note(&member.profile.identity, now.saturating_sub(member.began));
            member.answered(self.state.step, now);
        }
        if !is_pace_known {
            round.late_after = pace.late_after();
        }
        is_pace_known
    }

    /// A result that nothing is done with. Who was overtaken by others has to give it none the less, and is free then.
    fn handle_stale(&mut self, now: Duration, worker_id: WorkerId, found: u64) {
        let expected = self.state.step;
        let Some(member) = self.roster.member_mut(worker_id) else { return };
        if !member.gives_owed(found) {
            return self.refuse(now, worker_id, ResultRefusal::Stale { expected, found });
        }
        if member.is_behind {
            member.answered(expected, now);
            self.deal_if_short(now);
        }
    }

    /// A worker whose replica has taken over later updates has nothing left of what it was overtaken at.
    pub(super) fn handle_heartbeat(&mut self, now: Duration, worker_id: WorkerId, found: u64) {
        let step = self.state.step;
        let Some(member) = self.roster.member_mut(worker_id) else { return };
        if member.is_behind && member.overtaken_at.is_some_and(|overtaken_at| overtaken_at < found) {
            member.answered(step, now);
            self.deal_if_short(now);
        }
    }

    /// Takes what the coordinator itself made of a task.
    pub(super) fn handle_own_task(&mut self, now: Duration, done: OwnTaskDone) {
        let OwnTaskDone { step, kind, task, result } = done;
        let is_of_now = step == self.state.step;
        let Some(round) = self.phase.round_mut().filter(|round| is_of_now && round.task_kind() == kind) else {
            return self.spent.push(result.gradient_sum);
        };
        let is_finite = result.gradient_sum.iter().fold(true, |is_finite, value| is_finite & value.is_finite());
        let answer = match () {
            () if !result.sums.loss_sum.is_finite() => Answer::NotFinite("loss"),
            () if !is_finite => Answer::NotFinite("gradient"),
            () => Answer::Finite(result),
        };
        if let Some(Answer::Finite(result)) = round.tasks.add_own_answer(task, answer) {
            self.spent.push(result.gradient_sum);
        }
        self.decide(now);
        self.deal_more(now);
        self.release_leavers(now);
    }

    /// Does what the votes on tasks come to.
    pub(super) fn decide(&mut self, now: Duration) {
        // Ends: each outcome settles a task, has the coordinator compute it, which it does once, or ends the run.
        while let Some(round) = self.phase.round_mut() {
            let stragglers = round.tasks.stragglers(&self.roster, now, round.late_after);
            let outcome = round.tasks.tally(&self.roster, &self.rules.own_class, &stragglers);
            let Some((task, outcome)) = outcome else { return };
            match outcome {
                VoteOutcome::Open => return,
                VoteOutcome::Settled { by, wrong, n_agreeing } => self.settle(now, task, by, &wrong, n_agreeing),
                VoteOutcome::NotFinite(what) => {
                    let step = self.state.step;
                    return match round.task_kind() {
                        TaskKind::Shard => self.diverge(step + 1, &format!("{what} of shard {task}")),
                        TaskKind::Batch => self.diverge(step, "validation loss"),
                    };
                }
                VoteOutcome::Unclear => {
                    round.tasks.ask_coordinator(task);
                    let work = round.work(self.state.step, vec![task]);
                    self.actions.push_back(Action::ComputeTask(work));
                    self.tally.n_own += 1;
                }
            }
        }
    }

    /// Settles a task by one of the votes on it, or by what the coordinator made of it, and evicts those who are wrong.
    fn settle(&mut self, now: Duration, task: u32, by: Winner, wrong: &[WorkerId], n_agreeing: usize) {
        let step = self.state.step;
        let Some(round) = self.phase.round_mut() else { return };
        match (round.tasks.is_audited(task), by, n_agreeing) {
            (false, _, _) | (true, Winner::Coordinator, _) => {}
            (true, Winner::Vote(_), 1) => self.tally.n_not_audited += 1,
            (true, Winner::Vote(_), _) => self.tally.n_audited += 1,
        }
        let (kind, text) = (round.task_kind(), round.describe(task));
        let mut votes = round.tasks.take_votes(task);
        let own = round.tasks.take_own(task);
        let right = match (by, own.is_some()) {
            (_, true) => "that of the coordinator".to_owned(),
            (Winner::Coordinator, false) => unreachable!("what the coordinator found counts when it is there"),
            (Winner::Vote(right), false) => {
                let worker_id = votes[right].worker_id;
                let n_others = n_agreeing - 1;
                let others = if n_others == 1 { "of another one".to_owned() } else { format!("{n_others} more") };
                format!("those of worker {worker_id} and {others}")
            }
        };
        let counted = match by {
            Winner::Vote(right) => {
                let Vote { worker_id, answer, gradient_norm, profile } = votes.swap_remove(right);
                self.spent.extend(own.and_then(Answer::into_gradient));
                (worker_id, Some(answer), Some((profile.identity, gradient_norm)))
            }
            Winner::Coordinator => (WorkerId::COORDINATOR, own, None),
        };
        let (worker_id, Some(Answer::Finite(result)), measured) = counted else {
            unreachable!("what settles a task is finite")
        };
        let sums = result.sums;
        round.settle(task, worker_id, result);
        if let Some((identity, gradient_norm)) = measured {
            self.note_size(kind, &identity, ResultSize::new(gradient_norm, &sums), sums.n_samples);
        }
        if by == Winner::Coordinator {
            self.add_class(self.rules.own_class.clone());
        }
        for Vote { worker_id: other, answer, profile, .. } in votes {
            let what = match &answer {
                Answer::Finite(_) => format!("its result of {text} of step {} differs from", step + 1),
                Answer::NotFinite(what) => format!("its {what} of {text} of step {} is not finite, unlike", step + 1),
            };
            self.spent.extend(answer.into_gradient());
            if wrong.contains(&other) {
                self.evict(now, other, profile, format!("{what} {right}"));
            }
        }
    }

    /// Takes note of how large a result is that counts, by a worker of an identity. One of no images says nothing.
    fn note_size(&mut self, kind: TaskKind, identity: &Identity, size: ResultSize, n_samples: u64) {
        let sizes = match kind {
            TaskKind::Shard => &mut self.shard_sizes,
            TaskKind::Batch => &mut self.batch_sizes,
        };
        if n_samples > 0 {
            sizes.note(identity, size);
        }
    }

    /// A worker computes wrongly: nothing that it said of this step counts any more, even if it is gone by now, and no other
    /// one of its identity is let in for a while.
    fn evict(&mut self, now: Duration, worker_id: WorkerId, profile: Profile, reason: String) {
        self.evicted.note(&profile.identity, now);
        self.tally.add_evicted(format!(
            "worker {worker_id} (process {} on {}) at step {}: {reason}",
            profile.process,
            profile.host,
            self.state.step + 1
        ));
        let Profile { identity, host, process, .. } = profile;
        let (worker, identity) = (worker_id.0, identity.to_string());
        self.tell(RunEvent::WorkerEvicted { worker, identity, host, process, reason: reason.clone() });
        if let Some(round) = self.phase.round_mut() {
            round.tasks.discard_votes(worker_id);
            if round.tasks.counts(worker_id) {
                let begun = round.begun;
                self.begin_round_again(begun);
            }
        }
        self.close_session(now, worker_id, CloseReason::Evicted, reason);
        self.deal_more(now);
    }

    /// What is wrong with a replica of these parameters.
    fn stray(&self, found: u64) -> String {
        format!("expected parameters {:016x} at step {}, found {found:016x}", self.fingerprint(), self.state.step)
    }

    fn keep_spent(&mut self, computed: Computed) {
        // Unrequested results can add more vectors than an update gives back.
        if let Computed::Finite(result) = computed
            && self.spent.len() < SPENT_MAX
        {
            self.spent.push(result.gradient_sum);
        }
    }
}

/// Whether sums are over as many samples as they should be, and possible for them.
fn check_counts(sums: &Sums, metrics: &[Metric], expected: u64, task: impl Fn() -> String) -> Result<(), String> {
    if sums.n_samples != expected {
        return Err(format!("expected {expected} samples in {}, found {}", task(), sums.n_samples));
    }
    sums::check_counts(metrics, sums, task).map_err(|impossible| impossible.to_string())
}
