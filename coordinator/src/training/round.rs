//! What is computed at the moment: the shards of a step, or the batches of a validation.

use std::collections::BTreeMap;
use std::time::Duration;

use engine::shard::ShardResult;
use engine::sums::Sums;

use super::action::Work;
use super::assign::RoundTasks;
use super::reduce::Reduction;
use super::roster::{Roster, WorkerId};
use super::schedule::SchedulePosition;
use super::size::{ResultSize, Sizes};

/// Tasks that have to be settled before the run goes on.
#[derive(Debug)]
pub struct Round {
    /// What they are.
    pub kind: RoundKind,
    /// Who computes what.
    pub tasks: RoundTasks,
    /// When it began.
    pub begun: Duration,
    /// After how long a task is late.
    pub late_after: Duration,
    /// Up to where a result is usual.
    pub usual: ResultSize,
    /// Whether there is a task that wants another worker, and none for it.
    pub is_short: bool,
    /// When something is late next, or has waited for too long.
    pub deadline: Option<Duration>,
}

/// What is computed, and what has come of it.
#[derive(Debug)]
pub enum RoundKind {
    /// The shards of a step.
    Step {
        /// Where it lies.
        position: SchedulePosition,
        /// Their sum.
        reduction: Reduction,
        /// How long each worker computed.
        computed: BTreeMap<WorkerId, Duration>,
    },
    /// The batches of the validation split.
    Validation {
        /// The losses of each.
        results: Vec<Sums>,
    },
}

/// What tasks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskKind {
    /// Shards of a step.
    Shard,
    /// Batches of the validation split.
    Batch,
}

impl Round {
    /// A step, none of whose shards is dealt.
    pub fn of_step(position: SchedulePosition, n_shards: u32, is_audited: impl Fn(u32) -> bool) -> Self {
        let kind = RoundKind::Step { position, reduction: Reduction::new(n_shards), computed: BTreeMap::new() };
        Self::new(kind, RoundTasks::new(n_shards, is_audited))
    }

    /// A validation, none of whose batches is dealt.
    pub fn of_validation(n_batches: u32, is_audited: impl Fn(u32) -> bool) -> Self {
        let kind = RoundKind::Validation { results: vec![Sums::default(); n_batches as usize] };
        Self::new(kind, RoundTasks::new(n_batches, is_audited))
    }

    fn new(kind: RoundKind, tasks: RoundTasks) -> Self {
        let (begun, late_after, deadline) = (Duration::ZERO, Duration::ZERO, None);
        Self { kind, tasks, begun, late_after, usual: Sizes::default().begin_round(), is_short: false, deadline }
    }

    /// What its tasks are.
    pub fn task_kind(&self) -> TaskKind {
        match self.kind {
            RoundKind::Step { .. } => TaskKind::Shard,
            RoundKind::Validation { .. } => TaskKind::Batch,
        }
    }

    /// Whether a worker or the coordinator computes a task that the round waits for.
    pub fn is_awaited(&self) -> bool {
        self.tasks.awaited().next().is_some() || self.tasks.awaits_coordinator()
    }

    /// A task, for people.
    pub fn describe(&self, task: u32) -> String {
        match self.task_kind() {
            TaskKind::Shard => format!("shard {task}"),
            TaskKind::Batch => format!("validation batch {task}"),
        }
    }

    /// Some of its tasks as work, after `step` updates.
    pub fn work(&self, step: u64, tasks: Vec<u32>) -> Work {
        match self.kind {
            _ if tasks.is_empty() => Work::Nothing,
            RoundKind::Step { position, .. } => Work::Shards { step, position, shards: tasks },
            RoundKind::Validation { .. } => Work::Batches { step, batches: tasks },
        }
    }

    /// Takes the result of a worker as that of a task.
    pub fn settle(&mut self, task: u32, worker_id: WorkerId, result: ShardResult) {
        self.tasks.settle(task, worker_id);
        match &mut self.kind {
            RoundKind::Step { reduction, .. } => reduction.add(task, result),
            RoundKind::Validation { results } => results[task as usize] = result.sums,
        }
    }

    /// Notes how long a worker computed.
    pub fn add_compute(&mut self, worker_id: WorkerId, compute: Duration) {
        if let RoundKind::Step { computed, .. } = &mut self.kind {
            *computed.entry(worker_id).or_default() += compute;
        }
    }

    /// Sets the deadline: the next moment at which a task that is on time will be late, or a worker will not have answered
    /// for `answer_wait_max`.
    pub fn set_deadline(&mut self, roster: &Roster, now: Duration, answer_wait_max: Duration) {
        let began = |worker_id| roster.member(worker_id).map(|member| member.began);
        let late = self.tasks.awaited().filter_map(began).map(|began| began + self.late_after);
        let late = late.filter(|&moment| moment > now).min();
        let stuck = self.tasks.awaited().filter_map(began).map(|began| began + answer_wait_max).min();
        self.deadline = [late, stuck].into_iter().flatten().min();
    }
}
