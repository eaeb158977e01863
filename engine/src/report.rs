//! What people and programs see of a run: the screen, the log, figures, the run folder.

pub mod bar;
mod log;
mod log_limit;
mod output;
mod records;
mod run_folder;
mod screen;
mod terminal;

pub use log::{LogFormat, LogGuard, init_log, init_log_with_file, open_run_log, write_run_log_line, write_stderr_line};
pub use output::{check_output, print_line};
pub use records::{epoch_record, step_record};
pub use run_folder::{DESCRIPTION_BYTES_MAX, LINE_BYTES_MAX, RunFolder, best_json, best_rows};
pub use screen::Screen;
