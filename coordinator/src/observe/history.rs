//! The run folder's lines and pictures.

use std::sync::Arc;

use engine::backend::ComputeDevice;
use engine::files::WriteError;
use engine::recipe::Recipe;
use engine::report::RunFolder;
use engine::task::OpenTask;
use engine::weights::Weights;
use events::{EpochRecord, StepEvent};

use crate::mirror::MirrorHandle;

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

impl History {
    /// Adds a step.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add_step(&mut self, step: &StepEvent) -> Result<(), WriteError> {
        self.folder.add_step(step)
    }

    /// Adds an epoch with its weights and its picture, if the task makes one; gives that.
    ///
    /// # Errors
    /// If something cannot be written.
    pub fn add_epoch(&mut self, record: &EpochRecord, weights: &Weights) -> Result<Option<Vec<u8>>, WriteError> {
        let evaluator = Arc::clone(&self.task).evaluator(&weights.params, &self.device);
        let picture = evaluator.picture(self.recipe.seed);
        self.folder.add_epoch(record, weights, picture.as_deref())?;
        self.mirror.epoch_written(record, picture.is_some());
        Ok(picture)
    }
}
