//! Starts local workers and minds them: relays what they say, starts those anew that die, and gives up when none stays alive.
//! Each has a pipe to this process as its standard input, and ends when that closes: so none
//! outlives the coordinator, whatever becomes of it.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use engine::args::BackendArgs;
use engine::data::DataSource;
use engine::exit;
use engine::report::{LogFormat, write_run_log_line, write_stderr_line};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, Command};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, info, warn};

use crate::config::WorkerProgram;

/// A worker that lives for less than this has died at once.
const SHORT_LIFE: Duration = Duration::from_secs(5);
/// How often one worker may die at once in a row.
const SHORT_LIVES_MAX: u32 = 5;
/// Pause before the first new start; it doubles with each short life.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a worker may take to end after its session was closed. What it still computes then is not used.
const END_WAIT_MAX: Duration = Duration::from_secs(2);
/// Lines of a worker's last words that are kept.
const LAST_LINES: usize = 10;
/// A line longer than this is cut off.
const LINE_BYTES_MAX: usize = 4096;

/// How local workers are started.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// The program.
    pub program: WorkerProgram,
    /// Where they find the coordinator.
    pub address: String,
    /// Where they find the data set.
    pub data: DataSource,
    /// What they compute with.
    pub backend: BackendArgs,
    /// Whether they wait for messages without sleep at first.
    pub busy_poll: bool,
    /// How they log.
    pub log_format: LogFormat,
}

/// Workers that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The program cannot be started.
    #[error("cannot start a worker, {}: {source}; name another program with --worker-program", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// None of them stays alive.
    #[error(
        "no local worker stays alive: number {number} ended {n_lives} times at once, the last time with {ended}; its last \
         words were:\n{last_lines}"
    )]
    DiesAtOnce {
        /// Which one, counted from 1.
        number: u32,
        /// How often.
        n_lives: u32,
        /// How it ended.
        ended: String,
        /// What it said last.
        last_lines: String,
    },
    /// It says itself that it is not to be started so.
    #[error("a local worker cannot work as it was started:\n{last_lines}")]
    Configuration {
        /// What it said last.
        last_lines: String,
    },
}
impl Launcher {
    /// Keeps `n_workers` workers running until `shutdown`, and then waits for their end. One that dies at once again and
    /// again is tried further as long as another one lives.
    ///
    /// # Errors
    /// If none stays alive, or one says that it cannot work so; the others end then too.
    pub async fn run(self, n_workers: u32, shutdown: CancellationToken) -> Result<(), LaunchError> {
        let n_alive = Arc::new(AtomicU32::new(n_workers));
        let mut supervisors = tokio::task::JoinSet::new();
        for number in 1..=n_workers {
            let supervisor =
                WorkerSupervisor { number, launcher: self.clone(), n_alive: Arc::clone(&n_alive), n_short_lives: 0 };
            supervisors.spawn(supervisor.supervise(shutdown.clone()).in_current_span());
        }
        let mut first_error = Ok(());
        while let Some(ended) = supervisors.join_next().await {
            let ended = ended.expect("a keeper ends by itself");
            if ended.is_err() && first_error.is_ok() {
                first_error = ended;
                shutdown.cancel();
            }
        }
        first_error
    }

    fn start(&self, number: u32) -> Result<LocalWorker, LaunchError> {
        let mut command = Command::new(&self.program.file);
        command.args(&self.program.arguments);
        // Variables of the coordinator are not for its workers, which get all settings by flags.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TELAR_")) {
            command.env_remove(name);
        }
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "warn");
        }
        let BackendArgs { backend, device, operations, threads } = &self.backend;
        let flags = [
            ("--backend", backend.map(|backend| backend.to_string())),
            ("--device", device.map(|device| device.to_string())),
            ("--operations", operations.map(|operations| operations.to_string())),
            ("--threads", threads.map(|threads| threads.to_string())),
            ("--log-format", Some(self.log_format.to_string())),
        ];
        for (flag, value) in flags {
            command.args(value.map(|value| format!("{flag}={value}")));
        }
        command.args(self.busy_poll.then_some("--busy-poll"));
        command
            .arg("--supervised")
            .arg(format!("--coordinator={}", self.address))
            .arg("--data")
            .arg(self.data.as_str())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        // Ctrl-C on the terminal is for the coordinator, which then tells its workers.
        #[cfg(unix)]
        command.process_group(0);
        let mut child =
            command.spawn().map_err(|source| LaunchError::Start { program: self.program.file.clone(), source })?;
        info!(local_worker = number, process = child.id(), "local worker started");
        let stdin = child.stdin.take().expect("standard input is a pipe");
        let lines = child.stderr.take().expect("standard error is a pipe");
        let relay = TaskTracker::new();
        // JSON lines are for log collectors.
        let shows_details = self.log_format == LogFormat::Json || std::env::var_os("RUST_LOG").is_some();
        let last_lines = relay.spawn(relay_lines(number, lines, shows_details));
        relay.close();
        Ok(LocalWorker { child, last_lines, _stdin: stdin })
    }
}

