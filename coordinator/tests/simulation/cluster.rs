//! A cluster in virtual time: what happens when, one thing after the other, as drawn. Knows nothing of how a core decides.

mod faults;
mod incarnations;
mod workers;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use coordinator::training::{Action, CloseReason, Event, OwnTaskDone, Profile, WorkerId};
use proto::limits::HEARTBEAT_INTERVAL;
use proto::v1::coordinator_message::Kind;

use super::coverage::CoverageCounts;
use super::network::{Connection, ToCoordinator};
use super::plan::Plan;
use super::reference::all_bits;
use super::shell::{Effect, Notes, Run, Saved, Shell, event_of};
use super::sim_rng::SimRng;
use super::worker::Worker;

/// How long a schedule may take: far more than the longest of them does.
const TIME_MAX: Duration = Duration::from_hours(1);
const ENTRIES_MAX: u64 = 1_000_000;

/// Something that happens at its time.
enum SimEvent {
    /// A process begins in a slot.
    Start(usize),
    /// A process tries to connect.
    Connect(usize),
    /// A message arrives.
    AtCoordinator(usize, ToCoordinator),
    AtWorker(usize, Kind),
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
    Fault,
    /// Nothing goes wrong any more but what the network does to messages.
    Calm,
}

struct Entry {
    moment: Duration,
    number: u64,
    sim_event: SimEvent,
}

