//! Random streams as pure functions of what they are for: every draw in training is keyed by the run's seed and by
//! its place (which tensor, which epoch, which shard of which step), never taken from a generator that others share.
//! So the same shard gets the same noise on any worker, in any order, as often as it is computed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::Device;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a stream of random numbers is for. Two different values give independent streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Initial values of the parameter tensor number `tensor`, in layout order.
    InitialValues {
        /// Position in layout order.
        tensor: u32,
    },
    /// The order of the training images in one epoch.
    Order {
        /// Epoch, counted from 0.
        epoch: u32,
    },
    /// What the task draws for one shard of one step, such as noise on the input.
    Shard(ShardKey),
    /// Noise on inputs that are only looked at: pictures.
    Picture,
    /// What layers draw in one shard of one step, from Burn's own generator.
    Layers(ShardKey),
    /// What is drawn in one batch of an evaluation: the step is the batch, the shard the split.
    Evaluation(ShardKey),
    /// Initial values that layers draw from Burn's own generator.
    Network,
}

/// Names one shard of one step of a run; with the seed, all that its samples and its noise depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShardKey {
    /// Epoch, counted from 0.
    pub epoch: u32,
    /// Step of the whole run, counted from 0: the number of updates applied before it.
    pub step: u64,
    /// Position of the shard in its step, counted from 0.
    pub shard: u32,
}

/// The generator of one stream of a run.
pub fn generator(seed: u64, stream: Stream) -> ChaCha8Rng {
    let (tag, epoch, step, place): (u32, u32, u64, u32) = match stream {
        Stream::InitialValues { tensor } => (1, 0, 0, tensor),
        Stream::Order { epoch } => (2, epoch, 0, 0),
        Stream::Shard(key) => (3, key.epoch, key.step, key.shard),
        Stream::Picture => (4, 0, 0, 0),
        Stream::Layers(key) => (5, key.epoch, key.step, key.shard),
        Stream::Network => (6, 0, 0, 0),
        Stream::Evaluation(key) => (7, key.epoch, key.step, key.shard),
    };
    let mut key = [0_u8; 32]; // 8 seed + 4 tag + 4 epoch + 8 step + 4 place + 4 zero
    key[0..8].copy_from_slice(&seed.to_le_bytes());
    key[8..12].copy_from_slice(&tag.to_le_bytes());
    key[12..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..24].copy_from_slice(&step.to_le_bytes());
    key[24..28].copy_from_slice(&place.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// Exclusive use of Burn's generator: a backend has one for the whole process.
pub fn lock_generator() -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seeds Burn's generator of a device with the first number of a stream. The backends have one for the whole process.
pub fn seed_device(device: &Device, seed: u64, stream: Stream) {
    device.seed(generator(seed, stream).next_u64());
}

/// A number drawn uniformly from [0, 1), a multiple of 2⁻²⁴, so that every value is exact in f32.
pub fn unit_f32(generator: &mut impl Rng) -> f32 {
    const STEP: f32 = 1.0 / 16_777_216.0; // 2^-24
    #[expect(clippy::cast_precision_loss, reason = "24 bits fit f32 exactly")]
    let bits = (generator.next_u32() >> 8) as f32;
    bits * STEP
}

/// A number drawn uniformly from 0..bound, without bias (Lemire, "Fast Random Integer Generation in an Interval", 2019).
pub fn below(generator: &mut impl Rng, bound: u32) -> u32 {
    assert!(bound > 0, "a range to draw from holds at least one number");
    let threshold = bound.wrapping_neg() % bound;
    loop {
        // Ends with probability above one half in each turn.
        let product = u64::from(generator.next_u32()) * u64::from(bound);
        let [low, high] = [product & 0xFFFF_FFFF, product >> 32].map(|half| u32::try_from(half).unwrap_or(u32::MAX));
        if low >= threshold {
            return high;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_draws(seed: u64, stream: Stream) -> [u32; 4] {
        let mut generator = generator(seed, stream);
        std::array::from_fn(|_| generator.next_u32())
    }

    #[test]
    fn stream_depends_on_every_key_part() {
        let key = ShardKey { epoch: 1, step: 2, shard: 3 };
        let streams = [
            Stream::InitialValues { tensor: 3 },
            Stream::Order { epoch: 1 },
            Stream::Picture,
            Stream::Network,
            Stream::Layers(key),
            Stream::Evaluation(key),
            Stream::Shard(key),
            Stream::Shard(ShardKey { epoch: 2, ..key }),
            Stream::Shard(ShardKey { step: 3, ..key }),
            Stream::Shard(ShardKey { shard: 2, ..key }),
        ];
        let mut seen: Vec<[u32; 4]> = streams.iter().map(|&stream| first_draws(7, stream)).collect();
        seen.push(first_draws(8, Stream::Shard(key)));
        assert_eq!(first_draws(7, Stream::Shard(key)), seen[6]);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), streams.len() + 1);
    }

    #[test]
    fn bounded_numbers_cover_range_evenly() {
        let mut generator = generator(1, Stream::Picture);
        let mut counts = [0_u32; 7];
        for _ in 0..7_000 {
            counts[below(&mut generator, 7) as usize] += 1;
        }
        assert!(counts.iter().all(|&count| (850..1_150).contains(&count)), "{counts:?}");
    }
}
