//! What a batch of images gives: by Burn's own operations, or by fused ones in parts.

#[cfg(feature = "flex")]
mod parts;

use burn::tensor::{Device, Tensor};
use engine::backend::{ComputeDevice, Operations};
use engine::sums::Sums;
use engine::task::Loss;
use engine::task::gradient_of;

use crate::arch::Network;
use crate::data::Batch;
use crate::images::Images;
use crate::loss::binary_cross_entropy;

/// The loss of a training batch by Burn's own operations. Its gradient at the logits is known in closed form: multiplied with the
/// logits and summed, it is a quantity whose gradient at the parameters is that of the loss, without a tape through the loss itself.
pub(crate) fn plain_loss(network: &Network, batch: Batch, device: &Device) -> Loss {
    let Batch { images, noisy } = batch;
    let inputs = noisy.unwrap_or_else(|| images.clone());
    let logits = network.logits(inputs.into_tensor(device));
    let loss = binary_cross_entropy(logits.clone().inner(), images.into_tensor(&device.clone().inner()));
    let logits_gradient = Tensor::from_inner(loss.logits_gradient);
    Loss::known((logits * logits_gradient).sum(), loss.sums.loss_sum).counts([loss.sums.counts[0]])
}

/// Forward and backward of a training batch that holds at least one image, through a network on an autodiff device. The gradient
/// of the sum of the losses goes to `gradient_sum`, which has the layout's length, whatever it holds.
///
/// # Panics
/// If the slice's length is not the network's.
pub fn shard_result(network: &Network, batch: Batch, gradient_sum: &mut [f32], device: &ComputeDevice) -> Sums {
    match network.operations() {
        #[cfg(feature = "flex")]
        Operations::Fused => {
            let Batch { images, noisy } = batch;
            parts::shard_result(network, noisy.as_ref().unwrap_or(&images), &images, gradient_sum, device)
        }
        Operations::Plain => {
            let n_samples = batch.images.shape[0];
            gradient_of(network, plain_loss(network, batch, device), n_samples, gradient_sum)
        }
    }
}

/// Losses over images without gradients, noise or autodiff.
pub fn evaluate(network: &Network, images: Images, device: &ComputeDevice) -> Sums {
    match network.operations() {
        #[cfg(feature = "flex")]
        Operations::Fused => parts::evaluate(network, &images, device),
        Operations::Plain => {
            let images = images.into_tensor(device);
            binary_cross_entropy(network.logits(images.clone()), images).sums
        }
    }
}
