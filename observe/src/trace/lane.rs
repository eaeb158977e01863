//! The rows of a trace's picture.

use crate::spans::PHASES;

/// A row of the picture; what is in one does not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// The steps.
    Steps,
    /// What the coordinator does, by the position in `PHASES`.
    Phase(usize),
    /// A worker's waiting and computing.
    Worker(u64),
    /// A worker's results on their way. Beside the former: the next shard is computed meanwhile.
    Transfer(u64),
}

impl Lane {
    /// The process of the coordinator's lanes.
    pub const COORDINATOR: u64 = 1;
    /// The process of the workers' lanes.
    pub const WORKERS: u64 = 2;

    /// The process and the thread that viewers take the lane for. Viewers sort by these, too.
    pub fn ids(self) -> (u64, u64) {
        match self {
            Self::Steps => (Self::COORDINATOR, 1),
            Self::Phase(position) => (Self::COORDINATOR, 2 + u64::try_from(position).expect("few phases")),
            Self::Worker(worker) => (Self::WORKERS, 1 + 2 * worker),
            Self::Transfer(worker) => (Self::WORKERS, 2 + 2 * worker),
        }
    }

    /// What viewers write beside it.
    pub fn name(self) -> String {
        match self {
            Self::Steps => "steps".to_owned(),
            Self::Phase(position) => PHASES[position].to_owned(),
            Self::Worker(0) => "coordinator computes".to_owned(),
            Self::Transfer(0) => "coordinator transfers".to_owned(),
            Self::Worker(worker) => format!("worker {worker}"),
            Self::Transfer(worker) => format!("worker {worker} transfers"),
        }
    }
}
