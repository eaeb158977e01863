//! The tool for one machine: summary, train, evaluate, reconstruct, encode, codes, data fetch.

mod args;
mod codes;
mod data;
mod trained;

use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches};

use args::{Cli, Command, SummaryArgs};
use engine::commands::train;
use engine::report::{LogFormat, check_output, init_log};
use engine::say;
use engine::task::Tasks;
use model::summary::{SummaryRow, summary};
use model::task::tasks;

fn main() -> ExitCode {
    let tasks = tasks();
    let matches = Cli::command().mut_subcommand("train", |train| tasks.augment(train)).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let _log = init_log(LogFormat::Text, "warn");
    let ended = run(cli.command, &tasks, &matches).and_then(|code| Ok(check_output().map(|()| code)?));
    engine::exit::ended(ended, engine::exit::code)
}

fn run(command: Command, tasks: &Tasks, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    match command {
        Command::Summary(args) => print_summary(&args),
        Command::Train(args) => {
            let matches = matches.subcommand_matches("train").expect("it is the command that was found");
            return train(*args, "autoencoder train", &tasks.choice(matches)?);
        }
        Command::Evaluate(args) => trained::evaluate(&args)?,
        Command::Reconstruct(args) => trained::reconstruct(&args)?,
        Command::Encode(args) => trained::encode(&args)?,
        Command::Codes(args) => codes::draw(&args)?,
        Command::Data(args) => data::run(args.command)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn print_summary(args: &SummaryArgs) {
    let rows = summary(args.arch);
    if args.json {
        let n_params: usize = rows.iter().map(|row| row.n_params).sum();
        let line = serde_json::json!({ "architecture": args.arch, "layers": rows, "n_params": n_params });
        say!("{line}");
    } else {
        say!("{}", SummaryRow::table(args.arch, &rows));
    }
}
