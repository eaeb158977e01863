//! The command `sample`: prints text that trained weights generate.

use std::io::Write;
use std::path::PathBuf;

use burn::tensor::activation::softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use telar::exit::{self, ExitError};
use telar::rand_chacha::ChaCha8Rng;
use telar::rand_chacha::rand_core::{Rng, SeedableRng};
use telar::{BoxError, ComputeDevice, clap};

use crate::Language;
use crate::data::BOUNDARY;
use crate::network::Transformer;

/// Print text that trained weights generate
#[derive(clap::Args, Debug)]
pub struct SampleArgs {
    /// Trained weights (.safetensors)
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// First bytes of the first paragraph
    #[arg(long, default_value = "")]
    prompt: String,
    /// Bytes to generate
    #[arg(long, value_name = "BYTES", default_value_t = 300)]
    length: usize,
    /// Divisor of the logits: below 1 for more probable text, above 1 for more varied text
    #[arg(long, default_value_t = 0.8)]
    temperature: f64,
    /// Seed of the random numbers
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

/// The command `sample`.
pub fn sample(args: SampleArgs) -> Result<(), BoxError> {
    let device = ComputeDevice::default();
    let (settings, network) = telar::load_trained::<Language>(&args.weights, &device)?;
    let refused = |text| ExitError::new(exit::CONFIGURATION, text);
    if args.prompt.len() >= settings.context {
        let (found, context) = (args.prompt.len(), settings.context);
        return Err(
            refused(format!("expected --prompt with fewer bytes than --context {context}, found {found}")).into()
        );
    }
    if !(0.01..=100.0).contains(&args.temperature) {
        return Err(refused(format!("expected --temperature from 0.01 to 100, found {}", args.temperature)).into());
    }

    let mut random = ChaCha8Rng::seed_from_u64(args.seed);
    let mut out = std::io::stdout().lock();
    out.write_all(args.prompt.as_bytes())?;
    let mut tokens = tokens_before(args.prompt.as_bytes());
    for _ in 0..args.length {
        // A paragraph ends where the network says so, or where it is as long as it can be.
        let is_full = tokens.len() == settings.context;
        let token =
            if is_full { BOUNDARY } else { next_token(&network, &tokens, args.temperature, &mut random, &device) };
        if let Ok(byte) = u8::try_from(token) {
            out.write_all(&[byte])?;
            out.flush()?;
            tokens.push(token);
        } else {
            out.write_all(b"\n\n")?;
            tokens = tokens_before(b"");
        }
    }
    Ok(out.write_all(b"\n")?)
}

/// The boundary, and the bytes of a paragraph so far.
fn tokens_before(bytes: &[u8]) -> Vec<u16> {
    std::iter::once(BOUNDARY).chain(bytes.iter().copied().map(u16::from)).collect()
}

/// Draws the token that follows these.
fn next_token(
    network: &Transformer,
    tokens: &[u16],
    temperature: f64,
    random: &mut ChaCha8Rng,
    device: &Device,
) -> u16 {
    let input: Vec<i64> = tokens.iter().copied().map(i64::from).collect();
    let input = Tensor::<2, Int>::from_data(TensorData::new(input, [1, tokens.len()]), device);
    let logits = network.forward(input).slice([0..1, tokens.len() - 1..tokens.len()]); // [1, 1, tokens]
    let probabilities = softmax(logits.div_scalar(temperature), 2).into_data();
    // A draw from 0 to below 1, and the token at which the sum of the probabilities passes it.
    let mut rest = f64::from(random.next_u32()) / (f64::from(u32::MAX) + 1.0);
    let passes = |probability: f32| {
        rest -= f64::from(probability);
        rest < 0.0
    };
    let token = probabilities.iter::<f32>().position(passes).and_then(|token| u16::try_from(token).ok());
    // Rounding may leave the sum a little below 1.
    token.unwrap_or(BOUNDARY)
}
