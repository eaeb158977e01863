//! The gradients of Burn's autodiff as one flat vector.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor};

/// Puts gradients where they belong, parameter by parameter in layout order.
///
/// # Panics
/// If the slice's length is not the network's.
pub fn collect_gradients(network: &impl Module, gradients: &mut Gradients, gradient_sum: &mut [f32]) {
    let mut flattener = Flattener { rest: gradient_sum, gradients };
    network.visit(&mut flattener);
    assert!(flattener.rest.is_empty(), "the slice is {} values longer than the network", flattener.rest.len());
}

struct Flattener<'a> {
    rest: &'a mut [f32],
    gradients: &'a mut Gradients,
}

impl ModuleVisitor for Flattener<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let (target, rest) = std::mem::take(&mut self.rest).split_at_mut(param.shape().num_elements());
        self.rest = rest;
        match param.val().grad_remove(self.gradients).map(Tensor::into_data) {
            Some(gradient) => target.copy_from_slice(gradient.as_slice().expect("gradients are f32")),
            // A parameter that takes no part, as the recurrent kernel in a sequence of one step, moves nothing.
            None => target.fill(0.0),
        }
    }
}
