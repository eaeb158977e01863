//! Who computes what: the tasks of a round — shards of a step, or batches of a validation — dealt to workers, and what each
//! of them made of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use events::RunEvent;

use super::roster::{Identity, Member, Profile, Roster, WorkerId};
use super::vote::{Answer, Ballot, Vote, VoteOutcome};

/// The tasks of a round, by number.
#[derive(Debug)]
pub struct RoundTasks {
    slots: Vec<Slot>,
    n_settled: usize,
}

#[derive(Debug)]
struct Slot {
    /// Whether it was drawn, so that two votes have to agree.
    is_audited: bool,
    /// Whether a vote on it needs another one that agrees.
    is_suspect: bool,
    /// Who was dealt it and has not answered.
    holders: Vec<WorkerId>,
    /// What came, until it is settled.
    votes: Vec<Vote>,
    /// What the coordinator makes of it.
    own: Own,
    /// Whose result counts.
    settled: Option<WorkerId>,
}

/// A task as the coordinator computes it.
#[derive(Clone, Debug)]
enum Own {
    /// It has no reason to.
    NotAsked,
    /// It does.
    Asked,
    /// It has.
    Answer(Answer),
}

/// What an answer is to its round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerStatus {
    /// It is of use.
    Wanted,
    /// It is not needed: another worker was faster, or others are asked now.
    Spare,
    /// The worker gave one before.
    Duplicate,
    /// The worker does not have to give one.
    NotDealt,
    /// There is no such task.
    Unknown,
}

/// What was dealt.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dealt {
    /// Tasks by worker.
    pub tasks: BTreeMap<WorkerId, Vec<u32>>,
    /// Tasks dealt once more, since their holders are late.
    pub late: Vec<Late>,
    /// Whether there is a task that wants another worker, and none for it.
    pub is_short: bool,
}

/// A task that is late.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Late {
    /// Which.
    pub task: u32,
    /// Who has not answered.
    pub straggler: WorkerId,
    /// Who computes it too.
    pub helper: WorkerId,
    /// For how long the straggler was waited for.
    pub waited: Duration,
}

impl Late {
    /// Its event, after `step` updates.
    pub fn event(&self, step: u64) -> RunEvent {
        let Self { task, straggler, helper, waited } = *self;
        let milliseconds = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
        RunEvent::TaskLate { step, task, worker: straggler.0, helper: helper.0, milliseconds }
    }
}

/// One who may be dealt tasks.
struct Candidate<'a> {
    worker_id: WorkerId,
    member: &'a Member,
    n_tasks: usize,
    /// The lower, the better.
    rank: u8,
}

impl RoundTasks {
    /// A round of so many tasks, none of them dealt.
    pub fn new(n_tasks: u32, is_audited: impl Fn(u32) -> bool) -> Self {
        let slot = |task| Slot {
            is_audited: is_audited(task),
            is_suspect: false,
            holders: Vec::new(),
            votes: Vec::new(),
            own: Own::NotAsked,
            settled: None,
        };
        Self { slots: (0..n_tasks).map(slot).collect(), n_settled: 0 }
    }

    /// Deals tasks that need a worker. An unassigned task goes to the worker with the fewest tasks, among equals the one that
    /// joined first, so the same workers get the same tasks in every round. A second vote goes to another identity, of the
    /// same compute class if it has to agree. A task that is late goes to an idle worker. Stragglers are dealt a task only
    /// where no other worker can take it. Without workers, all stays open.
    pub fn deal(&mut self, roster: &Roster, step: u64, now: Duration, late_after: Duration) -> Dealt {
        let stragglers = self.stragglers(roster, now, late_after);
        let mut candidates = self.candidates(roster, step, &stragglers);
        let mut dealt = Dealt::default();
        let mut is_short = vec![false; self.slots.len()];
        for (task, slot) in (0..).zip(&mut self.slots) {
            if slot.settled.is_none() && slot.holders.is_empty() && slot.votes.is_empty() {
                match least(&mut candidates, |_| true) {
                    Some(candidate) => slot.hold(task, candidate, &mut dealt),
                    None => is_short[task as usize] = true,
                }
            }
        }
        for (task, slot) in (0..).zip(&mut self.slots) {
            let late: Vec<WorkerId> =
                slot.holders.iter().copied().filter(|holder| stragglers.contains(holder)).collect();
            for _ in 0..slot.n_missing(roster, &stragglers) {
                let is_idle = |candidate: &Candidate| candidate.n_tasks == 0;
                let may = |candidate: &Candidate| {
                    (late.is_empty() || is_idle(candidate))
                        && slot.may_ask(roster, &stragglers, candidate.worker_id, candidate.member)
                };
                let Some(candidate) = least(&mut candidates, may) else {
                    is_short[task as usize] = true;
                    break;
                };
                let helper = candidate.worker_id;
                slot.hold(task, candidate, &mut dealt);
                dealt.late.extend(late.iter().filter_map(|&straggler| {
                    let waited = now.saturating_sub(roster.member(straggler)?.began);
                    Some(Late { task, straggler, helper, waited })
                }));
            }
        }
        dealt.is_short = is_short.contains(&true);
        dealt
    }

