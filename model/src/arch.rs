//! The closed list of networks: the three autoencoders of chapter 17 of Géron's "Hands-On Machine Learning"
//! (2nd edition), each on its own page.

mod conv;
mod denoising;
mod recurrent;

use std::fmt;

use burn::module::Module;
use burn::tensor::Tensor;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub use conv::ConvNetwork;
pub use denoising::DenoisingNetwork;
use engine::backend::{ComputeDevice, Operations};
pub use recurrent::RecurrentNetwork;

use crate::layers::{Initializer, Noise};

/// Rows and columns of an image of the data set.
pub const IMAGE_SIDE: usize = 28;
/// Pixels of an image of the data set: 28 * 28.
pub const N_PIXELS: usize = IMAGE_SIDE * IMAGE_SIDE;

/// Which network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// Convolutions down to 64x3x3 and transposed ones back up.
    Conv,
    /// LSTMs that read an image row by row into 30 values and write it back.
    Recurrent,
    /// Dense layers down to 30 values, trained to undo noise on the input.
    Denoising,
}

impl Architecture {
    /// All of them, in the book's order.
    pub const ALL: [Self; 3] = [Self::Conv, Self::Recurrent, Self::Denoising];

    /// The name as typed and published.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Conv => "conv",
            Self::Recurrent => "recurrent",
            Self::Denoising => "denoising",
        }
    }

    /// What it is made of, in a line.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Conv => "Convolutions down to 64x3x3 and transposed ones back up",
            Self::Recurrent => "LSTMs that read an image row by row into 30 values and write it back",
            Self::Denoising => "Dense layers down to 30 values, trained to undo noise on the input",
        }
    }

    /// What the book does to the input in training.
    pub fn book_noise(self) -> Noise {
        match self {
            Self::Conv | Self::Recurrent => Noise::None,
            Self::Denoising => Noise::Gaussian { deviation: 0.2 },
        }
    }

    /// The book's learning rate.
    pub fn book_learning_rate(self) -> f32 {
        match self {
            Self::Conv | Self::Denoising => 1.0,
            Self::Recurrent => 0.1,
        }
    }

    /// How often the book goes through the training images.
    pub fn book_epochs(self) -> u32 {
        match self {
            Self::Conv => 5,
            Self::Recurrent | Self::Denoising => 10,
        }
    }

    /// Images that go through the network at once where its operations are fused: enough that each layer's work is large
    /// beside its overhead, few enough that what lies between layers stays in the caches. Threads take such parts of a shard
    /// side by side; the number is fixed, so that the bits are the same for any number of threads.
    pub fn part(self) -> usize {
        match self {
            Self::Conv => 16,
            Self::Recurrent => 32,
            Self::Denoising => 128,
        }
    }

    /// The layers in order: name, output shape of one image of 28x28, and the tensors' prefix if it has parameters.
    pub fn layers(self) -> &'static [LayerRow] {
        match self {
            Self::Conv => conv::LAYERS,
            Self::Recurrent => recurrent::LAYERS,
            Self::Denoising => denoising::LAYERS,
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// A line of a network's summary.
#[derive(Clone, Copy, Debug)]
pub struct LayerRow {
    /// What the layer is, as Keras calls it, with its activation.
    pub kind: &'static str,
    /// Shape of its output for one image of 28x28.
    pub output: &'static [usize],
    /// What its tensors' names start with; empty for a layer without parameters.
    pub tensors: &'static str,
}

/// One of the three networks, its parameters on a device.
#[derive(Module, Debug)]
pub enum Network {
    /// See [`ConvNetwork`].
    Conv(ConvNetwork),
    /// See [`RecurrentNetwork`].
    Recurrent(RecurrentNetwork),
    /// See [`DenoisingNetwork`].
    Denoising(DenoisingNetwork),
}

impl Network {
    /// A network with its initial values drawn from the seed.
    pub fn new(architecture: Architecture, seed: u64, device: &ComputeDevice) -> Self {
        let (mut initializer, operations) = (Initializer::new(seed, device), device.operations);
        match architecture {
            Architecture::Conv => Self::Conv(ConvNetwork::new(&mut initializer, operations)),
            Architecture::Recurrent => Self::Recurrent(RecurrentNetwork::new(&mut initializer, operations)),
            Architecture::Denoising => Self::Denoising(DenoisingNetwork::new(&mut initializer, operations)),
        }
    }

    /// Which network it is.
    pub fn architecture(&self) -> Architecture {
        match self {
            Self::Conv(_) => Architecture::Conv,
            Self::Recurrent(_) => Architecture::Recurrent,
            Self::Denoising(_) => Architecture::Denoising,
        }
    }

    /// What it is made of.
    pub fn operations(&self) -> Operations {
        match self {
            Self::Conv(network) => network.operations,
            Self::Recurrent(network) => network.operations,
            Self::Denoising(network) => network.operations,
        }
    }

    /// Images [batch, rows, 28] → reconstructions before the sigmoid, of the same shape. The recurrent network takes
    /// any number of rows, the others 28.
    pub fn logits(&self, images: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Conv(network) => network.logits(images),
            Self::Recurrent(network) => network.logits(images),
            Self::Denoising(network) => network.logits(images),
        }
    }

    /// Images [batch, rows, 28] → codes [batch, code size], each flattened in channel, row, column order.
    pub fn code(&self, images: Tensor<3>) -> Tensor<2> {
        match self {
            Self::Conv(network) => network.code(images),
            Self::Recurrent(network) => network.code(images),
            Self::Denoising(network) => network.code(images),
        }
    }
}
