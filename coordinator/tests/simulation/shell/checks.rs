//! What has to be true of a core, whatever happens to it.

use std::collections::BTreeSet;

use coordinator::events::RunEvent;
use coordinator::training::{
    CheckpointEvery, EpochReport, Identity, Outcome, Report, State, StepReport, Tally, Work, WorkerId,
};
use engine::sums::Sums;

use super::super::coverage::{Coverage, CoverageCounts};
use super::super::reference::{all_bits, bits};
use super::{LateTask, Notes, Run, Session, Shell};

impl Shell {
    /// That work is of what is to be done now.
    pub(super) fn check_work(&self, run: &Run, work: &Work) {
        let step = self.training.state().step;
        let epoch_ends_here = self.reference_validation(run).is_some_and(|(at, _)| *at == step);
        let tasks = match work {
            Work::Nothing => return,
            Work::Shards { step: found, position, shards } => {
                let steps_per_epoch = run.problem.shard_samples.len() as u64;
                let found_place = (u64::from(position.epoch), u64::from(position.step_of_epoch));
                assert_eq!((*found, found_place), (step, (step / steps_per_epoch, step % steps_per_epoch)));
                assert!(!epoch_ends_here, "an epoch is validated before the next one begins");
                let n_shards = run.rules.recipe.shards.get();
                assert!(shards.iter().all(|&shard| shard < n_shards), "expected shards below {n_shards}: {shards:?}");
                shards
            }
            Work::Batches { step: found, batches } => {
                assert_eq!(*found, step, "what is validated is what there is");
                assert!(epoch_ends_here, "a validation is at an epoch's end");
                let n_batches = run.problem.batch_samples.len();
                assert!(batches.iter().all(|&batch| (batch as usize) < n_batches), "below {n_batches}: {batches:?}");
                batches
            }
        };
        let distinct: BTreeSet<u32> = tasks.iter().copied().collect();
        assert!(!tasks.is_empty() && distinct.len() == tasks.len(), "work is of several tasks: {tasks:?}");
    }

    /// That the state is in every bit that of the undisturbed run at this step.
    pub(super) fn check_state(&self, run: &Run) {
        let State { step, params, slots, residual, epoch_sums, .. } = self.training.state();
        let position = usize::try_from(*step).expect("few steps");
        let expected = run.reference.states.get(position).expect("a run goes no further than it should");
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
    }

    /// That a checkpoint was wished of a state that was due for one since the state `begun`.
    pub(super) fn check_kept(&self, run: &Run, begun: (u64, usize)) {
        let (step, n_validated) = self.age();
        let is_due = match run.rules.checkpoint_every {
            CheckpointEvery::Epoch => n_validated > begun.1,
            CheckpointEvery::Steps(n_steps) => step > begun.0 && step.is_multiple_of(n_steps),
        };
        let is_end = matches!(self.outcome, Some(Outcome::Completed | Outcome::Stopped));
        let is_kept = self.kept == self.age();
        assert!(is_kept || !(is_due || is_end), "kept is {:?} at {:?}", self.kept, self.age());
    }

    pub(super) fn check_report(&mut self, run: &Run, report: Report, notes: &mut Notes) {
        let coverage = &mut notes.coverage;
        match report {
            Report::Step(report) => {
                self.check_step(run, &report, coverage);
                for late in self.late.drain(..) {
                    let WorkerId(first) = report.workers[late.task as usize];
                    coverage.add(Coverage::HelperFirst, u64::from(first == late.helper.0));
                    coverage.add(Coverage::StragglerFirst, u64::from(first == late.straggler.0));
                }
            }
            Report::Epoch(report) => {
                self.check_epoch(run, &report);
                self.late.clear();
            }
            Report::Event(event) => self.hear_event(run, event, notes),
        }
    }

