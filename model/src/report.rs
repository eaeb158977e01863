//! Pictures of reconstructions, the summary table, and how a download is shown.

mod download_bar;
mod picture;
mod summary;

pub use download_bar::DownloadBar;
pub use picture::{reconstruction_picture, split_picture};
pub use summary::{SummaryRow, summary};
