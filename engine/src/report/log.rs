//! The log on standard error: text for people, JSON for programs.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::OnceLock;

use clap::ValueEnum;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::bar;
use super::log_limit::LogLimit;

/// What a line of the log looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Level, message and fields; in colours on a terminal. Who reads along needs no time, and who keeps lines adds it.
    #[default]
    Text,
    /// An object a line, with the time, and the fields of all spans around it.
    Json,
}

/// As it is typed.
impl fmt::Display for LogFormat {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Lines that wait for whoever reads standard error. If there are more, because nobody does, they are lost: a log holds
/// nothing up.
const LINES_MAX: usize = 4096;

static LINES: OnceLock<NonBlocking> = OnceLock::new();

/// Brings what waits to standard error when it is dropped, unless nobody reads it for a second.
#[must_use]
#[derive(Debug)]
pub struct LogGuard {
    _thread: WorkerGuard,
}

/// Sends events to standard error: those that `$RUST_LOG` lets through, else those that `default_level` does, such as
/// `warn`. Of each kind of line about a peer there are at most 10 a second, after 100 at once. To be kept until the program's
/// end.
///
/// # Panics
/// If a log was set up before.
pub fn init_log(format: LogFormat, default_level: &str) -> LogGuard {
    let (lines, thread) = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_MAX).finish(BesideBar);
    LINES.get_or_init(|| lines.clone());
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default_level));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines).with_target(false);
    // That a line cannot be written would otherwise be written, and panic if it cannot.
    let log = log.log_internal_errors(false);
    match format {
        LogFormat::Text => {
            log.with_ansi(std::io::stderr().is_terminal()).without_time().finish().with(LogLimit::default()).init();
        }
        LogFormat::Json => {
            log.json().with_current_span(false).with_span_list(true).finish().with(LogLimit::default()).init();
        }
    }
    LogGuard { _thread: thread }
}

/// Writes a line to standard error, such as another process' own, after what the log has said, and holding nobody up.
/// Whether it arrives does not matter to the run.
pub fn write_stderr_line(line: &str) {
    // In one piece, so that lines of several threads and processes do not mix.
    let line = format!("{line}\n");
    let _ = match LINES.get() {
        Some(lines) => lines.clone().write_all(line.as_bytes()),
        None => BesideBar.write_all(line.as_bytes()),
    };
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
