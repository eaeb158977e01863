//! What people and programs see of a run: figures, the run folder, the summary table, pictures.

mod picture;
mod records;
mod run_folder;
mod summary;

pub use picture::reconstruction_picture;
pub use records::{EpochRecord, StepRecord};
pub use run_folder::RunFolder;
pub use summary::{SummaryRow, summary};
