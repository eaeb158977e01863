//! A fully connected layer.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, module::linear};

use super::Initializer;

/// `y = x Wᵀ + b`.
#[derive(Module, Debug)]
pub struct Dense {
    weight: Param<Tensor<2>>, // [out, in]
    bias: Param<Tensor<1>>,   // [out]
}

impl Dense {
    /// A layer from `n_in` to `n_out` values: kernel Glorot-uniform, bias 0.
    pub fn new(n_in: usize, n_out: usize, initializer: &mut Initializer) -> Self {
        Self { weight: initializer.glorot_uniform([n_out, n_in]), bias: initializer.zeros([n_out]) }
    }

    /// [.., in] → [.., out].
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        linear(x, self.weight.val().transpose(), Some(self.bias.val()))
    }
}
