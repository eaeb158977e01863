//! The command line, as it is typed.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};

use engine::commands::{EvaluateArgs, TrainArgs, TrainedArgs};
use engine::data::Split;
use model::arch::Architecture;
use model::layers::Noise;
use serde::Serialize;

/// Trains the autoencoders of Géron's chapter 17 on Fashion-MNIST, in one process, and uses what was trained.
#[derive(Parser, Debug)]
#[command(
    version,
    after_help = "Example:\n  autoencoder train --arch denoising --run-dir runs/first\n  \
    autoencoder reconstruct --weights runs/first/model.safetensors --out x.png"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show a network's layers and parameters
    Summary(SummaryArgs),
    /// Train a network along the book's recipe, or another
    Train(Box<TrainArgs>),
    /// Loss and rounded accuracy of trained weights
    Evaluate(EvaluateArgs),
    /// A picture of images and their reconstructions
    Reconstruct(ReconstructArgs),
    /// The codes of images, as a NumPy array
    Encode(EncodeArgs),
    /// A picture of which images lie together in the space of codes, coloured by label
    Codes(CodesArgs),
    /// The data set
    Data(DataCommandArgs),
}

#[derive(Args, Debug)]
pub struct SummaryArgs {
    /// Network to show
    #[arg(long, env = "TELAR_ARCH", value_enum)]
    pub arch: Architecture,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct ReconstructArgs {
    /// Picture to write (.png)
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// How many images, at most 100
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub images: u32,
    /// Images to look at
    #[arg(long, value_enum, default_value_t = Split::Valid)]
    pub split: Split,
    /// Noise on the input: none, gaussian:DEVIATION or dropout:RATE [default: denoising gaussian:0.2, others none]
    #[arg(long, value_name = "NOISE")]
    pub noise: Option<Noise>,
    /// Seed of the noise
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    #[command(flatten)]
    pub trained: TrainedArgs,
}

#[derive(Args, Debug)]
pub struct EncodeArgs {
    /// Images to encode
    #[arg(long, value_enum)]
    pub split: Split,
    /// Array to write (.npy), [images, code]; the labels go beside it, as NAME-labels.npy
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    #[command(flatten)]
    pub trained: TrainedArgs,
}

#[derive(Args, Debug)]
pub struct CodesArgs {
    /// Picture to write (.png or .svg), or its points and labels as a table (.tsv)
    #[arg(long, value_name = "FILE")]
    pub out: CodesFile,
    /// How many images, the first of the split
    #[arg(long, alias = "n", value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(3..))]
    pub images: u32,
    /// Images to encode
    #[arg(long, value_enum, default_value_t = Split::Test)]
    pub split: Split,
    /// How codes become points
    #[arg(long, value_enum, default_value_t = CodesMethod::Pca)]
    pub method: CodesMethod,
    /// With `--method tsne`: about how many neighbours of a code count, from 1 to a third of the images
    #[arg(long, value_name = "X", default_value_t = 30.0)]
    pub perplexity: f64,
    #[command(flatten)]
    pub trained: TrainedArgs,
}

#[derive(Args, Debug)]
pub struct DataCommandArgs {
    #[command(subcommand)]
    pub command: DataCommand,
}

#[derive(Subcommand, Debug)]
pub enum DataCommand {
    /// Download Fashion-MNIST (30 MB), check it, and go on where an earlier download was cut off
    Fetch(FetchArgs),
}

#[derive(Args, Debug)]
pub struct FetchArgs {
    /// Folder for the files [default: the user's cache folder]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Address below which the files lie, asked before the usual ones; may be given several times
    #[arg(long, env = "TELAR_MIRROR", value_name = "URL")]
    pub mirror: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// How codes become points.
#[derive(Clone, Copy, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum CodesMethod {
    /// The two directions in which the codes vary most
    Pca,
    /// Neighbours among the codes stay neighbours; takes seconds for 2000 images
    Tsne,
}

/// A file to write, its format by its name's ending.
#[derive(Clone, Debug)]
pub struct CodesFile {
    /// Where it goes.
    pub path: PathBuf,
    /// What is written.
    pub format: CodesFormat,
}

/// What a file of codes holds.
#[derive(Clone, Copy, Debug)]
pub enum CodesFormat {
    /// A picture in pixels.
    Png,
    /// A picture in lines.
    Svg,
    /// Points, labels and their names.
    Tsv,
}

impl FromStr for CodesFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let format = match Path::new(text).extension().and_then(|extension| extension.to_str()) {
            Some("png") => CodesFormat::Png,
            Some("svg") => CodesFormat::Svg,
            Some("tsv") => CodesFormat::Tsv,
            _ => return Err("expected a name that ends in .png, .svg or .tsv".to_owned()),
        };
        Ok(Self { path: PathBuf::from(text), format })
    }
}
