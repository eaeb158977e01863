//! A program's flags from four places: the command line, then the environment, then the file named by `--config`, then
//! the defaults. Every key of the file is the name of a flag, and clap checks its value as if it had been typed.

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command, Parser};
use toml::{Table, Value};

use crate::files::read_bounded;

/// The environment variable that stands for `--config`. A program declares the flag itself:
/// `#[arg(long, env = "TELAR_CONFIG")] config: Option<PathBuf>`.
const VARIABLE: &str = "TELAR_CONFIG";

/// A file of flags has a line for each.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Flags that cannot be had from where they should come.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}; name another file with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is no TOML.
    #[error("expected lines such as `batch-size = 64` in {}, found {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where it is wrong, and how.
        reason: String,
    },
    /// A key that is no flag.
    #[error("expected the name of a flag in {}, found `{key}`; there are {known}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// All names there are.
        known: String,
    },
    /// A list, a table or a date, which no flag takes.
    #[error("expected a text, a number, true or false for `{key}` in {}, found {found}", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What kind of value it has.
        found: &'static str,
    },
    /// A value that its flag does not take.
    #[error("expected a value that --{key} takes in {}, found `{found}`: {reason}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What the flag says to it.
        reason: String,
    },
    /// A path that cannot be taken out of its argument.
    #[error("expected a path as text after `--config=`, found other bytes; write `--config` and the path apart")]
    Path,
    /// What clap has to say of the command line, or `--help` and `--version`.
    #[error(transparent)]
    Usage(#[from] clap::Error),
}

/// The program's flags. Ends the program as clap does if the command line is wrong, or asks for help.
///
/// # Errors
/// If the file cannot be read, or holds what is no flag or no value for it.
pub fn parse<P: Parser>() -> Result<P, ConfigurationError> {
    exit_if_usage(parse_from(std::env::args_os()))
}

/// The value, or the end of the program as clap has it.
///
/// # Errors
/// Those that are not clap's.
pub fn exit_if_usage<T>(parsed: Result<T, ConfigurationError>) -> Result<T, ConfigurationError> {
    parsed.map_err(|error| match error {
        ConfigurationError::Usage(error) => error.exit(),
        error => error,
    })
}

/// The flags on a command line, whose first word is the program's name.
///
/// # Errors
/// As [`parse`], and if the command line is wrong or asks for help.
pub fn parse_from<P: Parser>(args: impl IntoIterator<Item = OsString>) -> Result<P, ConfigurationError> {
    let command = P::command();
    let mut matches = matches_from(command.clone(), args)?;
    P::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command.clone()).into())
}

/// What a command finds on a command line, whose first word is the program's name.
///
/// # Errors
/// As [`parse_from`].
pub fn matches_from(
    mut command: Command,
    args: impl IntoIterator<Item = OsString>,
) -> Result<ArgMatches, ConfigurationError> {
    let args: Vec<OsString> = args.into_iter().collect();
    if let Some(path) = configuration_path(&args)? {
        let values = read_values(&path, &command)?;
        command = command.mut_args(|arg| match arg.get_long().and_then(|name| values.get(name)) {
            // As a default, since whatever is typed or in the environment comes before a default.
            Some(value) => arg.required(false).default_value(value.clone()),
            None => arg,
        });
    }
    Ok(command.try_get_matches_from(args)?)
}

/// The file named by `--config`, looked for ahead of clap, else by the environment.
fn configuration_path(args: &[OsString]) -> Result<Option<PathBuf>, ConfigurationError> {
    let mut args = args.iter().skip(1).take_while(|arg| *arg != "--");
    while let Some(arg) = args.next() {
        if arg == "--config" {
            return Ok(args.next().map(PathBuf::from));
        }
        if arg.as_encoded_bytes().starts_with(b"--config=") {
            let text = arg.to_str().ok_or(ConfigurationError::Path)?;
            return Ok(text.split_once('=').map(|(_, path)| PathBuf::from(path)));
        }
    }
    Ok(std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from))
}

