//! What trained weights are used for: evaluate, reconstruct, encode.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use npyz::WriterBuilder;
use serde_json::json;

use engine::backend::ComputeDevice;
use engine::commands::{EvaluateArgs, TrainedArgs, report_evaluation};
use engine::data::Dataset;
use engine::files::write_whole;
use engine::say;
use engine::weights::Weights;
use model::arch::Architecture;
use model::data::{DataChoice, DownloadBar, Garments, open};
use model::layers::Noise;
use model::picture::split_picture;
use model::task::{task_on, with_exit_code};
use model::trained::Trained;
use model::weights::read_any;

use crate::args::{EncodeArgs, ReconstructArgs};

/// Weights, the device for them, and images to use them on.
pub struct Opened {
    pub architecture: Architecture,
    pub weights: Weights,
    pub device: ComputeDevice,
    pub data: Garments,
}

impl Opened {
    pub fn new(args: &TrainedArgs) -> anyhow::Result<Self> {
        let (architecture, weights) = read_any(&args.weights)?;
        let device = args.backend.open()?.device;
        let data = open(&DataChoice::from(&args.data.data), &mut DownloadBar::default());
        Ok(Self { architecture, weights, device, data: data.map_err(with_exit_code)? })
    }
}

pub fn evaluate(args: &EvaluateArgs) -> anyhow::Result<()> {
    let Opened { architecture, weights, device, data } = Opened::new(&args.trained)?;
    let task = task_on(architecture, None, Arc::new(data))?;
    Ok(report_evaluation(&task, &weights, &device, args.split, args.trained.json)?)
}

pub fn reconstruct(args: &ReconstructArgs) -> anyhow::Result<()> {
    let Opened { architecture, weights, device, data } = Opened::new(&args.trained)?;
    let noise = args.noise.unwrap_or(architecture.book_noise());
    let trained = Trained::new(architecture, &weights, &device);
    let png = split_picture(&trained, &data, args.split, args.images, noise, args.seed);
    write_whole(&args.out, &png)?;
    if args.trained.json {
        let line = json!({
            "architecture": architecture, "split": args.split, "data": data.name(), "noise": noise, "out": args.out.display().to_string(),
        });
        say!("{line}");
    } else {
        let rows = if noise == Noise::None { "originals" } else { "originals, noisy inputs" };
        say!("{}: {rows}, reconstructions", args.out.display());
    }
    Ok(())
}

pub fn encode(args: &EncodeArgs) -> anyhow::Result<()> {
    let Opened { architecture, weights, device, data } = Opened::new(&args.trained)?;
    let codes = Trained::new(architecture, &weights, &device).encode_split(&data, args.split);
    let labels = data.labels(args.split);
    let n_code = codes.len() / labels.len();
    let labels_path = labels_path(&args.out);
    let shape = [labels.len() as u64, n_code as u64];
    // The codes first: where they cannot be written, no labels lie about.
    write_whole(&args.out, &npy(&codes, &shape)?)?;
    write_whole(&labels_path, &npy(labels, &shape[..1])?)?;
    if args.trained.json {
        let line = json!({
            "architecture": architecture, "split": args.split, "data": data.name(), "shape": shape,
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
