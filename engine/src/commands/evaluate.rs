//! `evaluate`: loss and metrics of trained weights.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde_json::{Map, Value, json};

use crate::args::{BackendArgs, DataArgs};
use crate::backend::ComputeDevice;
use crate::data::Split;
use crate::evaluation;
use crate::say;
use crate::sums::{ImpossibleCount, metrics};
use crate::task::{OpenTask, TaskChoice};
use crate::weights::{Weights, WeightsError, WeightsFile};

/// The flags of `evaluate`, but for the task's own.
#[derive(Args, Debug)]
pub struct EvaluateArgs {
    /// Split to evaluate
    #[arg(long, value_enum, default_value_t = Split::Test)]
    pub split: Split,
    /// What to evaluate.
    #[command(flatten)]
    pub trained: TrainedArgs,
}

/// What every use of trained weights needs.
#[derive(Args, Debug)]
pub struct TrainedArgs {
    /// Trained weights (.safetensors)
    #[arg(long, value_name = "FILE")]
    pub weights: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Which data set.
    #[command(flatten)]
    pub data: DataArgs,
    /// What computes.
    #[command(flatten)]
    pub backend: BackendArgs,
}

/// Evaluates the weights of a task.
///
/// # Errors
/// If the flags cannot be followed, or the data set or the weights cannot be read.
pub fn evaluate(args: &EvaluateArgs, choice: &TaskChoice) -> anyhow::Result<()> {
    let TrainedArgs { weights, json, data, backend } = &args.trained;
    let device = backend.open()?.device;
    let file = WeightsFile::read(weights)?;
    let known = choice.build_stored(file.task(), file.settings::<Value>()?.as_ref())?;
    let spec = known.spec();
    let weights = file.weights_of(spec.name, &spec.layout).map_err(|error| {
        let flags = choice.flags_of(spec);
        let may_be_flags = matches!(error, WeightsError::Tensor { .. }) && !flags.is_empty();
        if may_be_flags { EvaluateError::OtherFlags { error, flags }.into() } else { anyhow::Error::from(error) }
    })?;
    report_evaluation(&known.open(&data.data)?, &weights, &device, args.split, *json)?;
    Ok(())
}

/// Weights that do not fit the network.
#[derive(Debug, thiserror::Error)]
enum EvaluateError {
    /// The network may have another size than what was trained.
    #[error("{error}; expected the weights of the network of {flags}: give the flags that they were trained with")]
    OtherFlags {
        /// What does not fit.
        #[source]
        error: WeightsError,
        /// The task's settings as flags.
        flags: String,
    },
}

/// Evaluates weights on a split, and prints what comes out.
///
/// # Errors
/// If the task's counts are impossible.
pub fn report_evaluation(
    task: &Arc<dyn OpenTask>,
    weights: &Weights,
    device: &ComputeDevice,
    split: Split,
    json: bool,
) -> Result<(), ImpossibleCount> {
    let evaluator = Arc::clone(task).evaluator(&weights.params, device);
    let sums = evaluation::evaluate(&**task, &*evaluator, split)?;
    let (spec, loss) = (task.spec(), sums.loss());
    let named = || spec.metrics.iter().map(|metric| metric.name).zip(metrics(spec.metrics, &sums));
    if json {
        // Under its older name too, for programs that read it.
        let line = json!({
            "task": spec.name, "architecture": spec.name, "split": split, "data": task.data_name(),
            "n_samples": sums.n_samples, "loss": loss,
        });
        let Value::Object(mut line) = line else { unreachable!("it is written as an object") };
        line.extend(named().map(|(name, value)| (name.to_owned(), json!(value))).collect::<Map<_, _>>());
        say!("{}", Value::Object(line));
    } else {
        let words: String = named().map(|(name, value)| format!(", {} {value:.4}", name.replace('_', " "))).collect();
        let (name, samples, data) = (spec.name, spec.samples, task.data_name());
        say!("{name} on {} {samples} ({split}, {data}): loss {loss:.4}{words}", sums.n_samples);
    }
    Ok(())
}
