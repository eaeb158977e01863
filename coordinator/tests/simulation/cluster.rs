//! A cluster in virtual time: what happens when, one thing after the other, as drawn. Knows nothing of how a core decides.

mod incarnations;
mod mishaps;
mod workers;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use coordinator::training::{OwnTaskDone, Profile, Training};
use proto::limits::HEARTBEAT_INTERVAL;

use super::chance::Chance;
use super::network::{Connection, ToCoordinator, ToWorker};
use super::plan::Plan;
use super::reference::{Problem, Reference, all_bits};
use super::seen::Counts;
use super::shell::{Notes, Run, Saved, Shell};
use super::words;
use super::worker::Worker;

/// How long a schedule may take: far more than the longest of them does.
const TIME_MAX: Duration = Duration::from_hours(1);
const ENTRIES_MAX: u64 = 1_000_000;

/// Something that happens at its time.
enum Happening {
    /// A process begins in a slot.
    Start(usize),
    /// A process tries to connect.
    Connect(usize),
    /// A letter arrives.
    AtCoordinator(usize, ToCoordinator),
    AtWorker(usize, ToWorker),
    /// The end of a stream arrives.
    ClosedAtCoordinator(usize),
    ClosedAtWorker(usize),
    /// A worker has its data set.
    Prepared(usize),
    /// A worker gives up: it was not welcomed, or hears nothing any more.
    NotWelcomed(usize),
    Unheard(usize),
    Heartbeat(usize),
    /// A process has computed a task.
    Computed(usize, Duration),
    /// A process has waited long enough to be let go.
    Left(usize),
    /// A coordinator has computed a task itself.
    OwnTask(u32, OwnTaskDone),
    /// A checkpoint is on the disk.
    Saved(u32),
    /// The coordinator begins.
    Begin,
    Mishap,
    /// Nothing goes wrong any more but what the network does to letters.
    Calm,
}

struct Entry {
    moment: Duration,
    number: u64,
    happening: Happening,
}

/// All there is.
pub struct Cluster {
    plan: Plan,
    run: Run,
    chance: Chance,
    notes: Notes,
    entries: BinaryHeap<Reverse<Entry>>,
    n_entries: u64,
    shell: Option<Shell>,
    n_incarnations: u32,
    connections: Vec<Connection>,
    workers: Vec<Worker>,
    slowness: BTreeMap<usize, (u32, Duration)>,
    disk: Disk,
    n_mishaps_left: u64,
    is_calm: bool,
    is_complete: bool,
}

/// Where checkpoints become durable, one at a time, the newest next.
struct Disk {
    durable: Saved,
    /// The last two states of the journal, of which that being written may be lost.
    journal: [Option<Saved>; 2],
    writing: Option<Saved>,
    waiting: Option<Saved>,
}

/// Plays the schedule of a seed; gives what was seen in it.
pub fn play(seed: u64, is_told: bool) -> Counts {
    let mut cluster = Cluster::new(seed, is_told);
    cluster.play();
    cluster.notes.seen
}

impl Cluster {
    fn new(seed: u64, is_told: bool) -> Self {
        let mut chance = Chance::new(seed);
        let plan = Plan::draw(&mut chance);
        let problem = Problem::new(&plan.rules);
        let reference = Reference::new(&problem, &plan.initial);
        let run = Run { rules: plan.rules.clone(), problem, reference, is_rough: plan.network.is_rough() };
        let durable = Saved { state: plan.initial.clone(), n_validated: 0 };
        let disk = Disk { durable, journal: [None, None], writing: None, waiting: None };
        let notes = Notes {
            seen: Counts::default(),
            is_told,
            now: Duration::ZERO,
            liars: BTreeMap::new(),
            hindered: BTreeSet::new(),
        };
        let mut cluster = Self {
            n_mishaps_left: plan.n_mishaps,
            plan,
            run,
            chance,
            notes,
            entries: BinaryHeap::new(),
            n_entries: 0,
            shell: None,
            n_incarnations: 0,
            connections: Vec::new(),
            workers: Vec::new(),
            slowness: BTreeMap::new(),
            disk,
            is_calm: false,
            is_complete: false,
        };
        cluster.notes.tell(|| format!("{:?}", cluster.plan.rules));
        cluster.notes.tell(|| format!("{:?}, {:?}", cluster.plan.network, cluster.plan.lies));
        cluster.after(Duration::ZERO, Happening::Begin);
        for slot in 0..cluster.plan.n_slots {
            let delay = cluster.chance.time(0..=cluster.plan.join_time);
            cluster.after(delay, Happening::Start(slot));
        }
        cluster.after_ms(cluster.plan.mishap_gap, Happening::Mishap);
        cluster
    }

    fn play(&mut self) {
        while !self.is_complete {
            let deadline = self.shell.as_ref().and_then(Shell::next_deadline).map(|at| at.max(self.notes.now));
            let next = self.entries.peek().map(|Reverse(entry)| entry.moment);
            assert!(deadline.is_some() || next.is_some(), "nothing will ever happen again");
            if let Some(deadline) = deadline.filter(|&deadline| next.is_none_or(|next| deadline <= next)) {
                // Nobody is woken in the very moment that was asked for.
                let lag = if self.chance.is_one_in(2) { self.chance.time(0..=5) } else { Duration::ZERO };
                self.notes.now = deadline + lag;
                let shell = self.shell.as_mut().expect("whose deadline it is");
                let wishes = shell.wake(&self.run, &mut self.notes);
                self.grant(wishes);
            } else if let Some(Reverse(Entry { moment, happening, .. })) = self.entries.pop() {
                self.notes.now = self.notes.now.max(moment);
                self.happen(happening);
            }
            assert!(self.notes.now < TIME_MAX && self.n_entries < ENTRIES_MAX, "the run does not come to its end");
        }
        self.look_after_the_end();
    }

