//! Who is in: the workers, what each is, and when each was last heard from.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// A worker's number, given once in a coordinator's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u64);

impl WorkerId {
    /// Stands for the coordinator, where it computed something itself: workers are counted from 1.
    pub const COORDINATOR: Self = Self(0);
}

impl fmt::Display for WorkerId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// What a peer counts as: two connections of one identity are one peer, whatever they say.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(String);

impl Identity {
    /// The identity of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// What a worker is: all that it says, but for its identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// What the system says of its connection.
    pub identity: Identity,
    /// Its machine.
    pub host: String,
    /// Its process there.
    pub process: u32,
    /// What computes, for people.
    pub backend: String,
    /// What its results are equal in every bit on.
    pub compute_class: String,
    /// Threads that it computes with.
    pub n_threads: u32,
}

/// How far a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// Preparing its data set.
    Preparing,
    /// Computes what it is dealt.
    Active {
        /// The step at which its replica had to be sent anew, if it had.
        lagged_at: Option<u64>,
    },
    /// Finishes what it has.
    Leaving,
}

/// One worker.
#[derive(Clone, Debug)]
pub struct Member {
    /// What it is.
    pub profile: Profile,
    /// How far it is.
    pub state: MemberState,
    /// When it joined.
    pub joined: Duration,
    /// When it was last heard from.
    pub last_heard: Duration,
    /// When it began with what it computes now.
    pub began: Duration,
    /// The step whose end has overtaken it: others have answered in its place.
    pub overtaken_at: Option<u64>,
    /// Results of that step that it may still give.
    n_owed: u32,
    /// Whether it may still be at work on that.
    pub is_behind: bool,
    /// The step at which it is dealt something again, if others are there.
    pub rests_until: u64,
    /// Results that were not used, since one was.
    n_refused: u32,
    late: Lateness,
}

/// How often a worker was late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lateness {
    /// The step at which it was last, if it has not answered since.
    at: Option<u64>,
    /// How often, since it was last reliable.
    n_late: u32,
    /// Answers in time since then.
    n_in_time: u32,
}

/// Answers in time after which a worker is as good as one that was never late.
const N_RELIABLE: u32 = 100;
/// Results in a row that are not used before their sender is sent away: an honest worker has one or two, when others were
/// faster.
pub const REFUSALS_MAX: u32 = 64;
/// A worker that was late rests for two steps, then four, eight, and so on up to two to the power of this.
const REST_POWER_MAX: u32 = 6;

impl Member {
    /// Notes that it is late at a step.
    pub fn note_late(&mut self, step: u64) {
        if self.late.at != Some(step) {
            self.late = Lateness { at: Some(step), n_late: self.late.n_late + 1, n_in_time: 0 };
        }
    }

    /// Notes that a step has ended without its answer.
    pub fn note_overtaken(&mut self, step: u64) {
        self.n_owed = if self.overtaken_at == Some(step) { self.n_owed + 1 } else { 1 };
        self.overtaken_at = Some(step);
        self.is_behind = true;
    }

    /// Takes note of a result that comes too late; whether it was still to come.
    pub fn gives_owed(&mut self, step: u64) -> bool {
        let is_owed = self.overtaken_at == Some(step) && self.n_owed > 0;
        if is_owed {
            self.n_owed -= 1;
        }
        is_owed
    }

    /// Notes a result that was not used; whether there were too many in a row.
    pub fn note_refused(&mut self) -> bool {
        self.n_refused += 1;
        self.n_refused >= REFUSALS_MAX
    }

    /// It has answered at a step, late or not, and goes on with what else it has.
    pub fn answered(&mut self, step: u64, now: Duration) {
        self.n_refused = 0;
        self.began = now;
        self.is_behind = false;
        if self.late.at.take().is_some() {
            self.rests_until = step + 2_u64.pow(self.late.n_late.min(REST_POWER_MAX));
        } else {
            self.late.n_in_time += 1;
            if self.late.n_in_time >= N_RELIABLE {
                self.late = Lateness::default();
            }
        }
    }
}

/// All workers.
#[derive(Clone, Debug)]
pub struct Roster {
    members: BTreeMap<WorkerId, Member>,
    heartbeat_timeout: Duration,
}

impl Roster {
    /// An empty roster. A worker that is silent for longer than `heartbeat_timeout` is taken for dead.
    pub fn new(heartbeat_timeout: Duration) -> Self {
        Self { members: BTreeMap::new(), heartbeat_timeout }
    }

    /// Takes a worker in.
    pub fn add(&mut self, worker_id: WorkerId, profile: Profile, now: Duration) {
        let member = Member {
            profile,
            state: MemberState::Preparing,
            joined: now,
            last_heard: now,
            began: now,
            overtaken_at: None,
            n_owed: 0,
            is_behind: false,
            rests_until: 0,
            n_refused: 0,
            late: Lateness::default(),
        };
        let known = self.members.insert(worker_id, member);
        assert!(known.is_none(), "a worker's number is given once");
    }

