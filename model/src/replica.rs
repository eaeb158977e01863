//! Parameters, and a network on a device that reads them: what turns a shard into its result.

use std::sync::Arc;

use aligned_vec::{AVec, avec};

use crate::arch::Network;
use crate::backend::ComputeDevice;
use crate::data::{Dataset, Split};
use crate::gradients::{Images, shard_result};
use crate::layers::Noise;
use crate::loss::LossSums;
use crate::params::ParamLayout;
use crate::random::{ShardKey, Stream};
use crate::recipe::Recipe;

/// One worker's copy of the network.
#[derive(Debug)]
pub struct Replica {
    device: ComputeDevice, // with autodiff
    /// In layout order, from the beginning of a cache line on.
    params: Arc<AVec<f32>>,
    /// What the network is made from: its structure, whatever its parameters.
    blank: Network,
    /// Reads the parameters, since they were last changed.
    network: Option<Network>,
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
    /// A replica for the recipe, with parameters of zeros; `device` is without autodiff.
    pub fn new(recipe: &Recipe, device: &ComputeDevice) -> Self {
        let device = device.clone().autodiff();
        let params = Arc::new(avec![0.0; ParamLayout::of(recipe.architecture).n_params()]);
        let blank = Network::new(recipe.architecture, recipe.seed, &device).view(&params, &device);
        // It has views of zeros for its parameters, which no change waits for: the first one takes another vector.
        Self { device, params, blank, network: None, noise: recipe.noise, seed: recipe.seed, prepared: None }
    }

    /// The parameters, in layout order.
    pub fn params(&self) -> &[f32] {
        &self.params
    }

    /// Changes the parameters where they are.
    pub fn change<R>(&mut self, change: impl FnOnce(&mut [f32]) -> R) -> R {
        // The network has them on loan.
        self.network = None;
        let params: &mut AVec<f32> = Arc::make_mut(&mut self.params);
        change(params)
    }

    /// Takes over the parameters, in layout order.
    ///
    /// # Panics
    /// If there are more or fewer than the network has.
    pub fn load(&mut self, params: &[f32]) {
        self.change(|own| own.copy_from_slice(params));
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
        let Self { device, params, blank, network, .. } = self;
        let network = network.get_or_insert_with(|| blank.clone().view(params, device));
        shard_result(network, inputs, targets, gradient_sum, device)
    }
}
