//! The sum over a step's shards: along a fixed binary tree in shard order, so that neither the number of workers nor the
//! order of arrival can change a bit of it.

use pulp::{Arch, Simd};
use pulp_macro::with_simd;

use crate::shard::ShardResult;

/// The additions of the tree over `n_shards`, in an order in which each operand is complete: `left += right`.
///
/// First neighbours, then neighbours of those, and so on; the sum ends in shard 0.
pub fn tree_order(n_shards: usize) -> impl Iterator<Item = TreeNode> {
    let strides = std::iter::successors(Some(1_usize), |stride| stride.checked_mul(2));
    strides.take_while(move |&stride| stride < n_shards).flat_map(move |stride| {
        (0..n_shards - stride).step_by(2 * stride).map(move |left| TreeNode { left, right: left + stride })
    })
}

/// One addition of the tree: the sum kept at shard `right` is added to that kept at shard `left`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeNode {
    /// Where the sum goes on.
    pub left: usize,
    /// Where it ends.
    pub right: usize,
}

/// Adds a vector to another, element by element.
///
/// # Panics
/// If their lengths differ.
pub fn add_into(sum: &mut [f32], other: &[f32]) {
    assert_eq!(sum.len(), other.len(), "gradients of one layout have one length");
    add(sum, other);
}

#[with_simd(add = Arch::new())]
#[inline(always)]
fn add_with_simd<'a, S: Simd>(_simd: S, sum: &'a mut [f32], other: &'a [f32]) {
    for (sum, other) in sum.iter_mut().zip(other) {
        *sum += other;
    }
}

/// Adds all results of a step into the first, along the tree.
///
/// # Panics
/// If there is no result.
pub fn reduce(results: &mut [ShardResult]) -> &mut ShardResult {
    for TreeNode { left, right } in tree_order(results.len()) {
        let (head, tail) = results.split_at_mut(right);
        add_into(&mut head[left].gradient_sum, &tail[0].gradient_sum);
        head[left].sums.add(tail[0].sums);
    }
    results.first_mut().expect("a step has at least one shard")
}

/// Divides a sum over samples by their number, in place: the only division of a step. Whether all that comes out is finite.
///
/// # Panics
/// If there are no samples.
#[expect(clippy::cast_precision_loss, reason = "a global batch is far below 2^24 samples")]
pub fn average(gradient_sum: &mut [f32], n_samples: u64) -> bool {
    assert!(n_samples > 0, "a step has at least one sample");
    if n_samples.is_power_of_two() {
        // The same bits: the reciprocal is exact, and a multiplication takes a quarter of the time.
        scale(gradient_sum, 1.0 / n_samples as f32)
    } else {
        divide(gradient_sum, n_samples as f32)
    }
}

#[with_simd(scale = Arch::new())]
#[inline(always)]
fn scale_with_simd<S: Simd>(_simd: S, values: &mut [f32], factor: f32) -> bool {
    change(values, |value| value * factor)
}

#[with_simd(divide = Arch::new())]
#[inline(always)]
fn divide_with_simd<S: Simd>(_simd: S, values: &mut [f32], divisor: f32) -> bool {
    change(values, |value| value / divisor)
}

/// Changes every value; whether all that comes out is finite.
#[inline(always)]
fn change(values: &mut [f32], to: impl Fn(f32) -> f32) -> bool {
    let mut is_finite = true;
    for value in values {
        *value = to(*value);
        is_finite &= value.is_finite();
    }
    is_finite
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sums::{COUNTS_MAX, Sums};

    fn check(n_shards: usize, expected: &[(usize, usize)]) {
        let found: Vec<_> = tree_order(n_shards).map(|node| (node.left, node.right)).collect();
        assert_eq!(found, expected, "{n_shards} shards");
    }

    #[test]
    fn reduction_tree_pairs_neighbours() {
        check(0, &[]);
        check(1, &[]);
        check(2, &[(0, 1)]);
        check(3, &[(0, 1), (0, 2)]);
        check(4, &[(0, 1), (2, 3), (0, 2)]);
        check(7, &[(0, 1), (2, 3), (4, 5), (0, 2), (4, 6), (0, 4)]);
    }

    #[test]
    fn average_is_exact_division_for_any_sample_count() {
        // From the smallest numbers, which lose bits, up to the largest.
        let values = [1e-45_f32, -3e-44, 1.2e-38, 0.1, -1.0, 3.3, f32::MAX];
        for n_samples in [1, 2, 3, 31, 32, 33, 100, 512, 4096] {
            let mut found: Vec<f32> = values.repeat(9);
            assert!(average(&mut found, n_samples));
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let expected = values.repeat(9).into_iter().map(|value| (value / n_samples as f32).to_bits());
            assert!(found.into_iter().map(f32::to_bits).eq(expected), "{n_samples} samples");
        }
        for place in 0..63 {
            let mut sum = values.repeat(9);
            sum[place] = f32::NAN;
            assert!(![32, 33].map(|n_samples| average(&mut sum.clone(), n_samples)).contains(&true), "{place}");
        }
    }

    #[test]
    fn shards_are_added_once_in_tree_order() {
        // Values whose sum depends on the order of the additions.
        let values = [1e8_f32, 1.0, -1e8, 1.0, 3.0];
        let mut results: Vec<_> = values
            .iter()
            .map(|&value| ShardResult {
                gradient_sum: vec![value],
                sums: Sums { loss_sum: 1.0, counts: [2; COUNTS_MAX], n_samples: 3 },
            })
            .collect();
        let total = reduce(&mut results);
        assert_eq!(total.gradient_sum[0].to_bits(), (((1e8_f32 + 1.0) + (-1e8_f32 + 1.0)) + 3.0).to_bits());
        assert_eq!(total.sums, Sums { loss_sum: 5.0, counts: [10; COUNTS_MAX], n_samples: 15 });
    }
}