/// Keeps one local worker running: starts it anew whenever it ends.
struct WorkerSupervisor {
    number: u32,
    launcher: Launcher,
    /// Workers that have not died at once too often in a row.
    n_alive: Arc<AtomicU32>,
    n_short_lives: u32,
}

impl WorkerSupervisor {
    async fn supervise(mut self, shutdown: CancellationToken) -> Result<(), LaunchError> {
        // Ends with the shutdown, or when nothing is to be hoped for.
        while !shutdown.is_cancelled() {
            let started = Instant::now();
            let mut is_evicted = false;
            let (ended, last_lines) = match self.launcher.start(self.number) {
                Ok(mut worker) => {
                    let status = tokio::select! {
                        status = worker.child.wait() => status,
                        () = shutdown.cancelled() => {
                            worker.end(self.number).await;
                            return Ok(());
                        }
                    };
                    let last_lines = worker.last_lines().await;
                    if status.as_ref().is_ok_and(|status| status.code() == Some(exit::CONFIGURATION.into())) {
                        return Err(LaunchError::Configuration { last_lines });
                    }
                    is_evicted = status.as_ref().is_ok_and(|status| status.code() == Some(exit::EVICTED.into()));
                    (status.map_or_else(|error| error.to_string(), |status: ExitStatus| status.to_string()), last_lines)
                }
                Err(error) => (error.to_string(), String::new()),
            };
            let pause = self.count(started.elapsed(), is_evicted, &ended, last_lines)?;
            tokio::select! {
                // When the run is over, workers end a moment before `shutdown` is cancelled.
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(pause) => {
                    warn!(local_worker = self.number, ended, "local worker ended; it is started anew");
                }
            }
        }
        Ok(())
    }

    /// Counts a life, and gives how long to wait before the next one. One that ended since what it computed was wrong was
    /// of no more use than one that ended at once.
    fn count(
        &mut self,
        life: Duration,
        is_evicted: bool,
        ended: &str,
        last_lines: String,
    ) -> Result<Duration, LaunchError> {
        let n_before = self.n_short_lives;
        self.n_short_lives = if life < SHORT_LIFE || is_evicted { (n_before + 1).min(SHORT_LIVES_MAX) } else { 0 };
        let (was_failing, is_failing) = (n_before == SHORT_LIVES_MAX, self.n_short_lives == SHORT_LIVES_MAX);
        if was_failing && !is_failing {
            self.n_alive.fetch_add(1, Ordering::Relaxed);
        }
        if !was_failing && is_failing && self.n_alive.fetch_sub(1, Ordering::Relaxed) == 1 {
            let (number, n_lives, ended) = (self.number, self.n_short_lives, ended.to_owned());
            return Err(LaunchError::DiesAtOnce { number, n_lives, ended, last_lines });
        }
        Ok(PAUSE * 2_u32.pow(self.n_short_lives))
    }
}

struct LocalWorker {
    child: Child,
    last_lines: tokio::task::JoinHandle<VecDeque<String>>,
    /// Open as long as the worker is to live. Waiting for a child closes what it still holds.
    _stdin: ChildStdin,
}

impl LocalWorker {
    /// Waits for a worker whose session was closed; one that does not go is killed.
    async fn end(mut self, number: u32) {
        if timeout(END_WAIT_MAX, self.child.wait()).await.is_err() {
            warn!(local_worker = number, "local worker did not end in time; it is killed");
            // It may have ended by itself in the meantime.
            let _ = self.child.kill().await;
        }
        self.last_lines().await;
    }

    async fn last_lines(self) -> String {
        // Its own children may hold the pipe open, and are not waited for.
        let lines = timeout(Duration::from_secs(1), self.last_lines).await;
        let lines = lines.ok().and_then(Result::ok).unwrap_or_default();
        lines.into_iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
    }
}

/// Whether a line of a worker's log is below a warning.
fn is_detail(line: &str) -> bool {
    let levels = ["INFO", "DEBUG", "TRACE"];
    let is_level =
        |level: &&str| line.trim_start().starts_with(level) || line.contains(&format!("\"level\":\"{level}\""));
    levels.iter().any(is_level)
}

/// Writes a worker's log lines to run.log, and warnings and worse to standard error, or all with `shows_details`. Gives the last lines.
async fn relay_lines(number: u32, lines: ChildStderr, shows_details: bool) -> VecDeque<String> {
    let mut last = VecDeque::new();
    let mut lines = BufReader::new(lines).lines();
    while let Ok(Some(mut line)) = lines.next_line().await {
        if line.len() > LINE_BYTES_MAX {
            line.truncate((0..=LINE_BYTES_MAX).rev().find(|&end| line.is_char_boundary(end)).unwrap_or(0));
        }
        let text = format!("worker process {number}: {line}");
        write_run_log_line(&text);
        if shows_details || !is_detail(&line) {
            write_stderr_line(&text);
        }
        if last.len() == LAST_LINES {
            last.pop_front();
        }
        last.push_back(line);
    }
    last
}
