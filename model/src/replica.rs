//! A network on a device, whose parameters come from the flat vector before each step: what turns a shard into its result.

use crate::arch::Network;
use crate::backend::ComputeDevice;
use crate::data::{Dataset, Split};
use crate::gradients::{Images, shard_result};
use crate::layers::Noise;
use crate::loss::LossSums;
use crate::random::{ShardKey, Stream};
use crate::recipe::Recipe;

/// One worker's copy of the network.
#[derive(Debug)]
pub struct Replica {
    device: ComputeDevice, // with autodiff
    network: Network,
    noise: Noise,
    seed: u64,
    prepared: Option<Prepared>,
}

/// The images of a shard as the network takes them.
#[derive(Debug)]
struct Prepared {
    key: ShardKey,
    samples: Vec<u32>,
    inputs: Images,
    targets: Images,
}

impl Replica {
    /// A replica for the recipe; `device` is without autodiff.
    pub fn new(recipe: &Recipe, device: &ComputeDevice) -> Self {
        let device = device.clone().autodiff();
        let network = Network::new(recipe.architecture, recipe.seed, &device);
        Self { device, network, noise: recipe.noise, seed: recipe.seed, prepared: None }
    }

    /// Takes over the parameters, in layout order.
    pub fn load(&mut self, params: &[f32]) {
        self.network = self.network.clone().load(params, &self.device);
    }

    /// Gathers the images of a shard and draws their noise, so that it is done when the shard's turn comes. Of no use, and of
    /// no harm, if another one comes.
    pub fn prepare(&mut self, data: &Dataset, key: ShardKey, samples: &[u32]) {
        self.prepared = Some(self.gathered(data, key, samples));
    }

    fn gathered(&self, data: &Dataset, key: ShardKey, samples: &[u32]) -> Prepared {
        let targets = data.gather(Split::Train, samples);
        let mut inputs = targets.clone();
        self.noise.apply(&mut inputs.values, self.seed, Stream::Noise(key));
        Prepared { key, samples: samples.to_vec(), inputs, targets }
    }

    /// The result of the shard named, whose samples are given by their places in the training split. `gradient_sum` is a
    /// slice of the layout's length to be filled. The data set has to be the same every time.
    pub fn shard_result(
        &mut self,
        data: &Dataset,
        key: ShardKey,
        samples: &[u32],
        gradient_sum: &mut [f32],
    ) -> LossSums {
        let prepared = self.prepared.take().filter(|prepared| prepared.key == key && prepared.samples == samples);
        let Prepared { inputs, targets, .. } = prepared.unwrap_or_else(|| self.gathered(data, key, samples));
        shard_result(&self.network, inputs, targets, gradient_sum, &self.device)
    }
}
