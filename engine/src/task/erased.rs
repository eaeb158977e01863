//! How a task loses its types.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use aligned_vec::{AVec, avec};
use serde_json::Value;
use tracing::warn;

use super::{
    AnyTask, BatchOf, Codes, CodesError, Context, Evaluator, NamedPicture, OpenTask, Replica, Task, TaskError, pictures,
};
use crate::backend::{ComputeDevice, reference_device};
use crate::data::{DataError, DataFile, DataSource, Dataset, Split};
use crate::params::{LayoutError, ParamLayout, load, view, with_initial_values};
use crate::random::{ShardKey, lock_generator};
use crate::sampler::{batch_samples, n_batches};
use crate::spec::TaskSpec;
use crate::sums::{COUNTS_MAX, Sums};

/// A task whose settings are complete.
#[derive(Clone)]
pub(super) struct Erased<T> {
    task: Arc<T>,
    spec: TaskSpec,
}

impl<T> fmt::Debug for Erased<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Task")
            .field("name", &self.spec.name)
            .field("settings", &self.spec.settings)
            .finish_non_exhaustive()
    }
}

/// Hides the types of a task. Builds its network once, to know its parameters.
///
/// # Errors
/// If its settings cannot be followed, or its network not be trained.
pub(super) fn erase<T: Task>(task: T) -> Result<Arc<Erased<T>>, TaskError> {
    const {
        assert!(T::EVALUATION_BATCH > 0, "a task evaluates at least one sample at once");
        assert!(T::METRICS.len() <= COUNTS_MAX, "a task has at most eight metrics");
        let mut position = 0;
        while position < T::METRICS.len() {
            if let Some(count) = T::METRICS[position].whole_position() {
                assert!(count < COUNTS_MAX, "a task has at most eight counts");
            }
            position += 1;
        }
        let name = T::NAME.as_bytes();
        assert!(!name.is_empty(), "a task has a name");
        let mut position = 0;
        while position < name.len() {
            let byte = name[position];
            let is_plain = byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            assert!(is_plain, "a task's name is made of lower-case letters, digits and dashes");
            position += 1;
        }
    }
    let task = task.checked().map_err(|source| TaskError::Settings { task: T::NAME, source })?;
    let settings =
        settled(serde_json::to_value(&task).expect("settings are numbers, texts, lists and maps with text keys"));
    let task: T = read(&settings)?;
    let layout = {
        let _alone = lock_generator();
        ParamLayout::of(&task.network(&reference_device().autodiff(), 0))
    };
    let layout = layout.map_err(|source| TaskError::Layout { task: T::NAME, source })?;
    let spec = TaskSpec {
        name: T::NAME,
        settings,
        layout: Arc::new(layout),
        metrics: T::METRICS,
        samples: T::SAMPLES,
        evaluation_batch: T::EVALUATION_BATCH,
        defaults: task.defaults(),
    };
    Ok(Arc::new(Erased { task: Arc::new(task), spec }))
}

/// A task by its settings.
pub(super) fn read<T: Task>(settings: &Value) -> Result<T, TaskError> {
    serde_json::from_value(settings.clone()).map_err(|error| TaskError::Stored {
        task: T::NAME,
        found: settings.to_string().chars().take(256).collect(),
        reason: error.to_string(),
    })
}

/// Settings that another process reads as they are here. JSON's fast reader may take the last bit of a number for another one;
/// after a time or two through text there is none of which it does.
fn settled(mut settings: Value) -> Value {
    for _ in 0..8 {
        let read = serde_json::from_str(&settings.to_string()).expect("what was written is JSON");
        if read == settings {
            break;
        }
        settings = read;
    }
    settings
}

impl<T: Task> Erased<T> {
    pub(super) fn with_data(&self, data: T::Data) -> Result<Arc<dyn OpenTask>, DataError> {
        let count = |split| {
            let n_samples = data.len(split);
            u32::try_from(n_samples).map_err(|_| DataError::too_many(split, n_samples))
        };
        let n_samples = [count(Split::Train)?, count(Split::Valid)?, count(Split::Test)?];
        if n_samples[0] == 0 {
            return Err(DataError::empty());
        }
        let (data_name, fingerprint) = (data.name(), data.fingerprint().as_str().to_owned());
        Ok(Arc::new(Opened { erased: self.clone(), data, data_name, fingerprint, n_samples }))
    }
}