/// All there is.
pub struct Cluster {
    run: Run,
    rng: SimRng,
    notes: Notes,
    entries: BinaryHeap<Reverse<Entry>>,
    n_entries: u64,
    shell: Option<Shell>,
    n_incarnations: u32,
    connections: Vec<Connection>,
    workers: Vec<Worker>,
    slowness: BTreeMap<usize, (u32, Duration)>,
    disk: Disk,
    n_faults_left: u64,
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
pub fn play(seed: u64, is_told: bool) -> CoverageCounts {
    let mut cluster = Cluster::new(seed, is_told);
    cluster.play();
    cluster.notes.coverage
}

impl Cluster {
    fn new(seed: u64, is_told: bool) -> Self {
        let mut rng = SimRng::new(seed);
        let run = Run::new(Plan::draw(&mut rng));
        let durable = Saved { state: run.plan.initial.clone(), n_validated: 0 };
        let disk = Disk { durable, journal: [None, None], writing: None, waiting: None };
        let notes = Notes {
            coverage: CoverageCounts::default(),
            is_told,
            now: Duration::ZERO,
            liars: BTreeMap::new(),
            hindered: BTreeSet::new(),
        };
        let mut cluster = Self {
            n_faults_left: run.plan.n_faults,
            run,
            rng,
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
        cluster.notes.tell(|| format!("{:?}", cluster.run.plan.rules));
        cluster.notes.tell(|| format!("{:?}, {:?}", cluster.run.plan.network, cluster.run.plan.lies));
        cluster.after(Duration::ZERO, SimEvent::Begin);
        for slot in 0..cluster.run.plan.n_slots {
            let delay = cluster.rng.time(0..=cluster.run.plan.join_time);
            cluster.after(delay, SimEvent::Start(slot));
        }
        cluster.after_ms(cluster.run.plan.fault_gap, SimEvent::Fault);
        cluster
    }

    fn play(&mut self) {
        while !self.is_complete {
            let deadline = self.shell.as_ref().and_then(Shell::next_deadline).map(|at| at.max(self.notes.now));
            let next = self.entries.peek().map(|Reverse(entry)| entry.moment);
            assert!(deadline.is_some() || next.is_some(), "nothing will ever happen again");
            if let Some(deadline) = deadline.filter(|&deadline| next.is_none_or(|next| deadline <= next)) {
                // Timers fire late.
                let lag = if self.rng.is_one_in(2) { self.rng.time(0..=5) } else { Duration::ZERO };
                self.notes.now = deadline + lag;
                let shell = self.shell.as_mut().expect("whose deadline it is");
                let effects = shell.wake(&self.run, &mut self.notes);
                self.apply(effects);
            } else if let Some(Reverse(Entry { moment, sim_event, .. })) = self.entries.pop() {
                self.notes.now = self.notes.now.max(moment);
                self.happen(sim_event);
            }
            assert!(self.notes.now < TIME_MAX && self.n_entries < ENTRIES_MAX, "the run does not come to its end");
        }
        self.look_after_the_end();
    }

    /// What comes after the end has no effect, and what the run came to is an end.
    fn look_after_the_end(&mut self) {
        let mut training = self.shell.take().expect("it has ended the run").driver.training;
        assert_eq!(training.next_deadline(), None, "there is nothing to wait for after the end");
        let state = training.state().clone();
        assert_eq!(all_bits(&state.params), all_bits(&self.run.reference.last().params));
        let (now, n_params) = (self.notes.now, state.params.len());
        for Reverse(entry) in std::mem::take(&mut self.entries) {
            let SimEvent::AtCoordinator(connection, message) = entry.sim_event else { continue };
            if let (Some(worker_id), false) = (self.connections[connection].worker_id, is_join(&message)) {
                training.handle_event(now, event_of(worker_id, message, n_params));
                assert!(training.poll_action(now).is_none(), "an event after the end has no effect");
            }
        }
        training.handle_event(now, Event::Joined(WorkerId(u64::MAX), Profile::default()));
        let action = training.poll_action(now);
        assert!(
            matches!(action, Some(Action::Close(_, CloseReason::End, _))),
            "it ends too, after the end: {action:?}"
        );
        let saved = Saved { state, n_validated: self.run.reference.validations.len() };
        let (_, effects) = Shell::start(&self.run, saved, self.n_incarnations + 1, &mut self.notes);
        let is_over = matches!(effects[..], [Effect::Save(_), Effect::Finish(_)]);
        assert!(is_over, "a run that is complete is not begun again");
    }

    fn happen(&mut self, sim_event: SimEvent) {
        if let Some(process) = self.process_of(&sim_event) {
            let Worker { is_alive, stalled_until, .. } = self.workers[process];
            if !is_alive {
                return;
            }
            if stalled_until > self.notes.now {
                return self.at(stalled_until, sim_event);
            }
        }
        match sim_event {
            SimEvent::Start(slot) => self.start(slot),
            SimEvent::Connect(process) => self.connect(process),
            SimEvent::AtCoordinator(connection, message) => self.at_coordinator(connection, message),
            SimEvent::AtWorker(connection, message) => self.at_worker(connection, message),
            SimEvent::ClosedAtCoordinator(connection) => self.closed_at_coordinator(connection),
            SimEvent::ClosedAtWorker(connection) => {
                if self.is_in_session(connection) && !self.connections[connection].is_half_open {
                    self.end_session(connection);
                    self.go_on_searching(self.connections[connection].process);
                }
            }
            SimEvent::Prepared(connection) => {
                if self.is_in_session(connection) {
                    self.write(connection, ToCoordinator::Ready);
                }
            }
            SimEvent::NotWelcomed(connection) => {
                let process = self.connections[connection].process;
                if self.is_in_session(connection) && !self.workers[process].search.is_found() {
                    self.give_up(connection);
                }
            }
            SimEvent::Unheard(connection) => {
                if self.is_in_session(connection) {
                    self.give_up(connection);
                }
            }
            SimEvent::Heartbeat(connection) => {
                if self.is_in_session(connection) {
                    let step = self.workers[self.connections[connection].process].computer.step();
                    self.write(connection, ToCoordinator::Heartbeat(step));
                    self.after(HEARTBEAT_INTERVAL, SimEvent::Heartbeat(connection));
                }
            }
            SimEvent::Computed(process, compute) => self.computed(process, compute),
            SimEvent::Left(process) => self.end_process(process),
            SimEvent::Saved(incarnation) => {
                if self.shell.as_ref().is_some_and(|shell| shell.incarnation == incarnation) {
                    self.disk.durable = self.disk.writing.take().expect("it was being written");
                    self.write_next();
                }
            }
            SimEvent::OwnTask(incarnation, done) => {
                let shell = self.shell.as_mut().filter(|shell| shell.incarnation == incarnation);
                if let Some(shell) = shell {
                    let effects = shell.own_task_done(&self.run, done, &mut self.notes);
                    self.apply(effects);
                }
            }
            SimEvent::Begin => {
                self.n_incarnations += 1;
                let saved = self.disk.durable.clone();
                let (shell, effects) = Shell::start(&self.run, saved, self.n_incarnations, &mut self.notes);
                self.shell = Some(shell);
                self.apply(effects);
            }
            SimEvent::Fault => self.inject_fault(),
            SimEvent::Calm => self.calm_down(),
        }
    }

    /// The process that something happens to.
    fn process_of(&self, sim_event: &SimEvent) -> Option<usize> {
        match sim_event {
            SimEvent::Connect(process) | SimEvent::Computed(process, _) | SimEvent::Left(process) => Some(*process),
            SimEvent::AtWorker(connection, _)
            | SimEvent::ClosedAtWorker(connection)
            | SimEvent::Prepared(connection)
            | SimEvent::NotWelcomed(connection)
            | SimEvent::Unheard(connection)
            | SimEvent::Heartbeat(connection) => Some(self.connections[*connection].process),
            SimEvent::Start(_)
            | SimEvent::AtCoordinator(..)
            | SimEvent::ClosedAtCoordinator(_)
            | SimEvent::OwnTask(..)
            | SimEvent::Saved(_)
            | SimEvent::Begin
            | SimEvent::Fault
            | SimEvent::Calm => None,
        }
    }

    fn at(&mut self, moment: Duration, sim_event: SimEvent) {
        self.n_entries += 1;
        self.entries.push(Reverse(Entry { moment, number: self.n_entries, sim_event }));
    }

    fn after(&mut self, delay: Duration, sim_event: SimEvent) {
        self.at(self.notes.now + delay, sim_event);
    }

    fn after_ms(&mut self, (min, max): (u64, u64), sim_event: SimEvent) {
        let delay = self.rng.time(min..=max);
        self.after(delay, sim_event);
    }
}

fn is_join(message: &ToCoordinator) -> bool {
    matches!(message, ToCoordinator::Join(_))
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
