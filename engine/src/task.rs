//! What is trained: a network, its data set, and the loss between them. [`Task`] is what users implement; the rest of the engine
//! knows only [`AnyTask`], which hides the types.

mod any;
mod autodiff;
mod erased;
mod pictures;
mod registry;

use std::error::Error;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Tensor;
use clap::Args;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use crate::spec::{Defaults, TaskSpec};
pub use any::{AnyTask, Evaluator, OpenTask, Replica};
pub use autodiff::gradient_of;
pub use pictures::{CODE_VALUES_MAX, CODES_MAX, Codes, CodesError, NamedPicture, Picture, PictureError};
pub use registry::{TaskChoice, TaskEntry, TaskError, Tasks};

use crate::backend::ComputeDevice;
use crate::data::{DataFile, DataSource, Dataset, Split};
use crate::exit_codes;
use crate::random::{ShardKey, Stream, generator, seed_device};
use crate::sums::{Metric, Sums, counts};

/// The error of a task: any error whose text says what was expected, what was found, and what to do.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Some samples of a task's data set.
pub type BatchOf<T> = <<T as Task>::Data as Dataset>::Batch;

/// A network, its data set and its loss. The type's fields are the task's settings: its flags on the command line of a
/// coordinator ([`clap::Args`]), and what is stored in checkpoints and sent to workers ([`serde`]).
///
/// Everything that decides the bits has to come from the settings, the data set and the [`Context`]: a shard is computed by any
/// worker, at any time, perhaps twice, and has to give the same bits each time.
pub trait Task: Args + Serialize + DeserializeOwned + Clone + Debug + Send + Sync + 'static {
    /// The name on command lines, in files, and of run folders: lower-case letters, digits and dashes.
    const NAME: &'static str;
    /// What it is, in a few words, for `--help`.
    const ABOUT: &'static str = "";
    /// Figures beside the loss; the first [`Loss::counts`] belong to the figures that have one, in this order.
    const METRICS: &'static [Metric] = &[];
    /// What a sample is called in messages and files, in the plural: `images` gives `images_per_second`.
    const SAMPLES: &'static str = "samples";
    /// Samples that are evaluated at once, above 0.
    const EVALUATION_BATCH: u32 = 500;
    /// What `--data` means, for `--help`.
    const DATA_HELP: &'static str = "Where the data set is";
    /// Names of the files that make up a data set, if workers without a copy may fetch them from the coordinator.
    const FILES: &'static [&'static str] = &[];

    /// The network: any module whose parameters are f32 tensors of any rank. Batch normalisation is refused, since its running
    /// statistics are no function of the parameters.
    type Network: Module + 'static;
    /// The data set.
    type Data: Dataset;

    /// Checks the settings, and fills in what was left out.
    ///
    /// # Errors
    /// If they cannot be followed; the text says what was expected, what was found, and what to write.
    fn checked(self) -> Result<Self, BoxError> {
        Ok(self)
    }

    /// What is trained with if the command line says nothing.
    fn defaults(&self) -> Defaults {
        Defaults::default()
    }

    /// Opens the data set. A coordinator does so once; so does each worker, with its own `--data`, unless [`Task::find`] or the
    /// files of the coordinator give it a copy.
    ///
    /// # Errors
    /// If it is not there, or damaged.
    fn data(&self, source: &DataSource) -> Result<Self::Data, BoxError>;

    /// A worker's own copy of the data set with this fingerprint, if it has one.
    ///
    /// # Errors
    /// As [`Task::data`].
    fn find(&self, source: &DataSource, fingerprint: &str) -> Result<Option<Self::Data>, BoxError> {
        let data = match self.data(source) {
            Ok(data) => data,
            // It can be fetched.
            Err(_) if source.is_auto() && !Self::FILES.is_empty() => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(data).filter(|data| data.fingerprint().as_str() == fingerprint))
    }

    /// The files of a data set, in the order of [`Task::FILES`]. Written into a folder, they have to be what [`Task::data`] opens
    /// there.
    fn files(_data: &Self::Data) -> Vec<DataFile<'_>> {
        Vec::new()
    }

    /// The folder in which this user keeps the files of the data set of this fingerprint, to be shared by all processes of the
    /// machine and kept for the next time, if there is one. Nothing but this crate's programs may write there.
    fn shared_folder(_fingerprint: &str) -> Option<PathBuf> {
        None
    }

    /// What a run that was begun on the data set of this [name](Dataset::name) is resumed on.
    fn resumed_source(&self, source: &DataSource, _data_name: &str) -> DataSource {
        source.clone()
    }

    /// The exit code of a program that cannot open the data set.
    fn exit_code(_error: &(dyn Error + 'static)) -> u8 {
        exit_codes::DATA
    }

    /// The network on a device. The run starts from its initial values on the CPU, with Burn's generator seeded by `seed`; initial
    /// values drawn on another device are replaced, so that nothing but initial values may depend on a draw or the seed.
    fn network(&self, device: &ComputeDevice, seed: u64) -> Self::Network;

    /// Changes a training batch before the network sees it, such as by noise or a crop. Done ahead of time where a worker would wait.
    fn augment(&self, batch: BatchOf<Self>, _context: &Context<'_>) -> BatchOf<Self> {
        batch
    }

    /// The **sum** of the samples' losses, and the task's counts. Called with autodiff in training and without in evaluation,
    /// see [`Context::is_training`]. Never called without samples.
    ///
    /// The parameters move along the gradient of this sum divided by the samples of the whole step, whatever the number of shards.
    fn loss(&self, network: &Self::Network, batch: BatchOf<Self>, context: &Context<'_>) -> Loss;

    /// The sums of a training batch, and the gradient of its loss in layout order into `gradient_sum`, whatever that holds. For
    /// networks with kernels of their own, which draw from [`Context::random`] alone; others leave it to Burn's autodiff.
    fn gradient(
        &self,
        network: &Self::Network,
        batch: BatchOf<Self>,
        context: &Context<'_>,
        gradient_sum: &mut [f32],
    ) -> Sums {
        autodiff::by_autodiff(self, network, batch, context, gradient_sum)
    }

    /// The sums of a batch without gradients. For networks with kernels of their own.
    fn evaluate(&self, network: &Self::Network, batch: BatchOf<Self>, context: &Context<'_>) -> Sums {
        autodiff::without_gradients(self, network, batch, context)
    }

    /// Pictures that show people how far the network is, made after each epoch: up to eight, each of another name. One that cannot
    /// be shown is left out with a warning in the log.
    fn pictures(&self, _network: &Self::Network, _data: &Self::Data, _context: &Context<'_>) -> Vec<Picture> {
        Vec::new()
    }

    /// The codes of some samples, for a task whose network makes any; the coordinator draws them after each epoch. A thousand
    /// validation samples are enough to see how they lie.
    fn codes(&self, _network: &Self::Network, _data: &Self::Data, _context: &Context<'_>) -> Option<Codes> {
        None
    }
}

/// A task on a data set that is open already, without a command line.
///
/// # Errors
/// If the settings cannot be followed, the network cannot be trained, or there is no sample to train on.
pub fn open_with<T: Task>(task: T, data: T::Data) -> Result<Arc<dyn OpenTask>, TaskError> {
    erased::erase(task)?.with_data(data).map_err(|source| TaskError::Data { task: T::NAME, source })
}

/// What a batch gives.
#[derive(Debug)]
pub struct Loss {
    /// A tensor whose gradient at the parameters is that of the loss.
    root: Tensor<1>,
    /// The loss itself.
    sum: f64,
    counts: Vec<u64>,
}

impl Loss {
    /// The sum of the samples' losses.
    pub fn sum(sum: Tensor<1>) -> Self {
        let value = sum.clone().into_data().iter::<f32>().map(f64::from).sum();
        Self { root: sum, sum: value, counts: Vec::new() }
    }

    /// The mean of the losses of so many samples.
    #[expect(clippy::cast_precision_loss, reason = "samples of a batch are far below 2^24")]
    pub fn mean(mean: Tensor<1>, n_samples: usize) -> Self {
        Self::sum(mean.mul_scalar(n_samples as f32))
    }

    /// A loss that is known otherwise, with a tensor that has its gradient.
    pub fn known(root: Tensor<1>, sum: f64) -> Self {
        Self { root, sum, counts: Vec::new() }
    }

    /// With the counts that the task's metrics are made from, at most [`COUNTS_MAX`](crate::sums::COUNTS_MAX).
    #[must_use]
    pub fn counts(self, counts: impl Into<Vec<u64>>) -> Self {
        Self { counts: counts.into(), ..self }
    }

    /// The sums of a batch of so many samples.
    ///
    /// # Panics
    /// If there are more than [`COUNTS_MAX`](crate::sums::COUNTS_MAX) counts.
    pub fn sums(&self, n_samples: usize) -> Sums {
        Sums { loss_sum: self.sum, counts: counts(&self.counts), n_samples: n_samples as u64 }
    }

    pub(crate) fn into_root(self) -> Tensor<1> {
        self.root
    }
}

/// What a batch is computed for, and on what.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    device: &'a ComputeDevice,
    seed: u64,
    key: ShardKey,
    is_training: bool,
    n_samples: usize,
}

