//! What trained weights are used for beside their loss: reconstructions, codes.

use burn::tensor::activation::sigmoid;
use engine::backend::ComputeDevice;
use engine::data::{Dataset, Split};
use engine::params::load;
use engine::sampler::{batch_samples, n_batches};
use engine::weights::Weights;

use crate::arch::{Architecture, Network};
use crate::data::Garments;
use crate::images::Images;

/// Images that go through a network at once.
const BATCH: u32 = 500;

/// A trained network on a device without autodiff.
#[derive(Clone, Debug)]
pub struct Trained {
    network: Network,
    device: ComputeDevice,
}

impl Trained {
    /// Puts weights on a device.
    pub fn new(architecture: Architecture, weights: &Weights, device: &ComputeDevice) -> Self {
        Self::of(&load(Network::new(architecture, 0, device), &weights.params, device), device)
    }

    /// A network that is there already.
    pub fn of(network: &Network, device: &ComputeDevice) -> Self {
        Self { network: network.clone(), device: device.clone() }
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
    ///
    /// # Panics
    /// If there are more images than an IDX file can count.
    pub fn encode_split(&self, data: &Garments, split: Split) -> Vec<f32> {
        self.encode_first(data, split, data.len(split))
    }

    /// The codes of a split's first images, one after the other.
    ///
    /// # Panics
    /// If there are fewer images than `n_images`, or more than an IDX file can count.
    pub fn encode_first(&self, data: &Garments, split: Split, n_images: usize) -> Vec<f32> {
        let n_images = u32::try_from(n_images).expect("an IDX file counts images in u32");
        let batches =
            (0..n_batches(n_images, BATCH)).map(|batch| data.images(split, &batch_samples(n_images, BATCH, batch)));
        batches.flat_map(|images| self.encode(images)).collect()
    }
}