    /// Who has something to compute, and is late with it.
    pub fn stragglers(&self, roster: &Roster, now: Duration, late_after: Duration) -> BTreeSet<WorkerId> {
        let is_late = |holder: &WorkerId| roster.member(*holder).is_some_and(|member| member.began + late_after <= now);
        self.holders().filter(is_late).collect()
    }

    /// Everyone who may be dealt something.
    fn candidates<'a>(&self, roster: &'a Roster, step: u64, stragglers: &BTreeSet<WorkerId>) -> Vec<Candidate<'a>> {
        let mut n_tasks: BTreeMap<WorkerId, usize> = BTreeMap::new();
        for &holder in self.slots.iter().flat_map(|slot| &slot.holders) {
            *n_tasks.entry(holder).or_default() += 1;
        }
        let candidate = |(worker_id, member): (WorkerId, &'a Member)| {
            let n_tasks = n_tasks.get(&worker_id).copied().unwrap_or_default();
            let rank = match () {
                () if member.is_behind => 2,
                () if stragglers.contains(&worker_id) || member.rests_until > step => 1,
                () => 0,
            };
            Candidate { worker_id, member, n_tasks, rank }
        };
        roster.active_members().map(candidate).collect()
    }

    /// Who has something to compute.
    pub fn holders(&self) -> impl Iterator<Item = WorkerId> {
        self.slots.iter().flat_map(|slot| slot.holders.iter().copied())
    }

    /// Who has something to compute that the round waits for.
    pub fn awaited(&self) -> impl Iterator<Item = WorkerId> {
        let open = self.slots.iter().filter(|slot| slot.settled.is_none());
        open.flat_map(|slot| slot.holders.iter().copied())
    }

    /// The tasks that a worker has and that the round waits for.
    pub fn of(&self, worker_id: WorkerId) -> impl Iterator<Item = u32> {
        let has = move |slot: &Slot| slot.settled.is_none() && slot.holders.contains(&worker_id);
        (0..).zip(&self.slots).filter(move |(_, slot)| has(slot)).map(|(task, _)| task)
    }

    /// Takes back what a worker has; gives how many tasks that were.
    pub fn take_back(&mut self, worker_id: WorkerId) -> usize {
        let n_tasks = self.of(worker_id).count();
        for slot in &mut self.slots {
            slot.holders.retain(|&holder| holder != worker_id);
        }
        n_tasks
    }

    /// Who computes a task of the same round, begun before, still does; so does the coordinator.
    pub fn take_over_holders(&mut self, before: &Self) {
        for (slot, before) in self.slots.iter_mut().zip(&before.slots) {
            slot.holders.clone_from(&before.holders);
            if matches!(before.own, Own::Asked) {
                slot.own = Own::Asked;
            }
        }
    }

    /// Has the coordinator compute a task.
    pub fn ask_coordinator(&mut self, task: u32) {
        self.slots[task as usize].own = Own::Asked;
    }

    /// Whether the coordinator computes something that the round waits for.
    pub fn awaits_coordinator(&self) -> bool {
        self.slots.iter().any(|slot| slot.settled.is_none() && matches!(slot.own, Own::Asked))
    }

    /// Takes what the coordinator made of a task, if it was asked to and the task is not settled; gives it back otherwise.
    pub fn add_own_answer(&mut self, task: u32, answer: Answer) -> Option<Answer> {
        match self.slots.get_mut(task as usize) {
            Some(slot) if slot.settled.is_none() && matches!(slot.own, Own::Asked) => {
                slot.own = Own::Answer(answer);
                None
            }
            Some(_) | None => Some(answer),
        }
    }

    /// Discards a worker's votes on tasks that are not settled.
    pub fn discard_votes(&mut self, worker_id: WorkerId) {
        for slot in &mut self.slots {
            slot.votes.retain(|vote| vote.worker_id != worker_id);
        }
    }

    /// What an answer of a worker would be.
    pub fn answer_status(&self, task: u32, worker_id: WorkerId) -> AnswerStatus {
        let Some(slot) = self.slots.get(task as usize) else { return AnswerStatus::Unknown };
        let has_answered = slot.settled == Some(worker_id) || slot.votes.iter().any(|vote| vote.worker_id == worker_id);
        match slot.settled {
            _ if has_answered => AnswerStatus::Duplicate,
            _ if !slot.holders.contains(&worker_id) => AnswerStatus::NotDealt,
            Some(_) => AnswerStatus::Spare,
            None => AnswerStatus::Wanted,
        }
    }

    /// Notes that a worker has answered, so that it does not have the task any more; whether it had it.
    pub fn answered(&mut self, task: u32, worker_id: WorkerId) -> bool {
        let holders = &mut self.slots[task as usize].holders;
        let n_before = holders.len();
        holders.retain(|&holder| holder != worker_id);
        holders.len() < n_before
    }

    /// Whether one finite answer is all that a task waits for.
    pub fn is_simple(&self, task: u32) -> bool {
        self.slots[task as usize].is_simple()
    }

    /// Keeps a vote until its task is settled.
    pub fn add_vote(&mut self, task: u32, vote: Vote) {
        self.slots[task as usize].votes.push(vote);
    }

    /// Has a task wait for another vote that agrees with what is said of it.
    pub fn suspect(&mut self, task: u32) {
        self.slots[task as usize].is_suspect = true;
    }

    /// The first task whose votes come to something.
    pub fn tally(
        &self,
        roster: &Roster,
        own_class: &str,
        stragglers: &BTreeSet<WorkerId>,
    ) -> Option<(u32, VoteOutcome)> {
        let outcome = |(task, slot): (u32, &Slot)| {
            let own = match &slot.own {
                Own::Answer(answer) => Some(answer),
                Own::NotAsked | Own::Asked => None,
            };
            if slot.settled.is_some() || (slot.votes.is_empty() && own.is_none()) {
                return None;
            }
            let may_hear_more = matches!(slot.own, Own::Asked)
                || slot.holders.iter().any(|holder| !stragglers.contains(holder))
                || roster.active_members().any(|(id, member)| slot.may_ask(roster, stragglers, id, member));
            let (votes, n_wanted) = (slot.votes.as_slice(), slot.n_wanted());
            let outcome = Ballot { votes, own, own_class, n_wanted, may_hear_more }.tally();
            let is_unclear_again = outcome == VoteOutcome::Unclear && matches!(slot.own, Own::Asked);
            (outcome != VoteOutcome::Open && !is_unclear_again).then_some((task, outcome))
        };
        (0..).zip(&self.slots).find_map(outcome)
    }

    /// Whether a task is audited.
    pub fn is_audited(&self, task: u32) -> bool {
        self.slots[task as usize].is_audited
    }

    /// What the coordinator made of a task, which is not kept any longer.
    pub fn take_own(&mut self, task: u32) -> Option<Answer> {
        match std::mem::replace(&mut self.slots[task as usize].own, Own::NotAsked) {
            Own::Answer(answer) => Some(answer),
            Own::NotAsked | Own::Asked => None,
        }
    }

    /// The votes on a task, which are not kept any longer.
    pub fn take_votes(&mut self, task: u32) -> Vec<Vote> {
        std::mem::take(&mut self.slots[task as usize].votes)
    }

    /// Settles a task by the result of a worker.
    ///
    /// # Panics
    /// If it is settled.
    pub fn settle(&mut self, task: u32, worker_id: WorkerId) {
        let slot = &mut self.slots[task as usize];
        assert!(slot.settled.is_none(), "a task is settled once");
        slot.settled = Some(worker_id);
        self.n_settled += 1;
    }

    /// Whether a result of this worker counts already.
    pub fn counts(&self, worker_id: WorkerId) -> bool {
        self.slots.iter().any(|slot| slot.settled == Some(worker_id))
    }

    /// Whether every task is settled.
    pub fn is_complete(&self) -> bool {
        self.n_settled == self.slots.len()
    }

    /// Whose result of each task counts.
    ///
    /// # Panics
    /// If one is not settled.
    pub fn workers(&self) -> Vec<WorkerId> {
        let worker = |slot: &Slot| slot.settled.expect("who computed what is asked when all is computed");
        self.slots.iter().map(worker).collect()
    }
}

