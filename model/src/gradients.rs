//! A shard's result: a pure function of the parameters and the shard's images.

use burn::module::{ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor, TensorData};

use crate::arch::Network;
use crate::loss::{LossSums, binary_cross_entropy};

/// Images as the network takes them, values from 0 to 1 if there is no noise on them.
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    /// [samples, rows, columns], the last axis closest together.
    pub values: Vec<f32>,
    /// Samples, rows, columns.
    pub shape: [usize; 3],
}

impl Images {
    /// Puts the images on a device: [samples, rows, columns].
    pub fn into_tensor(self, device: &Device) -> Tensor<3> {
        Tensor::from_data(TensorData::new(self.values, self.shape), device)
    }
}

/// What a shard gives: sums over its samples, to be added to those of the step's other shards.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardResult {
    /// Sum over the samples of the gradient of each one's mean pixel loss, in layout order.
    pub gradient_sum: Vec<f32>,
    /// Losses, correct pixels and samples.
    pub sums: LossSums,
}

/// Forward and backward through the network, whose parameters are on an autodiff device.
///
/// `inputs` are the images with their noise, `targets` those without. The gradient's sum goes to `gradient_sum`, which has
/// the layout's length, whatever it holds: a worker has it point into the message. A shard without samples, as the last
/// step of an epoch may have, gives zeros.
///
/// # Panics
/// If inputs and targets differ in shape, or the slice's length is not the network's.
pub fn shard_result(
    network: &Network,
    inputs: Images,
    targets: Images,
    gradient_sum: &mut [f32],
    device: &Device,
) -> LossSums {
    assert_eq!(inputs.shape, targets.shape, "every input has its target");
    if inputs.shape[0] == 0 {
        gradient_sum.fill(0.0);
        return LossSums::default();
    }
    let logits = network.logits(inputs.into_tensor(device));
    let loss = binary_cross_entropy(logits.clone().inner(), targets.into_tensor(&device.clone().inner()));

    // The gradient at the logits is known in closed form. Multiplied with the logits and summed, it is a quantity
    // whose gradient at the parameters is that of the loss, without a tape through the loss itself.
    let logits_gradient = Tensor::from_inner(loss.logits_gradient);
    let mut gradients = (logits * logits_gradient).sum().backward();
    let mut flattener = Flattener { rest: gradient_sum, gradients: &mut gradients };
    network.visit(&mut flattener);
    assert!(flattener.rest.is_empty(), "the slice is {} values longer than the network", flattener.rest.len());
    loss.sums
}

/// Losses over images without gradients, noise or autodiff.
pub fn evaluate(network: &Network, images: Images, device: &Device) -> LossSums {
    let images = images.into_tensor(device);
    binary_cross_entropy(network.logits(images.clone()), images).sums
}

struct Flattener<'a> {
    rest: &'a mut [f32],
    gradients: &'a mut Gradients,
}

impl ModuleVisitor for Flattener<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let (place, rest) = std::mem::take(&mut self.rest).split_at_mut(param.shape().num_elements());
        self.rest = rest;
        // A parameter that takes no part, as the recurrent kernel in a sequence of one step, moves nothing.
        let Some(gradient) = param.val().grad_remove(self.gradients) else { return place.fill(0.0) };
        let data = gradient.into_data();
        place.copy_from_slice(data.as_slice().expect("gradients are f32"));
    }
}
