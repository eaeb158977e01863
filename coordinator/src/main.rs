//! The coordinator's program: settings, log, runtime, exit code.

use std::num::NonZero;
use std::process::ExitCode;
use std::thread::available_parallelism;

use coordinator::args::{Args, Command};
use coordinator::certificates;
use coordinator::config::{Config, check_target};
use coordinator::health::check;
use model::args::AccessArgs;
use model::report::{LogGuard, check_output, init_log, write_stderr_line};
use model::say;

/// Under glibc's own allocator a buffer the size of a gradient goes back to the system each time it is freed, and is
/// page-faulted in anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Kept until all is told.
    let mut log = None;
    match run(&mut log) {
        Ok(code) => code,
        Err(error) => {
            write_stderr_line(&format!("error: {error}"));
            ExitCode::from(coordinator::exit_code(&error))
        }
    }
}

fn run(log: &mut Option<LogGuard>) -> anyhow::Result<ExitCode> {
    let args: Args = model::configuration::parse()?;
    let log_format = args.log.log_format;
    // The mirror says itself, once, that a store does not answer.
    *log = Some(init_log(log_format, "info,object_store=warn"));
    if let Some(Command::Certificates(wanted)) = &args.command {
        say!("{}", certificates::make(wanted)?);
        check_output()?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(address) = &args.check {
        return check_coordinator(address, args.access, args.json);
    }
    let config = Config::try_from(args)?;
    // Sessions and the driver wake one another in every step, which on one thread costs nothing, and one session has nothing
    // to do beside itself; workers of this machine want its CPUs too.
    let n_cpus = available_parallelism().map_or(1, NonZero::get);
    let n_threads = (n_cpus / 2).min(config.n_workers.get() as usize).clamp(1, 3);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(n_threads).enable_all().build()?;
    let ended = runtime.block_on(coordinator::run(config, log_format));
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
