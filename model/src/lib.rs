//! The three autoencoders of chapter 17 of Géron's "Hands-On Machine Learning" (2nd edition): their networks and kernels, their
//! data, noise, and pictures; each a [`Task`](engine::task::Task) for the engine.

pub mod arch;
mod arithmetic;
pub mod codes;
pub mod data;
pub mod gradients;
pub mod images;
pub mod layers;
pub mod loss;
#[cfg(all(test, feature = "flex"))]
mod numerics;
pub mod picture;
pub mod summary;
pub mod task;
pub mod trained;
pub mod weights;
