//! What has to be true of a driver and its core, whatever happens to them.

use std::collections::BTreeSet;
use std::time::Duration;

use coordinator::config::{HashSteps, JournalSteps};
use coordinator::training::{CheckpointEvery, Identity, Outcome, State, Tally, WorkerId};
use engine::params::params_blake3;
use engine::report::{epoch_record, step_record};
use engine::sums::Sums;
use engine::weights::Weights;
use events::{EpochRecord, RunEvent, StepEvent};
use proto::v1::coordinator_message::Kind;
use proto::v1::{self, Close, CloseReason, Encoding, Refusal, Update, Work};

use super::super::coverage::{Coverage, CoverageCounts};
use super::super::reference::{all_bits, bits};
use super::super::worker::{numbers, position_of};
use super::{KEPT_OUT, LateTask, Notes, Run, Saved, Session, Shell, Turn};

impl Shell {
    /// Checks that a message is true, and goes to a worker that can use it.
    pub(super) fn check_message(
        &mut self,
        run: &Run,
        worker_id: WorkerId,
        kind: &Kind,
        turn: &mut Turn,
        notes: &mut Notes,
    ) {
        let session = self.sessions.get(&worker_id).expect("who is spoken to is in");
        assert!(!session.is_closed, "nothing comes after the last message: {kind:?}");
        let (step, is_leaving) = (session.step, session.is_leaving);
        match kind {
            Kind::Welcome(welcome) => {
                let incarnation = welcome.fence.as_ref().map(|fence| fence.coordinator_id);
                assert_eq!((welcome.worker_id, incarnation), (worker_id.0, Some(self.incarnation.into())));
            }
            Kind::State(v1::State { step, params, slots, work }) => {
                turn.lagging.remove(&worker_id);
                assert_eq!(*step, self.step, "a replica is sent as it is now");
                let expected = &run.reference.states[place(*step)];
                let [params, slots] = [params, slots].map(|bytes| all_bits(&numbers(Encoding::F32, bytes)));
                assert_eq!(params, all_bits(&expected.params), "parameters that are sent at step {step}");
                assert_eq!(slots, all_bits(&expected.slots.concat()), "what the optimizer keeps at step {step}");
                self.check_work(run, worker_id, work.as_ref().expect("a state comes with work"));
                self.told(worker_id, *step);
            }
            Kind::Update(Update { step: to, work, .. }) => {
                // With a journal its line came first.
                if run.plan.journal == JournalSteps::No && *to == self.step + 1 {
                    self.step = *to;
                }
                assert_eq!(*to, self.step, "an update is that of the last step");
                assert_eq!(step, Some(to - 1), "a replica misses no update");
                let is_safe = run.plan.journal == JournalSteps::No || self.journaled == Some(self.age());
                assert!(is_safe, "nobody builds on a step that could be lost: {to}");
                let work = work.as_ref().expect("an update comes with work");
                assert!(!is_leaving || *work == Work::default(), "who leaves gets nothing new");
                self.check_work(run, worker_id, work);
                self.told(worker_id, *to);
            }
            Kind::Work(work) => {
                assert_ne!(*work, Work::default(), "to do nothing is no order by itself");
                assert_eq!(step, Some(self.step), "work is for those who have the parameters");
                assert!(!is_leaving, "who leaves gets nothing new");
                self.check_work(run, worker_id, work);
            }
            Kind::Refusal(Refusal { reason }) => self.check_refusal(run, worker_id, reason, notes),
            Kind::Close(Close { close_reason, reason }) => {
                let close_reason = CloseReason::try_from(*close_reason).expect("a reason to close");
                self.check_close(run, worker_id, close_reason, reason, turn, notes);
            }
        }
    }

    /// A worker's replica was sent the update to a step.
    fn told(&mut self, worker_id: WorkerId, step: u64) {
        self.sessions.get_mut(&worker_id).expect("who is spoken to is in").step = Some(step);
    }

    /// That work is of what is to be done now.
    fn check_work(&mut self, run: &Run, worker_id: WorkerId, work: &Work) {
        let Work { step, shards, batches, .. } = work;
        if *work == Work::default() {
            return;
        }
        assert_eq!(*step, self.step, "work is on what there is");
        let epoch_ends_here = self.reference_validation(run).is_some_and(|(at, _)| at == step);
        assert_eq!(epoch_ends_here, shards.is_empty(), "an epoch is validated at its end, before the next one begins");
        assert!(shards.is_empty() || batches.is_empty(), "work is of one kind: {work:?}");
        let (tasks, n_tasks) = if epoch_ends_here {
            (batches, run.problem.batch_samples.len())
        } else {
            let steps_per_epoch = run.problem.shard_samples.len() as u64;
            let position = position_of(work);
            let found = (u64::from(position.epoch), u64::from(position.step_of_epoch));
            assert_eq!(found, (step / steps_per_epoch, step % steps_per_epoch));
            self.dealt.extend(shards.iter().map(|&shard| (worker_id, *step, shard)));
            (shards, run.plan.rules.recipe.shards.get() as usize)
        };
        assert!(tasks.iter().all(|&task| (task as usize) < n_tasks), "expected tasks below {n_tasks}: {tasks:?}");
        let distinct: BTreeSet<u32> = tasks.iter().copied().collect();
        assert!(!tasks.is_empty() && distinct.len() == tasks.len(), "work is of several tasks: {tasks:?}");
    }

