//! Trains a [Burn](https://burn.dev) network on many worker processes, synchronously, to the same bits for any number of them and
//! through the death of any of them.
//!
//! A [`Task`] says what is trained: a network, a [`Dataset`], and the loss between them. [`main`] makes it a program, and [`Program`]
//! one with commands of its own:
//!
//! ```no_run
#![doc = include_str!("../examples/line.rs")]
//! ```
//!
//! `… coordinator --workers 4` trains it on four local workers, `… worker --coordinator HOST:PORT` joins a run from another
//! machine, `… train` is the reference in one process, to the same bits, and `… evaluate --weights FILE` says what came out.

mod program;
mod trained;

use std::process::ExitCode;

/// Flags of a task, by derive.
pub use ::clap;
/// Settings of a task, by derive.
pub use ::serde;
pub use engine::backend::{ComputeDevice, Operations};
pub use engine::data::{DataFile, DataSource, Dataset, Fingerprint, Split};
pub use engine::optimizer::{Decay, LrSchedule, Optimizer, Rule, RuleName};
pub use engine::random::ShardKey;
pub use engine::sums::{Metric, Sums};
pub use engine::task::{BatchOf as Batch, BoxError, Codes, Context, Defaults, Loss, Picture, Task};
pub use engine::weights::{Weights, WeightsError, WeightsFile};
pub use engine::{exit, params, testing};
pub use program::Program;
/// The random numbers of [`Context::random`].
pub use rand_chacha;
pub use trained::load_trained;

/// Under glibc's own allocator a buffer the size of a gradient goes back to the system each time it is freed, and is
/// page-faulted in anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The program of a task: a [`Program`] without commands of its own.
pub fn main<T: Task>(task: T) -> ExitCode {
    Program::new().task(task).main()
}
