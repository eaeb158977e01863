//! The run folder's lines and pictures.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use engine::backend::ComputeDevice;
use engine::files::WriteError;
use engine::recipe::Recipe;
use engine::report::RunFolder;
use engine::task::{Codes, NamedPicture, OpenTask};
use engine::weights::Weights;
use events::{EpochRecord, PictureName, StepEvent};
use tracing::warn;

use super::code_space::{CodeSpace, Skip};
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
    /// The code space by epoch.
    pub code_space: CodeSpace,
}

/// What there is to look at of an epoch.
#[derive(Debug, Default)]
pub struct EpochPictures {
    /// The task's pictures, and that of its codes.
    pub pictures: Vec<NamedPicture>,
    /// The task's codes, if they could be drawn.
    pub codes: Option<Codes>,
}

impl History {
    /// Adds a step.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add_step(&mut self, step: &StepEvent) -> Result<(), WriteError> {
        self.folder.add_step(step)
    }

    /// Adds an epoch with its weights and its pictures; gives what there is to look at.
    ///
    /// # Errors
    /// If something other than a picture cannot be written.
    pub fn add_epoch(&mut self, record: &EpochRecord, weights: &Weights) -> Result<EpochPictures, WriteError> {
        let made = self.pictures(record.epoch, weights);
        let pictures = made.pictures.iter().map(|picture| (picture.name, &*picture.png));
        let files = self.folder.add_pictures(record.epoch, pictures);
        self.folder.add_epoch(record, weights)?;
        self.mirror.epoch_written(record, &files);
        let is_there = |picture: &NamedPicture| files.iter().any(|file| file.name == picture.name);
        Ok(EpochPictures { pictures: made.pictures.into_iter().filter(is_there).collect(), ..made })
    }

    fn pictures(&mut self, epoch: u32, weights: &Weights) -> EpochPictures {
        let evaluator = Arc::clone(&self.task).evaluator(&weights.params, &self.device);
        let (seed, code_space) = (self.recipe.seed, &mut self.code_space);
        let skip = if epoch == self.recipe.epochs.get() { Skip::Never } else { Skip::IfRecent };
        let mut pictures = evaluator.pictures(seed);
        // Whatever the values and labels are: a picture must not end a run.
        let drawn = catch_unwind(AssertUnwindSafe(|| code_space.draw(epoch, skip, &*evaluator, seed)));
        let drawn = drawn.unwrap_or_else(|_| {
            warn!(epoch, "the picture of the codes failed; the run goes on");
            None
        });
        let codes = drawn.map(|(codes, png)| {
            pictures.push(NamedPicture { name: PictureName::CODES, png });
            codes
        });
        EpochPictures { pictures, codes }
    }
}
