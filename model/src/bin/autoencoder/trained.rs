//! What trained weights are used for: evaluate, reconstruct, encode.

use std::path::{Path, PathBuf};

use npyz::WriterBuilder;
use serde_json::json;

use model::arch::N_PIXELS;
use model::backend::ComputeDevice;
use model::data::Dataset;
use model::evaluation::Evaluator;
use model::files::write_whole;
use model::layers::Noise;
use model::report::split_picture;
use model::say;
use model::weights::Weights;

use crate::args::{EncodeArgs, EvaluateArgs, ReconstructArgs, TrainedArgs};

/// Weights, the device for them, and images to use them on.
struct Opened {
    weights: Weights,
    device: ComputeDevice,
    data: Dataset,
}

impl TrainedArgs {
    fn open(&self) -> anyhow::Result<Opened> {
        let weights = Weights::read(&self.weights)?;
        let device = self.backend.open()?.device;
        Ok(Opened { weights, device, data: self.data.open()? })
    }
}

pub fn evaluate(args: &EvaluateArgs) -> anyhow::Result<()> {
    let Opened { weights, device, data } = args.trained.open()?;
    let sums = Evaluator::new(&weights, &device).evaluate(&data, args.split);
    let (loss, accuracy) = (sums.loss(), sums.rounded_accuracy(N_PIXELS));
    if args.trained.json {
        let line = json!({
            "architecture": weights.architecture, "split": args.split, "data": data.name(), "n_samples": sums.n_samples,
            "loss": loss, "rounded_accuracy": accuracy,
        });
        say!("{line}");
    } else {
        say!(
            "{} on {} images ({}, {}): loss {loss:.4}, rounded accuracy {accuracy:.4}",
            weights.architecture,
            sums.n_samples,
            args.split,
            data.name(),
        );
    }
    Ok(())
}

pub fn reconstruct(args: &ReconstructArgs) -> anyhow::Result<()> {
    let Opened { weights, device, data } = args.trained.open()?;
    let noise = args.noise.unwrap_or(weights.architecture.book_noise());
    let evaluator = Evaluator::new(&weights, &device);
    let png = split_picture(&evaluator, &data, args.split, args.images, noise, args.seed);
    write_whole(&args.out, &png)?;
    if args.trained.json {
        let line = json!({
            "architecture": weights.architecture, "split": args.split, "data": data.name(), "noise": noise, "out": args.out.display().to_string(),
        });
        say!("{line}");
    } else {
        let rows = if noise == Noise::None { "originals" } else { "originals, noisy inputs" };
        say!("{}: {rows}, reconstructions", args.out.display());
    }
    Ok(())
}

pub fn encode(args: &EncodeArgs) -> anyhow::Result<()> {
    let Opened { weights, device, data } = args.trained.open()?;
    let codes = Evaluator::new(&weights, &device).encode_split(&data, args.split);
    let labels = data.labels(args.split);
    let n_code = codes.len() / labels.len();
    let labels_path = labels_path(&args.out);
    let shape = [labels.len() as u64, n_code as u64];
    // The codes first: where they cannot be written, no labels lie about.
    write_whole(&args.out, &npy(&codes, &shape)?)?;
    write_whole(&labels_path, &npy(labels, &shape[..1])?)?;
    if args.trained.json {
        let line = json!({
            "architecture": weights.architecture, "split": args.split, "data": data.name(), "shape": shape,
            "out": args.out.display().to_string(), "labels": labels_path.display().to_string(),
        });
        say!("{line}");
    } else {
        say!("{}: {} codes of {n_code} values; labels in {}", args.out.display(), shape[0], labels_path.display());
    }
    Ok(())
}

/// `codes.npy` → `codes-labels.npy`.
fn labels_path(codes: &Path) -> PathBuf {
    let stem = codes.file_stem().unwrap_or_default().to_string_lossy();
    codes.with_file_name(format!("{stem}-labels.npy"))
}

/// An array as the content of a `.npy` file.
fn npy<T: npyz::AutoSerialize + Copy>(values: &[T], shape: &[u64]) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut writer = npyz::WriteOptions::new().default_dtype().shape(shape).writer(&mut bytes).begin_nd()?;
    writer.extend(values.iter().copied())?;
    writer.finish()?;
    Ok(bytes)
}
