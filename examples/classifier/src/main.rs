//! Trains a classifier of Fashion-MNIST with few labels. Its encoder has the tensors of the `conv` autoencoder's encoder, so that it
//! can start from weights that were trained without labels: `--init-from runs/conv-001/model.safetensors --init-partial`.

mod data;

use std::process::ExitCode;

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::pool::MaxPool2dConfig;
use burn::nn::{Initializer, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::activation::selu;
use burn::tensor::{Int, Tensor, TensorData};
use telar::{
    Batch, BoxError, ComputeDevice, Context, DataFile, DataSource, Defaults, Loss, Metric, RuleName, Task, clap, serde,
};

use data::{FILES, Garments, N_CLASSES, SIDE, Selection};

/// Upper bound of `--labels`: each of the ten classes has more than 5,000 images to draw from.
const LABELS_MAX: u32 = 50_000;
/// Features of an image: 64 channels of 3x3.
const N_FEATURES: usize = 64 * 3 * 3;
/// Normal distribution with variance 1 / inputs. With SELU, activations keep their variance from layer to layer.
const LECUN_NORMAL: Initializer = Initializer::KaimingNormal { gain: 1.0, fan_out_only: false };

fn main() -> ExitCode {
    telar::main(Classifier::default())
}

/// The encoder of the `conv` autoencoder: the same parameter names, shapes and activation.
#[derive(Module, Debug)]
struct Encoder {
    conv1: Conv2d,
    conv2: Conv2d,
    conv3: Conv2d,
}

impl Encoder {
    fn new(device: &ComputeDevice) -> Self {
        Self { conv1: conv(1, 16, device), conv2: conv(16, 32, device), conv3: conv(32, 64, device) }
    }

    /// [images, 1, 28, 28] → [images, 576].
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let pool = MaxPool2dConfig::new([2, 2]).init();
        let x = selu(pool.forward(self.conv1.forward(images))); // [images, 16, 14, 14]
        let x = selu(pool.forward(self.conv2.forward(x))); // [images, 32, 7, 7]
        let x = selu(pool.forward(self.conv3.forward(x))); // [images, 64, 3, 3]
        x.flatten(1, 3)
    }
}

/// A 3x3 convolution with *same* padding.
fn conv(n_in: usize, n_out: usize, device: &ComputeDevice) -> Conv2d {
    let config = Conv2dConfig::new([n_in, n_out], [3, 3]).with_padding(PaddingConfig2d::Same);
    let bias = Some(Initializer::Zeros.init([n_out], device));
    Conv2d { bias, ..config.with_initializer(LECUN_NORMAL).init(device) }
}

/// The encoder, and a linear layer from its features to the classes.
#[derive(Module, Debug)]
struct Network {
    encoder: Encoder,
    head: Linear,
}

/// The settings: flags of the command line, stored in checkpoints and sent to workers.
#[derive(Clone, Debug, Default, clap::Args, serde::Serialize, serde::Deserialize)]
#[serde(crate = "telar::serde", deny_unknown_fields)]
struct Classifier {
    /// Labelled images to train on, the same number of each class
    #[arg(long, default_value_t = 500)]
    labels: u32,
    /// Which labelled images: each number draws others
    #[arg(long, default_value_t = 0)]
    subset: u64,
    /// Labelled images to validate on, at most a twelfth of the training file
    #[arg(long, default_value_t = 5_000)]
    validation: u32,
    /// Train the linear layer only, and keep the encoder's initial weights
    #[arg(long)]
    freeze: bool,
}

impl Task for Classifier {
    const NAME: &'static str = "classifier";
    const ABOUT: &'static str = "Classes of Fashion-MNIST with few labels";
    const METRICS: &'static [Metric] = &[Metric::share_of_samples("accuracy")];
    const SAMPLES: &'static str = "images";
    const DATA_HELP: &'static str = "Folder with the four files of Fashion-MNIST, plain or .gz";
    const FILES: &'static [&'static str] = &FILES;
    type Network = Network;
    type Data = Garments;

    fn checked(self) -> Result<Self, BoxError> {
        match self.labels {
            10..=LABELS_MAX if self.labels.is_multiple_of(10) => Ok(self),
            found => {
                Err(format!("expected --labels as a multiple of 10 from 10 to {LABELS_MAX}, found {found}").into())
            }
        }
    }

    fn defaults(&self) -> Defaults {
        Defaults { epochs: 50, batch_size: 32, optimizer: RuleName::Adam, learning_rate: 0.001, ..Defaults::default() }
    }

    fn data(&self, source: &DataSource) -> Result<Garments, BoxError> {
        let selection =
            Selection { n_labels: self.labels as usize, subset: self.subset, n_valid_max: self.validation as usize };
        Garments::open(source, &selection)
    }

    fn files(data: &Garments) -> Vec<DataFile<'_>> {
        data.files()
    }

    fn network(&self, device: &ComputeDevice, _seed: u64) -> Network {
        let encoder = Encoder::new(device);
        Network {
            encoder: if self.freeze { encoder.no_grad() } else { encoder },
            head: LinearConfig::new(N_FEATURES, N_CLASSES).with_initializer(LECUN_NORMAL).init(device),
        }
    }

    fn loss(&self, network: &Network, batch: Batch<Self>, context: &Context<'_>) -> Loss {
        let (n_images, device) = (context.n_samples(), context.device());
        let images = Tensor::<4>::from_data(TensorData::new(batch.pixels, [n_images, 1, SIDE, SIDE]), device);
        let labels = Tensor::<1, Int>::from_data(TensorData::new(batch.labels, [n_images]), device);
        let logits = network.head.forward(network.encoder.forward(images)); // [images, classes]
        let is_right = logits.clone().argmax(1).reshape([n_images]).equal(labels.clone());
        let n_right: u64 = is_right.int().sum().into_data().iter::<u64>().sum();
        let cross_entropy = CrossEntropyLossConfig::new().init(device).forward(logits, labels);
        Loss::mean(cross_entropy, n_images).counts([n_right])
    }
}
