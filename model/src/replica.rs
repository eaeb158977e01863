//! A network on a device, whose parameters come from the flat vector before each step: what turns a shard into its result.

use crate::arch::Network;
use crate::backend::ComputeDevice;
use crate::data::{Dataset, Split};
use crate::gradients::shard_result;
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
}

impl Replica {
    /// A replica for the recipe; `device` is without autodiff.
    pub fn new(recipe: &Recipe, device: &ComputeDevice) -> Self {
        let device = device.clone().autodiff();
        let network = Network::new(recipe.architecture, recipe.seed, &device);
        Self { device, network, noise: recipe.noise, seed: recipe.seed }
    }

    /// Takes over the parameters, in layout order.
    pub fn load(&mut self, params: &[f32]) {
        self.network = self.network.clone().load(params, &self.device);
    }

    /// The result of the shard named, whose samples are given by their places in the training split. `gradient_sum` is a
    /// slice of the layout's length to be filled.
    pub fn shard_result(
        &mut self,
        data: &Dataset,
        key: ShardKey,
        samples: &[u32],
        gradient_sum: &mut [f32],
    ) -> LossSums {
        let targets = data.gather(Split::Train, samples);
        let mut inputs = targets.clone();
        self.noise.apply(&mut inputs.values, self.seed, Stream::Noise(key));
        shard_result(&self.network, inputs, targets, gradient_sum, &self.device)
    }
}
