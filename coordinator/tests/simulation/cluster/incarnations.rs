//! The coordinator's end of the connections, its disk, and the life of its process.

use coordinator::training::{Outcome, WorkerId};
use proto::v1::coordinator_message::Kind;
use proto::v1::{Close, CloseReason};

use super::super::coverage::Coverage;
use super::super::network::{Connection, Delivery, Direction, ToCoordinator};
use super::super::shell::{Effect, Saved, Shell};
use super::{Cluster, SimEvent, is_join};

impl Cluster {
    pub(super) fn at_coordinator(&mut self, connection: usize, message: ToCoordinator) {
        let Some(mut shell) = self.shell.take() else { return };
        let Connection { incarnation, worker_id, is_open_here, is_cut, process, .. } = self.connections[connection];
        let effects = if is_cut {
            Vec::new()
        } else if incarnation != shell.incarnation {
            self.at_another_incarnation(&mut shell, process, message)
        } else if let (ToCoordinator::Join(profile), None) = (&message, worker_id) {
            let (worker_id, effects) = shell.join(&self.run, profile.clone(), connection, &mut self.notes);
            self.connections[connection].worker_id = Some(worker_id);
            effects
        } else if let (Some(worker_id), true) = (worker_id, is_open_here) {
            shell.read(&self.run, worker_id, message, &mut self.notes)
        } else if let (Some(worker_id), true) = (worker_id, self.rng.is_one_in(2)) {
            // It lay in the driver's queue when its session was closed.
            self.notes.coverage.add(Coverage::LateMessage, 1);
            shell.read(&self.run, worker_id, message, &mut self.notes)
        } else {
            Vec::new()
        };
        self.shell = Some(shell);
        self.apply(effects);
    }

    /// A message of a session with an earlier process of the coordinator: refused if it names an open session, and ignored
    /// if its session is unknown.
    fn at_another_incarnation(&mut self, shell: &mut Shell, process: usize, message: ToCoordinator) -> Vec<Effect> {
        let has_fence = matches!(message, ToCoordinator::Ready | ToCoordinator::Shard(_) | ToCoordinator::Batch { .. });
        let session = self.workers[process].connection.filter(|&connection| {
            let Connection { incarnation, is_open_here, is_cut, .. } = self.connections[connection];
            incarnation == shell.incarnation && is_open_here && !is_cut
        });
        let worker_id = session.and_then(|connection| self.connections[connection].worker_id);
        if is_join(&message) || !has_fence {
            return Vec::new();
        }
        if let (Some(connection), Some(worker_id)) = (session, worker_id) {
            self.notes.coverage.add(Coverage::OldIncarnation, 1);
            self.connections[connection].is_open_here = false;
            // As a refusal of the call, after which the worker ends.
            let reason = "expected this incarnation, found another one".to_owned();
            let close_reason = CloseReason::Refused.into();
            self.send(connection, Kind::Close(Close { close_reason, reason: reason.clone() }));
            shell.lose(&self.run, worker_id, &reason, &mut self.notes)
        } else {
            self.notes.coverage.add(Coverage::UnknownWorker, 1);
            shell.read(&self.run, WorkerId(u64::MAX), message, &mut self.notes)
        }
    }

    pub(super) fn closed_at_coordinator(&mut self, connection: usize) {
        let Connection { incarnation, worker_id, is_open_here, is_half_open, .. } = self.connections[connection];
        let shell = self.shell.as_mut().filter(|shell| shell.incarnation == incarnation && !is_half_open);
        let Some(shell) = shell else { return };
        self.connections[connection].is_open_here = false;
        if let (Some(worker_id), true) = (worker_id, is_open_here) {
            let effects = shell.lose(&self.run, worker_id, "it closed its connection", &mut self.notes);
            self.apply(effects);
        }
    }

    /// Does what the core wishes.
    pub(super) fn apply(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send(connection, message) => self.send(connection, message),
                Effect::Close(connection) => self.close_from_here(connection),
                Effect::Save(saved) => {
                    let passed_over = self.disk.waiting.replace(saved);
                    self.notes.coverage.add(Coverage::CheckpointPassedOver, u64::from(passed_over.is_some()));
                    if self.disk.writing.is_none() {
                        self.write_next();
                    }
                }
                Effect::Journal(saved) => self.disk.journal = [self.disk.journal[1].take(), Some(saved)],
                Effect::Compute(done) => {
                    let incarnation = self.n_incarnations;
                    self.after_ms(self.run.plan.task_time, SimEvent::OwnTask(incarnation, done));
                }
                Effect::Finish(outcome) => self.finish(&outcome),
            }
        }
    }

    /// The coordinator sends something.
    fn send(&mut self, connection: usize, message: Kind) {
        let delivery =
            if matches!(message, Kind::Welcome(_) | Kind::Close(_)) { Delivery::Sure } else { Delivery::Any };
        let Self { run, connections, rng, notes, .. } = self;
        let (link, coverage) = (&mut connections[connection], &mut notes.coverage);
        for moment in run.plan.network.arrivals(link, Direction::ToWorker, delivery, notes.now, rng, coverage) {
            self.at(moment, SimEvent::AtWorker(connection, message.clone()));
        }
    }

    fn close_from_here(&mut self, connection: usize) {
        self.connections[connection].is_open_here = false;
        let delay = self.run.plan.network.delay(&mut self.rng);
        let moment = self.connections[connection].arrive_last(Direction::ToWorker, self.notes.now + delay);
        self.at(moment, SimEvent::ClosedAtWorker(connection));
    }

    pub(super) fn write_next(&mut self) {
        self.disk.writing = self.disk.waiting.take();
        if self.disk.writing.is_some() {
            self.after_ms(self.run.plan.save_time, SimEvent::Saved(self.n_incarnations));
        }
    }

    /// The core has ended. If the run has not, the coordinator is started again.
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
    pub(super) fn end_coordinator(&mut self) {
        let Some(shell) = self.shell.take() else { return };
        (self.disk.writing, self.disk.waiting) = (None, None);
        let [before, newest] = std::mem::take(&mut self.disk.journal);
        let journaled = if self.rng.is_one_in(4) { before } else { newest };
        if let Some(journaled) = journaled.filter(|journaled| age(journaled) > age(&self.disk.durable)) {
            self.notes.coverage.add(Coverage::Journal, 1);
            self.disk.durable = journaled;
        }
        for connection in 0..self.connections.len() {
            let link = &self.connections[connection];
            if link.incarnation == shell.incarnation && link.is_open_here {
                self.close_from_here(connection);
            }
        }
        self.after_ms((0, 4_000), SimEvent::Begin);
    }
}

/// How far a state is: updates, and validations.
fn age(saved: &Saved) -> (u64, usize) {
    (saved.state.step, saved.n_validated)
}