impl Slot {
    /// Identities whose votes have to agree.
    fn n_wanted(&self) -> usize {
        if self.is_audited || self.is_suspect { 2 } else { 1 }
    }

    /// Whether one finite answer is all that it waits for.
    fn is_simple(&self) -> bool {
        self.n_wanted() == 1 && self.votes.is_empty()
    }

    fn hold(&mut self, task: u32, candidate: &mut Candidate, dealt: &mut Dealt) {
        self.holders.push(candidate.worker_id);
        candidate.n_tasks += 1;
        dealt.tasks.entry(candidate.worker_id).or_default().push(task);
    }

    /// The identities that have voted, or may do so in time.
    fn voters<'a>(&'a self, roster: &'a Roster, stragglers: &BTreeSet<WorkerId>) -> BTreeSet<&'a Identity> {
        let in_time = self.holders.iter().filter(|holder| !stragglers.contains(holder));
        let holders = in_time.filter_map(|&holder| Some(&roster.member(holder)?.profile.identity));
        self.votes.iter().map(|vote| &vote.profile.identity).chain(holders).collect()
    }

    /// How many more workers are to be asked.
    fn n_missing(&self, roster: &Roster, stragglers: &BTreeSet<WorkerId>) -> usize {
        if self.settled.is_some() || !matches!(self.own, Own::NotAsked) {
            return 0;
        }
        if self.is_simple() {
            return usize::from(self.holders.iter().all(|holder| stragglers.contains(holder)));
        }
        // Where as many have answered as should agree, they do not.
        let n_answers = self.votes.iter().map(|vote| &vote.profile.identity).collect::<BTreeSet<_>>().len();
        let n_asked_for = self.n_wanted().max(n_answers + usize::from(n_answers >= self.n_wanted()));
        n_asked_for.saturating_sub(self.voters(roster, stragglers).len())
    }

    /// Whether a worker may say in time what those who were asked before it cannot.
    fn may_ask(&self, roster: &Roster, stragglers: &BTreeSet<WorkerId>, worker_id: WorkerId, member: &Member) -> bool {
        let Profile { identity, compute_class, .. } = &member.profile;
        let holders = self.holders.iter().filter_map(|&holder| Some(&roster.member(holder)?.profile));
        let mut asked = self.votes.iter().map(|vote| &vote.profile).chain(holders);
        let has_to_agree = self.n_wanted() > 1;
        !member.is_behind
            && !stragglers.contains(&worker_id)
            && !self.holders.contains(&worker_id)
            && !self.voters(roster, stragglers).contains(identity)
            && (!has_to_agree || asked.all(|other| other.compute_class == *compute_class))
    }
}

/// The best candidate that may, of those the one with least to do.
fn least<'a, 'b>(
    candidates: &'a mut [Candidate<'b>],
    may: impl Fn(&Candidate) -> bool,
) -> Option<&'a mut Candidate<'b>> {
    let able = candidates.iter_mut().filter(|candidate| may(candidate));
    able.min_by_key(|candidate| (candidate.rank, candidate.n_tasks, candidate.worker_id))
}
