//! The program of a worker for any tasks: flags, log, runtime, signals, exit code.

use std::cell::Cell;
use std::convert::Infallible;
use std::ffi::OsString;
use std::process::ExitCode;

use engine::configuration::{exit_if_usage, parse_from};
use engine::exit;
use engine::report::{LogGuard, init_log};
use engine::task::Tasks;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::args::Cli;
use crate::{Config, Outcome, exit_code, run};

/// Runs a worker that has these tasks, as the command line says, whose first word is the program's name.
pub fn main(tasks: &Tasks, command_line: impl IntoIterator<Item = OsString>) -> ExitCode {
    // Dropped last, so that every line is written.
    let mut log = None;
    exit::ended(follow(tasks, command_line, &mut log), exit_code)
}

fn follow(
    tasks: &Tasks,
    command_line: impl IntoIterator<Item = OsString>,
    log: &mut Option<LogGuard>,
) -> anyhow::Result<ExitCode> {
    let cli: Cli = exit_if_usage(parse_from(command_line))?;
    *log = Some(init_log(cli.log.log_format, "info"));
    if cli.supervised {
        end_with_parent()?;
    }
    let config = Config::new(cli)?;
    // One thread for messages, this one: handing them from thread to thread would cost a step more than reading them does.
    // Tensors have their own, and so have files.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let first_signal = Cell::new(None);
    let ended = runtime.block_on(async {
        let signals = Signals::new()?;
        // Files are looked at for each connection, which is all that this signal asks for; without TLS it ends the program.
        let _hangup = config.access.tls.as_ref().map(|_| signal(SignalKind::hangup())).transpose()?;
        let shutdown = CancellationToken::new();
        tokio::select! {
            ended = run(&config, tasks, &shutdown) => anyhow::Ok(ended?),
            never = signals.heed(&first_signal, &shutdown) => match never {},
        }
    });
    // What still reads or writes a data set is not waited for.
    runtime.shutdown_background();
    // Only a run that is over is a success to a supervisor; with Ctrl-C a person has what was asked for.
    let is_terminated = ended? == Outcome::Stopped && first_signal.get() == Some(SignalKind::terminate());
    Ok(if is_terminated { ExitCode::from(exit::TERMINATED) } else { ExitCode::SUCCESS })
}

/// Those that ask a program to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// The first signal lets the worker finish what it has, the second one ends it.
    async fn heed(mut self, first_signal: &Cell<Option<SignalKind>>, shutdown: &CancellationToken) -> Infallible {
        let first = self.next().await;
        first_signal.set(Some(first));
        info!(signal = first.as_raw_value(), "asked to end; a second signal ends this worker at once");
        shutdown.cancel();
        let second = self.next().await;
        std::process::exit(128 + second.as_raw_value());
    }

    async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
        }
    }
}

/// Ends the process when standard input ends, which it does when the parent is gone, however that came about.
fn end_with_parent() -> std::io::Result<()> {
    std::thread::Builder::new().name("supervision".to_owned()).spawn(|| {
        // What is read is of no meaning, and that reading fails means the same as the end.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        // At once, and from here: without the parent there is no run to finish, and no process to report to.
        std::process::exit(0);
    })?;
    Ok(())
}
