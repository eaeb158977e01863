//! The log on standard error: text for people, JSON for programs.

use std::io::{IsTerminal, Write};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use super::bar;

/// What a line of the log looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Level, message and fields; in colours on a terminal. Who reads along needs no time, and who keeps lines adds it.
    #[default]
    Text,
    /// An object a line, with the time, and the fields of all spans around it.
    Json,
}

/// Sends events to standard error: those that `$RUST_LOG` lets through, else those of the level named, such as `warn`.
///
/// # Panics
/// If a log was set up before.
pub fn init_log(format: LogFormat, default_level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default_level));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| BesideBar).with_target(false);
    match format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).without_time().init(),
        LogFormat::Json => log.json().with_current_span(false).with_span_list(true).init(),
    }
}

/// Standard error, beside the progress bar. Each event comes as one piece.
struct BesideBar;

impl Write for BesideBar {
    fn write(&mut self, event: &[u8]) -> std::io::Result<usize> {
        bar::beside(|| std::io::stderr().lock().write_all(event))?;
        Ok(event.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(()) // standard error keeps nothing back
    }
}
