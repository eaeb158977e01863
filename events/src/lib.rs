//! What happens in a run, as everyone outside the training core gets it: the lines of `steps.jsonl`, `history.jsonl` and
//! `events.jsonl`, which are written and read with these types, and the names of its pictures. Depends on nothing that computes.

mod costs;
mod epoch;
mod figures;
mod picture;
mod run_event;
mod snapshot;
mod step;

pub use costs::{CostTotals, StepCosts};
pub use epoch::EpochRecord;
pub use figures::Figures;
pub use picture::{PICTURE_BYTES_MAX, PICTURES_MAX, PictureFile, PictureName, PictureNameError};
pub use run_event::{MIRROR_LAG_MAX, MirrorEvent, RecordedEvent, RunEvent, seconds_since_1970};
pub use snapshot::{Snapshot, TaskSpan, WorkerStatus};
pub use step::{StepEvent, StepRecord};