    fn check_refusal(&self, run: &Run, worker_id: WorkerId, reason: &str, notes: &mut Notes) {
        let kinds = [
            ("expected results of step", Coverage::RefusedStale),
            ("expected one result for task", Coverage::RefusedDuplicate),
            ("expected results of tasks", Coverage::RefusedNotDealt),
        ];
        let kind = kinds.iter().find(|(begin, _)| reason.starts_with(begin));
        let (_, kind) = kind.unwrap_or_else(|| panic!("nobody computes what there is not: {reason}"));
        notes.coverage.add(*kind, 1);
        let is_expected = *kind != Coverage::RefusedNotDealt || run.is_rough() || self.is_liar(worker_id, notes);
        assert!(is_expected, "worker {worker_id} is honest, and not listened to: {reason}");
    }

    /// Whether a worker is out, or has lied.
    fn is_liar(&self, worker_id: WorkerId, notes: &Notes) -> bool {
        self.sessions.get(&worker_id).is_none_or(|session| notes.liars.contains_key(&session.process))
    }

    fn check_close(
        &mut self,
        run: &Run,
        worker_id: WorkerId,
        close_reason: CloseReason,
        reason: &str,
        turn: &mut Turn,
        notes: &mut Notes,
    ) {
        note_close(close_reason, reason, &mut notes.coverage);
        assert!(close_reason != CloseReason::End || self.outcome.is_some(), "a worker ends before the run: {reason}");
        if self.outcome.is_none() {
            turn.helpers.remove(&worker_id);
        }
        let session = self.sessions.get_mut(&worker_id).expect("who is spoken to is in");
        session.is_closed = true;
        let is_given_up = reason.starts_with("silent for") || reason.starts_with("no answer for");
        let is_hindered = run.is_rough() || notes.hindered.contains(&session.process);
        assert!(is_hindered || !is_given_up, "worker {worker_id} is well and is given up: {reason}");
        let is_free = !self.evicted_identities.contains(&session.identity);
        assert!(!is_free || !reason.starts_with(KEPT_OUT), "worker {worker_id} is of no evicted identity: {reason}");
        let lie = notes.liars.get(&session.process).copied();
        if reason.contains("results in a row were not used") {
            notes.coverage.add(Coverage::RefusedForGood, 1);
            assert!(lie.is_some() || run.is_rough(), "worker {worker_id} is honest: {reason}");
        } else if matches!(close_reason, CloseReason::Refused | CloseReason::Evicted) {
            let lie = lie.unwrap_or_else(|| panic!("worker {worker_id} never lied: {reason}"));
            notes.coverage.add(evicted_for(lie), 1);
            notes.coverage.add(Coverage::EvictedByTwo, u64::from(reason.contains("and of another one")));
            notes.coverage.add(Coverage::EvictedByCoordinator, u64::from(reason.ends_with("that of the coordinator")));
            self.evicted.insert((worker_id, self.step));
        }
    }

    /// That an update has gone to each replica.
    pub(super) fn check_sent(&mut self, run: &Run) {
        let state = self.driver.training.state();
        // Where no replica follows, nothing was sent.
        let is_seen = state.step == self.step;
        assert!(is_seen || state.step == self.step + 1, "a step is one update");
        self.step = state.step;
        self.check_state(run, state);
        let mut behind = self.sessions.iter().filter(|(_, session)| session.step.is_some_and(|step| step < self.step));
        assert!(behind.next().is_none(), "an update goes to each replica");
        assert!(self.driver.training.take_spent().is_empty(), "vectors are used again");
    }

