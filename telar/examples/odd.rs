//! Tasks with what real ones have and the autoencoders do not: parameters of several ranks, weights used twice, several losses, a
//! parameter that takes no part, integer labels, dropout, batches of unequal length, and a network that is partly frozen. Trained
//! by `telar/tests/programs.rs`.

use std::f32::consts::LOG2_E;
use std::io::Cursor;
use std::path::PathBuf;
use std::process::ExitCode;

use burn::module::{Module, Param};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{Dropout, DropoutConfig, Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::activation::{log_softmax, relu};
use burn::tensor::{Int, Tensor, TensorData};
use image::imageops::{FilterType, resize};
use image::{GrayImage, ImageFormat};
use telar::exit::ExitError;
use telar::rand_chacha::rand_core::Rng;
use telar::{
    Batch, BoxError, Codes, ComputeDevice, Context, DataSource, Dataset, Defaults, Fingerprint, Loss, Metric, Picture,
    Program, RuleName, Split, Task, clap, serde,
};

const N_WORDS: usize = 17;
const N_FEATURES: usize = 12;
/// What a word costs, at most 32 bits.
const BITS: Metric = Metric::mean_of_count("bits", 2, 32.0);

fn main() -> ExitCode {
    let moody = Moody { moody: true };
    let program = Program::new().task(Words::default()).task(moody).task(Broken::default());
    program.command("end", end).main()
}

/// End with an error
#[derive(Debug, clap::Args)]
struct EndArgs {
    /// Exit code to end with, if it is to be one
    #[arg(long)]
    code: Option<u8>,
    /// File that is read as weights before
    #[arg(long)]
    weights: Option<PathBuf>,
}

fn end(args: EndArgs) -> Result<(), BoxError> {
    if let Some(weights) = args.weights {
        telar::load_trained::<Words>(&weights, &ComputeDevice::default())?;
        return Ok(());
    }
    match args.code {
        Some(code) => Err(ExitError::new(code, "expected nothing, found a code").into()),
        None => Err("expected a code, found none".into()),
    }
}

/// Sentences of one to seven words, each followed by the word that is the sum of the two before it.
#[derive(Debug)]
struct Sentences {
    /// Whether samples depend on when they are gathered, which none may.
    is_moody: bool,
}

/// Word numbers, sentence after sentence.
#[derive(Debug)]
struct Sentence {
    words: Vec<i64>,
    n_words: Vec<usize>,
}

impl Dataset for Sentences {
    type Batch = Sentence;

    fn name(&self) -> String {
        "sentences".to_owned()
    }

    fn len(&self, split: Split) -> usize {
        match split {
            Split::Train => 150,
            Split::Valid => 33,
            Split::Test => 0,
        }
    }

    fn gather(&self, split: Split, samples: &[u32]) -> Sentence {
        let mut batch = Sentence { words: Vec::new(), n_words: Vec::new() };
        for &sample in samples {
            let first = if split == Split::Train { sample } else { sample + 1_000 };
            let n_words = 3 + first % 5;
            let mut words = vec![i64::from(first % 17), i64::from(first / 17 % 17)];
            while words.len() < n_words as usize {
                words.push((words[words.len() - 1] + words[words.len() - 2]) % 17);
            }
            if self.is_moody {
                words[0] = i64::from(std::process::id()) % 17;
            }
            batch.n_words.push(words.len());
            batch.words.extend(words);
        }
        batch
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(["sentences of sums"])
    }
}

#[derive(Module, Debug)]
struct Net {
    embedding: Embedding,
    hidden: Vec<Linear>,
    dropout: Dropout,
    /// [1, 1, features]
    scale: Param<Tensor<3>>,
    out: Linear,
    idle: Linear,
    frozen: Linear,
}

impl Net {
    fn new(device: &ComputeDevice, rate: f64) -> Self {
        Self {
            embedding: EmbeddingConfig::new(N_WORDS, N_FEATURES).init(device),
            hidden: (0..2).map(|_| LinearConfig::new(N_FEATURES, N_FEATURES).init(device)).collect(),
            dropout: DropoutConfig::new(rate).init(),
            scale: Param::from_tensor(Tensor::ones([1, 1, N_FEATURES], device)),
            out: LinearConfig::new(N_FEATURES, N_WORDS).init(device),
            idle: LinearConfig::new(2, 2).init(device),
            frozen: LinearConfig::new(N_FEATURES, N_FEATURES).init(device).no_grad(),
        }
    }

    /// The two words before → what comes next: [pairs, 2] → [pairs, words].
    fn forward(&self, pairs: Tensor<2, Int>) -> Tensor<2> {
        let [n_pairs, _] = pairs.dims();
        let x = self.embedding.forward(pairs) * self.scale.val(); // [pairs, 2, features]
        // The first layer is used twice.
        let x = self.hidden.iter().chain(&self.hidden[..1]).fold(x, |x, layer| relu(layer.forward(x)));
        let x = self.frozen.forward(x).sum_dim(1).reshape([n_pairs, N_FEATURES]);
        self.out.forward(self.dropout.forward(x))
    }
}

/// The next word of a sentence.
#[derive(Clone, Debug, Default, clap::Args, serde::Serialize, serde::Deserialize)]
#[serde(crate = "telar::serde")]
struct Words {
    /// Share of features that training drops
    #[arg(long, default_value_t = 0.25)]
    rate: f64,
    /// Share of first words that training changes
    #[arg(long)]
    noise: Option<f64>,
}

impl Task for Words {
    const NAME: &'static str = "words";
    const METRICS: &'static [Metric] =
        &[Metric::share_of_count("word_accuracy", 2), Metric::of_loss("perplexity", f64::exp), BITS];
    const SAMPLES: &'static str = "sentences";
    const EVALUATION_BATCH: u32 = 10;
    type Network = Net;
    type Data = Sentences;

    fn checked(self) -> Result<Self, BoxError> {
        match self.rate {
            rate if (0.0..1.0).contains(&rate) => Ok(self),
            rate => Err(format!("expected --rate from 0 to below 1, found {rate}").into()),
        }
    }

    fn defaults(&self) -> Defaults {
        Defaults { epochs: 2, batch_size: 20, optimizer: RuleName::Adam, learning_rate: 0.01, ..Defaults::default() }
    }

    fn data(&self, source: &DataSource) -> Result<Sentences, BoxError> {
        match source.as_str() {
            DataSource::AUTO => Ok(Sentences { is_moody: false }),
            other => Err(format!("expected no --data, found {other}").into()),
        }
    }

    fn network(&self, device: &ComputeDevice, _seed: u64) -> Net {
        Net::new(device, self.rate)
    }

    fn augment(&self, mut batch: Sentence, context: &Context<'_>) -> Sentence {
        let mut random = context.random();
        let mut start = 0;
        for n_words in &batch.n_words {
            if f64::from(random.next_u32()) / f64::from(u32::MAX) < self.noise.unwrap_or(0.0) {
                batch.words[start] = i64::from(random.next_u32() % 17);
            }
            start += n_words;
        }
        batch
    }

    fn loss(&self, network: &Net, batch: Batch<Self>, context: &Context<'_>) -> Loss {
        let (mut pairs, mut next) = (Vec::new(), Vec::new());
        let mut rest = &batch.words[..];
        for &n_words in &batch.n_words {
            let (sentence, others) = rest.split_at(n_words);
            rest = others;
            for triple in sentence.windows(3) {
                pairs.extend_from_slice(&triple[..2]);
                next.push(triple[2]);
            }
        }
        let (n_pairs, device) = (next.len(), context.device());
        let pairs = Tensor::<2, Int>::from_data(TensorData::new(pairs, [n_pairs, 2]), device);
        let next = Tensor::<1, Int>::from_data(TensorData::new(next, [n_pairs]), device);
        let logits = network.forward(pairs);
        let is_right = logits.clone().argmax(1).reshape([n_pairs]).equal(next.clone());
        let n_right = is_right.int().sum().into_data().iter::<u64>().sum();
        let bits = log_softmax(logits.clone(), 1).gather(1, next.clone().unsqueeze_dim(1)).mul_scalar(-LOG2_E);
        let bits = BITS.count(bits.into_data().iter::<f32>());
        let words = CrossEntropyLossConfig::new().init(device).forward(logits.clone(), next);
        // And none of the logits is to be large.
        let size = logits.powi_scalar(2).mean().mul_scalar(0.01);
        Loss::mean(words + size, context.n_samples()).counts([n_right, bits, n_pairs as u64])
    }

    fn pictures(&self, network: &Net, _data: &Sentences, _context: &Context<'_>) -> Vec<Picture> {
        let hidden = network.hidden[0].weight.val();
        vec![picture("embedding", network.embedding.weight.val()), picture("hidden-weights", hidden)]
    }

    /// The words by what they are embedded as, labelled by whether they are even.
    fn codes(&self, network: &Net, _data: &Sentences, _context: &Context<'_>) -> Option<Codes> {
        let values = network.embedding.weight.val().into_data().iter::<f32>().collect();
        let labels: Vec<u8> = (0..N_WORDS).map(|word| u8::from(word % 2 == 1)).collect();
        Some(Codes::new(values, N_FEATURES).labelled(labels, ["even", "odd"]))
    }
}

/// A matrix as a picture, a grey square for each value.
fn picture(name: &str, matrix: Tensor<2>) -> Picture {
    const SIDE: u32 = 12;
    let [n_rows, n_columns] = matrix.dims().map(|n| u32::try_from(n).expect("a small matrix"));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the value is from 28 to 228")]
    let greys = matrix.into_data().iter::<f32>().map(|value| (128.0 + 100.0 * value.clamp(-1.0, 1.0)) as u8).collect();
    let small = GrayImage::from_vec(n_columns, n_rows, greys).expect("a grey for each value");
    let mut png = Cursor::new(Vec::new());
    let large = resize(&small, SIDE * n_columns, SIDE * n_rows, FilterType::Nearest);
    large.write_to(&mut png, ImageFormat::Png).expect("a picture in memory can be written as PNG");
    Picture::new(name, png.into_inner())
}

/// The same on a data set whose samples depend on the process that gathers them.
#[derive(Clone, Debug, Default, clap::Args, serde::Serialize, serde::Deserialize)]
#[serde(crate = "telar::serde")]
struct Moody {
    /// Whether they do
    #[arg(long)]
    moody: bool,
}

impl Task for Moody {
    const NAME: &'static str = "moody";
    const METRICS: &'static [Metric] = Words::METRICS;
    type Network = Net;
    type Data = Sentences;

    fn data(&self, _source: &DataSource) -> Result<Sentences, BoxError> {
        Ok(Sentences { is_moody: self.moody })
    }

    fn network(&self, device: &ComputeDevice, _seed: u64) -> Net {
        Net::new(device, 0.0)
    }

    fn loss(&self, network: &Net, batch: Sentence, context: &Context<'_>) -> Loss {
        Words::default().loss(network, batch, context)
    }
}

/// A task that does something wrong.
#[derive(Clone, Debug, Default, clap::Args, serde::Serialize, serde::Deserialize)]
#[serde(crate = "telar::serde")]
struct Broken {
    /// What it does: nan, sizes, shared, counts, pictures or panic
    #[arg(long)]
    how: Option<String>,
}

#[derive(Module, Debug)]
struct Twins {
    one: Linear,
    other: Linear,
}

impl Task for Broken {
    const NAME: &'static str = "broken";
    const METRICS: &'static [Metric] = &[Metric::share_of_samples("accuracy")];
    type Network = Twins;
    type Data = Sentences;

    fn data(&self, _source: &DataSource) -> Result<Sentences, BoxError> {
        Ok(Sentences { is_moody: false })
    }

    fn network(&self, device: &ComputeDevice, _seed: u64) -> Twins {
        let is = |how: &str| self.how.as_deref() == Some(how);
        // A worker's network that is not the coordinator's.
        let is_worker = std::env::args().nth(1).is_some_and(|command| command == "worker");
        let n_outputs = if is("sizes") && is_worker { 2 } else { 1 };
        let one = LinearConfig::new(1, n_outputs).init(device);
        let other = if is("shared") { one.clone() } else { LinearConfig::new(1, 1).init(device) };
        Twins { one, other }
    }

    fn loss(&self, network: &Twins, _batch: Sentence, context: &Context<'_>) -> Loss {
        let x = Tensor::<2>::ones([1, 1], context.device());
        let y = network.one.forward(x.clone()) + network.other.forward(x);
        let scale = if self.how.as_deref() == Some("nan") { f32::NAN } else { 1.0 };
        let n_right = if self.how.as_deref() == Some("counts") { context.n_samples() + 1 } else { 0 };
        Loss::sum(y.sum() * scale).counts([n_right as u64])
    }

    fn pictures(&self, network: &Twins, _data: &Sentences, _context: &Context<'_>) -> Vec<Picture> {
        assert_ne!(self.how.as_deref(), Some("panic"), "a picture that cannot be made");
        if self.how.as_deref() != Some("pictures") {
            return Vec::new();
        }
        let named = |name| picture(name, network.one.weight.val());
        vec![named("fine"), named("checkpoints"), named("../up"), named("fine"), Picture::new("text", "no PNG")]
    }

    fn codes(&self, _network: &Twins, _data: &Sentences, _context: &Context<'_>) -> Option<Codes> {
        (self.how.as_deref() == Some("pictures")).then(|| Codes::new(vec![f32::NAN; 12], 3))
    }
}
