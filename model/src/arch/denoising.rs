//! The denoising autoencoder: 163,814 parameters. Its noise is put on the input before it comes here, in training only.

use burn::module::Module;
use burn::tensor::Tensor;

use super::{IMAGE_SIDE, LayerRow, N_PIXELS};
use crate::layers::{Dense, Initializer};
use engine::backend::Operations;

/// Dense layers, 784 → 100 → 30 → 100 → 784.
#[derive(Module, Debug)]
pub struct DenoisingNetwork {
    encoder: Encoder,
    decoder: Decoder,
    #[module(skip)]
    pub(super) operations: Operations,
}

#[derive(Module, Debug)]
struct Encoder {
    dense1: Dense,
    dense2: Dense,
}

#[derive(Module, Debug)]
struct Decoder {
    dense1: Dense,
    dense2: Dense,
}

impl DenoisingNetwork {
    pub(super) fn new(initializer: &mut Initializer, operations: Operations) -> Self {
        Self {
            encoder: Encoder {
                dense1: Dense::new(N_PIXELS, 100, initializer),
                dense2: Dense::new(100, 30, initializer),
            },
            decoder: Decoder {
                dense1: Dense::new(30, 100, initializer),
                dense2: Dense::new(100, N_PIXELS, initializer),
            },
            operations,
        }
    }

    /// [batch, 28, 28] → [batch, 30].
    pub(super) fn code(&self, images: Tensor<3>) -> Tensor<2> {
        let x = images.flatten(1, 2); // [batch, 784]
        let x = self.encoder.dense1.selu(x, self.operations); // [batch, 100]
        self.encoder.dense2.selu(x, self.operations)
    }

    /// [batch, 28, 28] → [batch, 28, 28].
    pub(super) fn logits(&self, images: Tensor<3>) -> Tensor<3> {
        let [n_samples, ..] = images.dims();
        let code = self.code(images);
        let x = self.decoder.dense1.selu(code, self.operations); // [batch, 100]
        let x = self.decoder.dense2.forward(x, self.operations); // [batch, 784]
        x.reshape([n_samples, IMAGE_SIDE, IMAGE_SIDE])
    }
}

pub(super) const LAYERS: &[LayerRow] = &[
    LayerRow { kind: "Flatten", output: &[784], tensors: "" },
    LayerRow { kind: "GaussianNoise or Dropout (training only)", output: &[784], tensors: "" },
    LayerRow { kind: "Dense, SELU", output: &[100], tensors: "encoder.dense1" },
    LayerRow { kind: "Dense, SELU", output: &[30], tensors: "encoder.dense2" },
    LayerRow { kind: "Dense, SELU", output: &[100], tensors: "decoder.dense1" },
    LayerRow { kind: "Dense, sigmoid", output: &[784], tensors: "decoder.dense2" },
    LayerRow { kind: "Reshape", output: &[28, 28], tensors: "" },
];
