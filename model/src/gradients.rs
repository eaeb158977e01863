//! A shard's result: a pure function of the parameters and the shard's images.

#[cfg(feature = "flex")]
mod parts;

use burn::module::{ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor, TensorData};

use crate::arch::Network;
use crate::backend::{ComputeDevice, Operations};
use crate::loss::{LossSums, binary_cross_entropy};
use crate::reduce::add_into;

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
    device: &ComputeDevice,
) -> LossSums {
    assert_eq!(inputs.shape, targets.shape, "every input has its target");
    if inputs.shape[0] == 0 {
        gradient_sum.fill(0.0);
        return LossSums::default();
    }
    match network.operations() {
        #[cfg(feature = "flex")]
        Operations::Fused => parts::shard_result(network, inputs, targets, gradient_sum, device),
        Operations::Plain => plain_result(network, inputs, targets, gradient_sum, device),
    }
}

fn plain_result(
    network: &Network,
    inputs: Images,
    targets: Images,
    gradient_sum: &mut [f32],
    device: &Device,
) -> LossSums {
    let logits = network.logits(inputs.into_tensor(device));
    let loss = binary_cross_entropy(logits.clone().inner(), targets.into_tensor(&device.clone().inner()));

    // The gradient at the logits is known in closed form. Multiplied with the logits and summed, it is a quantity
    // whose gradient at the parameters is that of the loss, without a tape through the loss itself.
    let logits_gradient = Tensor::from_inner(loss.logits_gradient);
    let mut gradients = (logits * logits_gradient).sum().backward();
    Flattener::collect(network, &mut gradients, gradient_sum, |_| false);
    loss.sums
}

/// Losses over images without gradients, noise or autodiff.
pub fn evaluate(network: &Network, images: Images, device: &ComputeDevice) -> LossSums {
    match network.operations() {
        #[cfg(feature = "flex")]
        Operations::Fused => parts::evaluate(network, images, device),
        Operations::Plain => {
            let images = images.into_tensor(device);
            binary_cross_entropy(network.logits(images.clone()), images).sums
        }
    }
}

/// Puts gradients where they belong, parameter by parameter in layout order.
struct Flattener<'a, W> {
    rest: &'a mut [f32],
    /// Place of the next parameter.
    start: usize,
    gradients: &'a mut Gradients,
    /// Whether the gradient of the parameter that begins at a place is there already.
    is_written: W,
}

impl<'a, W: Fn(usize) -> bool> Flattener<'a, W> {
    fn collect(network: &Network, gradients: &'a mut Gradients, gradient_sum: &'a mut [f32], is_written: W) {
        let mut flattener = Self { rest: gradient_sum, start: 0, gradients, is_written };
        network.visit(&mut flattener);
        assert!(flattener.rest.is_empty(), "the slice is {} values longer than the network", flattener.rest.len());
    }
}

impl<W: Fn(usize) -> bool> ModuleVisitor for Flattener<'_, W> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let (place, rest) = std::mem::take(&mut self.rest).split_at_mut(param.shape().num_elements());
        self.rest = rest;
        let start = self.start;
        self.start += place.len();
        let gradient = param.val().grad_remove(self.gradients).map(Tensor::into_data);
        let gradient = gradient.as_ref().map(|data| data.as_slice().expect("gradients are f32"));
        match (gradient, (self.is_written)(start)) {
            (Some(gradient), false) => place.copy_from_slice(gradient),
            // Of a parameter with several uses, one is there already.
            (Some(gradient), true) => add_into(place, gradient),
            (None, true) => {}
            // A parameter that takes no part, as the recurrent kernel in a sequence of one step, moves nothing.
            (None, false) => place.fill(0.0),
        }
    }
}
