//! Convolutions with a 3x3 kernel: the plain one that keeps the size, and the transposed one that doubles it.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::module::{conv_transpose2d, conv2d, max_pool2d};
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions, MaxPoolOptions};

#[cfg(feature = "flex")]
use super::fused;
use super::{Crop, Initializer, selu};
use engine::backend::Operations;

const KERNEL: usize = 3;

/// Where the channels are in the images that layers of such operations take and give: [batch, channels, height, width], or
/// last if they are fused.
pub fn channel_axis(operations: Operations) -> usize {
    match operations {
        #[cfg(feature = "flex")]
        Operations::Fused => 3,
        Operations::Plain => 1,
    }
}

/// A 3x3 convolution, stride 1, *same* padding.
#[derive(Module, Debug)]
pub struct Conv {
    weight: Param<Tensor<4>>, // [out, in, 3, 3]
    bias: Param<Tensor<1>>,   // [out]
}

impl Conv {
    /// A layer from `n_in` to `n_out` channels: kernel Glorot-uniform, bias 0.
    pub fn new(n_in: usize, n_out: usize, initializer: &mut Initializer) -> Self {
        Self { weight: initializer.glorot_uniform([n_out, n_in, KERNEL, KERNEL]), bias: initializer.zeros([n_out]) }
    }

    /// With 2x2 max pooling and SELU after it: [batch, in, height, width] → [batch, out, height / 2, width / 2], an odd last
    /// row or column dropped.
    pub fn max_pool_selu(&self, x: Tensor<4>, operations: Operations) -> Tensor<4> {
        match operations {
            #[cfg(feature = "flex")]
            Operations::Fused => fused::conv_pooled(x, self.weight.val(), self.bias.val()),
            // SELU rises, so it may as well come after the pooling: a quarter of the work, and no two values that differ
            // before it can be rounded to a tie by it.
            Operations::Plain => selu(max_pool2d(self.plain(x), MaxPoolOptions::new([2, 2]))),
        }
    }

    /// [batch, in, height, width] → [batch, out, height, width].
    pub fn plain(&self, x: Tensor<4>) -> Tensor<4> {
        let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1); // stride, padding, dilation, groups
        conv2d(x, self.weight.val(), Some(self.bias.val()), options)
    }
}

/// A 3x3 transposed convolution, stride 2.
#[derive(Module, Debug)]
pub struct ConvTranspose {
    weight: Param<Tensor<4>>, // [in, out, 3, 3]
    bias: Param<Tensor<1>>,   // [out]
}

impl ConvTranspose {
    /// A layer from `n_in` to `n_out` channels: kernel Glorot-uniform, bias 0.
    pub fn new(n_in: usize, n_out: usize, initializer: &mut Initializer) -> Self {
        Self { weight: initializer.glorot_uniform([n_in, n_out, KERNEL, KERNEL]), bias: initializer.zeros([n_out]) }
    }

    /// [batch, in, n, m] → [batch, out, 2n, 2m], or one row and column more for [`Crop::Valid`].
    pub fn forward(&self, x: Tensor<4>, crop: Crop, operations: Operations) -> Tensor<4> {
        match operations {
            #[cfg(feature = "flex")]
            Operations::Fused => {
                fused::conv_transposed(x, self.weight.val(), self.bias.val(), crop, fused::Activation::None)
            }
            Operations::Plain => self.plain(x, crop),
        }
    }

    /// The same with SELU after it.
    pub fn selu(&self, x: Tensor<4>, crop: Crop, operations: Operations) -> Tensor<4> {
        match operations {
            #[cfg(feature = "flex")]
            Operations::Fused => {
                fused::conv_transposed(x, self.weight.val(), self.bias.val(), crop, fused::Activation::Selu)
            }
            Operations::Plain => selu(self.plain(x, crop)),
        }
    }

    /// [batch, in, n, m] → [batch, out, 2n, 2m], or one row and column more for [`Crop::Valid`].
    pub fn plain(&self, x: Tensor<4>, crop: Crop) -> Tensor<4> {
        let [_, _, height, width] = x.dims();
        // stride, padding, output padding, dilation, groups
        let options = ConvTransposeOptions::new([2, 2], [0, 0], [0, 0], [1, 1], 1);
        let full = conv_transpose2d(x, self.weight.val(), Some(self.bias.val()), options); // [batch, out, 2n+1, 2m+1]
        match crop {
            Crop::Valid => full,
            Crop::Same => full.narrow(2, 0, 2 * height).narrow(3, 0, 2 * width),
        }
    }
}
