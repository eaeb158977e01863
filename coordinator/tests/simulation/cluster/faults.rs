//! What goes wrong.

use std::time::Duration;

use coordinator::training::WorkerId;

use super::super::coverage::Coverage;
use super::super::network::ToCoordinator;
use super::super::shell::Session;
use super::{Cluster, SimEvent};

/// How long a worker that was asked to end waits to be let go.
const LEAVING_WAIT_MAX: Duration = Duration::from_secs(5);

impl Cluster {
    pub(super) fn inject_fault(&mut self) {
        if self.n_faults_left == 0 {
            return self.after_ms((0, self.run.plan.lying_time), SimEvent::Calm);
        }
        // Most are kept for when there is something to disturb.
        let is_at_work = self.shell.as_ref().is_some_and(|shell| shell.sessions.values().any(Session::is_active));
        if !is_at_work && !self.rng.is_one_in(50) {
            return self.after_ms(self.run.plan.fault_gap, SimEvent::Fault);
        }
        self.n_faults_left -= 1;
        let victims = self.victims();
        match self.rng.number(0..=9) {
            0 => self.for_each(Coverage::Kill, &victims, Self::kill),
            1 => self.for_each(Coverage::Stall, &victims, Self::stall),
            2 => self.for_each(Coverage::Slowness, &victims, Self::slow_down),
            3 => self.for_each(Coverage::Break, &victims, Self::break_connection),
            4 => self.for_each(Coverage::HalfOpen, &victims, Self::open_by_half),
            5 => self.for_each(Coverage::Leaving, &victims, Self::ask_to_leave),
            6 => self.disable(&victims),
            7 => {
                self.notes.coverage.add(Coverage::Crash, u64::from(self.shell.is_some()));
                self.notes.tell(|| "the coordinator is gone".to_owned());
                self.end_coordinator();
            }
            8 => self.stop(),
            _ => self.speak_for_strangers(),
        }
        self.after_ms(self.run.plan.fault_gap, SimEvent::Fault);
    }

    /// From here on a run completes, which it could not if it depended on a liar.
    pub(super) fn calm_down(&mut self) {
        self.is_calm = true;
        for process in 0..self.workers.len() {
            if self.workers[process].is_alive && self.workers[process].lies.is_some() {
                self.end_process(process);
            }
        }
    }

    /// Whom the next fault happens to: one, or now and then all.
    fn victims(&mut self) -> Vec<usize> {
        let exposed: Vec<usize> = (0..self.workers.len()).filter(|&nth| self.workers[nth].is_alive).collect();
        if exposed.is_empty() {
            return exposed;
        }
        if exposed.len() > 1 && self.rng.is_one_in(8) {
            self.notes.coverage.add(Coverage::AllAtOnce, 1);
            return exposed;
        }
        vec![self.rng.pick(&exposed)]
    }

    fn for_each(&mut self, coverage: Coverage, processes: &[usize], happen: impl Fn(&mut Self, usize)) {
        for &process in processes {
            self.notes.coverage.add(coverage, 1);
            self.notes.tell(|| format!("{coverage:?} of process {}", process + 1));
            self.notes.hindered.insert(self.workers[process].profile.process);
            happen(self, process);
        }
    }

    /// The process is gone; what it sent comes first, or is lost.
    fn kill(&mut self, process: usize) {
        if let Some(connection) = self.workers[process].connection {
            self.connections[connection].is_cut = self.rng.is_one_in(2);
        }
        self.end_process(process);
    }

    fn stall(&mut self, process: usize) {
        let ms = self.rng.pick(&[10, 100, 1_000, 10_000]);
        let until = self.notes.now + self.rng.time(0..=ms);
        let stalled_until = &mut self.workers[process].stalled_until;
        *stalled_until = until.max(*stalled_until);
    }

    fn slow_down(&mut self, process: usize) {
        let until = self.notes.now + self.rng.time(10..=20_000);
        self.slowness.insert(process, (self.rng.count(10..=100), until));
    }

    fn break_connection(&mut self, process: usize) {
        let Some(connection) = self.workers[process].connection else { return };
        self.connections[connection].is_cut = true;
        self.after_ms((0, 50), SimEvent::ClosedAtCoordinator(connection));
        self.after_ms((0, 50), SimEvent::ClosedAtWorker(connection));
    }

    /// Nothing arrives any more, and neither side is notified.
    fn open_by_half(&mut self, process: usize) {
        let Some(connection) = self.workers[process].connection else { return };
        let link = &mut self.connections[connection];
        (link.is_cut, link.is_half_open) = (true, true);
        self.after_ms((1_000, 10_000), SimEvent::Unheard(connection));
    }

    fn ask_to_leave(&mut self, process: usize) {
        let worker = &mut self.workers[process];
        if std::mem::replace(&mut worker.is_leaving, true) {
            return;
        }
        match worker.connection {
            Some(connection) => {
                self.write(connection, ToCoordinator::Leaving);
                self.after(LEAVING_WAIT_MAX, SimEvent::Left(process));
            }
            None => self.end_process(process),
        }
    }

    /// The next message to them fails.
    fn disable(&mut self, processes: &[usize]) {
        if let Some(shell) = &mut self.shell {
            shell.disable(processes);
        }
    }

    fn stop(&mut self) {
        let Some(mut shell) = self.shell.take() else { return };
        self.notes.coverage.add(Coverage::Stop, 1);
        let effects = shell.stop(&self.run, &mut self.notes);
        self.shell = Some(shell);
        self.apply(effects);
    }

    /// Events of workers that never joined.
    fn speak_for_strangers(&mut self) {
        let Some(shell) = &mut self.shell else { return };
        self.notes.coverage.add(Coverage::UnknownWorker, 1);
        let messages = [ToCoordinator::Ready, ToCoordinator::Leaving, ToCoordinator::Lagging("lost".to_owned())];
        for message in messages {
            shell.read(&self.run, WorkerId(0), message, &mut self.notes);
        }
        let effects = shell.lose(&self.run, WorkerId(0), "never there", &mut self.notes);
        assert!(effects.is_empty(), "a worker that never joined is not lost");
    }
}
