//! A cluster in virtual time: what happens when, one thing after the other, as drawn. Knows nothing of how a core decides.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use coordinator::training::{Event, Farewell, Outcome, Profile, Training, WorkerId};
use proto::limits::{FIRST_MESSAGE_WAIT_MAX, HEARTBEAT_INTERVAL};

use super::chance::Chance;
use super::network::{Connection, Fate, ToCoordinator, ToWorker, Way};
use super::plan::Plan;
use super::reference::{Problem, Reference, all_bits};
use super::seen::{Counts, Seen};
use super::shell::{Notes, Run, Saved, Session, Shell, Wish, event_of};
use super::words;
use super::worker::{Computer, Lie, Search, Worker};

/// How long a schedule may take: far more than the longest of them does.
const TIME_MAX: Duration = Duration::from_hours(1);
const ENTRIES_MAX: u64 = 1_000_000;
/// How long a worker that was asked to end waits to be let go.
const LEAVING_WAIT_MAX: Duration = Duration::from_secs(5);

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
        assert_eq!(wishes, ["finish: Completed"], "a run that is complete is not begun again");
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

/// The life of a worker's process.
impl Cluster {
    fn start(&mut self, slot: usize) {
        let process = self.workers.len();
        let number = u32::try_from(process).expect("few processes") + 1;
        let is_first = self.workers.iter().all(|worker| worker.slot != slot);
        let lies = self.plan.lies.filter(|_| is_first && slot < self.plan.n_liars && !self.is_calm);
        let compute_class = self.chance.pick(self.plan.classes).to_owned();
        let profile = Profile { host: "here".to_owned(), process: number, compute_class, ..Profile::default() };
        self.notes.tell(|| format!("process {number} starts in slot {slot}"));
        self.workers.push(Worker {
            slot,
            profile,
            is_alive: true,
            is_leaving: false,
            stalled_until: Duration::ZERO,
            connection: None,
            search: Search::begin(self.plan.search_max, self.notes.now),
            computer: Computer::default(),
            lies,
        });
        self.after(Duration::ZERO, Happening::Connect(process));
    }

    fn connect(&mut self, process: usize) {
        if self.workers[process].connection.is_some() {
            return;
        }
        let Some(shell) = &self.shell else { return self.go_on_searching(process) };
        let connection = self.connections.len();
        self.connections.push(Connection::new(process, shell.incarnation));
        let worker = &mut self.workers[process];
        worker.connection = Some(connection);
        let profile = worker.profile.clone();
        self.write(connection, ToCoordinator::Join(profile));
        self.after(FIRST_MESSAGE_WAIT_MAX, Happening::NotWelcomed(connection));
    }

    /// Whether it is the session that its process is in.
    fn is_in_session(&self, connection: usize) -> bool {
        self.workers[self.connections[connection].process].connection == Some(connection)
    }

    /// A session is over for its worker.
    fn end_session(&mut self, connection: usize) {
        self.workers[self.connections[connection].process].connection = None;
    }

    /// A worker closes its connection, and looks for another one.
    fn give_up(&mut self, connection: usize) {
        self.close_from_there(connection);
        self.go_on_searching(self.connections[connection].process);
    }

    fn close_from_there(&mut self, connection: usize) {
        self.end_session(connection);
        let delay = self.plan.network.delay(&mut self.chance);
        let moment = self.connections[connection].arrive_last(Way::ToCoordinator, self.notes.now + delay);
        self.at(moment, Happening::ClosedAtCoordinator(connection));
    }

    fn go_on_searching(&mut self, process: usize) {
        let worker = &mut self.workers[process];
        match worker.search.go_on(self.notes.now) {
            Some(pause) if !worker.is_leaving => self.after(pause, Happening::Connect(process)),
            _ => self.end_process(process),
        }
    }

    /// A process ends; some time later there is another one in its slot.
    fn end_process(&mut self, process: usize) {
        if let Some(connection) = self.workers[process].connection {
            self.close_from_there(connection);
        }
        let worker = &mut self.workers[process];
        worker.is_alive = false;
        let slot = worker.slot;
        self.notes.tell(|| format!("process {} ends", process + 1));
        self.after_ms((0, 2_000), Happening::Start(slot));
    }

