//! The run folder's lines and pictures.

use std::sync::Arc;

use engine::backend::ComputeDevice;
use engine::files::WriteError;
use engine::recipe::Recipe;
use engine::report::{EpochRecord, RunFolder, StepRecord};
use engine::task::OpenTask;
use engine::weights::Weights;
use serde::Serialize;

use super::StepCosts;
use crate::mirror::MirrorHandle;
use crate::training::WorkerId;

/// The files of a run.
#[derive(Debug)]
pub struct History {
    /// Where they are.
    pub folder: RunFolder,
    /// What makes the pictures.
    pub task: Arc<dyn OpenTask>,
    /// What computes them.
    pub device: ComputeDevice,
    /// What is trained.
    pub recipe: Recipe,
    /// Who copies the files.
    pub mirror: MirrorHandle,
}

/// A line of `steps.jsonl`.
#[derive(Debug, Serialize)]
pub struct ClusterStepRecord {
    /// The step's figures.
    #[serde(flatten)]
    pub step: StepRecord,
    /// The number of the worker that computed each shard.
    pub workers: Vec<u64>,
    /// Where its time went, in milliseconds.
    pub costs: StepCosts,
}

impl History {
    /// Adds a step.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add_step(&mut self, step: StepRecord, costs: StepCosts, workers: Vec<WorkerId>) -> Result<(), WriteError> {
        let workers = workers.into_iter().map(|WorkerId(worker_id)| worker_id).collect();
        self.folder.add_step(&ClusterStepRecord { step, workers, costs })
    }

    /// Adds an epoch with its weights and its picture, if the task makes one.
    ///
    /// # Errors
    /// If something cannot be written.
    pub fn add_epoch(&mut self, record: &EpochRecord, weights: &Weights) -> Result<(), WriteError> {
        let evaluator = Arc::clone(&self.task).evaluator(&weights.params, &self.device);
        let picture = evaluator.picture(self.recipe.seed);
        self.folder.add_epoch(record, weights, picture.as_deref())?;
        self.mirror.epoch_written(record, picture.is_some());
        Ok(())
    }
}
