//! The autoencoders as tasks.

use std::error::Error;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

use clap::Args;
use engine::backend::ComputeDevice;
use engine::data::{DataFile, DataSource, Split};
use engine::exit;
use engine::random::Stream;
use engine::sums::{Metric, Sums};
use engine::task::{
    AnyTask, BoxError, Codes, Context, Defaults, Loss, OpenTask, Picture, Task, TaskEntry, TaskError, Tasks, open_with,
};
use serde::{Deserialize, Serialize};

use crate::arch::{Architecture, N_PIXELS, Network};
use crate::codes::split_codes;
use crate::data::{Batch, DataChoice, DataError, DownloadBar, FetchError, Garments, PLAIN_NAMES, open, open_own};
use crate::gradients::{evaluate, plain_loss, shard_result};
use crate::layers::Noise;
use crate::picture::split_picture;
use crate::trained::Trained;

/// Images of the picture that is made after each epoch.
const N_PICTURED: u32 = 5;
/// Images whose codes are drawn after each epoch.
const N_CODES: usize = 1_000;

/// Names an architecture by a type.
pub trait ArchitectureMarker: Clone + Debug + Send + Sync + 'static {
    /// The architecture.
    const ARCHITECTURE: Architecture;
}

/// [`Architecture::Conv`].
#[derive(Clone, Debug)]
pub enum ConvMarker {}
/// [`Architecture::Recurrent`].
#[derive(Clone, Debug)]
pub enum RecurrentMarker {}
/// [`Architecture::Denoising`].
#[derive(Clone, Debug)]
pub enum DenoisingMarker {}

impl ArchitectureMarker for ConvMarker {
    const ARCHITECTURE: Architecture = Architecture::Conv;
}

impl ArchitectureMarker for RecurrentMarker {
    const ARCHITECTURE: Architecture = Architecture::Recurrent;
}

impl ArchitectureMarker for DenoisingMarker {
    const ARCHITECTURE: Architecture = Architecture::Denoising;
}

/// Training of an autoencoder.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[serde(bound = "", deny_unknown_fields)]
pub struct Autoencoder<W: ArchitectureMarker> {
    /// Noise on the input, in training only: none, gaussian:DEVIATION or dropout:RATE [default: denoising gaussian:0.2,
    /// others none]
    #[arg(long, env = "TELAR_NOISE", value_name = "NOISE")]
    pub noise: Option<Noise>,
    #[arg(skip)]
    #[serde(skip)]
    which: PhantomData<W>,
}

impl<W: ArchitectureMarker> Autoencoder<W> {
    /// With this noise, or else the book's.
    pub fn new(noise: Option<Noise>) -> Self {
        Self { noise, which: PhantomData }
    }

    fn noise(&self) -> Noise {
        self.noise.unwrap_or(W::ARCHITECTURE.book_noise())
    }
}

/// The three autoencoders, of which `--arch` names one.
pub fn tasks() -> Tasks {
    let entries = [
        TaskEntry::new(Autoencoder::<ConvMarker>::new(None)),
        TaskEntry::new(Autoencoder::<RecurrentMarker>::new(None)),
        TaskEntry::new(Autoencoder::<DenoisingMarker>::new(None)),
    ];
    Tasks::new(entries).named_by("arch", "TELAR_ARCH", "Network to train")
}

/// An autoencoder with the book's noise.
///
/// # Panics
/// Never: its network can be trained.
pub fn book_task(architecture: Architecture) -> Arc<dyn AnyTask> {
    let settings = serde_json::json!({ "noise": architecture.book_noise() });
    tasks().build(architecture.name(), &settings).expect("the book's networks can be trained")
}

/// The parameters that an autoencoder is trained from, in layout order.
///
/// # Panics
/// Never: they are f32.
pub fn initial_params(architecture: Architecture, seed: u64) -> Vec<f32> {
    book_task(architecture).initial_params(seed).expect("the book's networks have parameters of f32")
}

/// An autoencoder on a data set.
///
/// # Errors
/// If the data set has no images.
pub fn task_on(
    architecture: Architecture,
    noise: Option<Noise>,
    data: Arc<Garments>,
) -> Result<Arc<dyn OpenTask>, TaskError> {
    match architecture {
        Architecture::Conv => open_with(Autoencoder::<ConvMarker>::new(noise), data),
        Architecture::Recurrent => open_with(Autoencoder::<RecurrentMarker>::new(noise), data),
        Architecture::Denoising => open_with(Autoencoder::<DenoisingMarker>::new(noise), data),
    }
}