    /// What comes after the end has no effect, and what the run came to is an end.
    fn look_after_the_end(&mut self) {
        let mut shell = self.shell.take().expect("it has ended the run");
        assert_eq!(shell.training.next_deadline(), None, "there is nothing to wait for after the end");
        let state = shell.training.state().clone();
        assert_eq!(all_bits(&state.params), all_bits(&self.run.reference.last().params));
        for Reverse(entry) in std::mem::take(&mut self.entries) {
            let Happening::AtCoordinator(connection, letter) = entry.happening else { continue };
            if let (Some(worker_id), false) = (self.connections[connection].worker_id, is_join(&letter)) {
                shell.read(&self.run, worker_id, letter, &mut self.notes);
            }
        }
        shell.join(&self.run, Profile::default(), 0, &mut self.notes);
        let mut again = Training::new(self.run.rules.clone(), state, Duration::ZERO);
        let wishes: Vec<String> =
            std::iter::from_fn(|| again.poll_action(Duration::ZERO)).map(|action| words::of_action(&action)).collect();
        assert_eq!(wishes, ["checkpoint", "finish: Completed"], "a run that is complete is not begun again");
    }

    fn happen(&mut self, happening: Happening) {
        if let Some(process) = self.process_of(&happening) {
            let Worker { is_alive, stalled_until, .. } = self.workers[process];
            if !is_alive {
                return;
            }
            if stalled_until > self.notes.now {
                return self.at(stalled_until, happening);
            }
        }
        match happening {
            Happening::Start(slot) => self.start(slot),
            Happening::Connect(process) => self.connect(process),
            Happening::AtCoordinator(connection, letter) => self.at_coordinator(connection, letter),
            Happening::AtWorker(connection, letter) => self.at_worker(connection, letter),
            Happening::ClosedAtCoordinator(connection) => self.closed_at_coordinator(connection),
            Happening::ClosedAtWorker(connection) => {
                if self.is_in_session(connection) && !self.connections[connection].is_half_open {
                    self.end_session(connection);
                    self.go_on_searching(self.connections[connection].process);
                }
            }
            Happening::Prepared(connection) => {
                if self.is_in_session(connection) {
                    self.write(connection, ToCoordinator::Ready);
                }
            }
            Happening::NotWelcomed(connection) => {
                let process = self.connections[connection].process;
                if self.is_in_session(connection) && !self.workers[process].search.is_found() {
                    self.give_up(connection);
                }
            }
            Happening::Unheard(connection) => {
                if self.is_in_session(connection) {
                    self.give_up(connection);
                }
            }
            Happening::Heartbeat(connection) => {
                if self.is_in_session(connection) {
                    let step = self.workers[self.connections[connection].process].computer.step();
                    self.write(connection, ToCoordinator::Heartbeat(step));
                    self.after(HEARTBEAT_INTERVAL, Happening::Heartbeat(connection));
                }
            }
            Happening::Computed(process, compute) => self.computed(process, compute),
            Happening::Left(process) => self.end_process(process),
            Happening::Saved(incarnation) => {
                if self.shell.as_ref().is_some_and(|shell| shell.incarnation == incarnation) {
                    self.disk.durable = self.disk.writing.take().expect("it was being written");
                    self.write_next();
                }
            }
            Happening::OwnTask(incarnation, done) => {
                let shell = self.shell.as_mut().filter(|shell| shell.incarnation == incarnation);
                if let Some(shell) = shell {
                    let wishes = shell.hear_own(&self.run, done, &mut self.notes);
                    self.grant(wishes);
                }
            }
            Happening::Begin => {
                self.n_incarnations += 1;
                let saved = self.disk.durable.clone();
                let (shell, wishes) = Shell::start(&self.run, saved, self.n_incarnations, &mut self.notes);
                self.shell = Some(shell);
                self.grant(wishes);
            }
            Happening::Mishap => self.mishap(),
            Happening::Calm => self.calm_down(),
        }
    }

    /// The process that something happens to.
    fn process_of(&self, happening: &Happening) -> Option<usize> {
        match happening {
            Happening::Connect(process) | Happening::Computed(process, _) | Happening::Left(process) => Some(*process),
            Happening::AtWorker(connection, _)
            | Happening::ClosedAtWorker(connection)
            | Happening::Prepared(connection)
            | Happening::NotWelcomed(connection)
            | Happening::Unheard(connection)
            | Happening::Heartbeat(connection) => Some(self.connections[*connection].process),
            Happening::Start(_)
            | Happening::AtCoordinator(..)
            | Happening::ClosedAtCoordinator(_)
            | Happening::OwnTask(..)
            | Happening::Saved(_)
            | Happening::Begin
            | Happening::Mishap
            | Happening::Calm => None,
        }
    }

    fn at(&mut self, moment: Duration, happening: Happening) {
        self.n_entries += 1;
        self.entries.push(Reverse(Entry { moment, number: self.n_entries, happening }));
    }

    fn after(&mut self, delay: Duration, happening: Happening) {
        self.at(self.notes.now + delay, happening);
    }

    fn after_ms(&mut self, (min, max): (u64, u64), happening: Happening) {
        let delay = self.chance.time(min..=max);
        self.after(delay, happening);
    }
}

fn is_join(letter: &ToCoordinator) -> bool {
    matches!(letter, ToCoordinator::Join(_))
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.moment, self.number).cmp(&(other.moment, other.number))
    }
}
