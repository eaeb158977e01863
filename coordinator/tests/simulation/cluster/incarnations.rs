//! The coordinator's end of the connections, its disk, and the life of its process.

use coordinator::training::{Farewell, Outcome, WorkerId};

use super::super::network::{Connection, Fate, ToCoordinator, ToWorker, Way};
use super::super::seen::Seen;
use super::super::shell::{Saved, Shell, Wish};
use super::{Cluster, Happening, is_join};

impl Cluster {
    pub(super) fn at_coordinator(&mut self, connection: usize, letter: ToCoordinator) {
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
        if let (Some(connection), Some(worker_id)) = (session, worker_id) {
            self.notes.seen.add(Seen::OldIncarnation, 1);
            self.connections[connection].is_open_here = false;
            // As a refusal of the call, after which the worker ends.
            self.send(connection, ToWorker::Dismissal(Farewell::Refused));
            shell.lose(&self.run, worker_id, "expected this incarnation, found another one", &mut self.notes)
        } else {
            self.notes.seen.add(Seen::UnknownWorker, 1);
            shell.read(&self.run, WorkerId(u64::MAX), letter, &mut self.notes)
        }
    }

    pub(super) fn closed_at_coordinator(&mut self, connection: usize) {
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
    pub(super) fn grant(&mut self, wishes: Vec<Wish>) {
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
                Wish::Compute(done) => {
                    let incarnation = self.n_incarnations;
                    self.after_ms(self.plan.task_time, Happening::OwnTask(incarnation, done));
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

    pub(super) fn write_next(&mut self) {
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
    pub(super) fn end_coordinator(&mut self) {
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

/// How far a state is: updates, and validations.
fn age(saved: &Saved) -> (u64, usize) {
    (saved.state.step, saved.n_validated)
}
