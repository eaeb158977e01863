//! A step: a line of `steps.jsonl`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::costs::StepCosts;
use crate::figures::{Figures, number};
use crate::snapshot::TaskSpan;

/// One optimiser step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Updates applied to the parameters, this one included.
    pub step: u64,
    /// Epoch, counted from 1.
    pub epoch: u32,
    /// Mean loss over the step's samples, before the update.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// The task's metrics over the step's samples.
    #[serde(flatten)]
    pub metrics: Figures,
    /// Samples of the step.
    pub n_samples: u64,
    /// How long the step took.
    pub milliseconds: f64,
    /// Name of the parameters after the step, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub params_blake3: Option<String>,
}

/// A step of a coordinator: a line of its `steps.jsonl`, and when which of its tasks were computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepEvent {
    /// Its figures.
    #[serde(flatten)]
    pub record: StepRecord,
    /// The worker that computed each shard.
    pub workers: Vec<u64>,
    /// Workers that take part.
    pub n_active: usize,
    /// Where its time went, in milliseconds.
    pub costs: StepCosts,
    /// From the start of the coordinator's process to the step's beginning. Not in the line.
    #[serde(skip)]
    pub begun: Duration,
    /// When its shards were computed, by shard. Not in the line.
    #[serde(skip)]
    pub tasks: Vec<TaskSpan>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step() -> StepEvent {
        let metrics = Figures(vec![("rounded_accuracy".to_owned(), 0.5), ("accuracy".to_owned(), 0.25)]);
        let record = StepRecord {
            step: 7,
            epoch: 1,
            loss: 0.69,
            metrics,
            n_samples: 32,
            milliseconds: 1.5,
            params_blake3: None,
        };
        let costs = StepCosts { compute: Duration::from_micros(900), ..StepCosts::default() };
        StepEvent { record, workers: vec![1, 2], n_active: 2, costs, begun: Duration::ZERO, tasks: Vec::new() }
    }

    #[test]
    fn step_line_is_read_as_it_was_written() {
        let mut step = step();
        let line = serde_json::to_string(&step).expect("JSON");
        assert_eq!(serde_json::from_str::<StepEvent>(&line).expect("a step"), step);
        step.record.params_blake3 = Some("00ff".to_owned());
        let line = serde_json::to_string(&step).expect("JSON");
        assert_eq!(serde_json::from_str::<StepEvent>(&line).expect("a step"), step);
    }

    #[test]
    fn figures_that_are_not_finite_are_read_as_nan() {
        let mut step = step();
        step.record.loss = f64::INFINITY;
        step.record.metrics.0[0].1 = f64::NAN;
        let line = serde_json::to_string(&step).expect("JSON");
        let read: StepEvent = serde_json::from_str(&line).expect("a step");
        assert!(read.record.loss.is_nan() && read.record.metrics.0[0].1.is_nan());
    }
}
