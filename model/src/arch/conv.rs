//! The convolutional autoencoder: 46,529 parameters, 23,296 in the encoder and 23,233 in the decoder.

use burn::module::Module;
use burn::tensor::Tensor;

use super::LayerRow;
use crate::layers::{self, ConvTranspose, Crop, Initializer, channel_axis};
use engine::backend::Operations;

/// Three convolutions with pooling, three transposed convolutions.
#[derive(Module, Debug)]
pub struct ConvNetwork {
    encoder: Encoder,
    decoder: Decoder,
    #[module(skip)]
    pub(super) operations: Operations,
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

impl ConvNetwork {
    pub(super) fn new(initializer: &mut Initializer, operations: Operations) -> Self {
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
            operations,
        }
    }

    /// [batch, 28, 28] → [batch, 576].
    pub(super) fn code(&self, images: Tensor<3>) -> Tensor<2> {
        let code = self.encode(images);
        match channel_axis(self.operations) {
            1 => code.flatten(1, 3),
            _ => code.permute([0, 3, 1, 2]).flatten(1, 3),
        }
    }

    /// [batch, 28, 28] → [batch, 28, 28].
    pub(super) fn logits(&self, images: Tensor<3>) -> Tensor<3> {
        let x = self.encode(images);
        let x = self.decoder.deconv1.selu(x, Crop::Valid, self.operations); // [batch, 32, 7, 7]
        let x = self.decoder.deconv2.selu(x, Crop::Same, self.operations); // [batch, 16, 14, 14]
        let x = self.decoder.deconv3.forward(x, Crop::Same, self.operations); // [batch, 1, 28, 28]
        x.squeeze_dim(channel_axis(self.operations))
    }

    /// The shapes in the comments are those of the plain operations; [`channel_axis`] says where the channels are.
    fn encode(&self, images: Tensor<3>) -> Tensor<4> {
        let x = images.unsqueeze_dim(channel_axis(self.operations)); // [batch, 1, 28, 28]
        let x = self.encoder.conv1.max_pool_selu(x, self.operations); // [batch, 16, 14, 14]
        let x = self.encoder.conv2.max_pool_selu(x, self.operations); // [batch, 32, 7, 7]
        self.encoder.conv3.max_pool_selu(x, self.operations) // [batch, 64, 3, 3]
    }
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
