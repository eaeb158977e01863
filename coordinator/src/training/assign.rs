//! Who computes what: the tasks of a round — shards of a step, or batches of a validation — dealt to workers.

use std::collections::{BTreeMap, BTreeSet};

use super::roster::WorkerId;

/// The tasks of a round, by number, and who has or had each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tasks {
    slots: Vec<Slot>,
    n_done: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Open,
    Assigned(WorkerId),
    Done(WorkerId),
}

/// What a result is to its round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The first one of its task.
    First,
    /// Its task has one already.
    Duplicate,
    /// There is no such task.
    Unknown,
}

impl Tasks {
    /// A round of so many tasks, none of them dealt.
    pub fn new(n_tasks: u32) -> Self {
        Self { slots: vec![Slot::Open; n_tasks as usize], n_done: 0 }
    }

    /// Deals the open tasks, each to the worker that has least to do, the one that joined first among equals. The same
    /// workers so get the same tasks in every round. Without workers, all stay open.
    pub fn deal(&mut self, workers: &[WorkerId]) -> BTreeMap<WorkerId, Vec<u32>> {
        let mut dealt = BTreeMap::new();
        let mut loads: BTreeSet<(usize, WorkerId)> =
            workers.iter().map(|&worker_id| (self.of(worker_id).count(), worker_id)).collect();
        for (task, slot) in (0..).zip(&mut self.slots).filter(|(_, slot)| **slot == Slot::Open) {
            let Some((n_tasks, worker_id)) = loads.pop_first() else { break };
            loads.insert((n_tasks + 1, worker_id));
            *slot = Slot::Assigned(worker_id);
            dealt.entry(worker_id).or_insert_with(Vec::new).push(task);
        }
        dealt
    }

    /// The tasks that a worker has and is not done with.
    pub fn of(&self, worker_id: WorkerId) -> impl Iterator<Item = u32> {
        (0..).zip(&self.slots).filter(move |(_, slot)| **slot == Slot::Assigned(worker_id)).map(|(task, _)| task)
    }

    /// Takes back what a worker has; gives how many tasks that were.
    pub fn take_back(&mut self, worker_id: WorkerId) -> usize {
        let mut n_tasks = 0;
        for slot in self.slots.iter_mut().filter(|slot| **slot == Slot::Assigned(worker_id)) {
            *slot = Slot::Open;
            n_tasks += 1;
        }
        n_tasks
    }

    /// What a result of a task would be.
    pub fn standing(&self, task: u32) -> Standing {
        match self.slots.get(task as usize) {
            None => Standing::Unknown,
            Some(Slot::Done(_)) => Standing::Duplicate,
            Some(Slot::Open | Slot::Assigned(_)) => Standing::First,
        }
    }

    /// Notes that a worker gave a task's first result, whoever had the task.
    ///
    /// # Panics
    /// If it was not the first.
    pub fn complete(&mut self, task: u32, worker_id: WorkerId) {
        assert_eq!(self.standing(task), Standing::First, "a task is completed once");
        self.slots[task as usize] = Slot::Done(worker_id);
        self.n_done += 1;
    }

    /// Whether every task has its result.
    pub fn is_complete(&self) -> bool {
        self.n_done == self.slots.len()
    }

    /// Who gave the result of each task.
    ///
    /// # Panics
    /// If one has none.
    pub fn workers(&self) -> Vec<WorkerId> {
        let worker = |slot: &Slot| match slot {
            Slot::Done(worker_id) => *worker_id,
            Slot::Open | Slot::Assigned(_) => panic!("who computed what is asked when all is computed"),
        };
        self.slots.iter().map(worker).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers(ids: &[u64]) -> Vec<WorkerId> {
        ids.iter().copied().map(WorkerId).collect()
    }

    fn dealt(tasks: &mut Tasks, ids: &[u64]) -> String {
        let words = |(worker_id, tasks): (WorkerId, Vec<u32>)| format!("{worker_id}: {tasks:?}");
        tasks.deal(&workers(ids)).into_iter().map(words).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn tasks_are_dealt_evenly_and_always_alike() {
        let check = |n_tasks, ids: &[u64], expected| assert_eq!(dealt(&mut Tasks::new(n_tasks), ids), expected);
        check(4, &[1, 2, 3, 4], "1: [0] 2: [1] 3: [2] 4: [3]");
        check(5, &[3, 1], "1: [0, 2, 4] 3: [1, 3]");
        check(2, &[1, 2, 3], "1: [0] 2: [1]");
        check(3, &[], "");
    }

    #[test]
    fn what_is_taken_back_goes_to_whoever_has_least() {
        let mut tasks = Tasks::new(6);
        dealt(&mut tasks, &[1, 2, 3]); // 1: 0 3, 2: 1 4, 3: 2 5
        tasks.complete(2, WorkerId(3));
        assert_eq!(tasks.take_back(WorkerId(2)), 2);
        assert_eq!(dealt(&mut tasks, &[1, 3]), "1: [4] 3: [1]");
    }

    #[test]
    fn a_task_has_one_result() {
        let mut tasks = Tasks::new(2);
        dealt(&mut tasks, &[1]);
        assert_eq!([0, 2].map(|task| tasks.standing(task)), [Standing::First, Standing::Unknown]);
        tasks.complete(0, WorkerId(1));
        assert_eq!(tasks.standing(0), Standing::Duplicate);
        assert!(!tasks.is_complete());
        tasks.complete(1, WorkerId(7)); // whoever had it
        assert!(tasks.is_complete());
        assert_eq!(tasks.workers(), workers(&[1, 7]));
    }
}
