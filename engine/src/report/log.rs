//! The log: on standard error, text for people or JSON for programs, and in a file of the run.

use std::fs::OpenOptions;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use clap::ValueEnum;
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{Filtered, LevelFilter};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{self, FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Layer, Layered, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

use super::bar;
use super::log_limit::LogLimit;
use super::terminal::{drawing_size, has_colours, wrapped};
use crate::files::WriteError;

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
impl std::fmt::Display for LogFormat {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Lines that wait to be written to standard error. If its reader stalls, lines beyond these are dropped: logging never
/// blocks.
const LINES_MAX: usize = 4096;

static LINES: OnceLock<NonBlocking> = OnceLock::new();

/// Flushes the waiting lines to standard error when it is dropped; gives up if its reader stalls for a second.
#[must_use]
#[derive(Debug)]
pub struct LogGuard {
    _thread: WorkerGuard,
}

/// Logs events to standard error, filtered by `$RUST_LOG`, else by `default_level`, such as `warn`. Each kind of line about a
/// peer is limited to 10 a second, after a burst of 100. Keep the guard until the program's end.
///
/// # Panics
/// If a log was set up before.
pub fn init_log(format: LogFormat, default_level: &str) -> LogGuard {
    init(format, default_level, None)
}

/// As [`init_log`], and sends events to the file that [`open_run_log`] names later: those of `run_level`, and what `$RUST_LOG`
/// asks for in `debug` or `trace`. What comes before is kept till then, up to 64 KiB.
///
/// # Panics
/// If a log was set up before.
pub fn init_log_with_file(format: LogFormat, default_level: &str, run_level: &str) -> LogGuard {
    init(format, default_level, Some(run_level))
}

fn init(format: LogFormat, default_level: &str, run_level: Option<&str>) -> LogGuard {
    let lines = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_MAX);
    let (lines, thread) = lines.finish(BesideBar { is_text: format == LogFormat::Text });
    LINES.get_or_init(|| lines.clone());
    let shown_filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default_level));
    // That a line cannot be written would otherwise be written, and panic if it cannot.
    let shown = fmt::layer().with_writer(lines).log_internal_errors(false);
    let is_terminal = std::io::stderr().is_terminal();
    let shown = match format {
        LogFormat::Text if is_terminal => shown.with_ansi(has_colours()).event_format(LevelAndFields).boxed(),
        LogFormat::Text => shown.with_ansi(false).with_target(false).without_time().boxed(),
        LogFormat::Json => shown.with_target(false).json().with_current_span(false).with_span_list(true).boxed(),
    };
    let kept = run_level.map(|level| {
        let file = fmt::layer().with_writer(|| RunLogWriter).log_internal_errors(false);
        (file.with_ansi(false).with_target(false), EnvFilter::new(run_level_of(level)))
    });
    limited((shown, shown_filter), kept).init();
    LogGuard { _thread: thread }
}

/// What writes the lines that pass its filter to standard error, and perhaps what writes others to a file, both limited.
fn limited<S, K>(shown: (S, EnvFilter), kept: Option<(K, EnvFilter)>) -> impl Subscriber + Send + Sync
where
    S: Layer<Registry> + Send + Sync,
    K: for<'a> Layer<Layered<Filtered<S, EnvFilter, Registry>, Registry>> + Send + Sync,
{
    // A layer without a level would have HTTP/2 make a span for each of its frames, which take 4 % of a small step.
    let level = [Some(&shown.1), kept.as_ref().map(|(_, filter)| filter)].into_iter().flatten();
    let level = level.map(|filter| filter.max_level_hint().unwrap_or(LevelFilter::TRACE)).max();
    let limit = LogLimit::default().with_filter(level.unwrap_or(LevelFilter::OFF));
    let kept = kept.map(|(kept, filter)| kept.with_filter(filter));
    tracing_subscriber::registry().with(shown.0.with_filter(shown.1)).with(kept).with(limit)
}

/// The run's level, with what `$RUST_LOG` asks for besides: its directives come later, and count where they say more.
fn run_level_of(level: &str) -> String {
    match std::env::var("RUST_LOG") {
        Ok(asked) if asked.contains("debug") || asked.contains("trace") => format!("{level},{asked}"),
        _ => level.to_owned(),
    }
}

/// A line on a terminal: level, message and fields. Which run it is about is known there.
struct LevelAndFields;

impl<S, N> FormatEvent<S, N> for LevelAndFields
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> std::fmt::Result {
        let level = *event.metadata().level();
        if out.has_ansi_escapes() {
            let colour = match level {
                Level::ERROR => 31,
                Level::WARN => 33,
                Level::INFO => 32,
                Level::DEBUG => 34,
                Level::TRACE => 35,
            };
            write!(out, "\x1b[{colour}m{level:>5}\x1b[0m ")?;
        } else {
            write!(out, "{level:>5} ")?;
        }
        context.format_fields(out.by_ref(), event)?;
        writeln!(out)
    }
}

