//! Which samples make up a shard: a pure function of seed, epoch, step and shard, that any machine can work out; and which make up
//! an evaluation batch.

use crate::random::{Stream, below, generator};

/// In which order an epoch goes through the samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they lie in the file.
    AsIs,
    /// Shuffled anew for each epoch.
    Shuffled,
}

/// One epoch's samples, cut into steps, each cut into shards.
#[derive(Clone, Debug)]
pub struct Sampler {
    order: Vec<u32>,
    batch_size: usize,
    n_shards: usize,
}

impl Sampler {
    /// The samples of an epoch, counted from 0. A step takes `batch_size` samples, the last one what is left; a step's
    /// samples go to its shards in order, the sizes of any two differing by at most one.
    ///
    /// # Panics
    /// If there are no samples, the batch is empty, or there are no shards.
    pub fn new(seed: u64, epoch: u32, n_samples: u32, order: Order, batch_size: usize, n_shards: usize) -> Self {
        assert!(n_samples > 0 && batch_size > 0 && n_shards > 0, "an epoch has samples, steps and shards");
        let mut places: Vec<u32> = (0..n_samples).collect();
        if order == Order::Shuffled {
            shuffle(&mut places, seed, epoch);
        }
        Self { order: places, batch_size, n_shards }
    }

    /// Steps of the epoch.
    pub fn n_steps(&self) -> usize {
        self.order.len().div_ceil(self.batch_size)
    }

    /// The samples of a shard of a step, both counted from 0. Empty where a last step has fewer samples than shards.
    ///
    /// # Panics
    /// If the step is not of the epoch, or the shard not of the step.
    pub fn shard(&self, step: usize, shard: usize) -> &[u32] {
        assert!(shard < self.n_shards, "a step has {} shards, number {shard} is not one", self.n_shards);
        let start = step * self.batch_size;
        let end = (start + self.batch_size).min(self.order.len());
        let samples = &self.order[start..end];
        let cut = |position: usize| samples.len() * position / self.n_shards;
        &samples[cut(shard)..cut(shard + 1)]
    }
}

/// Batches in which a split of so many samples is evaluated.
pub fn n_batches(n_samples: u32, batch_size: u32) -> u32 {
    n_samples.div_ceil(batch_size)
}

/// The positions of a batch's samples in the split.
pub fn batch_samples(n_samples: u32, batch_size: u32, batch: u32) -> Vec<u32> {
    let start = batch.saturating_mul(batch_size).min(n_samples);
    (start..start.saturating_add(batch_size).min(n_samples)).collect()
}

/// Fisher and Yates' shuffle.
fn shuffle(places: &mut [u32], seed: u64, epoch: u32) {
    let mut generator = generator(seed, Stream::Order { epoch });
    for n_left in (2..=places.len()).rev() {
        let bound = u32::try_from(n_left).expect("places are counted in u32");
        places.swap(n_left - 1, below(&mut generator, bound) as usize);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn epoch_samples(sampler: &Sampler, n_shards: usize) -> Vec<u32> {
        (0..sampler.n_steps())
            .flat_map(|step| (0..n_shards).flat_map(move |shard| sampler.shard(step, shard).iter().copied()))
            .collect()
    }

    #[test]
    fn book_epoch_has_1719_steps_and_last_batch_of_24() {
        let sampler = Sampler::new(42, 0, 55_000, Order::Shuffled, 32, 4);
        assert_eq!(sampler.n_steps(), 1_719);
        let last: Vec<usize> = (0..4).map(|shard| sampler.shard(1_718, shard).len()).collect();
        assert_eq!(last, [6, 6, 6, 6]);
    }

    #[test]
    fn order_differs_by_epoch_and_seed() {
        let order = |seed, epoch| Sampler::new(seed, epoch, 100, Order::Shuffled, 10, 1).order;
        assert_eq!(order(1, 0), order(1, 0));
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
        assert_eq!(Sampler::new(1, 0, 4, Order::AsIs, 2, 1).order, [0, 1, 2, 3]);
    }

    #[test]
    fn shuffle_puts_each_sample_first_equally_often() {
        let mut counts = [0; 5];
        for epoch in 0..5_000 {
            counts[Sampler::new(3, epoch, 5, Order::Shuffled, 1, 1).order[0] as usize] += 1;
        }
        assert!(counts.iter().all(|count| (900..1_100).contains(count)), "{counts:?}");
    }

    #[test]
    fn batches_cover_every_sample_once_in_order() {
        for n_samples in [0, 1, 499, 500, 501, 5_000, 10_001] {
            let n_batches = n_batches(n_samples, 500);
            let all: Vec<u32> = (0..n_batches).flat_map(|batch| batch_samples(n_samples, 500, batch)).collect();
            assert!(all.iter().copied().eq(0..n_samples), "{n_samples}");
            assert!(batch_samples(n_samples, 500, n_batches).is_empty());
        }
    }

    proptest! {
        #[test]
        fn shards_are_disjoint_and_cover_the_split(
            seed: u64, epoch in 0_u32..3, n_samples in 1_u32..300, batch_size in 1_usize..70, n_shards in 1_usize..12,
        ) {
            let sampler = Sampler::new(seed, epoch, n_samples, Order::Shuffled, batch_size, n_shards);
            let mut samples = epoch_samples(&sampler, n_shards);
            samples.sort_unstable();
            prop_assert_eq!(samples, (0..n_samples).collect::<Vec<_>>());
        }

        #[test]
        fn shards_of_a_step_differ_by_at_most_one_sample(
            n_samples in 1_u32..300, batch_size in 1_usize..70, n_shards in 1_usize..12,
        ) {
            let sampler = Sampler::new(0, 0, n_samples, Order::Shuffled, batch_size, n_shards);
            for step in 0..sampler.n_steps() {
                let sizes: Vec<usize> = (0..n_shards).map(|shard| sampler.shard(step, shard).len()).collect();
                prop_assert!(sizes.iter().max().unwrap_or(&0) - sizes.iter().min().unwrap_or(&0) <= 1);
            }
        }

        #[test]
        fn order_is_independent_of_batch_and_shard_count(n_shards in 1_usize..12, batch_size in 1_usize..70) {
            let whole = Sampler::new(5, 1, 200, Order::Shuffled, 200, 1);
            let cut = Sampler::new(5, 1, 200, Order::Shuffled, batch_size, n_shards);
            prop_assert_eq!(epoch_samples(&whole, 1), epoch_samples(&cut, n_shards));
        }
    }
}
