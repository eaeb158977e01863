//! The convolutional autoencoder: 46,529 parameters, 23,296 in the encoder and 23,233 in the decoder.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::module::max_pool2d;
use burn::tensor::ops::MaxPoolOptions;

use super::LayerRow;
use crate::layers::{self, ConvTranspose, Crop, Initializer, selu};

/// Three convolutions with pooling, three transposed convolutions.
#[derive(Module, Debug)]
pub struct Conv {
    encoder: Encoder,
    decoder: Decoder,
}

#[derive(Module, Debug)]
struct Encoder {
    conv1: layers::Conv,
    conv2: layers::Conv,
    conv3: layers::Conv,
}

#[derive(Module, Debug)]
struct Decoder {
    deconv1: ConvTranspose,
    deconv2: ConvTranspose,
    deconv3: ConvTranspose,
}

impl Conv {
    pub(super) fn new(initializer: &mut Initializer) -> Self {
        Self {
            encoder: Encoder {
                conv1: layers::Conv::new(1, 16, initializer),
                conv2: layers::Conv::new(16, 32, initializer),
                conv3: layers::Conv::new(32, 64, initializer),
            },
            decoder: Decoder {
                deconv1: ConvTranspose::new(64, 32, initializer),
                deconv2: ConvTranspose::new(32, 16, initializer),
                deconv3: ConvTranspose::new(16, 1, initializer),
            },
        }
    }

    /// [batch, 28, 28] → [batch, 576].
    pub(super) fn code(&self, images: Tensor<3>) -> Tensor<2> {
        self.encode(images).flatten(1, 3)
    }

    /// [batch, 28, 28] → [batch, 28, 28].
    pub(super) fn logits(&self, images: Tensor<3>) -> Tensor<3> {
        let x = self.encode(images);
        let x = selu(self.decoder.deconv1.forward(x, Crop::Valid)); // [batch, 32, 7, 7]
        let x = selu(self.decoder.deconv2.forward(x, Crop::Same)); // [batch, 16, 14, 14]
        let x = self.decoder.deconv3.forward(x, Crop::Same); // [batch, 1, 28, 28]
        x.squeeze_dim(1)
    }

    fn encode(&self, images: Tensor<3>) -> Tensor<4> {
        let x = images.unsqueeze_dim(1); // [batch, 1, 28, 28]
        // SELU rises, so it may as well come after the pooling: a quarter of the work, and no two values that differ
        // before it can be rounded to a tie by it.
        let x = selu(halve(self.encoder.conv1.forward(x))); // [batch, 16, 14, 14]
        let x = selu(halve(self.encoder.conv2.forward(x))); // [batch, 32, 7, 7]
        selu(halve(self.encoder.conv3.forward(x))) // [batch, 64, 3, 3]
    }
}

/// Max pooling, 2x2: [batch, channels, n, m] → [batch, channels, n / 2, m / 2], an odd last row or column dropped.
fn halve(x: Tensor<4>) -> Tensor<4> {
    max_pool2d(x, MaxPoolOptions::new([2, 2]))
}

pub(super) const LAYERS: &[LayerRow] = &[
    LayerRow { kind: "Conv2D 3x3 same, SELU", output: &[16, 28, 28], tensors: "encoder.conv1" },
    LayerRow { kind: "MaxPool2D 2x2", output: &[16, 14, 14], tensors: "" },
    LayerRow { kind: "Conv2D 3x3 same, SELU", output: &[32, 14, 14], tensors: "encoder.conv2" },
    LayerRow { kind: "MaxPool2D 2x2", output: &[32, 7, 7], tensors: "" },
    LayerRow { kind: "Conv2D 3x3 same, SELU", output: &[64, 7, 7], tensors: "encoder.conv3" },
    LayerRow { kind: "MaxPool2D 2x2", output: &[64, 3, 3], tensors: "" },
    LayerRow { kind: "Conv2DTranspose 3x3 stride 2 valid, SELU", output: &[32, 7, 7], tensors: "decoder.deconv1" },
    LayerRow { kind: "Conv2DTranspose 3x3 stride 2 same, SELU", output: &[16, 14, 14], tensors: "decoder.deconv2" },
    LayerRow { kind: "Conv2DTranspose 3x3 stride 2 same, sigmoid", output: &[1, 28, 28], tensors: "decoder.deconv3" },
];