    fn hear_event(&mut self, run: &Run, event: RunEvent, notes: &mut Notes) {
        let coverage = &mut notes.coverage;
        match event {
            RunEvent::WorkerLeft { n_reassigned, .. } => coverage.add(Coverage::Reassigned, n_reassigned as u64),
            RunEvent::ReplicaResent { worker, reason } => {
                coverage.add(Coverage::Lagging, 1);
                let is_honest = |session: &Session| !notes.liars.contains_key(&session.process);
                let is_expected = run.is_rough || !self.sessions.get(&WorkerId(worker)).is_some_and(is_honest);
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
            RunEvent::WorkerJoined { .. } | RunEvent::ResultRefused { .. } => {}
            RunEvent::Step(_) | RunEvent::Epoch(_) | RunEvent::Mirror(_) => panic!("no event of the core: {event:?}"),
        }
    }

    /// That each sample counts once, and that it is known by whom.
    fn check_step(&mut self, run: &Run, report: &StepReport, coverage: &mut CoverageCounts) {
        let step = self.training.state().step;
        assert_eq!(report.step, step, "a step is told when it was made");
        let position = usize::try_from(step - 1).expect("few steps");
        assert_eq!(bits(&report.sums), bits(&run.reference.step_sums[position]), "sums of step {step}");
        let of_epoch = &run.problem.shard_samples[position % run.problem.shard_samples.len()];
        assert_eq!(report.sums.n_samples, of_epoch.iter().sum::<u64>(), "samples of step {step}");
        assert_eq!(report.workers.len(), of_epoch.len(), "each shard has its worker");
        let are_dealt = (0..).zip(&report.workers).all(|(shard, &worker_id)| {
            worker_id == WorkerId::COORDINATOR || self.dealt.contains(&(worker_id, step - 1, shard))
        });
        let is_evicted = |&&worker_id: &&WorkerId| self.evicted.contains(&(worker_id, step - 1));
        let evicted: Vec<&WorkerId> = report.workers.iter().filter(is_evicted).collect();
        assert!(evicted.is_empty(), "results of {evicted:?} count, who were evicted at this step");
        assert!(are_dealt, "expected workers that were dealt the shards, found {:?}", report.workers);
        self.dealt.retain(|&(_, dealt_at, _)| dealt_at >= step);
        let n_own = report.workers.iter().filter(|&&worker_id| worker_id == WorkerId::COORDINATOR).count();
        coverage.add(Coverage::OwnCounts, n_own as u64);
    }

    /// That each epoch is validated once, and rightly.
    fn check_epoch(&mut self, run: &Run, report: &EpochReport) {
        let (step, validation) = self.reference_validation(run).expect("a run has no more epochs than it should");
        assert_eq!((report.step, report.epoch as usize), (*step, self.n_validated), "epochs are told in turn");
        let position = usize::try_from(*step).expect("few steps");
        assert_eq!(bits(&report.training), bits(&run.reference.states[position].epoch_sums), "training, step {step}");
        assert_eq!(bits(&report.validation), bits(validation), "validation, step {step}");
        self.n_validated += 1;
    }

    /// The validation that is next.
    fn reference_validation<'a>(&self, run: &'a Run) -> Option<&'a (u64, Sums)> {
        run.reference.validations.get(self.n_validated)
    }

    pub(super) fn check_end(&self, run: &Run, outcome: &Outcome, helpers: &BTreeSet<u32>, notes: &mut Notes) {
        assert!(self.sessions.is_empty(), "every session is closed before the end");
        let &Tally { n_audited, n_not_audited, n_own, .. } = self.training.tally();
        notes.coverage.add(Coverage::Audited, n_audited);
        notes.coverage.add(Coverage::NotAudited, n_not_audited);
        notes.coverage.add(Coverage::Own, n_own);
        let step = self.training.state().step;
        match outcome {
            Outcome::Completed => {
                self.check_state(run);
                assert_eq!(step, run.reference.last().step, "a run is complete after its last step");
                assert_eq!(self.n_validated, run.reference.validations.len(), "and when its epochs are validated");
            }
            Outcome::Stopped => {}
            Outcome::NobodyCame => {
                notes.coverage.add(Coverage::NobodyCame, 1);
                let waited = self.now(notes);
                assert!(waited >= run.rules.join_timeout && helpers.is_empty(), "after {waited:?}, of {helpers:?}");
            }
            // The undisturbed run does not, and the coordinator computes a task itself before it says so.
            Outcome::Diverged { .. } => panic!("{outcome:?}, since liars said so"),
        }
    }
}