/// The file's keys and values, each of them one that its flag takes.
fn read_values(path: &Path, command: &Command) -> Result<BTreeMap<String, String>, ConfigurationError> {
    let bytes = read_bounded(path, FILE_BYTES_MAX)
        .map_err(|source| ConfigurationError::Read { path: path.to_owned(), source })?;
    let syntax =
        |reason: String| ConfigurationError::Syntax { path: path.to_owned(), reason: reason.trim().to_owned() };
    let text = str::from_utf8(&bytes).map_err(|error| syntax(error.to_string()))?;
    let table: Table = toml::from_str(text).map_err(|error| syntax(error.to_string()))?;

    let mut command = command.clone();
    command.build(); // settles what each flag takes
    let flags: BTreeMap<&str, &Arg> = command.get_arguments().filter_map(flag).collect();
    let mut values = BTreeMap::new();
    for (key, value) in table {
        let Some(flag) = flags.get(key.as_str()) else {
            let known = flags.keys().copied().collect::<Vec<_>>().join(", ");
            return Err(ConfigurationError::UnknownKey { path: path.to_owned(), key, known });
        };
        let Some(found) = typed(&value) else {
            return Err(ConfigurationError::Kind { path: path.to_owned(), key, found: value.type_str() });
        };
        if let Err(reason) = try_value(flag, &found) {
            return Err(ConfigurationError::Value { path: path.to_owned(), key, found, reason });
        }
        values.insert(key, found);
    }
    Ok(values)
}

/// A flag that may stand in the file, by its name there.
fn flag(arg: &Arg) -> Option<(&str, &Arg)> {
    let is_question =
        matches!(arg.get_action(), ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version);
    let name = arg.get_long().filter(|name| !is_question && *name != "config")?;
    Some((name, arg))
}

/// A value as it would be typed.
fn typed(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(truth) => Some(truth.to_string()),
        Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
    }
}

/// Parses a value with its flag alone, so that an error names the file and not the command line.
fn try_value(flag: &Arg, value: &str) -> Result<(), String> {
    let mut alone = Arg::new("value").long("value").action(flag.get_action().clone());
    alone = alone.value_parser(flag.get_value_parser().clone()).default_value(value.to_owned());
    if let Some(delimiter) = flag.get_value_delimiter() {
        alone = alone.value_delimiter(delimiter);
    }
    let tried = Command::new("value").no_binary_name(true).arg(alone).try_get_matches_from(Vec::<OsString>::new());
    tried.map(drop).map_err(|error| reason(&error))
}

