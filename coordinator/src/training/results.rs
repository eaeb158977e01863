//! What becomes of workers' results: each is checked, settles its task or waits for a second opinion, and costs its worker
//! the place if others show that it is wrong.

use std::time::Duration;

use model::arch::N_PIXELS;
use model::loss::LossSums;

use super::Training;
use super::action::{Farewell, Refusal};
use super::assign::Standing;
use super::event::Computed;
use super::opinion::{Answer, Opinion, Verdict};
use super::report::Report;
use super::roster::{Profile, WorkerId};
use super::round::TaskKind;

/// A result as it came, be it of a shard or of a batch.
pub(super) struct Arrived {
    pub kind: TaskKind,
    pub step: u64,
    pub task: u32,
    pub computed: Computed,
    pub params_fingerprint: u64,
    pub compute: Duration,
}

impl Training {
    pub(super) fn handle_result(&mut self, now: Duration, worker_id: WorkerId, arrived: Arrived) {
        let Arrived { kind, step, task, computed, params_fingerprint, compute } = arrived;
        let is_of_now = step == self.state.step;
        let expected_fingerprint = self.fingerprint();
        let round = self.phase.round_mut().filter(|round| is_of_now && round.task_kind() == kind);
        let Some(round) = round else {
            self.keep_spent(computed);
            return self.handle_stale(now, worker_id, step);
        };
        let refusal = match round.tasks.standing(task, worker_id) {
            Standing::Wanted => None,
            Standing::Spare => {
                self.keep_spent(computed);
                return self.handle_answered(now, worker_id, task);
            }
            Standing::Duplicate => Some(Refusal::Duplicate { step, task }),
            Standing::NotDealt => Some(Refusal::NotDealt { step, task }),
            Standing::Unknown => Some(Refusal::NoSuchTask { step, task }),
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
                if let Err(reason) = check_counts(&result.sums, expected, || round.words(task)) {
                    self.spent.push(result.gradient_sum);
                    return self.evict(now, worker_id, self.roster.profile(worker_id), reason);
                }
                Answer::Finite(result)
            }
            Computed::WrongLength { expected, found } => {
                let task = round.words(task);
                let reason = format!("expected {expected} bytes in the gradient of {task}, found {found}");
                return self.evict(now, worker_id, self.roster.profile(worker_id), reason);
            }
        };
        round.add_compute(worker_id, compute);
        match answer {
            Answer::Finite(result) if round.tasks.is_simple(task) => {
                round.settle(task, worker_id, result);
                self.handle_answered(now, worker_id, task);
            }
            answer => {
                let profile = self.roster.profile(worker_id);
                round.tasks.hear(task, Opinion { worker_id, profile, answer });
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
            pace.note(now.saturating_sub(member.began));
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
        if member.overtaken_at != Some(found) {
            return self.refuse(now, worker_id, Refusal::Stale { expected, found });
        }
        if member.is_behind {
            member.answered(expected, now);
            self.deal_if_short(now);
        }
    }

    /// A worker whose replica has taken over later updates has nothing left of what it was overtaken at.
    pub(super) fn handle_heard(&mut self, now: Duration, worker_id: WorkerId, found: u64) {
        let step = self.state.step;
        let Some(member) = self.roster.member_mut(worker_id) else { return };
        if member.is_behind && member.overtaken_at.is_some_and(|overtaken_at| overtaken_at < found) {
            member.answered(step, now);
            self.deal_if_short(now);
        }
    }

    /// Does what the opinions on tasks come to.
    pub(super) fn decide(&mut self, now: Duration) {
        // Ends: each verdict settles a task, or ends the run, or evicts somebody.
        while let Some(round) = self.phase.round_mut() {
            let Some((task, verdict)) = round.tasks.verdict(&self.roster) else { return };
            match verdict {
                Verdict::Open => return,
                Verdict::Settled { right, wrong, n_agreeing } => self.settle(now, task, right, &wrong, n_agreeing),
                Verdict::NotFinite(what) => {
                    let step = self.state.step;
                    return match round.task_kind() {
                        TaskKind::Shard => self.diverge(step + 1, &format!("{what} of shard {task}")),
                        TaskKind::Batch => self.diverge(step, "validation loss"),
                    };
                }
                Verdict::Disputed => {
                    if !std::mem::replace(&mut round.is_disputed, true) {
                        let step = self.state.step;
                        self.report(Report::Disputed { step, task });
                    }
                    return;
                }
            }
        }
    }

    /// Settles a task by one of the opinions on it, and evicts those who have another one.
    fn settle(&mut self, now: Duration, task: u32, right: usize, wrong: &[WorkerId], n_agreeing: usize) {
        let step = self.state.step;
        let Some(round) = self.phase.round_mut() else { return };
        match (round.tasks.n_wanted(task), n_agreeing) {
            (1, _) => {}
            (_, 1) => self.tally.n_not_audited += 1,
            _ => self.tally.n_audited += 1,
        }
        let words = round.words(task);
        let mut opinions = round.tasks.take_opinions(task);
        let Opinion { worker_id, answer: Answer::Finite(result), .. } = opinions.swap_remove(right) else {
            unreachable!("what settles a task is finite")
        };
        round.settle(task, worker_id, result);
        for Opinion { worker_id: other, answer, profile } in opinions {
            let what = match &answer {
                Answer::Finite(_) => format!("its result of {words} of step {} differs from", step + 1),
                Answer::NotFinite(what) => format!("its {what} of {words} of step {} is not finite, unlike", step + 1),
            };
            if let Answer::Finite(result) = answer {
                self.spent.push(result.gradient_sum);
            }
            if wrong.contains(&other) {
                let right = match n_agreeing {
                    1 => format!("that of worker {worker_id}"),
                    2 => format!("those of worker {worker_id} and of another one"),
                    _ => format!("those of worker {worker_id} and {} more", n_agreeing - 1),
                };
                let reason = format!("{what} {right}");
                self.evict(now, other, profile, reason);
            }
        }
    }

    /// A worker computes wrongly: nothing that it said of this step counts any more, even if it is gone by now.
    fn evict(&mut self, now: Duration, worker_id: WorkerId, profile: Profile, reason: String) {
        self.tally.add_evicted(format!(
            "worker {worker_id} (process {} on {}) at step {}: {reason}",
            profile.process,
            profile.host,
            self.state.step + 1
        ));
        self.report(Report::Evicted { worker_id, profile, reason: reason.clone() });
        if let Some(round) = self.phase.round_mut() {
            round.tasks.disbelieve(worker_id);
            if round.tasks.counts(worker_id) {
                let begun = round.begun;
                self.begin_round_again(begun);
            }
        }
        self.dismiss(now, worker_id, Farewell::Evicted, reason);
        self.deal_more(now);
    }

    /// What is wrong with a replica of these parameters.
    fn stray(&self, found: u64) -> String {
        format!("expected parameters {:016x} at step {}, found {found:016x}", self.fingerprint(), self.state.step)
    }

    fn keep_spent(&mut self, computed: Computed) {
        if let Computed::Finite(result) = computed {
            self.spent.push(result.gradient_sum);
        }
    }
}

/// Whether sums are over as many images as they should be, and possible for them.
fn check_counts(sums: &LossSums, expected: u64, task: impl Fn() -> String) -> Result<(), String> {
    if sums.n_samples != expected {
        return Err(format!("expected {expected} images in {}, found {}", task(), sums.n_samples));
    }
    let n_pixels = expected.saturating_mul(N_PIXELS as u64);
    if sums.correct_sum > n_pixels || sums.loss_sum < 0.0 {
        return Err(format!(
            "expected a loss of at least 0 and at most {n_pixels} right pixels in {}, found {} and {}",
            task(),
            sums.loss_sum,
            sums.correct_sum
        ));
    }
    Ok(())
}
