//! Trains a [Burn](https://burn.dev) network on many worker processes, synchronously, to the same bits for any number of them and
//! through the death of any of them.
//!
//! A [`Task`] says what is trained: a network, a [`Dataset`], and the loss between them. [`main`] makes it a program:
//!
//! ```no_run
#![doc = include_str!("../examples/line.rs")]
//! ```
//!
//! `… coordinator --workers 4` trains it on four local workers, `… worker --coordinator HOST:PORT` joins a run from another
//! machine, `… train` is the reference in one process, to the same bits, and `… evaluate --weights FILE` says what came out.

use std::ffi::OsString;
use std::process::ExitCode;

use ::clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use coordinator::Invocation;
use coordinator::config::WorkerProgram;
use engine::commands::{EvaluateArgs, TrainArgs};
use engine::configuration::{exit_if_usage, matches_from};
use engine::report::{LogFormat, check_output, init_log};
use engine::task::Tasks;

/// Flags of a task, by derive.
pub use ::clap;
/// Settings of a task, by derive.
pub use ::serde;
pub use engine::backend::{ComputeDevice, Operations};
pub use engine::data::{DataFile, DataSource, Dataset, Fingerprint, Split};
pub use engine::optimizer::{Decay, LrSchedule, Optimizer, Rule, RuleName};
pub use engine::sums::{Metric, Whole};
pub use engine::task::{BatchOf as Batch, BoxError, Context, Defaults, Loss, Task, TaskEntry};
pub use engine::weights::{Weights, WeightsError, WeightsFile};
pub use engine::{exit, params};
/// The random numbers of [`Context::random`].
pub use rand_chacha;

/// Under glibc's own allocator a buffer the size of a gradient goes back to the system each time it is freed, and is
/// page-faulted in anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The program of a task whose settings are those of `task` where no flag, and no default of a flag, says otherwise.
pub fn main<T: Task>(task: T) -> ExitCode {
    main_of([TaskEntry::new(task)])
}

/// The program of several tasks, of which `--task` names one.
///
/// # Panics
/// If there is none, or two have one name.
pub fn main_of(entries: impl IntoIterator<Item = TaskEntry>) -> ExitCode {
    let tasks = Tasks::new(entries);
    let mut words = std::env::args_os();
    let program = words.next().unwrap_or_else(|| "telar".into());
    let rest: Vec<OsString> = words.collect();
    // Each of these two reads its own flags, and has its own help.
    let flags = || rest.iter().skip(1).cloned();
    match rest.first().and_then(|command| command.to_str()) {
        Some("coordinator") => {
            let invocation = Invocation::new([program, "coordinator".into()]);
            coordinator::main(&tasks, WorkerProgram::own, invocation, flags())
        }
        Some("worker") => {
            let name = OsString::from(format!("{} worker", program.to_string_lossy()));
            worker::main(&tasks, std::iter::once(name).chain(flags()))
        }
        _ => alone(&tasks, std::iter::once(program).chain(rest)),
    }
}

/// Synchronous data-parallel training, to the same bits for any number of workers.
#[derive(Parser, Debug)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Train on many workers
    Coordinator(Elsewhere),
    /// Compute for a coordinator
    Worker(Elsewhere),
    /// Train in this process alone
    Train(Box<TrainArgs>),
    /// Loss and metrics of trained weights
    Evaluate(EvaluateArgs),
}

/// Read by the program of the command.
#[derive(Args, Debug)]
struct Elsewhere {}

/// The commands that need no other process.
fn alone(tasks: &Tasks, line: impl IntoIterator<Item = OsString>) -> ExitCode {
    let _log = init_log(LogFormat::Text, "warn");
    let ended = follow(tasks, line).and_then(|code| Ok(check_output().map(|()| code)?));
    exit::ended(ended, exit::code)
}

type Ended = Result<ExitCode, engine::commands::CommandError>;

fn follow(tasks: &Tasks, line: impl IntoIterator<Item = OsString>) -> Ended {
    let command = Cli::command()
        .mut_subcommand("train", |train| tasks.augment(train))
        .mut_subcommand("evaluate", |evaluate| tasks.augment(evaluate));
    let matches = exit_if_usage(matches_from(command, line))?;
    let (name, own) = matches.subcommand().expect("a command is required");
    match Cli::from_arg_matches(&matches)?.command {
        Command::Coordinator(_) | Command::Worker(_) => unreachable!("{name} is followed by its own program"),
        Command::Train(args) => engine::commands::train(*args, "train", &tasks.choice(own)?),
        Command::Evaluate(args) => {
            engine::commands::evaluate(&args, &tasks.choice(own)?)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