impl<W: ArchitectureMarker> Task for Autoencoder<W> {
    const NAME: &'static str = W::ARCHITECTURE.name();
    const ABOUT: &'static str = W::ARCHITECTURE.about();
    const METRICS: &'static [Metric] = &[Metric::share_of_parts("rounded_accuracy", N_PIXELS as u64)];
    const SAMPLES: &'static str = "images";
    const DATA_HELP: &'static str = "A folder with the four IDX files, `fashion-mnist`, `synthetic`, or `auto`: Fashion-MNIST \
        from data/, the user's cache folder or the network, else synthetic garments";
    const FILES: &'static [&'static str] = &PLAIN_NAMES;

    type Network = Network;
    type Data = Arc<Garments>;

    fn checked(self) -> Result<Self, BoxError> {
        Ok(Self::new(Some(self.noise())))
    }

    fn defaults(&self) -> Defaults {
        Defaults {
            epochs: W::ARCHITECTURE.book_epochs(),
            learning_rate: W::ARCHITECTURE.book_learning_rate(),
            ..Defaults::default()
        }
    }

    fn data(&self, source: &DataSource) -> Result<Arc<Garments>, BoxError> {
        Ok(Arc::new(open(&DataChoice::from(source), &mut DownloadBar::default())?))
    }

    fn find(&self, source: &DataSource, fingerprint: &str) -> Result<Option<Arc<Garments>>, BoxError> {
        Ok(open_own(&DataChoice::from(source), fingerprint)?.map(Arc::new))
    }

    fn files(data: &Arc<Garments>) -> Vec<DataFile<'_>> {
        data.plain_files().into()
    }

    fn shared_folder(fingerprint: &str) -> Option<std::path::PathBuf> {
        crate::data::plain_cache_folder(fingerprint)
    }

    fn resumed_source(&self, source: &DataSource, data_name: &str) -> DataSource {
        DataSource::at(Path::new(&DataChoice::from(source).as_in_run(data_name).to_string()))
    }

    fn exit_code(error: &(dyn Error + 'static)) -> u8 {
        error.downcast_ref().map_or(exit::DATA, exit_code)
    }

    fn network(&self, device: &ComputeDevice, seed: u64) -> Network {
        Network::new(W::ARCHITECTURE, seed, device)
    }

    fn augment(&self, mut batch: Batch, context: &Context<'_>) -> Batch {
        let noise = self.noise();
        if let Some(key) = context.key().filter(|_| noise != Noise::None) {
            let noisy = batch.noisy.insert(batch.images.clone());
            noise.apply(&mut noisy.values, context.seed(), Stream::Shard(key));
        }
        batch
    }

    fn loss(&self, network: &Network, batch: Batch, context: &Context<'_>) -> Loss {
        plain_loss(network, batch, context.device())
    }

    fn gradient(&self, network: &Network, batch: Batch, context: &Context<'_>, gradient_sum: &mut [f32]) -> Sums {
        shard_result(network, batch, gradient_sum, context.device())
    }

    fn evaluate(&self, network: &Network, batch: Batch, context: &Context<'_>) -> Sums {
        evaluate(network, batch.images, context.device())
    }

    fn pictures(&self, network: &Network, data: &Arc<Garments>, context: &Context<'_>) -> Vec<Picture> {
        let trained = Trained::of(network, context.device());
        let png = split_picture(&trained, data, Split::Valid, N_PICTURED, self.noise(), context.seed());
        vec![Picture::new("reconstructions", png)]
    }

    fn codes(&self, network: &Network, data: &Arc<Garments>, context: &Context<'_>) -> Option<Codes> {
        Some(split_codes(&Trained::of(network, context.device()), data, Split::Valid, N_CODES))
    }
}

/// The error of a program that cannot open the data set.
pub fn with_exit_code(error: DataError) -> engine::data::DataError {
    let exit_code = exit_code(&error);
    engine::data::DataError::new(error.into(), exit_code)
}

fn exit_code(error: &DataError) -> u8 {
    match error {
        DataError::Fetch(FetchError::Write { .. }) => exit::CANNOT_WRITE,
        DataError::Fetch(FetchError::Corrupted { .. } | FetchError::Read { .. }) => exit::DATA,
        DataError::Fetch(_) | DataError::NoCacheFolder => exit::UNAVAILABLE,
        _ => exit::DATA,
    }
}
