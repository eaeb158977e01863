//! What [`Task::gradient`] and [`Task::evaluate`] do by themselves: the loss, and its gradient by Burn's autodiff.

use burn::module::Module;

use super::{BatchOf, Context, Loss, Task};
use crate::gradients::collect_gradients;
use crate::random::lock_generator;
use crate::sums::Sums;

/// Forward and backward through a network by Burn's autodiff; see [`Task::gradient`].
///
/// # Panics
/// If the slice's length is not the network's.
pub(super) fn by_autodiff<T: Task>(
    task: &T,
    network: &T::Network,
    batch: BatchOf<T>,
    context: &Context<'_>,
    gradient_sum: &mut [f32],
) -> Sums {
    let _alone = lock_generator();
    context.seed_layers();
    let loss = task.loss(network, batch, context);
    gradient_of(network, loss, context.n_samples(), gradient_sum)
}

/// Forward through a network without gradients; see [`Task::evaluate`].
pub(super) fn without_gradients<T: Task>(
    task: &T,
    network: &T::Network,
    batch: BatchOf<T>,
    context: &Context<'_>,
) -> Sums {
    let _alone = lock_generator();
    context.seed_layers();
    task.loss(network, batch, context).sums(context.n_samples())
}

/// Backward from the loss of so many samples; its gradient in layout order goes to `gradient_sum`, whatever that holds.
///
/// # Panics
/// If the slice's length is not the network's.
pub fn gradient_of(network: &impl Module, loss: Loss, n_samples: usize, gradient_sum: &mut [f32]) -> Sums {
    let sums = loss.sums(n_samples);
    let mut gradients = loss.into_root().backward();
    collect_gradients(network, &mut gradients, gradient_sum, |_| false);
    sums
}