    /// That the state is in every bit that of the undisturbed run at this step.
    fn check_state(&self, run: &Run, state: &State) {
        let State { step, params, slots, residual, epoch_sums, epoch_time: _, best } = state;
        let expected = run.reference.states.get(place(*step)).expect("a run goes no further than it should");
        assert_eq!(*step, self.step, "the state is that after the last step");
        assert_eq!(all_bits(params), all_bits(&expected.params), "parameters at step {step}");
        assert_eq!(
            all_bits(&slots.concat()),
            all_bits(&expected.slots.concat()),
            "what the optimizer keeps at step {step}"
        );
        assert_eq!(all_bits(residual), all_bits(&expected.residual), "residual at step {step}");
        let is_validated = self.n_validated > 0 && run.reference.validations[self.n_validated - 1].0 == *step;
        let expected = if is_validated { Sums::default() } else { expected.epoch_sums };
        assert_eq!(bits(epoch_sums), bits(&expected), "sums of the epoch at step {step}");
        assert_eq!(*best, run.reference.best[self.n_validated], "the best epoch at step {step}");
    }

    /// That a state which is kept is the one at hand, and all that was recorded before it is about what led to it.
    pub(super) fn check_saved(&self, run: &Run, state: State) -> Saved {
        self.check_state(run, &state);
        assert_eq!(self.recorded, state.step, "who goes on from a state has all lines");
        Saved { state, n_validated: self.n_validated }
    }

    /// That a checkpoint was wished of a state that was due for one since the state `begun`.
    pub(super) fn check_kept(&self, run: &Run, begun: (u64, usize)) {
        let (step, n_validated) = self.age();
        let is_due = match run.plan.rules.checkpoint_every {
            CheckpointEvery::Epoch => n_validated > begun.1,
            CheckpointEvery::Steps(n_steps) => step > begun.0 && step.is_multiple_of(n_steps),
        };
        let is_end = matches!(self.outcome, Some(Outcome::Completed | Outcome::Stopped));
        let is_kept = self.kept == Some(self.age());
        assert!(is_kept || !(is_due || is_end), "kept is {:?} at {:?}", self.kept, self.age());
    }

    pub(super) fn check_event(&mut self, run: &Run, event: RunEvent, turn: &mut Turn, notes: &mut Notes) {
        let coverage = &mut notes.coverage;
        match event {
            RunEvent::Step(event) => {
                self.check_step(run, &event, coverage);
                for late in self.late.drain(..) {
                    let first = event.workers[late.task as usize];
                    coverage.add(Coverage::HelperFirst, u64::from(first == late.helper.0));
                    coverage.add(Coverage::StragglerFirst, u64::from(first == late.straggler.0));
                }
            }
            RunEvent::WorkerLeft { n_reassigned, .. } => coverage.add(Coverage::Reassigned, n_reassigned as u64),
            RunEvent::ReplicaResent { worker, reason } => {
                coverage.add(Coverage::Lagging, 1);
                let is_overwritten = reason.contains("in slot");
                coverage.add(Coverage::UpdateOverwritten, u64::from(is_overwritten));
                let worker_id = WorkerId(worker);
                turn.lagging.insert(worker_id);
                let is_expected = is_overwritten || run.is_rough() || self.is_liar(worker_id, notes);
                assert!(is_expected, "worker {worker}, whose letters all came in their turn, is sent anew: {reason}");
            }
            RunEvent::Waiting => {
                assert!(!std::mem::replace(&mut self.is_waiting, true), "it waits already");
                assert!(!self.sessions.values().any(Session::is_active), "it waits, and somebody is there");
                coverage.add(Coverage::Waiting, 1);
            }
            RunEvent::Continuing => assert!(std::mem::take(&mut self.is_waiting), "who goes on has waited"),
            RunEvent::TaskLate { task, worker, helper, .. } => {
                assert_ne!(worker, helper, "who is late helps nobody");
                coverage.add(Coverage::Late, 1);
                self.late.push(LateTask { task, straggler: WorkerId(worker), helper: WorkerId(helper) });
            }
            RunEvent::ComputeClassAdded { .. } => coverage.add(Coverage::MixedClasses, 1),
            RunEvent::WorkerEvicted { identity, .. } => drop(self.evicted_identities.insert(Identity::new(identity))),
            RunEvent::WorkerJoined { .. }
            | RunEvent::ResultRefused { .. }
            | RunEvent::Snapshot(_)
            | RunEvent::Started { .. }
            | RunEvent::Ended { .. } => {}
            RunEvent::Epoch(_) | RunEvent::Mirror(_) => panic!("no event of the driver: {event:?}"),
        }
    }

