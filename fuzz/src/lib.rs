//! What anyone may have sent, or written to a file: each module takes bytes as the programs would, and says whether they are
//! what they should be. Whatever they are, nothing panics, and nothing that is not finite is let in.

pub mod checkpoints;
pub mod files;
pub mod frames;
pub mod idx;
pub mod messages;
pub mod shared_memory;
pub mod weights;

/// Takes the bytes of an input; whether they are what they should be.
pub type Target = fn(&[u8]) -> bool;

/// The targets, by the names of their folders in `seeds/`.
pub const TARGETS: [(&str, Target); 6] = [
    ("checkpoints", checkpoints::take),
    ("frames", frames::take),
    ("idx", idx::take),
    ("messages", messages::take),
    ("shared_memory", shared_memory::take),
    ("weights", weights::take),
];
