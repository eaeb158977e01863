//! A shard's result: a pure function of the parameters and the shard's samples.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor};

use crate::random::lock_generator;
use crate::reduce::add_into;
use crate::sums::Sums;
use crate::task::{BatchOf, Context, Loss, Task};

/// What a shard gives: sums over its samples, to be added to those of the step's other shards.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardResult {
    /// Sum over the samples of the gradient of each one's loss, in layout order.
    pub gradient_sum: Vec<f32>,
    /// Losses, counts and samples.
    pub sums: Sums,
}

/// Forward and backward through a network by Burn's autodiff; see [`Task::gradient`].
///
/// # Panics
/// If the slice's length is not the network's.
pub(crate) fn by_autodiff<T: Task>(
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
pub(crate) fn without_gradients<T: Task>(
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

/// Puts gradients where they belong, parameter by parameter in layout order. `is_written` says whether the gradient of the
/// parameter that begins at a position is there already.
///
/// # Panics
/// If the slice's length is not the network's.
pub fn collect_gradients(
    network: &impl Module,
    gradients: &mut Gradients,
    gradient_sum: &mut [f32],
    is_written: impl Fn(usize) -> bool,
) {
    let mut flattener = Flattener { rest: gradient_sum, start: 0, gradients, is_written };
    network.visit(&mut flattener);
    assert!(flattener.rest.is_empty(), "the slice is {} values longer than the network", flattener.rest.len());
}

struct Flattener<'a, W> {
    rest: &'a mut [f32],
    /// Position of the next parameter.
    start: usize,
    gradients: &'a mut Gradients,
    is_written: W,
}

impl<W: Fn(usize) -> bool> ModuleVisitor for Flattener<'_, W> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let (target, rest) = std::mem::take(&mut self.rest).split_at_mut(param.shape().num_elements());
        self.rest = rest;
        let start = self.start;
        self.start += target.len();
        let gradient = param.val().grad_remove(self.gradients).map(Tensor::into_data);
        let gradient = gradient.as_ref().map(|data| data.as_slice().expect("gradients are f32"));
        match (gradient, (self.is_written)(start)) {
            (Some(gradient), false) => target.copy_from_slice(gradient),
            // Of a parameter with several uses, one is there already.
            (Some(gradient), true) => add_into(target, gradient),
            (None, true) => {}
            // A parameter that takes no part, as the recurrent kernel in a sequence of one step, moves nothing.
            (None, false) => target.fill(0.0),
        }
    }
}