/// Why clap does not take a value, in few words.
fn reason(error: &clap::Error) -> String {
    if let Some(source) = error.source() {
        return source.to_string();
    }
    let text = error.to_string();
    let possible = text.lines().map(str::trim).find(|line| line.starts_with("[possible values"));
    possible.or(text.lines().next()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;
    use crate::args::LogArgs;
    use crate::optimizer::RuleName;
    use crate::recipe::RecipeArgs;

    #[derive(Parser, Debug)]
    struct Flags {
        #[arg(long, env = "TELAR_CONFIG")]
        config: Option<PathBuf>,
        /// Named after a variable that Cargo sets for tests, to this package's name: setting one is not safe.
        #[arg(long, env = "CARGO_PKG_NAME", default_value = "default")]
        name: String,
        #[arg(long, default_value_t = 1)]
        shards: u32,
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
        #[command(flatten)]
        recipe: RecipeArgs,
        #[command(flatten)]
        log: LogArgs,
    }

    /// The flags with a file of this content, if it is not empty.
    fn flags(line: &str, content: &str) -> Result<Flags, ConfigurationError> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("telar.toml");
        std::fs::write(&file, content).expect("a file");
        let mut args: Vec<OsString> =
            std::iter::once("program").chain(line.split_whitespace()).map(OsString::from).collect();
        if !content.is_empty() {
            args.extend([OsString::from("--config"), file.into()]);
        }
        parse_from(args)
    }

    #[test]
    fn flag_overrides_file_and_file_overrides_default() {
        let check = |line: &str, content: &str, name: &str, shards| {
            let found = flags(&format!("--port 1 {line}"), content).expect(line);
            assert_eq!((found.name.as_str(), found.shards), (name, shards), "`{line}`, `{content}`");
        };
        check("", "", "engine", 1);
        check("", "name = 'file'\nshards = 4", "engine", 4);
        check("--name flag", "name = 'file'\nshards = 4", "flag", 4);
        check("--name flag --shards 2", "name = 'file'\nshards = 4", "flag", 2);
        check("", "# nothing", "engine", 1);
    }

    #[test]
    fn file_values_of_every_type_reach_their_flags() {
        let content = "optimizer = 'adam'\nbatch-size = 64\nlearning-rate = 0.25\nno-shuffle = true\nnesterov = false\n\
                       lr-schedule = 'step:0.5:3'\nlog-format = 'json'\nport = 7\nmomentum = 0";
        let found = flags("", content).expect("flags from a file alone");
        let RecipeArgs {
            optimizer, batch_size, learning_rate, momentum, nesterov, lr_schedule, no_shuffle, seed, ..
        } = found.recipe;
        assert_eq!((optimizer, batch_size, learning_rate), (Some(RuleName::Adam), Some(64), Some(0.25)));
        assert_eq!((momentum, nesterov, no_shuffle, seed), (Some(0.0), false, true, None));
        assert_eq!(lr_schedule.map(|schedule| schedule.to_string()), Some("step:0.5:3".to_owned()));
        assert_eq!((found.port, found.log.log_format), (7, crate::report::LogFormat::Json));
        assert!(found.config.expect("the file's path").ends_with("telar.toml"));
    }

    #[test]
    fn invalid_file_content_is_reported_with_file_name() {
        let check = |content: &str, parts: &[&str]| {
            let error = flags("--port 1", content).expect_err(content);
            assert!(!matches!(error, ConfigurationError::Usage(_)), "`{content}`: {error}");
            let text = error.to_string();
            for part in [&["telar.toml"], parts].concat() {
                assert!(text.contains(part), "`{text}` does not say `{part}`");
            }
        };
        check("batch_size = 64", &["expected the name of a flag", "found `batch_size`", "batch-size, beta1"]);
        check("config = 'other.toml'", &["found `config`"]);
        check("help = true", &["found `help`"]);
        check("batch-size = 'many'", &["--batch-size takes", "found `many`: invalid digit"]);
        check("batch-size = 6.4", &["found `6.4`"]);
        check("batch-size = -1", &["found `-1`"]);
        check("port = 0", &["--port takes", "found `0`: 0 is not in 1..=65535"]);
        check("optimizer = 'lion'", &["found `lion`: [possible values: sgd, adam, adamw]"]);
        check("lr-schedule = 'square'", &["found `square`"]);
        check("nesterov = 1", &["--nesterov takes", "found `1`"]);
        check("batch-size = [64]", &["for `batch-size`", "found array"]);
        check("[batch-size]\nx = 1", &["found table"]);
        check("seed = 1979-05-27", &["found datetime"]);
        check("seed = ", &["expected lines such as `batch-size = 64`", "line 1"]);
        check("seed = 1\nseed = 2", &["duplicate key"]);
        // Also where the command line says something else: the file is wrong all the same.
        let error = flags("--port 1 --batch-size 8", "batch-size = 'many'").expect_err("a wrong file");
        assert!(error.to_string().contains("found `many`"));
    }

    #[test]
    fn command_line_errors_are_left_to_clap() {
        let check = |line: &str, content: &str, kind| match flags(line, content) {
            Err(ConfigurationError::Usage(error)) => assert_eq!(error.kind(), kind, "`{line}`"),
            other => panic!("`{line}`: {kind:?} expected, found {other:?}"),
        };
        check("", "shards = 2", ErrorKind::MissingRequiredArgument);
        check("--port 0", "shards = 2", ErrorKind::ValueValidation);
        check("--port 1 --what", "", ErrorKind::UnknownArgument);
        check("--port 1 --config", "", ErrorKind::InvalidValue);
        check("--help", "shards = 2", ErrorKind::DisplayHelp);
    }

    #[test]
    fn config_flag_is_found_in_both_spellings() {
        let check = |line: &str, path: Option<&str>| {
            let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            assert_eq!(configuration_path(&args).expect("text"), path.map(PathBuf::from), "`{line}`");
        };
        check("program --config a.toml --shards 2", Some("a.toml"));
        check("program --shards 2 --config=b=c.toml", Some("b=c.toml"));
        check("program --configuration x", None);
        check("program -- --config a.toml", None);
        let error = flags("--port 1 --config=/nowhere/telar.toml", "").expect_err("no such file").to_string();
        assert!(error.starts_with("cannot read /nowhere/telar.toml"), "{error}");
    }
}
