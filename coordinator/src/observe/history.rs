//! The run folder's lines and pictures.

use std::sync::Arc;

use model::backend::ComputeDevice;
use model::data::{Dataset, Split};
use model::evaluation::Evaluator;
use model::files::WriteError;
use model::recipe::Recipe;
use model::report::{EpochRecord, RunFolder, StepRecord, split_picture};
use model::weights::Weights;
use serde::Serialize;

use super::StepCosts;
use crate::mirror::MirrorHandle;
use crate::training::WorkerId;

/// Images of an epoch's picture.
const N_IMAGES: u32 = 5;

/// The files of a run.
#[derive(Debug)]
pub struct History {
    /// Where they are.
    pub folder: RunFolder,
    /// Images for the pictures.
    pub data: Arc<Dataset>,
    /// What reconstructs them.
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

    /// Adds an epoch with its weights and its picture.
    ///
    /// # Errors
    /// If something cannot be written.
    pub fn add_epoch(&mut self, record: &EpochRecord, weights: &Weights) -> Result<(), WriteError> {
        let evaluator = Evaluator::new(weights, &self.device);
        let Recipe { noise, seed, .. } = self.recipe;
        let png = split_picture(&evaluator, &self.data, Split::Valid, N_IMAGES, noise, seed);
        self.folder.add_epoch(record, weights, &png)?;
        self.mirror.epoch_written(record.epoch);
        Ok(())
    }
}
