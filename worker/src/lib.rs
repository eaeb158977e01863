//! Turns a shard into a gradient, on time: a process that connects to a coordinator, keeps a replica of the parameters,
//! and computes what it is given. Knows nothing of other workers, and decides nothing about training.

pub mod args;
mod compute;
pub mod config;
pub mod dataset;
mod link;
pub mod plan;
mod program;
mod run;
mod session;

pub use config::Config;
pub use program::main;
pub use run::{Outcome, WorkerError, exit_code, run};
