//! The recurrent autoencoder: 122,548 parameters. It reads an image row by row and takes any number of rows.

use burn::module::Module;
use burn::tensor::Tensor;

use super::{IMAGE_SIDE, LayerRow};
#[cfg(feature = "flex")]
use crate::layers::fused::LstmMode;
use crate::layers::{Dense, Initializer, Lstm, Sequence};
use engine::backend::Operations;

/// Values of a code.
const N_CODE: usize = 30;
/// Values of the other layers' outputs.
const N_HIDDEN: usize = 100;

/// Two LSTMs that read, one that writes.
#[derive(Module, Debug)]
pub struct RecurrentNetwork {
    encoder: Encoder,
    decoder: Decoder,
    #[module(skip)]
    pub(super) operations: Operations,
}

#[derive(Module, Debug)]
struct Encoder {
    lstm1: Lstm,
    lstm2: Lstm,
}

#[derive(Module, Debug)]
struct Decoder {
    lstm1: Lstm,
    dense: Dense,
}

impl RecurrentNetwork {
    pub(super) fn new(initializer: &mut Initializer, operations: Operations) -> Self {
        Self {
            encoder: Encoder {
                lstm1: Lstm::new(IMAGE_SIDE, N_HIDDEN, initializer),
                lstm2: Lstm::new(N_HIDDEN, N_CODE, initializer),
            },
            decoder: Decoder {
                lstm1: Lstm::new(N_CODE, N_HIDDEN, initializer),
                dense: Dense::new(N_HIDDEN, IMAGE_SIDE, initializer),
            },
            operations,
        }
    }

    /// [batch, rows, 28] → [batch, 30]: what the second LSTM says after the last row.
    pub(super) fn code(&self, images: Tensor<3>) -> Tensor<2> {
        let [_, n_rows, _] = images.dims();
        assert!(n_rows > 0, "a sequence has at least one row");
        match self.operations {
            #[cfg(feature = "flex")]
            Operations::Fused => self.fused_code(images).squeeze_dim::<2>(0),
            Operations::Plain => self.plain_code(images),
        }
    }

    /// [batch, rows, 28] → [batch, rows, 28].
    pub(super) fn logits(&self, images: Tensor<3>) -> Tensor<3> {
        let [n_samples, n_rows, _] = images.dims();
        assert!(n_rows > 0, "a sequence has at least one row");
        match self.operations {
            #[cfg(feature = "flex")]
            Operations::Fused => {
                let code = self.fused_code(images); // [1, batch, 30]
                let hidden = self.decoder.lstm1.fused(code, LstmMode::RepeatInput(n_rows)); // [rows, batch, 100]
                let hidden = hidden.reshape([n_rows * n_samples, N_HIDDEN]);
                let rows = self.decoder.dense.forward(hidden, self.operations); // [rows * batch, 28]
                rows.reshape([n_rows, n_samples, IMAGE_SIDE]).permute([1, 0, 2])
            }
            Operations::Plain => {
                let code = self.plain_code(images);
                let hidden = self.decoder.lstm1.forward_repeated(code, n_rows); // rows x [batch, 100]
                let hidden: Tensor<3> = Tensor::stack(hidden, 1); // [batch, rows, 100]
                self.decoder.dense.plain(hidden)
            }
        }
    }

    /// [batch, rows, 28] → [1, batch, 30].
    #[cfg(feature = "flex")]
    fn fused_code(&self, images: Tensor<3>) -> Tensor<3> {
        let hidden = self.encoder.lstm1.fused(images.permute([1, 0, 2]), LstmMode::Sequence); // [rows, batch, 100]
        self.encoder.lstm2.fused(hidden, LstmMode::Last)
    }

    /// [batch, rows, 28] → [batch, 30].
    fn plain_code(&self, images: Tensor<3>) -> Tensor<2> {
        let [n_samples, n_rows, _] = images.dims();
        let rows: Sequence = (0..n_rows)
            .map(|row| images.clone().narrow(1, row, 1).reshape([n_samples, IMAGE_SIDE])) // [batch, 28]
            .collect();
        let hidden = self.encoder.lstm1.forward(&rows); // rows x [batch, 100]
        let mut codes = self.encoder.lstm2.forward(&hidden); // rows x [batch, 30]
        codes.pop().expect("one output for each row, and there is a row")
    }
}

pub(super) const LAYERS: &[LayerRow] = &[
    LayerRow { kind: "LSTM", output: &[28, 100], tensors: "encoder.lstm1" },
    LayerRow { kind: "LSTM, last output", output: &[30], tensors: "encoder.lstm2" },
    LayerRow { kind: "RepeatVector", output: &[28, 30], tensors: "" },
    LayerRow { kind: "LSTM", output: &[28, 100], tensors: "decoder.lstm1" },
    LayerRow { kind: "TimeDistributed Dense, sigmoid", output: &[28, 28], tensors: "decoder.dense" },
];