impl<'a> Context<'a> {
    /// For a shard in training.
    pub(crate) fn training(device: &'a ComputeDevice, seed: u64, key: ShardKey, n_samples: usize) -> Self {
        Self { device, seed, key, is_training: true, n_samples }
    }

    /// For a batch of a split in an evaluation, which draws the same for any seed of a run.
    pub(crate) fn evaluation(device: &'a ComputeDevice, split: Split, batch: u32, n_samples: usize) -> Self {
        let key = ShardKey { epoch: 0, step: batch.into(), shard: split as u32 };
        Self { device, seed: 0, key, is_training: false, n_samples }
    }

    /// For pictures and codes.
    pub(crate) fn picture(device: &'a ComputeDevice, seed: u64) -> Self {
        Self { seed, ..Self::evaluation(device, Split::Valid, 0, 0) }
    }

    /// Seeds Burn's generator for what layers draw.
    pub(crate) fn seed_layers(&self) {
        let stream = if self.is_training { Stream::Layers(self.key) } else { Stream::Evaluation(self.key) };
        seed_device(self.device, self.seed, stream);
    }

    /// Where tensors have to be.
    pub fn device(&self) -> &'a ComputeDevice {
        self.device
    }

    /// Whether parameters are being trained, rather than evaluated.
    pub fn is_training(&self) -> bool {
        self.is_training
    }

    /// The shard, in training: which epoch, which step, which part of it.
    pub fn key(&self) -> Option<ShardKey> {
        self.is_training.then_some(self.key)
    }

    /// The run's seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Samples of the batch.
    pub fn n_samples(&self) -> usize {
        self.n_samples
    }

    /// Random numbers of this batch: the same each time that it is computed, and others for each shard, step and epoch. Anything
    /// else that is random would give a worker other bits than the one that computes the same shard. Before each [`Task::loss`]
    /// Burn's own generator is seeded as well, so that layers such as `Dropout` may be used.
    pub fn random(&self) -> ChaCha8Rng {
        let stream = if self.is_training { Stream::Shard(self.key) } else { Stream::Evaluation(self.key) };
        generator(self.seed, stream)
    }
}
