//! What one process needs to train a network, whichever it is: tasks, parameters, gradients, optimizers, the reference loop,
//! files. Knows no network, no data set, and no other process.

pub mod args;
pub mod backend;
pub mod bucket;
pub mod commands;
pub mod configuration;
pub mod data;
pub mod early_stopping;
pub mod evaluation;
pub mod exit;
mod exit_codes;
pub mod files;
pub mod gradients;
pub mod numerics;
pub mod optimizer;
pub mod params;
pub mod random;
pub mod recipe;
pub mod reduce;
pub mod report;
pub mod sampler;
pub mod shard;
mod spec;
pub mod sums;
pub mod task;
pub mod testing;
pub mod training;
pub mod weights;