fn data_error<T: Task>(source: super::BoxError) -> DataError {
    let exit_code = T::exit_code(&*source);
    DataError::new(source, exit_code)
}

impl<T: Task> AnyTask for Erased<T> {
    fn spec(&self) -> &TaskSpec {
        &self.spec
    }

    fn initial_params(&self, seed: u64) -> Result<Vec<f32>, LayoutError> {
        with_initial_values(seed, &self.spec.layout, |device| self.task.network(device, seed))
    }

    fn open(&self, source: &DataSource) -> Result<Arc<dyn OpenTask>, DataError> {
        self.with_data(self.task.data(source).map_err(data_error::<T>)?)
    }

    fn find(&self, source: &DataSource, fingerprint: &str) -> Result<Option<Arc<dyn OpenTask>>, DataError> {
        let found = self.task.find(source, fingerprint).map_err(data_error::<T>)?;
        found.map(|data| self.with_data(data)).transpose()
    }

    fn resumed_source(&self, source: &DataSource, data_name: &str) -> DataSource {
        self.task.resumed_source(source, data_name)
    }

    fn file_names(&self) -> &'static [&'static str] {
        T::FILES
    }

    fn shared_folder(&self, fingerprint: &str) -> Option<PathBuf> {
        T::shared_folder(fingerprint)
    }
}

struct Opened<T: Task> {
    erased: Erased<T>,
    data: T::Data,
    data_name: String,
    fingerprint: String,
    n_samples: [u32; 3],
}

impl<T: Task> fmt::Debug for Opened<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { erased, data_name, fingerprint, .. } = self;
        out.debug_struct("OpenTask")
            .field("task", erased)
            .field("data", data_name)
            .field("fingerprint", fingerprint)
            .finish()
    }
}

impl<T: Task> OpenTask for Opened<T> {
    fn spec(&self) -> &TaskSpec {
        &self.erased.spec
    }

    fn data_name(&self) -> &str {
        &self.data_name
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn n_samples(&self, split: Split) -> u32 {
        let [train, valid, test] = self.n_samples;
        match split {
            Split::Train => train,
            Split::Valid => valid,
            Split::Test => test,
        }
    }

    fn files(&self) -> Vec<DataFile<'_>> {
        T::files(&self.data)
    }

    fn replica(self: Arc<Self>, seed: u64, device: &ComputeDevice) -> Box<dyn Replica> {
        let device = device.clone().autodiff();
        let params = Arc::new(avec![0.0; self.erased.spec.layout.n_params()]);
        // It has views of zeros for its parameters, which no change waits for: the first one takes another vector.
        let blank = {
            let _alone = lock_generator();
            view(self.erased.task.network(&device, seed), &params, &device)
        };
        Box::new(NetworkReplica { open: self, device, seed, params, blank, network: None, prepared: None })
    }

    fn evaluator(self: Arc<Self>, params: &[f32], device: &ComputeDevice) -> Box<dyn Evaluator> {
        let network = {
            let _alone = lock_generator();
            load(self.erased.task.network(device, 0), params, device)
        };
        Box::new(NetworkEvaluator { open: self, device: device.clone(), network })
    }
}

struct NetworkReplica<T: Task> {
    open: Arc<Opened<T>>,
    device: ComputeDevice, // with autodiff
    seed: u64,
    /// In layout order, from the beginning of a cache line on.
    params: Arc<AVec<f32>>,
    /// What the network is made from: its structure, whatever its parameters.
    blank: T::Network,
    /// Reads the parameters, since they were last changed.
    network: Option<T::Network>,
    prepared: Option<Prepared<T>>,
}

