//! The life of a worker's process: it searches, is in a session, computes, and is followed by another one.

use std::time::Duration;

use coordinator::training::{Identity, Profile};
use proto::limits::FIRST_MESSAGE_WAIT_MAX;
use proto::v1::coordinator_message::Kind;
use proto::v1::{Close, CloseReason};

use super::super::coverage::Coverage;
use super::super::network::{Connection, Delivery, Direction, ToCoordinator};
use super::super::worker::{Computer, Lie, Search, Worker};
use super::{Cluster, SimEvent, is_join};

impl Cluster {
    pub(super) fn start(&mut self, slot: usize) {
        let process = self.workers.len();
        let number = u32::try_from(process).expect("few processes") + 1;
        let is_first = self.workers.iter().all(|worker| worker.slot != slot);
        let lies = self.run.plan.lies.filter(|_| is_first && slot < self.run.plan.n_liars && !self.is_calm);
        let compute_class = self.rng.pick(self.run.plan.classes).to_owned();
        let group = if lies.is_some() { 0 } else { slot / self.run.plan.identity_slots };
        // One machine with several workers is one identity; a process on a machine of its own is another one each time.
        let is_shared = self.run.plan.identity_slots > 1 || (lies.is_some() && self.run.plan.n_liars > 1);
        let identity = if is_shared { format!("group {group}") } else { format!("process {number}") };
        let (host, identity) = ("here".to_owned(), Identity::new(identity));
        let profile = Profile { identity, host, process: number, compute_class, ..Profile::default() };
        self.notes.tell(|| format!("process {number} starts in slot {slot}"));
        self.workers.push(Worker {
            slot,
            profile,
            is_alive: true,
            is_leaving: false,
            stalled_until: Duration::ZERO,
            connection: None,
            search: Search::begin(self.run.plan.search_max, self.notes.now),
            computer: Computer::default(),
            lies,
        });
        self.after(Duration::ZERO, SimEvent::Connect(process));
    }

    pub(super) fn connect(&mut self, process: usize) {
        if self.workers[process].connection.is_some() {
            return;
        }
        let Some(shell) = &self.shell else { return self.go_on_searching(process) };
        let connection = self.connections.len();
        let worker = &mut self.workers[process];
        worker.connection = Some(connection);
        let profile = worker.profile.clone();
        self.connections.push(Connection::new(process, shell.incarnation, shell.updates_of(profile.process)));
        self.write(connection, ToCoordinator::Join(profile));
        self.after(FIRST_MESSAGE_WAIT_MAX, SimEvent::NotWelcomed(connection));
    }

    /// Whether it is the session that its process is in.
    pub(super) fn is_in_session(&self, connection: usize) -> bool {
        self.workers[self.connections[connection].process].connection == Some(connection)
    }

    /// A session is over for its worker.
    pub(super) fn end_session(&mut self, connection: usize) {
        self.workers[self.connections[connection].process].connection = None;
    }

    /// A worker closes its connection, and looks for another one.
    pub(super) fn give_up(&mut self, connection: usize) {
        self.close_from_there(connection);
        self.go_on_searching(self.connections[connection].process);
    }

    fn close_from_there(&mut self, connection: usize) {
        self.end_session(connection);
        let delay = self.run.plan.network.delay(&mut self.rng);
        let moment = self.connections[connection].arrive_last(Direction::ToCoordinator, self.notes.now + delay);
        self.at(moment, SimEvent::ClosedAtCoordinator(connection));
    }

    pub(super) fn go_on_searching(&mut self, process: usize) {
        let worker = &mut self.workers[process];
        match worker.search.go_on(self.notes.now) {
            Some(pause) if !worker.is_leaving => self.after(pause, SimEvent::Connect(process)),
            _ => self.end_process(process),
        }
    }

    /// A process ends; some time later there is another one in its slot.
    pub(super) fn end_process(&mut self, process: usize) {
        if let Some(connection) = self.workers[process].connection {
            self.close_from_there(connection);
        }
        let worker = &mut self.workers[process];
        worker.is_alive = false;
        let slot = worker.slot;
        self.notes.tell(|| format!("process {} ends", process + 1));
        self.after_ms((0, 2_000), SimEvent::Start(slot));
    }

