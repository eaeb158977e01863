//! What people and programs see of a run: the screen, the log, figures, the run folder, the summary table, pictures.

mod bar;
mod download_bar;
mod log;
mod log_limit;
mod output;
mod picture;
mod records;
mod run_folder;
mod screen;
mod summary;

pub use download_bar::DownloadBar;
pub use log::{LogFormat, LogGuard, init_log, write_stderr_line};
pub use output::{check_output, print_line};
pub use picture::{reconstruction_picture, split_picture};
pub use records::{EpochRecord, StepRecord};
pub use run_folder::{DESCRIPTION_BYTES_MAX, LINE_BYTES_MAX, RunFolder, picture_name, picture_number};
pub use screen::Screen;
pub use summary::{SummaryRow, summary};