/// The samples of a shard as the network takes them.
struct Prepared<T: Task> {
    key: ShardKey,
    samples: Vec<u32>,
    batch: BatchOf<T>,
}

impl<T: Task> fmt::Debug for NetworkReplica<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Replica").field("task", &self.open).field("device", &self.device).finish_non_exhaustive()
    }
}

impl<T: Task> NetworkReplica<T> {
    fn gathered(&self, key: ShardKey, samples: &[u32]) -> BatchOf<T> {
        let context = Context::training(&self.device, self.seed, key, samples.len());
        let batch = self.open.data.gather(Split::Train, samples);
        self.open.erased.task.augment(batch, &context)
    }
}

impl<T: Task> Replica for NetworkReplica<T> {
    fn params(&self) -> &[f32] {
        &self.params
    }

    fn params_mut(&mut self) -> &mut [f32] {
        // The network has them on loan.
        self.network = None;
        let params: &mut AVec<f32> = Arc::make_mut(&mut self.params);
        params
    }

    fn prepare(&mut self, key: ShardKey, samples: &[u32]) {
        if !samples.is_empty() {
            let batch = self.gathered(key, samples);
            self.prepared = Some(Prepared { key, samples: samples.to_vec(), batch });
        }
    }

    fn shard_result(&mut self, key: ShardKey, samples: &[u32], gradient_sum: &mut [f32]) -> Sums {
        if samples.is_empty() {
            gradient_sum.fill(0.0);
            return Sums::default();
        }
        let prepared = self.prepared.take().filter(|prepared| prepared.key == key && prepared.samples == samples);
        let batch = prepared.map_or_else(|| self.gathered(key, samples), |prepared| prepared.batch);
        let Self { open, device, seed, params, blank, network, .. } = self;
        let network = network.get_or_insert_with(|| view(blank.clone(), params, device));
        let context = Context::training(device, *seed, key, samples.len());
        open.erased.task.gradient(network, batch, &context, gradient_sum)
    }
}

struct NetworkEvaluator<T: Task> {
    open: Arc<Opened<T>>,
    device: ComputeDevice,
    network: T::Network,
}

impl<T: Task> fmt::Debug for NetworkEvaluator<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Evaluator").field("task", &self.open).field("device", &self.device).finish_non_exhaustive()
    }
}

impl<T: Task> Evaluator for NetworkEvaluator<T> {
    fn evaluate_batch(&self, split: Split, batch: u32) -> Sums {
        let Opened { erased, data, .. } = &*self.open;
        let (n_samples, batch_size) = (self.open.n_samples(split), erased.spec.evaluation_batch);
        assert!(batch < n_batches(n_samples, batch_size), "a split has as many batches as `n_batches` says");
        let samples = batch_samples(n_samples, batch_size, batch);
        let context = Context::evaluation(&self.device, split, batch, samples.len());
        erased.task.evaluate(&self.network, data.gather(split, &samples), &context)
    }

    fn pictures(&self, seed: u64) -> Vec<NamedPicture> {
        let Opened { erased, data, .. } = &*self.open;
        let context = Context::picture(&self.device, seed);
        let pictures = or_default("pictures", || erased.task.pictures(&self.network, data, &context));
        let (pictures, refused) = pictures::checked(pictures);
        for error in refused {
            warn!(task = T::NAME, %error, "picture left out; the run goes on");
        }
        pictures
    }

    fn codes(&self, seed: u64) -> Option<Codes> {
        let Opened { erased, data, .. } = &*self.open;
        let context = Context::picture(&self.device, seed);
        let codes = or_default("codes", || erased.task.codes(&self.network, data, &context))?;
        let warn = |error: &CodesError| warn!(task = T::NAME, %error, "codes left out; the run goes on");
        codes.checked().inspect_err(warn).ok()
    }
}

/// What a task makes to be looked at; if it panics, nothing: that must not end a run.
fn or_default<V: Default>(what: &str, make: impl FnOnce() -> V) -> V {
    catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|_| {
        warn!(what, "the task panicked while it made what people see after an epoch; the run goes on without");
        V::default()
    })
}