/// The file of a run's log.
enum RunLog {
    /// It is not known yet; what came so far.
    Early(Vec<u8>),
    /// It is written on a thread of its own, which ends with its guard.
    Open { lines: NonBlocking, _thread: WorkerGuard },
}

/// Bytes of lines that come before the file is known.
const EARLY_BYTES_MAX: usize = 64 << 10;

static RUN_LOG: Mutex<RunLog> = Mutex::new(RunLog::Early(Vec::new()));

/// Has the run's log written to the end of a file until the program's end, with what came so far.
///
/// # Errors
/// If it cannot be opened.
pub fn open_run_log(path: &Path) -> Result<(), WriteError> {
    let file = OpenOptions::new().append(true).create(true).open(path).map_err(WriteError::at(path))?;
    let (mut lines, thread) = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_MAX).finish(file);
    let mut log = RUN_LOG.lock().unwrap_or_else(PoisonError::into_inner);
    if let RunLog::Early(early) = &*log {
        let _ = lines.write_all(early);
    }
    *log = RunLog::Open { lines, _thread: thread };
    Ok(())
}

impl Drop for LogGuard {
    /// Brings what waits to the run's log.
    fn drop(&mut self) {
        let log =
            std::mem::replace(&mut *RUN_LOG.lock().unwrap_or_else(PoisonError::into_inner), RunLog::Early(Vec::new()));
        drop(log); // not while it is locked: its thread's last words would wait for that
    }
}

/// Adds a line to the run's log, such as another process' own.
pub fn write_run_log_line(line: &str) {
    let _ = RunLogWriter.write_all(format!("{line}\n").as_bytes());
}

struct RunLogWriter;

impl Write for RunLogWriter {
    fn write(&mut self, event: &[u8]) -> std::io::Result<usize> {
        match &mut *RUN_LOG.lock().unwrap_or_else(PoisonError::into_inner) {
            RunLog::Open { lines, .. } => lines.write(event),
            RunLog::Early(early) => {
                if early.len() + event.len() <= EARLY_BYTES_MAX {
                    early.extend_from_slice(event);
                }
                Ok(event.len())
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(()) // what writes the file does
    }
}

/// Writes a line to standard error, such as another process' own, after the log lines so far, without blocking.
/// Whether it arrives does not matter to the run.
pub fn write_stderr_line(line: &str) {
    // In one piece, so that lines of several threads and processes do not mix.
    let line = format!("{line}\n");
    let _ = match LINES.get() {
        Some(lines) => lines.clone().write_all(line.as_bytes()),
        None => BesideBar { is_text: true }.write_all(line.as_bytes()),
    };
}

/// Standard error, beside the progress bar. Each event comes as one piece.
struct BesideBar {
    /// Whether lines are for people, and broken where a terminal is too narrow for them.
    is_text: bool,
}

/// Columns by which the rest of a line that is broken is indented: as many as a level takes.
const INDENT: usize = 6;

impl Write for BesideBar {
    fn write(&mut self, event: &[u8]) -> std::io::Result<usize> {
        let columns = drawing_size().filter(|_| self.is_text).map(|(columns, _)| usize::from(columns));
        let text = columns.and_then(|columns| {
            let lines = str::from_utf8(event).ok()?.split('\n');
            Some(lines.map(|line| wrapped(line, columns, INDENT)).collect::<Vec<_>>().join("\n"))
        });
        let bytes = text.as_ref().map_or(event, |text| text.as_bytes());
        bar::beside(|| std::io::stderr().lock().write_all(bytes))?;
        Ok(event.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(()) // standard error keeps nothing back
    }
}

#[cfg(test)]
mod tests {
    use tracing::subscriber::with_default;
    use tracing::{Level, enabled};
    use tracing_subscriber::layer::Layer;
    use tracing_subscriber::{EnvFilter, fmt};

    use super::limited;

    /// Goal: spans and lines that nobody sees cost nothing, such as those of HTTP/2 for each frame.
    #[test]
    fn levels_beyond_both_filters_are_off() {
        let filter = EnvFilter::new;
        let log = |shown, kept: Option<&str>| {
            limited((fmt::layer().boxed(), filter(shown)), kept.map(|level| (fmt::layer(), filter(level))))
        };
        with_default(log("warn", Some("info")), || {
            assert!(enabled!(Level::INFO) && !enabled!(Level::DEBUG));
        });
        with_default(log("debug", None), || {
            assert!(enabled!(Level::DEBUG) && !enabled!(Level::TRACE));
        });
    }
}
