//! A fully connected layer, with SELU and without.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, module::linear};

#[cfg(feature = "flex")]
use super::fused;
use super::{Initializer, selu};
use engine::backend::Operations;

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

    /// [batch, in] → [batch, out].
    pub fn forward(&self, x: Tensor<2>, operations: Operations) -> Tensor<2> {
        match operations {
            #[cfg(feature = "flex")]
            Operations::Fused => fused::dense(x, self.weight.val(), self.bias.val(), fused::Activation::None),
            Operations::Plain => self.plain(x),
        }
    }

    /// The same with SELU after it.
    pub fn selu(&self, x: Tensor<2>, operations: Operations) -> Tensor<2> {
        match operations {
            #[cfg(feature = "flex")]
            Operations::Fused => fused::dense(x, self.weight.val(), self.bias.val(), fused::Activation::Selu),
            Operations::Plain => selu(self.plain(x)),
        }
    }

    /// [.., in] → [.., out].
    pub fn plain<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        linear(x, self.weight.val().transpose(), Some(self.bias.val()))
    }
}
