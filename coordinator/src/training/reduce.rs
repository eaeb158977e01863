//! The sum over a step's shards as their results arrive: each addition of the fixed tree as soon as both of its halves
//! are there, so that little is left to do when the last one comes, and no bit depends on which one that is.

use engine::reduce::add_into;
use engine::shard::ShardResult;

/// A sum on its way.
#[derive(Debug)]
pub struct Reduction {
    /// Of each shard what it has added so far, with how many places of the tree it stands for.
    sums: Vec<Option<Partial>>,
    /// Vectors that are not needed any more.
    spent: Vec<Vec<f32>>,
}

#[derive(Debug)]
struct Partial {
    result: ShardResult,
    stride: usize,
}

impl Reduction {
    /// A sum over so many shards, none of them there.
    pub fn new(n_shards: u32) -> Self {
        Self { sums: (0..n_shards).map(|_| None).collect(), spent: Vec::new() }
    }

    /// Takes a shard's result, and adds what can be added.
    ///
    /// # Panics
    /// If there is no such shard, or it has come before.
    pub fn add(&mut self, shard: u32, result: ShardResult) {
        let mut place = shard as usize;
        assert!(self.sums[place].is_none(), "a shard is added once");
        self.sums[place] = Some(Partial { result, stride: 1 });
        // Ends: the stride doubles, up to the number of shards.
        while let Some(left) = self.add_once(place) {
            place = left;
        }
    }

    /// One step up the tree from a place, if the other half is there; gives where the sum went on.
    fn add_once(&mut self, place: usize) -> Option<usize> {
        let stride = self.sums[place].as_ref()?.stride;
        if stride >= self.sums.len() {
            return None;
        }
        let left = place - place % (2 * stride);
        let right = left + stride;
        if right >= self.sums.len() {
            // Nothing stands there: the sum goes on as it is.
            self.sums[place].as_mut()?.stride *= 2;
            return Some(place);
        }
        let is_there = |place: usize| self.sums[place].as_ref().is_some_and(|partial| partial.stride == stride);
        if !is_there(left) || !is_there(right) {
            return None;
        }
        let other = self.sums[right].take()?.result;
        let sum = self.sums[left].as_mut()?;
        add_into(&mut sum.result.gradient_sum, &other.gradient_sum);
        sum.result.sums.add(other.sums);
        sum.stride *= 2;
        self.spent.push(other.gradient_sum);
        Some(left)
    }

    /// The sum, and the vectors that are free again.
    ///
    /// # Panics
    /// If a shard is missing.
    pub fn finish(mut self) -> (ShardResult, Vec<Vec<f32>>) {
        let n_shards = self.sums.len();
        let root = self.sums[0].take().expect("a step's first shard is there when all are");
        assert!(root.stride >= n_shards, "a sum is used when every shard is in it");
        (root.result, self.spent)
    }
}

#[cfg(test)]
mod tests {
    use engine::reduce::reduce;
    use engine::sums::{Sums, counts};
    use proptest::prelude::*;

    use super::*;

    fn results(n_shards: u8) -> Vec<ShardResult> {
        // Numbers whose sum depends on the order of addition in many ways.
        let number =
            |shard: u8, place: u8| f32::from(shard).mul_add(7.0, place.into()).sin() * 10_f32.powi((shard % 9).into());
        let result = |shard| ShardResult {
            gradient_sum: (0..5).map(|place| number(shard, place)).collect(),
            sums: Sums { loss_sum: f64::from(number(shard, 9)) / 3.0, counts: counts(&[shard.into()]), n_samples: 2 },
        };
        (0..n_shards).map(result).collect()
    }

    proptest! {
        #[test]
        fn reduction_in_any_arrival_order_is_bit_identical(
            order in (1_u8..40).prop_flat_map(|n| Just((0..n).collect::<Vec<_>>()).prop_shuffle()),
        ) {
            let n_shards = u8::try_from(order.len()).expect("below 40");
            let mut expected = results(n_shards);
            let expected = reduce(&mut expected).clone();
            let mut reduction = Reduction::new(n_shards.into());
            for &shard in &order {
                reduction.add(shard.into(), results(n_shards).swap_remove(shard.into()));
            }
            let (sum, spent) = reduction.finish();
            prop_assert_eq!(sum, expected);
            prop_assert_eq!(spent.len(), order.len() - 1);
        }
    }

    #[test]
    #[should_panic(expected = "every shard")]
    fn finish_with_missing_shard_panics() {
        let mut reduction = Reduction::new(3);
        for (shard, result) in (0..2).zip(results(3)) {
            reduction.add(shard, result);
        }
        reduction.finish();
    }
}
