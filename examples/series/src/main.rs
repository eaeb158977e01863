//! The recurrent autoencoder on sequences that are not images: time series of 28 sensors, of 12 to 60 steps each. Samples of one
//! length go through the network together, so no step is padded.

use std::collections::BTreeMap;
use std::f32::consts::TAU;
use std::process::ExitCode;

use burn::tensor::activation::sigmoid;
use burn::tensor::{Tensor, TensorData};
use model::arch::{Architecture, Network};
use telar::rand_chacha::ChaCha8Rng;
use telar::rand_chacha::rand_core::{Rng, SeedableRng};
use telar::{
    Batch, BoxError, ComputeDevice, Context, DataSource, Dataset, Defaults, Fingerprint, Loss, Metric, RuleName, Split,
    Task, clap, serde,
};

/// Values of a step: the network reads rows of 28.
const N_SENSORS: u16 = 28;
/// Steps of a series, at least and at most.
const N_STEPS: std::ops::RangeInclusive<u16> = 12..=60;
/// A reading that is off by less counts as close. Readings are from 0 to 1.
const CLOSE: f32 = 0.05;
/// How far a reading is off in the mean. None is off by more than 1.
const ABSOLUTE_ERROR: Metric = Metric::mean_of_count("absolute_error", 2, 1.0);

fn main() -> ExitCode {
    telar::main(Series::default())
}

/// Waves that travel along a line of sensors, over a level that rises or falls along the line. Each series has a level, slope,
/// frequency, wavelength, phase and amplitude of its own.
struct Waves;

impl Waves {
    /// The readings of a series, [steps, 28], step after step.
    fn series(seed: u64) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut bits = || u16::try_from(random.next_u32() >> 16).expect("16 bits");
        let n_steps = N_STEPS.start() + bits() % (N_STEPS.end() - N_STEPS.start() + 1);
        let mut draw = |from: f32, to: f32| from + (to - from) * f32::from(bits()) / 65_536.0;
        let (level, slope) = (draw(0.3, 0.7), draw(-0.2, 0.2));
        let (frequency, waves_on_line, phase) = (draw(0.01, 0.05), draw(-0.5, 0.5), draw(0.0, 1.0));
        let amplitude = draw(0.05, 0.2);
        let reading = |step: u16, sensor: u16| {
            let along = f32::from(sensor) / f32::from(N_SENSORS);
            let turns = frequency * f32::from(step) + waves_on_line * along + phase;
            level + slope * (along - 0.5) + amplitude * (TAU * turns).sin()
        };
        (0..n_steps).flat_map(|step| (0..N_SENSORS).map(move |sensor| reading(step, sensor))).collect()
    }
}

impl Dataset for Waves {
    /// Each series as [steps, 28].
    type Batch = Vec<Vec<f32>>;

    fn name(&self) -> String {
        "waves along 28 sensors".to_owned()
    }

    fn len(&self, split: Split) -> usize {
        match split {
            Split::Train => 4_000,
            Split::Valid | Split::Test => 500,
        }
    }

    fn gather(&self, split: Split, samples: &[u32]) -> Vec<Vec<f32>> {
        let first = match split {
            Split::Train => 0,
            Split::Valid => 1 << 32,
            Split::Test => 2 << 32,
        };
        samples.iter().map(|&sample| Self::series(first + u64::from(sample))).collect()
    }

    fn fingerprint(&self) -> Fingerprint {
        // Over the readings themselves: another machine's sine may give others.
        let readings = |split| (0..).take(self.len(split)).flat_map(move |sample| self.gather(split, &[sample]));
        let all = [Split::Train, Split::Valid, Split::Test].into_iter().flat_map(readings).flatten();
        Fingerprint::of(all.map(f32::to_le_bytes))
    }
}

/// The task has no settings.
#[derive(Clone, Debug, Default, clap::Args, serde::Serialize, serde::Deserialize)]
#[serde(crate = "telar::serde")]
struct Series {}

impl Task for Series {
    const NAME: &'static str = "series";
    const ABOUT: &'static str = "The recurrent autoencoder on time series of 12 to 60 steps";
    const METRICS: &'static [Metric] = &[Metric::share_of_count("close", 2), ABSOLUTE_ERROR];
    const SAMPLES: &'static str = "series";
    type Network = Network;
    type Data = Waves;

    fn defaults(&self) -> Defaults {
        Defaults { epochs: 20, batch_size: 32, optimizer: RuleName::Adam, learning_rate: 0.002, ..Defaults::default() }
    }

    fn data(&self, _source: &DataSource) -> Result<Waves, BoxError> {
        Ok(Waves)
    }

    fn network(&self, device: &ComputeDevice, seed: u64) -> Network {
        Network::new(Architecture::Recurrent, seed, device)
    }

    /// The squared error, averaged over a series' own readings.
    fn loss(&self, network: &Network, batch: Batch<Self>, context: &Context<'_>) -> Loss {
        let mut by_length: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        for series in &batch {
            by_length.entry(series.len()).or_default().extend(series);
        }
        let (mut loss, mut n_close, mut absolute) = (Tensor::<1>::zeros([1], context.device()), 0, 0);
        for (length, values) in by_length {
            let (n_series, n_sensors) = (values.len() / length, usize::from(N_SENSORS));
            let series = TensorData::new(values, [n_series, length / n_sensors, n_sensors]);
            let series = Tensor::<3>::from_data(series, context.device());
            let errors = sigmoid(network.logits(series.clone())) - series;
            let distances = errors.clone().abs().into_data();
            n_close += distances.iter::<f32>().map(|distance| u64::from(distance < CLOSE)).sum::<u64>();
            absolute += ABSOLUTE_ERROR.count(distances.iter::<f32>());
            loss = loss + errors.powi_scalar(2).sum().div_scalar(u32::try_from(length).expect("at most 60 steps"));
        }
        Loss::sum(loss).counts([n_close, absolute, batch.iter().map(|series| series.len() as u64).sum()])
    }
}
