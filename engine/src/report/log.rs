//! The log: on standard error, text for people or JSON for programs, and in a file of the run.

use std::fs::OpenOptions;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use clap::ValueEnum;
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{self, FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use super::bar;
use super::log_limit::Limited;
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
    let shown = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default_level));
    let kept = run_level.map(|level| EnvFilter::new(run_level_of(level)));
    subscriber(format, lines, shown, kept).init();
    LogGuard { _thread: thread }
}

/// The subscriber: events that pass `shown` go to `lines`, and those that pass `kept` to the run's log. A layer without a filter
/// would ask for everything, and have HTTP/2 make spans for each of its frames: 4 % of a step of 1 ms.
fn subscriber(
    format: LogFormat,
    lines: NonBlocking,
    shown: EnvFilter,
    kept: Option<EnvFilter>,
) -> impl Subscriber + Send + Sync {
    // That a line cannot be written would otherwise be written, and panic if it cannot.
    let layer = fmt::layer().with_writer(lines).log_internal_errors(false);
    let is_terminal = std::io::stderr().is_terminal();
    let layer = match format {
        LogFormat::Text if is_terminal => {
            layer.with_ansi(has_colours()).event_format(Limited::new(LevelAndFields)).boxed()
        }
        LogFormat::Text => {
            layer.with_ansi(false).with_target(false).without_time().map_event_format(Limited::new).boxed()
        }
        LogFormat::Json => {
            let layer = layer.with_target(false).json().with_current_span(false).with_span_list(true);
            layer.map_event_format(Limited::new).boxed()
        }
    };
    let kept = kept.map(|filter| {
        let file = fmt::layer().with_writer(|| RunLogWriter).log_internal_errors(false);
        file.with_ansi(false).with_target(false).map_event_format(Limited::new).with_filter(filter)
    });
    tracing_subscriber::registry().with(layer.with_filter(shown)).with(kept)
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
    use std::sync::Arc;
    use std::thread::sleep;
    use std::time::Duration;

    use tracing::subscriber::with_default;
    use tracing::{enabled, info, warn};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What is shown of what is logged meanwhile.
    fn shown(format: LogFormat, filters: [&str; 2], log: impl FnOnce()) -> String {
        let written = Lines::default();
        let (lines, guard) = NonBlockingBuilder::default().lossy(false).finish(written.clone());
        let [shown, kept] = filters.map(EnvFilter::new);
        with_default(subscriber(format, lines, shown, Some(kept)), log);
        drop(guard);
        let bytes = written.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        String::from_utf8(bytes).expect("text")
    }

    /// The goal: spans and lines of levels that no output has cost nothing, such as those of HTTP/2 for each frame.
    #[test]
    fn levels_beyond_both_filters_are_off() {
        shown(LogFormat::Text, ["warn", "info"], || assert!(enabled!(Level::INFO) && !enabled!(Level::DEBUG)));
        shown(LogFormat::Text, ["debug", "info"], || assert!(enabled!(Level::DEBUG) && !enabled!(Level::TRACE)));
    }

    /// The goal: a peer cannot fill the log, nor hide a warning among lines that are left out.
    #[test]
    fn lines_about_peers_are_limited_and_hide_no_others() {
        let refused = || warn!(peer = "somebody", "refused");
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = shown(format, ["warn", "info"], || {
                for number in 0..1000 {
                    info!(peer = "somebody", number, "joined");
                    refused();
                    warn!(number, "without a peer");
                }
                // Room for another one, which comes after the count.
                sleep(Duration::from_millis(200));
                refused();
            });
            let n_with = |part: &str| text.lines().filter(|line| line.contains(part)).count();
            assert_eq!([n_with("joined"), n_with("without a peer")], [0, 1000]);
            assert!((100..1000).contains(&n_with("refused")), "{}", n_with("refused"));
            let counted: Vec<&str> = text.lines().filter(|line| line.contains("were left out")).collect();
            let count = counted.last().expect("lines were left out");
            assert!(count.contains("WARN") && count.contains("n_left_out"), "{count}");
            if format == LogFormat::Json {
                let is_object = |line: &str| serde_json::from_str::<serde_json::Value>(line).is_ok();
                assert!(text.lines().all(is_object), "{text}");
            }
        }
    }
}