    fn at_worker(&mut self, connection: usize, letter: ToWorker) {
        if !self.is_in_session(connection) || self.connections[connection].is_cut {
            return;
        }
        let process = self.connections[connection].process;
        let worker = &mut self.workers[process];
        match letter {
            ToWorker::Welcome => {
                worker.search.found(self.notes.now);
                self.after_ms(self.plan.prepare_time, Happening::Prepared(connection));
                self.after(Duration::ZERO, Happening::Heartbeat(connection));
            }
            ToWorker::State { .. } | ToWorker::Update { .. } | ToWorker::Work(_) => {
                worker.computer.submit(connection, letter);
                self.compute(process);
            }
            ToWorker::Refusal => {}
            ToWorker::Dismissal(Farewell::ComeBack) => {
                self.end_session(connection);
                self.go_on_searching(process);
            }
            ToWorker::Dismissal(Farewell::End | Farewell::Refused | Farewell::Evicted) => {
                self.end_session(connection);
                self.end_process(process);
            }
        }
    }

    /// Lets a process compute what it can.
    fn compute(&mut self, process: usize) {
        let mut told = Vec::new();
        let worker = &mut self.workers[process];
        let (session, is_computing) =
            (worker.connection, worker.computer.go_on(worker.connection, &self.run.problem, &mut told));
        for letter in told {
            self.write(session.expect("only what is of the session is looked at"), letter);
        }
        if is_computing {
            let slow = self.slowness.get(&process).filter(|(_, until)| *until > self.notes.now);
            let factor = slow.map_or(1, |(factor, _)| *factor);
            let compute = factor * self.chance.time(self.plan.task_time.0..=self.plan.task_time.1);
            self.after(compute, Happening::Computed(process, compute));
        }
    }

    fn computed(&mut self, process: usize, compute: Duration) {
        let is_found_out = self.is_a_steady_worker_in();
        let worker = &mut self.workers[process];
        // What is wrong and finite is found out by others, and by nobody where there are none.
        let due = worker.lies.as_mut().filter(|lies| lies.lie != Lie::WrongBits || is_found_out);
        let due = due.and_then(|lies| lies.are_due().then_some(lies));
        if due.as_ref().is_some_and(|lies| lies.lie == Lie::Stray) {
            worker.computer.stray();
        }
        let (connection, mut letter) = worker.computer.finish(&self.run.problem, compute);
        if let Some(lies) = due.and_then(|lies| lies.distort(&mut letter).then_some(lies)) {
            let seen = match lies.lie {
                Lie::NotFinite => Seen::LieNotFinite,
                Lie::WrongLength => Seen::LieLength,
                Lie::WrongCount => Seen::LieCount,
                Lie::Stray => Seen::LieStray,
                Lie::WrongBits => Seen::LieBits,
            };
            self.notes.seen.add(seen, 1);
            self.notes.liars.insert(worker.profile.process, seen);
            self.notes.tell(|| format!("process {} lies ({seen:?}): {}", process + 1, words::of_letter(&letter)));
        }
        if self.is_in_session(connection) {
            self.write(connection, letter);
        }
        self.compute(process);
    }

    fn is_a_steady_worker_in(&self) -> bool {
        let Some(shell) = &self.shell else { return false };
        let mut active = shell.sessions.values().filter(|session| session.is_active());
        active.any(|session| self.plan.steady.contains(&self.workers[session.process as usize - 1].slot))
    }

    /// A worker sends something.
    fn write(&mut self, connection: usize, letter: ToCoordinator) {
        let fate = if is_join(&letter) { Fate::Sure } else { Fate::Any };
        let Self { plan, connections, chance, notes, .. } = self;
        let (link, seen) = (&mut connections[connection], &mut notes.seen);
        for moment in plan.network.arrivals(link, Way::ToCoordinator, fate, notes.now, chance, seen) {
            self.at(moment, Happening::AtCoordinator(connection, letter.clone()));
        }
    }
}

