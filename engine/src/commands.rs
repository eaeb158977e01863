//! The commands of a program that need no other process: `train` and `evaluate`.

mod evaluate;
mod train;

pub use evaluate::{EvaluateArgs, TrainedArgs, evaluate, report_evaluation};
pub use train::{TrainArgs, train};

/// Why a command ended before its time.
pub type CommandError = anyhow::Error;
