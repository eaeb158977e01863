//! The inputs of the driver, from sessions, the coordinator's own computing, and signals.

use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use crate::outbox::{GradientPath, Outbox};
use crate::timeline::WorkerTimes;
use crate::training::{Event, Profile, ShardDone, WorkerId};

/// Inputs that wait for the driver: some of each worker at most.
pub const INPUTS_MAX: usize = 4096;

/// An input of the driver.
#[derive(Debug)]
pub enum Input {
    /// A worker introduced itself; its messages go here.
    Joined(WorkerId, Profile, Outbox),
    /// A worker has the data set and wants the state; its gradients travel so.
    Ready(WorkerId, GradientPath),
    /// A worker computed a shard. Its session may have so many wait here as it has permits.
    ShardDone(WorkerId, ShardDone, ResultTimes, OwnedSemaphorePermit),
    /// Anything else.
    Happened(Event),
}

/// What is known of a result's times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResultTimes {
    /// How long its gradient took to decode.
    pub decode: Duration,
    /// What the worker says.
    pub worker: WorkerTimes,
}
