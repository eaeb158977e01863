//! The tool for one machine: summary, train, evaluate, reconstruct, encode, data fetch.

mod args;
mod data;
mod train;
mod trained;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command, SummaryArgs};
use model::report::{LogFormat, SummaryRow, check_output, init_log, summary, write_stderr_line};
use model::say;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let _log = init_log(LogFormat::Text, "warn");
    let ended = run(cli.command).and_then(|code| Ok(check_output().map(|()| code)?));
    match ended {
        Ok(code) => code,
        Err(error) => {
            write_stderr_line(&format!("error: {error}"));
            ExitCode::from(model::exit::code(&error))
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Summary(args) => print_summary(&args),
        Command::Train(args) => return train::run(*args),
        Command::Evaluate(args) => trained::evaluate(&args)?,
        Command::Reconstruct(args) => trained::reconstruct(&args)?,
        Command::Encode(args) => trained::encode(&args)?,
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
