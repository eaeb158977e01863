//! A task without its types, as all of the engine but the task itself sees it.

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Codes, NamedPicture};
use crate::backend::ComputeDevice;
use crate::data::{DataError, DataFile, DataSource, Split};
use crate::params::LayoutError;
use crate::random::ShardKey;
use crate::spec::TaskSpec;
use crate::sums::Sums;

/// A task.
pub trait AnyTask: Debug + Send + Sync {
    /// What it is.
    fn spec(&self) -> &TaskSpec;

    /// The parameters that training starts from, in layout order.
    ///
    /// # Errors
    /// If they are not f32.
    fn initial_params(&self, seed: u64) -> Result<Vec<f32>, LayoutError>;

    /// Opens its data set.
    ///
    /// # Errors
    /// If that is not there, damaged, or has no sample to train on.
    fn open(&self, source: &DataSource) -> Result<Arc<dyn OpenTask>, DataError>;

    /// Opens the data set of this fingerprint, if this machine has it.
    ///
    /// # Errors
    /// As [`AnyTask::open`].
    fn find(&self, source: &DataSource, fingerprint: &str) -> Result<Option<Arc<dyn OpenTask>>, DataError>;

    /// See [`Task::resumed_source`](super::Task::resumed_source).
    fn resumed_source(&self, source: &DataSource, data_name: &str) -> DataSource;

    /// See [`Task::FILES`](super::Task::FILES).
    fn file_names(&self) -> &'static [&'static str];

    /// See [`Task::shared_folder`](super::Task::shared_folder).
    fn shared_folder(&self, fingerprint: &str) -> Option<PathBuf>;
}

/// A task with its data set.
pub trait OpenTask: Debug + Send + Sync {
    /// What it is.
    fn spec(&self) -> &TaskSpec;

    /// What its data set is and where it came from, for people.
    fn data_name(&self) -> &str;

    /// The fingerprint of its data set.
    fn fingerprint(&self) -> &str;

    /// Samples of a split.
    fn n_samples(&self, split: Split) -> u32;

    /// The files of its data set, if it can be fetched.
    fn files(&self) -> Vec<DataFile<'_>>;

    /// A replica with parameters of zeros; `device` is without autodiff.
    fn replica(self: Arc<Self>, seed: u64, device: &ComputeDevice) -> Box<dyn Replica>;

    /// A network with these parameters, for evaluation; `device` is without autodiff.
    fn evaluator(self: Arc<Self>, params: &[f32], device: &ComputeDevice) -> Box<dyn Evaluator>;
}

/// Parameters, and a network on a device that reads them: what turns a shard into its result.
pub trait Replica: Debug + Send {
    /// The parameters, in layout order.
    fn params(&self) -> &[f32];

    /// The parameters, to be changed where they are.
    fn params_mut(&mut self) -> &mut [f32];

    /// Gathers the samples of a shard and augments them, so that it is done when the shard's turn comes. Of no use, and of no
    /// harm, if another one comes.
    fn prepare(&mut self, key: ShardKey, samples: &[u32]);

    /// The result of the shard named, whose samples are given by their positions in the training split. `gradient_sum` is a slice
    /// of the layout's length to be filled. A shard without samples, as the last step of an epoch may have, gives zeros.
    fn shard_result(&mut self, key: ShardKey, samples: &[u32], gradient_sum: &mut [f32]) -> Sums;
}

/// Trained parameters in use.
pub trait Evaluator: Debug + Send {
    /// The sums of one batch of a split, counted from 0 in order.
    ///
    /// # Panics
    /// If the batch is not below [`n_batches`](crate::sampler::n_batches).
    fn evaluate_batch(&self, split: Split, batch: u32) -> Sums;

    /// The pictures of [`Task::pictures`](super::Task::pictures) that can be shown; the others are logged.
    fn pictures(&self, seed: u64) -> Vec<NamedPicture>;

    /// The codes of [`Task::codes`](super::Task::codes), if there are any and they are within the bounds; what is wrong with
    /// others is logged.
    fn codes(&self, seed: u64) -> Option<Codes>;
}