/// The coordinator's end of the connections, and its life.
impl Cluster {
    fn at_coordinator(&mut self, connection: usize, letter: ToCoordinator) {
        let Some(mut shell) = self.shell.take() else { return };
        let Connection { incarnation, worker_id, is_open_here, is_cut, process, .. } = self.connections[connection];
        let wishes = if is_cut {
            Vec::new()
        } else if incarnation != shell.incarnation {
            self.at_another_incarnation(&mut shell, process, letter)
        } else if let (ToCoordinator::Join(profile), None) = (&letter, worker_id) {
            let (worker_id, wishes) = shell.join(&self.run, profile.clone(), connection, &mut self.notes);
            self.connections[connection].worker_id = Some(worker_id);
            wishes
        } else if let (Some(worker_id), true) = (worker_id, is_open_here) {
            shell.read(&self.run, worker_id, letter, &mut self.notes)
        } else if let (Some(worker_id), true) = (worker_id, self.chance.is_one_in(2)) {
            // It lay in the driver's queue when its worker was dismissed.
            self.notes.seen.add(Seen::LateLetter, 1);
            shell.read(&self.run, worker_id, letter, &mut self.notes)
        } else {
            Vec::new()
        };
        self.shell = Some(shell);
        self.grant(wishes);
    }

    /// A letter of a session with an earlier process of the coordinator: refused where it is of a session, and of no account
    /// where it is of nobody that is known.
    fn at_another_incarnation(&mut self, shell: &mut Shell, process: usize, letter: ToCoordinator) -> Vec<Wish> {
        let has_fence = matches!(letter, ToCoordinator::Ready | ToCoordinator::Shard(_) | ToCoordinator::Batch { .. });
        let session = self.workers[process].connection.filter(|&connection| {
            let Connection { incarnation, is_open_here, is_cut, .. } = self.connections[connection];
            incarnation == shell.incarnation && is_open_here && !is_cut
        });
        let worker_id = session.and_then(|connection| self.connections[connection].worker_id);
        if is_join(&letter) || !has_fence {
            return Vec::new();
        }
        match (session, worker_id) {
            (Some(connection), Some(worker_id)) if self.plan.steady.is_empty() => {
                self.notes.seen.add(Seen::OldIncarnation, 1);
                self.connections[connection].is_open_here = false;
                // As a refusal of the call, after which the worker ends.
                self.send(connection, ToWorker::Dismissal(Farewell::Refused));
                shell.lose(&self.run, worker_id, "expected this incarnation, found another one", &mut self.notes)
            }
            _ => {
                self.notes.seen.add(Seen::UnknownWorker, 1);
                shell.read(&self.run, WorkerId(u64::MAX), letter, &mut self.notes)
            }
        }
    }

    fn closed_at_coordinator(&mut self, connection: usize) {
        let Connection { incarnation, worker_id, is_open_here, is_half_open, .. } = self.connections[connection];
        let shell = self.shell.as_mut().filter(|shell| shell.incarnation == incarnation && !is_half_open);
        let Some(shell) = shell else { return };
        self.connections[connection].is_open_here = false;
        if let (Some(worker_id), true) = (worker_id, is_open_here) {
            let wishes = shell.lose(&self.run, worker_id, "it closed its connection", &mut self.notes);
            self.grant(wishes);
        }
    }

    /// Does what the core wishes.
    fn grant(&mut self, wishes: Vec<Wish>) {
        for wish in wishes {
            match wish {
                Wish::Send(connection, letter) => self.send(connection, letter),
                Wish::Close(connection) => self.close_from_here(connection),
                Wish::Save(saved) => {
                    let passed_over = self.disk.waiting.replace(saved);
                    self.notes.seen.add(Seen::CheckpointPassedOver, u64::from(passed_over.is_some()));
                    if self.disk.writing.is_none() {
                        self.write_next();
                    }
                }
                Wish::Finish(outcome) => self.finish(&outcome),
            }
        }
        if let (true, Some(shell)) = (self.plan.has_journal, &self.shell) {
            let [_, newest] = &self.disk.journal;
            if newest.as_ref().is_none_or(|newest| age(newest) != shell.age()) {
                self.disk.journal = [self.disk.journal[1].take(), Some(shell.save())];
            }
        }
    }

