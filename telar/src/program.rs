//! The command line of a program: the commands that all have, and those of its own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::process::ExitCode;

use ::clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use coordinator::Invocation;
use coordinator::config::WorkerProgram;
use engine::commands::{CommandError, EvaluateArgs, TrainArgs};
use engine::configuration::{exit_if_usage, matches_from};
use engine::exit::{self, ExitError};
use engine::report::{LogFormat, check_output, init_log};
use engine::task::{BoxError, Task, TaskEntry, Tasks};

/// A program that trains: its tasks, and commands of its own beside `coordinator`, `worker`, `train` and `evaluate`.
///
/// ```no_run
/// use telar::exit::{self, ExitError};
/// use telar::{BoxError, clap};
///
/// /// Print y for an x
/// #[derive(clap::Args)]
/// struct AskArgs {
///     /// Trained weights (.safetensors)
///     #[arg(long, value_name = "FILE")]
///     weights: std::path::PathBuf,
///     /// Where on the line
///     #[arg(long, value_name = "X")]
///     x: f32,
/// }
///
/// # fn answer(_: &std::path::Path, _: f32) -> Result<f32, BoxError> { Ok(0.0) }
/// fn ask(args: AskArgs) -> Result<(), BoxError> {
///     if !args.x.is_finite() {
///         let text = format!("expected --x as a finite number, found {}; write for example `--x 0.5`", args.x);
///         return Err(ExitError::new(exit::CONFIGURATION, text).into());
///     }
///     println!("{}", answer(&args.weights, args.x)?);
///     Ok(())
/// }
///
/// # fn program<Fit: telar::Task + Default>() -> std::process::ExitCode {
/// telar::Program::new().task(Fit::default()).command("ask", ask).main()
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Program {
    entries: Vec<TaskEntry>,
    commands: BTreeMap<&'static str, OwnCommand>,
}

/// A command that the program has itself.
struct OwnCommand {
    command: ::clap::Command,
    run: Box<RunCommand>,
}

/// Follows the flags of a command.
type RunCommand = dyn FnOnce(&ArgMatches) -> Result<(), BoxError>;

impl fmt::Debug for OwnCommand {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.command, out)
    }
}

impl Program {
    /// Without tasks and commands.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a task whose settings are those of `task` where no flag, and no default of a flag, says otherwise. Of several tasks
    /// `--task` names one.
    ///
    /// # Panics
    /// If settings cannot be stored as a JSON object, or have other names than their flags.
    #[must_use]
    pub fn task<T: Task>(mut self, task: T) -> Self {
        self.entries.push(TaskEntry::new(task));
        self
    }

    /// With a command: its name, and the function that follows its flags. What the flags' type has as documentation is what
    /// `--help` says of it.
    ///
    /// An error is printed as those of the other commands are. The program then ends with the exit code of an [`ExitError`], or of
    /// the engine's error among the causes, and else with [`exit::DATA`].
    ///
    /// # Panics
    /// If there is such a command.
    #[must_use]
    pub fn command<A: Args + 'static>(
        mut self,
        name: &'static str,
        run: impl FnOnce(A) -> Result<(), BoxError> + 'static,
    ) -> Self {
        let is_taken = Cli::command().find_subcommand(name).is_some() || name == "help";
        assert!(!is_taken, "a command of a program's own has a name of its own, found {name}");
        let command = A::augment_args(::clap::Command::new(name));
        let run =
            Box::new(
                move |matches: &ArgMatches| run(A::from_arg_matches(matches).unwrap_or_else(|error| error.exit())),
            );
        let before = self.commands.insert(name, OwnCommand { command, run });
        assert!(before.is_none(), "a program has one command {name}");
        self
    }

    /// Follows the command line.
    ///
    /// # Panics
    /// If there is no task, or two have one name.
    pub fn main(self) -> ExitCode {
        let Self { entries, commands } = self;
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
            _ => alone(&tasks, commands, std::iter::once(program).chain(rest)),
        }
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
fn alone(
    tasks: &Tasks,
    commands: BTreeMap<&'static str, OwnCommand>,
    line: impl IntoIterator<Item = OsString>,
) -> ExitCode {
    let _log = init_log(LogFormat::Text, "warn");
    let ended = follow(tasks, commands, line).and_then(|code| Ok(check_output().map(|()| code)?));
    exit::ended(ended, exit::code)
}

fn follow(
    tasks: &Tasks,
    mut commands: BTreeMap<&'static str, OwnCommand>,
    line: impl IntoIterator<Item = OsString>,
) -> Result<ExitCode, CommandError> {
    let command = Cli::command()
        .mut_subcommand("train", |train| tasks.augment(train))
        .mut_subcommand("evaluate", |evaluate| tasks.augment(evaluate))
        .subcommands(commands.values().map(|own| own.command.clone()));
    let matches = exit_if_usage(matches_from(command, line))?;
    let (name, flags) = matches.subcommand().expect("a command is required");
    if let Some(own) = commands.remove(name) {
        (own.run)(flags).map_err(|error| {
            let exit_code = exit::code_of(&*error).unwrap_or(exit::DATA);
            ExitError::new(exit_code, error)
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    match Cli::from_arg_matches(&matches)?.command {
        Command::Coordinator(_) | Command::Worker(_) => unreachable!("{name} is followed by its own program"),
        Command::Train(args) => engine::commands::train(*args, "train", &tasks.choice(flags)?),
        Command::Evaluate(args) => {
            engine::commands::evaluate(&args, &tasks.choice(flags)?)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
