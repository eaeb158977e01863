//! The program of a coordinator for any tasks: settings, log, runtime, exit code.

use std::ffi::OsString;
use std::num::NonZero;
use std::process::ExitCode;
use std::thread::available_parallelism;

use clap::{CommandFactory, FromArgMatches};
use engine::args::AccessArgs;
use engine::configuration::{exit_if_usage, matches_from};
use engine::exit;
use engine::report::{LogFormat, LogGuard, check_output, init_log_with_file};
use engine::say;
use engine::task::Tasks;

use crate::args::{Args, Command, after_help};
use crate::certificates;
use crate::config::{Config, WorkerProgram, check_target};
use crate::exit_code::exit_code;
use crate::health::check;
use crate::invocation::Invocation;
use crate::run::run;
use crate::show::show;

/// Runs a coordinator for one of the tasks, as it was invoked with these flags. Local workers are the program that `worker` gives.
pub fn main(
    tasks: &Tasks,
    worker: impl FnOnce() -> WorkerProgram,
    invocation: Invocation,
    flags: impl IntoIterator<Item = OsString>,
) -> ExitCode {
    // Dropped last, so that every line is written.
    let mut log = None;
    exit::ended(follow(tasks, worker, invocation, flags, &mut log), exit_code)
}

fn follow(
    tasks: &Tasks,
    worker: impl FnOnce() -> WorkerProgram,
    invocation: Invocation,
    flags: impl IntoIterator<Item = OsString>,
    log: &mut Option<LogGuard>,
) -> anyhow::Result<ExitCode> {
    let name = invocation.name();
    let help = after_help(&name, &invocation.of_worker().name(), &tasks.example());
    let command = tasks.augment(Args::command()).after_help(help);
    let line = std::iter::once(name.into()).chain(flags);
    let matches = exit_if_usage(matches_from(command, line))?;
    let args = Args::from_arg_matches(&matches)?;
    let log_format = args.log.log_format;
    // The mirror says itself, once, that a store does not answer.
    // Events under `on_screen` have lines of their own on the screen.
    let run_level = "info,object_store=warn";
    let shown_level = if args.json { "warn" } else { "warn,on_screen=off" };
    *log = Some(match log_format {
        LogFormat::Text => init_log_with_file(log_format, shown_level, run_level),
        LogFormat::Json => init_log_with_file(log_format, run_level, run_level), // somebody collects it
    });
    if let Some(Command::Certificates(wanted)) = &args.command {
        say!("{}", certificates::make(wanted)?);
        check_output()?;
        return Ok(ExitCode::SUCCESS);
    }
    if !args.show.is_empty() {
        return show(&args.show, args.http, &args.access, args.json);
    }
    if let Some(address) = &args.check {
        return check_coordinator(address, args.access, args.json);
    }
    let config = Config::new(invocation, args, tasks.choice(&matches)?, worker())?;
    // Sessions and the driver wake one another in every step, which on one thread costs nothing, and one session has nothing
    // to do beside itself; workers of this machine want its CPUs too.
    let n_cpus = available_parallelism().map_or(1, NonZero::get);
    let n_threads = (n_cpus / 2).min(config.n_workers.get() as usize).clamp(1, 3);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(n_threads).enable_all().build()?;
    let ended = runtime.block_on(run(config, log_format));
    // What still waits for a peer is not waited for.
    runtime.shutdown_background();
    let code = ended?;
    check_output()?;
    Ok(code)
}

fn check_coordinator(address: &str, access: AccessArgs, json: bool) -> anyhow::Result<ExitCode> {
    let (address, tls) = check_target(address, access)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(check(&address, tls))?;
    if json {
        say!("{}", serde_json::json!({ "event": "check", "status": "serving" }));
    } else {
        say!("serving: workers can join at {address}");
    }
    check_output()?;
    Ok(ExitCode::SUCCESS)
}