    /// The coordinator sends something.
    fn send(&mut self, connection: usize, letter: ToWorker) {
        let fate = if matches!(letter, ToWorker::Welcome | ToWorker::Dismissal(_)) { Fate::Sure } else { Fate::Any };
        let Self { plan, connections, chance, notes, .. } = self;
        let (link, seen) = (&mut connections[connection], &mut notes.seen);
        for moment in plan.network.arrivals(link, Way::ToWorker, fate, notes.now, chance, seen) {
            self.at(moment, Happening::AtWorker(connection, letter.clone()));
        }
    }

    fn close_from_here(&mut self, connection: usize) {
        self.connections[connection].is_open_here = false;
        let delay = self.plan.network.delay(&mut self.chance);
        let moment = self.connections[connection].arrive_last(Way::ToWorker, self.notes.now + delay);
        self.at(moment, Happening::ClosedAtWorker(connection));
    }

    fn write_next(&mut self) {
        self.disk.writing = self.disk.waiting.take();
        if self.disk.writing.is_some() {
            self.after_ms(self.plan.save_time, Happening::Saved(self.n_incarnations));
        }
    }

    /// The core has ended. Where that is no end of the run, somebody starts the coordinator again.
    fn finish(&mut self, outcome: &Outcome) {
        if *outcome == Outcome::Completed {
            self.is_complete = true;
            return;
        }
        // What was offered is written before the process ends.
        let newest = [self.disk.waiting.take(), self.disk.writing.take()].into_iter().flatten().next();
        if let Some(newest) = newest {
            self.disk.durable = newest;
        }
        self.end_coordinator();
    }

    /// The coordinator's process is no more.
    fn end_coordinator(&mut self) {
        let Some(shell) = self.shell.take() else { return };
        (self.disk.writing, self.disk.waiting) = (None, None);
        let [before, newest] = std::mem::take(&mut self.disk.journal);
        let journaled = if self.chance.is_one_in(4) { before } else { newest };
        if let Some(journaled) = journaled.filter(|journaled| age(journaled) > age(&self.disk.durable)) {
            self.notes.seen.add(Seen::Journal, 1);
            self.disk.durable = journaled;
        }
        for connection in 0..self.connections.len() {
            let link = &self.connections[connection];
            if link.incarnation == shell.incarnation && link.is_open_here {
                self.close_from_here(connection);
            }
        }
        self.after_ms((0, 4_000), Happening::Begin);
    }
}

/// What goes wrong.
impl Cluster {
    fn mishap(&mut self) {
        if self.n_mishaps_left == 0 {
            return self.after_ms((0, self.plan.lying_time), Happening::Calm);
        }
        // Most are kept for when there is something to disturb.
        let is_at_work = self.shell.as_ref().is_some_and(|shell| shell.sessions.values().any(Session::is_active));
        if !is_at_work && !self.chance.is_one_in(50) {
            return self.after_ms(self.plan.mishap_gap, Happening::Mishap);
        }
        self.n_mishaps_left -= 1;
        let victims = self.victims();
        match self.chance.number(0..=9) {
            0 => self.for_each(Seen::Kill, &victims, Self::kill),
            1 => self.for_each(Seen::Stall, &victims, Self::stall),
            2 => self.for_each(Seen::Slowness, &victims, Self::slow_down),
            3 => self.for_each(Seen::Break, &victims, Self::break_connection),
            4 => self.for_each(Seen::HalfOpen, &victims, Self::open_by_half),
            5 => self.for_each(Seen::Leaving, &victims, Self::ask_to_leave),
            6 => self.fill_outboxes(&victims),
            7 => {
                self.notes.seen.add(Seen::Crash, u64::from(self.shell.is_some()));
                self.notes.tell(|| "the coordinator is gone".to_owned());
                self.end_coordinator();
            }
            8 => self.stop(),
            _ => self.speak_for_strangers(),
        }
        self.after_ms(self.plan.mishap_gap, Happening::Mishap);
    }

    /// From here on a run goes to its end, which it would not with a liar that nobody can do without.
    fn calm_down(&mut self) {
        self.is_calm = true;
        for process in 0..self.workers.len() {
            if self.workers[process].is_alive && self.workers[process].lies.is_some() {
                self.end_process(process);
            }
        }
    }

