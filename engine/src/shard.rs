//! A shard's result: a pure function of the parameters and the shard's samples.

use crate::sums::Sums;

/// What a shard gives: sums over its samples, to be added to those of the step's other shards.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardResult {
    /// Sum over the samples of the gradient of each one's loss, in layout order.
    pub gradient_sum: Vec<f32>,
    /// Losses, counts and samples.
    pub sums: Sums,
}
