//! What trained parameters are worth: losses over a split, reconstructions, codes. No noise, no gradients.

use burn::tensor::activation::sigmoid;

use crate::arch::Network;
use crate::backend::ComputeDevice;
use crate::data::{Dataset, Split};
use crate::gradients::{Images, evaluate};
use crate::loss::LossSums;
use crate::weights::Weights;

/// Images that go through a network at once: fixed, so that losses are added in the same order everywhere.
pub const EVALUATION_BATCH: u32 = 500;

/// A trained network on a device without autodiff.
#[derive(Debug)]
pub struct Evaluator {
    network: Network,
    device: ComputeDevice,
}

impl Evaluator {
    /// Puts weights on a device.
    pub fn new(weights: &Weights, device: &ComputeDevice) -> Self {
        let network = Network::new(weights.architecture, 0, device).load(&weights.params, device);
        Self { network, device: device.clone() }
    }

    /// Losses over a whole split.
    pub fn evaluate(&self, data: &Dataset, split: Split) -> LossSums {
        let mut total = LossSums::default();
        for batch in 0..n_batches(data.n_images(split)) {
            total.add(self.evaluate_batch(data, split, batch));
        }
        total
    }

    /// Losses over one batch of a split, counted from 0 in file order. Those of all batches, added in this order, are
    /// [`Evaluator::evaluate`] in every bit, whoever computes which.
    ///
    /// # Panics
    /// If the batch is not below [`n_batches`].
    pub fn evaluate_batch(&self, data: &Dataset, split: Split, batch: u32) -> LossSums {
        let places = places(data.n_images(split), batch);
        assert!(!places.is_empty(), "a split has as many batches as `n_batches` says");
        evaluate(&self.network, data.gather(split, &places), &self.device)
    }

    /// The network's outputs, after the sigmoid: as many values as the images have.
    pub fn reconstruct(&self, images: Images) -> Vec<f32> {
        let outputs = sigmoid(self.network.logits(images.into_tensor(&self.device)));
        outputs.into_data().try_into_vec().expect("outputs are f32")
    }

    /// The codes of images, one after the other.
    pub fn encode(&self, images: Images) -> Vec<f32> {
        let codes = self.network.code(images.into_tensor(&self.device)); // [batch, code]
        codes.into_data().try_into_vec().expect("codes are f32")
    }

    /// The codes of a split, one after the other.
    pub fn encode_split(&self, data: &Dataset, split: Split) -> Vec<f32> {
        let n_images = data.n_images(split);
        let batches = (0..n_batches(n_images)).map(|batch| data.gather(split, &places(n_images, batch)));
        batches.flat_map(|images| self.encode(images)).collect()
    }
}

/// Batches in which a split of so many images is evaluated.
///
/// # Panics
/// If there are more images than an IDX file can count.
pub fn n_batches(n_images: usize) -> u32 {
    u32::try_from(n_images).expect("an IDX file counts images in u32").div_ceil(EVALUATION_BATCH)
}

/// The places of a batch's images in the split.
fn places(n_images: usize, batch: u32) -> Vec<u32> {
    let n_images = u32::try_from(n_images).expect("an IDX file counts images in u32");
    let start = u64::from(batch) * u64::from(EVALUATION_BATCH);
    let end = (start + u64::from(EVALUATION_BATCH)).min(n_images.into());
    (start..end).map(|place| u32::try_from(place).expect("below the count of images")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_image_once_and_in_order() {
        for n_images in [0, 1, 499, 500, 501, 5_000, 10_001] {
            let all: Vec<u32> = (0..n_batches(n_images)).flat_map(|batch| places(n_images, batch)).collect();
            assert!(all.iter().copied().eq((0..).take(n_images)), "{n_images}");
            assert!(places(n_images, n_batches(n_images)).is_empty());
        }
    }
}