    /// Whom the next mishap happens to: one, or now and then all.
    fn victims(&mut self) -> Vec<usize> {
        let is_exposed = |worker: &Worker| worker.is_alive && !self.plan.steady.contains(&worker.slot);
        let exposed: Vec<usize> = (0..self.workers.len()).filter(|&nth| is_exposed(&self.workers[nth])).collect();
        if exposed.is_empty() {
            return exposed;
        }
        if exposed.len() > 1 && self.chance.is_one_in(8) {
            self.notes.seen.add(Seen::AllAtOnce, 1);
            return exposed;
        }
        vec![self.chance.pick(&exposed)]
    }

    fn for_each(&mut self, seen: Seen, processes: &[usize], happen: impl Fn(&mut Self, usize)) {
        for &process in processes {
            self.notes.seen.add(seen, 1);
            self.notes.tell(|| format!("{seen:?} of process {}", process + 1));
            self.notes.hindered.insert(self.workers[process].profile.process);
            happen(self, process);
        }
    }

    /// The process is gone; what it sent comes first, or is lost.
    fn kill(&mut self, process: usize) {
        if let Some(connection) = self.workers[process].connection {
            self.connections[connection].is_cut = self.chance.is_one_in(2);
        }
        self.end_process(process);
    }

    fn stall(&mut self, process: usize) {
        let ms = self.chance.pick(&[10, 100, 1_000, 10_000]);
        let until = self.notes.now + self.chance.time(0..=ms);
        let stalled_until = &mut self.workers[process].stalled_until;
        *stalled_until = until.max(*stalled_until);
    }

    fn slow_down(&mut self, process: usize) {
        let until = self.notes.now + self.chance.time(10..=20_000);
        self.slowness.insert(process, (self.chance.count(10..=100), until));
    }

    fn break_connection(&mut self, process: usize) {
        let Some(connection) = self.workers[process].connection else { return };
        self.connections[connection].is_cut = true;
        self.after_ms((0, 50), Happening::ClosedAtCoordinator(connection));
        self.after_ms((0, 50), Happening::ClosedAtWorker(connection));
    }

    /// Nothing arrives any more, and nobody is told.
    fn open_by_half(&mut self, process: usize) {
        let Some(connection) = self.workers[process].connection else { return };
        let link = &mut self.connections[connection];
        (link.is_cut, link.is_half_open) = (true, true);
        self.after_ms((1_000, 10_000), Happening::Unheard(connection));
    }

    fn ask_to_leave(&mut self, process: usize) {
        let worker = &mut self.workers[process];
        if std::mem::replace(&mut worker.is_leaving, true) {
            return;
        }
        match worker.connection {
            Some(connection) => {
                self.write(connection, ToCoordinator::Leaving);
                self.after(LEAVING_WAIT_MAX, Happening::Left(process));
            }
            None => self.end_process(process),
        }
    }

    /// The next message to them does not find room.
    fn fill_outboxes(&mut self, processes: &[usize]) {
        let Some(shell) = &mut self.shell else { return };
        for session in shell.sessions.values_mut() {
            session.is_full |= processes.contains(&(session.process as usize - 1));
        }
    }

    fn stop(&mut self) {
        let Some(mut shell) = self.shell.take() else { return };
        self.notes.seen.add(Seen::Stop, 1);
        let wishes = shell.stop(&self.run, &mut self.notes);
        self.shell = Some(shell);
        self.grant(wishes);
    }

    /// Events of workers that never joined.
    fn speak_for_strangers(&mut self) {
        let Some(shell) = &mut self.shell else { return };
        self.notes.seen.add(Seen::UnknownWorker, 1);
        let n_params = self.plan.initial.params.len();
        let letters = [ToCoordinator::Ready, ToCoordinator::Leaving, ToCoordinator::Lagging("lost".to_owned())];
        for letter in letters {
            debug_assert!(!matches!(event_of(WorkerId(0), letter.clone(), n_params), Event::Stop));
            shell.read(&self.run, WorkerId(0), letter, &mut self.notes);
        }
        let wishes = shell.lose(&self.run, WorkerId(0), "never there", &mut self.notes);
        assert!(wishes.is_empty(), "a worker that never joined is not lost");
    }
}

/// How far a state is: updates, and validations.
fn age(saved: &Saved) -> (u64, usize) {
    (saved.state.step, saved.n_validated)
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