    /// Removes a worker, if it is there.
    pub fn remove(&mut self, worker_id: WorkerId) -> Option<Member> {
        self.members.remove(&worker_id)
    }

    /// A worker, if it is there.
    pub fn member(&self, worker_id: WorkerId) -> Option<&Member> {
        self.members.get(&worker_id)
    }

    /// What a worker is that is there.
    ///
    /// # Panics
    /// If it is not.
    pub fn profile(&self, worker_id: WorkerId) -> Profile {
        self.members.get(&worker_id).expect("who is asked about is in").profile.clone()
    }

    /// A worker, if it is there.
    pub fn member_mut(&mut self, worker_id: WorkerId) -> Option<&mut Member> {
        self.members.get_mut(&worker_id)
    }

    /// Notes that a worker was heard from now; gives whether it is a member.
    pub fn heard_from(&mut self, worker_id: WorkerId, now: Duration) -> bool {
        let member = self.members.get_mut(&worker_id);
        member.map(|member| member.last_heard = now).is_some()
    }

    /// Whether a worker is there, and not ready yet.
    pub fn is_preparing(&self, worker_id: WorkerId) -> bool {
        self.members.get(&worker_id).is_some_and(|member| member.state == MemberState::Preparing)
    }

    /// When the first of those joined that are not ready yet.
    pub fn next_joined(&self) -> Option<Duration> {
        let preparing = self.members.values().filter(|member| member.state == MemberState::Preparing);
        preparing.map(|member| member.joined).min()
    }

    /// Those that are not ready yet, for so long.
    pub fn late(&self, now: Duration, wait_max: Duration) -> Vec<WorkerId> {
        let is_late = |member: &Member| member.state == MemberState::Preparing && member.joined + wait_max <= now;
        self.members.iter().filter(|(_, member)| is_late(member)).map(|(&worker_id, _)| worker_id).collect()
    }

    /// How many there are, whatever their state.
    pub fn n_members(&self) -> usize {
        self.members.len()
    }

    /// Every worker.
    pub fn all(&self) -> Vec<WorkerId> {
        self.members.keys().copied().collect()
    }

    /// Those that take work.
    pub fn active_members(&self) -> impl Iterator<Item = (WorkerId, &Member)> {
        let members = self.members.iter().map(|(&worker_id, member)| (worker_id, member));
        members.filter(|(_, member)| matches!(member.state, MemberState::Active { .. }))
    }

    /// How many take work.
    pub fn n_active(&self) -> usize {
        self.active_members().count()
    }

    /// Those whose replica has to follow the parameters: they take work, or still have some.
    pub fn following(&self) -> Vec<WorkerId> {
        self.with(|state| state != MemberState::Preparing)
    }

    /// Those that only finish what they have.
    pub fn leaving(&self) -> Vec<WorkerId> {
        self.with(|state| state == MemberState::Leaving)
    }

    /// Those that were silent for too long.
    pub fn silent(&self, now: Duration) -> Vec<WorkerId> {
        let is_silent = |member: &Member| member.last_heard + self.heartbeat_timeout <= now;
        self.members.iter().filter(|(_, member)| is_silent(member)).map(|(&worker_id, _)| worker_id).collect()
    }

    /// When the next worker will have been silent for too long, if it stays so.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.members.values().map(|member| member.last_heard + self.heartbeat_timeout).min()
    }

    fn with(&self, has: impl Fn(MemberState) -> bool) -> Vec<WorkerId> {
        self.members.iter().filter(|(_, member)| has(member.state)).map(|(&worker_id, _)| worker_id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overtaken_worker_owes_one_result_per_task() {
        let mut roster = Roster::new(Duration::MAX);
        roster.add(WorkerId(1), Profile::default(), Duration::ZERO);
        // o STEP: it is overtaken; g STEP: it gives a result, which was still to come (!) or was not (?).
        let check = |words: &str| {
            let mut member = roster.member(WorkerId(1)).expect("it is in").clone();
            for words in words.split(", ") {
                let (what, step) = words.split_once(' ').expect("two words");
                let number = step.trim_end_matches(['!', '?']).parse().expect("a number");
                match what {
                    "o" => member.note_overtaken(number),
                    _ => assert_eq!(member.gives_owed(number), step.ends_with('!'), "`{words}`"),
                }
            }
        };
        check("g 0?, g 5?");
        check("o 5, g 5!, g 5?");
        check("o 5, o 5, g 5!, g 4?, g 6?, g 5!, g 5?");
        // What it still owed of a step before is not taken any more.
        check("o 5, o 5, g 5!, o 6, g 5?, g 6!, g 6?");
    }
}
