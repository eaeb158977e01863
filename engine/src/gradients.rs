//! The gradients of Burn's autodiff as one flat vector.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor};

use crate::reduce::add_into;

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
