//! What one machine needs to train alone: the three networks, their data, gradients, the update, files and pictures.
//! Knows nothing of other machines.

pub mod arch;
pub mod args;
mod arithmetic;
pub mod backend;
pub mod bucket;
pub mod configuration;
pub mod data;
pub mod evaluation;
pub mod exit;
pub mod files;
pub mod gradients;
pub mod layers;
pub mod loss;
pub mod numerics;
pub mod optimizer;
pub mod params;
pub mod random;
pub mod recipe;
pub mod reduce;
pub mod replica;
pub mod report;
pub mod training;
pub mod weights;
