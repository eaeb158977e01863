//! What trained parameters are worth: losses over a split, reconstructions, codes. No noise, no gradients.

use burn::tensor::Device;
use burn::tensor::activation::sigmoid;

use crate::arch::Network;
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
    device: Device,
}

impl Evaluator {
    /// Puts weights on a device.
    pub fn new(weights: &Weights, device: &Device) -> Self {
        let network = Network::new(weights.architecture, 0, device).load(&weights.params, device);
        Self { network, device: device.clone() }
    }

    /// Losses over a whole split.
    pub fn evaluate(&self, data: &Dataset, split: Split) -> LossSums {
        let mut total = LossSums::default();
        for places in batches(data.n_images(split)) {
            total.add(evaluate(&self.network, data.gather(split, &places), &self.device));
        }
        total
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
        batches(data.n_images(split)).flat_map(|places| self.encode(data.gather(split, &places))).collect()
    }
}

/// The places of a split's images, batch by batch.
fn batches(n_images: usize) -> impl Iterator<Item = Vec<u32>> {
    let n_images = u32::try_from(n_images).expect("an IDX file counts images in u32");
    let starts = (0..n_images).step_by(EVALUATION_BATCH as usize);
    starts.map(move |start| (start..n_images.min(start + EVALUATION_BATCH)).collect())
}
