//! A small language model: a decoder-only transformer that predicts the next byte of a paragraph, trained by telar on any number
//! of workers. `data.rs` has the data set, `network.rs` the network, `sample.rs` the command that prints text; this file has the
//! task, which joins them.

mod data;
mod network;
mod sample;

use std::path::Path;
use std::process::ExitCode;

use telar::{
    Batch, BoxError, ComputeDevice, Context, DataFile, DataSource, Decay, Defaults, Loss, LrSchedule, Metric, Program,
    RuleName, Task, clap, serde,
};

use crate::data::Paragraphs;
use crate::network::Transformer;

fn main() -> ExitCode {
    Program::new().task(Language::default()).command("sample", sample::sample).main()
}

/// The settings. Each field is a flag, is stored in checkpoints, and is sent to workers.
#[derive(Clone, Debug, Default, clap::Args, serde::Serialize, serde::Deserialize)]
#[serde(crate = "telar::serde")]
struct Language {
    /// Transformer blocks
    #[arg(long, default_value_t = 4)]
    layers: usize,
    /// Features of each token
    #[arg(long, default_value_t = 128)]
    width: usize,
    /// Attention heads of each block
    #[arg(long, default_value_t = 4)]
    heads: usize,
    /// Longest sample in tokens; longer paragraphs are split between words
    #[arg(long, default_value_t = 128)]
    context: usize,
    /// Share of activations that training drops
    #[arg(long, default_value_t = 0.1)]
    dropout: f64,
}

impl Task for Language {
    const NAME: &'static str = "language";
    const ABOUT: &'static str = "Predict the next byte of a paragraph";
    /// The loss is in bits; like the loss, the perplexity of a token is that of the mean paragraph.
    const METRICS: &'static [Metric] =
        &[Metric::share_of_count("token_accuracy", 1), Metric::of_loss("perplexity", f64::exp2)];
    const SAMPLES: &'static str = "paragraphs";
    const EVALUATION_BATCH: u32 = 64;
    const DATA_HELP: &'static str = "Text file, or folder with .txt and .md files and files without an extension";
    const FILES: &'static [&'static str] = &[data::FILE];
    type Network = Transformer;
    type Data = Paragraphs;

    fn checked(self) -> Result<Self, BoxError> {
        // Settings also come from checkpoints and from the coordinator: sizes need an upper bound before the network is made.
        for (flag, found, min, max) in [
            ("--layers", self.layers, 1, 16),
            ("--width", self.width, 8, 512),
            ("--heads", self.heads, 1, 64),
            ("--context", self.context, 32, 1024),
        ] {
            if !(min..=max).contains(&found) {
                return Err(format!("expected {flag} from {min} to {max}, found {found}").into());
            }
        }
        if !self.width.is_multiple_of(self.heads) {
            let Self { width, heads, .. } = self;
            return Err(
                format!("expected --width as a multiple of --heads, found --width {width} --heads {heads}").into()
            );
        }
        match self.dropout {
            dropout if (0.0..1.0).contains(&dropout) => Ok(self),
            dropout => Err(format!("expected --dropout from 0 to below 1, found {dropout}").into()),
        }
    }

    fn defaults(&self) -> Defaults {
        Defaults {
            epochs: 10,
            batch_size: 32,
            optimizer: RuleName::AdamW,
            learning_rate: 0.002,
            lr_schedule: LrSchedule { decay: Decay::Cosine, warmup_steps: 100 },
            clip_norm: Some(1.0),
            ..Defaults::default()
        }
    }

    fn data(&self, source: &DataSource) -> Result<Paragraphs, BoxError> {
        let path = if source.is_auto() { Path::new(data::FORTUNES) } else { source.path() };
        // The boundary token is a part of each sample.
        Paragraphs::read(path, self.context - 1)
    }

    fn files(data: &Paragraphs) -> Vec<DataFile<'_>> {
        vec![DataFile { name: data::FILE, header: Vec::new(), content: data.text() }]
    }

    fn network(&self, device: &ComputeDevice, _seed: u64) -> Transformer {
        Transformer::new(self, device)
    }

    /// The loss of a sample is the **mean** of its tokens' losses, in bits per token, so that each paragraph counts the same and
    /// the loss does not depend on how long paragraphs are. A mean over all tokens of a step is not possible here: it would make
    /// the weight of a sample depend on the other shards.
    fn loss(&self, network: &Transformer, batch: Batch<Self>, context: &Context<'_>) -> Loss {
        let scores = network.score(&batch, context.device());
        Loss::sum(scores.bits.sum()).counts([scores.n_right, scores.n_tokens])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_keeps_the_rules() -> Result<(), BoxError> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("text");
        let lines =
            (0..20).map(|number| format!("a line of text that is number {number}, {}\n\n", "x ".repeat(number)));
        std::fs::write(&path, lines.collect::<String>())?;
        let task = Language { layers: 1, width: 16, heads: 2, context: 64, dropout: 0.1 };
        let data = task.data(&DataSource::at(&path))?;
        telar::testing::check(task, data)
    }
}