    pub(super) fn at_worker(&mut self, connection: usize, message: Kind) {
        if !self.is_in_session(connection) || self.connections[connection].is_cut {
            return;
        }
        let process = self.connections[connection].process;
        let worker = &mut self.workers[process];
        match message {
            Kind::Welcome(_) => {
                worker.search.found(self.notes.now);
                self.after_ms(self.run.plan.prepare_time, SimEvent::Prepared(connection));
                self.after(Duration::ZERO, SimEvent::Heartbeat(connection));
            }
            Kind::State(_) | Kind::Update(_) | Kind::Work(_) => {
                worker.computer.submit(connection, message, self.connections[connection].updates.clone());
                self.compute(process);
            }
            Kind::Refusal(_) => {}
            Kind::Close(Close { close_reason, .. }) => {
                self.end_session(connection);
                if close_reason == i32::from(CloseReason::ComeBack) {
                    self.go_on_searching(process);
                } else {
                    self.end_process(process);
                }
            }
        }
    }

    /// Lets a process compute what it can.
    fn compute(&mut self, process: usize) {
        let mut sent = Vec::new();
        let worker = &mut self.workers[process];
        let (session, is_computing) =
            (worker.connection, worker.computer.go_on(worker.connection, &self.run.problem, &mut sent));
        for message in sent {
            self.write(session.expect("only what is of the session is looked at"), message);
        }
        if is_computing {
            let slow = self.slowness.get(&process).filter(|(_, until)| *until > self.notes.now);
            let factor = slow.map_or(1, |(factor, _)| *factor);
            let compute = factor * self.rng.time(self.run.plan.task_time.0..=self.run.plan.task_time.1);
            self.after(compute, SimEvent::Computed(process, compute));
        }
    }

    pub(super) fn computed(&mut self, process: usize, compute: Duration) {
        let worker = &mut self.workers[process];
        let due = worker.lies.as_mut().and_then(|lies| lies.are_due().then_some(lies));
        if due.as_ref().is_some_and(|lies| lies.lie == Lie::Stray) {
            worker.computer.stray();
        }
        let (connection, mut message) = worker.computer.finish(&self.run.problem, compute);
        let mut messages = Vec::new();
        if let Some(lies) = due.and_then(|lies| lies.distort(&mut message, &self.run.problem).then_some(lies)) {
            let coverage = match lies.lie {
                Lie::NotFinite => Coverage::LieNotFinite,
                Lie::WrongLength => Coverage::LieLength,
                Lie::WrongCount => Coverage::LieCount,
                Lie::Stray => Coverage::LieStray,
                Lie::WrongBits => Coverage::LieBits,
                Lie::Nonsense => Coverage::LieNonsense,
                Lie::Undealt => Coverage::LieUndealt,
                Lie::Guess => Coverage::LieGuess,
                Lie::Silent => Coverage::LieSilent,
                Lie::Flood => Coverage::LieFlood,
            };
            match lies.lie {
                Lie::Undealt => messages.extend(worker.computer.undealt(&self.run.problem)),
                Lie::Flood => messages.extend(std::iter::repeat_n(ToCoordinator::Heartbeat(0), 20)),
                _ => {}
            }
            if lies.lie == Lie::Flood {
                // Now and then more than a worker may send in vain.
                let n_copies = if lies.n_told.is_multiple_of(4) { 70 } else { 3 };
                messages.extend(std::iter::repeat_n(message.clone(), n_copies));
            }
            if lies.lie == Lie::Silent {
                self.notes.hindered.insert(worker.profile.process);
            }
            self.notes.coverage.add(coverage, 1);
            self.notes.coverage.add(Coverage::TwoOfOneIdentity, u64::from(self.run.plan.n_liars > 1));
            self.notes.liars.insert(worker.profile.process, coverage);
            self.notes.tell(|| format!("process {} lies ({coverage:?}): {:?}", process + 1, message));
        }
        if self.is_in_session(connection) {
            messages.insert(0, message);
            let is_silent = self.notes.liars.get(&self.workers[process].profile.process) == Some(&Coverage::LieSilent);
            for message in messages.into_iter().filter(|_| !is_silent) {
                self.write(connection, message);
            }
        }
        self.compute(process);
    }

    /// A worker sends something.
    pub(super) fn write(&mut self, connection: usize, message: ToCoordinator) {
        let delivery = if is_join(&message) { Delivery::Sure } else { Delivery::Any };
        let Self { run, connections, rng, notes, .. } = self;
        let (link, coverage) = (&mut connections[connection], &mut notes.coverage);
        for moment in run.plan.network.arrivals(link, Direction::ToCoordinator, delivery, notes.now, rng, coverage) {
            self.at(moment, SimEvent::AtCoordinator(connection, message.clone()));
        }
    }
}