    /// That each sample counts once, and that it is known by whom.
    fn check_step(&mut self, run: &Run, event: &StepEvent, coverage: &mut CoverageCounts) {
        let StepEvent { record, workers, costs, .. } = event;
        if run.plan.journal == JournalSteps::Yes {
            self.step += 1;
        }
        let step = self.step;
        assert_eq!((record.step, self.recorded + 1), (step, step), "a step is told when it is on its way, or safe");
        self.recorded = step;
        let position = place(step - 1);
        let of_epoch = &run.problem.shard_samples[position % run.problem.shard_samples.len()];
        let epoch = self.epoch_number();
        let mut expected = step_record(&run.spec, step, epoch, &run.reference.step_sums[position], Duration::ZERO);
        expected.milliseconds = record.milliseconds;
        let params = &run.reference.states[place(step)].params;
        expected.params_blake3 = (run.plan.hash_steps == HashSteps::Yes).then(|| params_blake3(params));
        assert_eq!(*record, expected, "sums of step {step}");
        assert!(1e3 * costs.wait.as_secs_f64() <= record.milliseconds, "it waited longer than the step took");
        assert_eq!(record.n_samples, of_epoch.iter().sum::<u64>(), "samples of step {step}");
        assert_eq!(workers.len(), of_epoch.len(), "each shard has its worker");
        let workers: Vec<WorkerId> = workers.iter().map(|&worker| WorkerId(worker)).collect();
        let are_dealt = (0..).zip(&workers).all(|(shard, &worker_id)| {
            worker_id == WorkerId::COORDINATOR || self.dealt.contains(&(worker_id, step - 1, shard))
        });
        let is_evicted = |&&worker_id: &&WorkerId| self.evicted.contains(&(worker_id, step - 1));
        let evicted: Vec<&WorkerId> = workers.iter().filter(is_evicted).collect();
        assert!(evicted.is_empty(), "results of {evicted:?} count, who were evicted at this step");
        assert!(are_dealt, "expected workers that were dealt the shards, found {workers:?}");
        self.dealt.retain(|&(_, dealt_at, _)| dealt_at >= step);
        let n_own = workers.iter().filter(|&&worker_id| worker_id == WorkerId::COORDINATOR).count();
        coverage.add(Coverage::OwnCounts, n_own as u64);
    }

    /// That each epoch is validated once, and rightly.
    pub(super) fn check_epoch(&mut self, run: &Run, record: &EpochRecord, weights: &Weights) {
        let &(step, validation) = self.reference_validation(run).expect("a run has no more epochs than it should");
        assert_eq!(record.step, step, "epochs are told in turn");
        let state = &run.reference.states[place(step)];
        let epoch = self.epoch_number();
        let EpochRecord { seconds, samples_per_second, .. } = *record;
        let is_best = run.reference.best[self.n_validated + 1] != run.reference.best[self.n_validated];
        let expected = epoch_record(&run.spec, step, epoch, &state.epoch_sums, &validation, Duration::ZERO);
        assert_eq!(*record, EpochRecord { seconds, samples_per_second, is_best, ..expected }, "epoch {epoch}");
        assert_eq!(all_bits(&weights.params), all_bits(&state.params), "weights of epoch {epoch}");
        self.n_validated += 1;
        self.late.clear();
    }

    /// The epoch at hand, counted from 1.
    fn epoch_number(&self) -> u32 {
        u32::try_from(self.n_validated).expect("few epochs") + 1
    }

    /// The validation that is next.
    fn reference_validation<'a>(&self, run: &'a Run) -> Option<&'a (u64, Sums)> {
        run.reference.validations.get(self.n_validated)
    }

    pub(super) fn check_end(&mut self, run: &Run, outcome: &Outcome, helpers: &BTreeSet<u32>, notes: &mut Notes) {
        let now = self.now(notes);
        let training = &mut self.driver.training;
        assert!(training.poll_action(now).is_none(), "nothing is wished for after the end");
        let &Tally { n_audited, n_not_audited, n_own, .. } = training.tally();
        notes.coverage.add(Coverage::Audited, n_audited);
        notes.coverage.add(Coverage::NotAudited, n_not_audited);
        notes.coverage.add(Coverage::Own, n_own);
        match outcome {
            Outcome::Completed => {
                let (training, last) = (&self.driver.training, run.reference.last().step);
                self.check_state(run, training.state());
                assert_eq!(self.step, last, "a run is complete after its last step");
                assert_eq!(self.n_validated, run.reference.validations.len(), "and when its epochs are validated");
                let is_early = last < training.schedule().n_steps();
                assert_eq!(training.has_stopped_early(), is_early, "a run ends early when no epoch is better");
                notes.coverage.add(Coverage::StoppedEarly, u64::from(is_early));
            }
            Outcome::Stopped => {}
            Outcome::NobodyCame => {
                notes.coverage.add(Coverage::NobodyCame, 1);
                assert!(now >= run.plan.rules.join_timeout && helpers.is_empty(), "after {now:?}, of {helpers:?}");
            }
            // The undisturbed run does not, and the coordinator computes a task itself before it says so.
            Outcome::Diverged { .. } => panic!("{outcome:?}, since liars said so"),
        }
    }
}

/// The place of what belongs to a step.
fn place(step: u64) -> usize {
    usize::try_from(step).expect("few steps")
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
