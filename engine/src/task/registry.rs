//! The tasks that a program knows: their flags on its command line, and how they are made from settings that were stored.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use clap::builder::PossibleValue;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use serde_json::Value;

use super::erased::{erase, read};
use super::{AnyTask, BoxError, Task};
use crate::data::DataError;
use crate::params::LayoutError;
use crate::spec::{Defaults, TaskSpec};

/// A task that cannot be trained.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// None of several is named.
    #[error("expected --{flag} {names}, found none; write for example `--{flag} {example}`")]
    None {
        /// The flag that names one.
        flag: &'static str,
        /// Those that this program knows.
        names: String,
        /// The last of them.
        example: &'static str,
    },
    /// This program does not know it.
    #[error(
        "expected the task {known}, which this program knows, found the task `{found}`; use the program that has it"
    )]
    Unknown {
        /// Those that this program knows.
        known: String,
        /// The one asked for.
        found: String,
    },
    /// A flag of another task.
    #[error("{flag} is not a flag of the task {task}; leave it out")]
    OtherTask {
        /// The flag.
        flag: String,
        /// The task asked for.
        task: &'static str,
    },
    /// Settings that were stored by another version.
    #[error("expected the settings of the task {task}, found {found}: {reason}")]
    Stored {
        /// The task.
        task: &'static str,
        /// The settings as JSON.
        found: String,
        /// What is wrong with them.
        reason: String,
    },
    /// Settings that the task refuses.
    #[error("{source}")]
    Settings {
        /// The task.
        task: &'static str,
        /// What it says.
        source: BoxError,
    },
    /// A network that cannot be trained.
    #[error("the network of the task {task} cannot be trained: {source}")]
    Layout {
        /// The task.
        task: &'static str,
        /// Why.
        source: LayoutError,
    },
    /// A data set that cannot be trained on.
    #[error("{source}")]
    Data {
        /// The task.
        task: &'static str,
        /// What is wrong with it.
        source: DataError,
    },
    /// A flag that does not parse.
    #[error(transparent)]
    Usage(#[from] clap::Error),
}

/// Reads settings from a command line.
type ReadFlags = dyn Fn(&ArgMatches) -> Result<Value, clap::Error> + Send + Sync;

/// A task that a program knows.
#[derive(Clone)]
pub struct TaskEntry {
    name: &'static str,
    about: &'static str,
    data_help: &'static str,
    defaults: Defaults,
    args: Vec<Arg>,
    /// Its settings as JSON if no flag is given.
    unflagged: Value,
    /// Its settings with the flags that are given.
    flagged: Arc<ReadFlags>,
    build: fn(&Value) -> Result<Arc<dyn AnyTask>, TaskError>,
}

impl TaskEntry {
    /// A task whose settings are those of `prototype` where no flag, and no default of a flag, says otherwise.
    ///
    /// # Panics
    /// If settings cannot be stored as a JSON object, or have other names than their flags.
    pub fn new<T: Task>(prototype: T) -> Self {
        let command = T::augment_args_for_update(Command::new(T::NAME));
        let args: Vec<Arg> = command.get_arguments().cloned().collect();
        let before = settings(&prototype);
        for arg in &args {
            let id = arg.get_id().as_str();
            assert!(
                before.get(id).is_some(),
                "a setting of the task {} is stored under the name of its flag, {id}",
                T::NAME
            );
        }
        let ids: Vec<String> = args.iter().map(|arg| arg.get_id().to_string()).collect();
        let flagged = move |matches: &ArgMatches| {
            let mut task = prototype.clone();
            task.update_from_arg_matches(matches)?;
            let mut found = settings(&task);
            // To clap a switch that is not given is off.
            for id in ids.iter().filter(|id| !is_given(matches, id) && before[*id] == true) {
                if found[id] == false {
                    found[id] = true.into();
                }
            }
            Ok(found)
        };
        let without_variables = args.iter().cloned().map(|arg| arg.env(None::<&'static str>));
        let unflagged = Command::new(T::NAME).args(without_variables).try_get_matches_from([T::NAME]);
        let unflagged = unflagged.and_then(|matches| flagged(&matches)).expect("no flag of a task is required");
        // The defaults of a task that is refused without flags are those of its unchecked settings.
        let defaults = read::<T>(&unflagged).map_or_else(
            |_| Defaults::default(), // building it reports the error
            |task| task.clone().checked().unwrap_or(task).defaults(),
        );
        Self {
            name: T::NAME,
            about: T::ABOUT,
            data_help: T::DATA_HELP,
            defaults,
            args,
            unflagged,
            flagged: Arc::new(flagged),
            build: |settings| Ok(erase(read::<T>(settings)?)?),
        }
    }
}

fn settings<T: Task>(task: &T) -> Value {
    match serde_json::to_value(task) {
        Ok(value @ Value::Object(_)) => value,
        // A type without fields.
        Ok(Value::Null) => Value::Object(serde_json::Map::new()),
        found => panic!("the settings of the task {} are a struct with named fields, found {found:?}", T::NAME),
    }
}

impl fmt::Debug for TaskEntry {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TaskEntry")
            .field("name", &self.name)
            .field("settings", &self.unflagged)
            .finish_non_exhaustive()
    }
}

/// All tasks that a program knows.
#[derive(Clone, Debug)]
pub struct Tasks {
    entries: Vec<TaskEntry>,
    flag: &'static str,
    variable: &'static str,
    help: &'static str,
}

impl Tasks {
    /// These, of which `--task` names one.
    ///
    /// # Panics
    /// If there is none, or two have one name.
    pub fn new(entries: impl IntoIterator<Item = TaskEntry>) -> Self {
        let entries: Vec<TaskEntry> = entries.into_iter().collect();
        let names: BTreeSet<&str> = entries.iter().map(|entry| entry.name).collect();
        assert!(!entries.is_empty(), "a program knows at least one task");
        assert_eq!(names.len(), entries.len(), "tasks have names of their own");
        let mut known: BTreeMap<&str, &Arg> = BTreeMap::new();
        for arg in entries.iter().flat_map(|entry| &entry.args) {
            let first = known.entry(arg.get_id().as_str()).or_insert(arg);
            let is_same = first.get_default_values() == arg.get_default_values()
                && first.get_value_parser().type_id() == arg.get_value_parser().type_id();
            assert!(is_same, "tasks share the flag {} with its type and its default", shown_flag(arg));
        }
        Self { entries, flag: "task", variable: "TELAR_TASK", help: "Task to train" }
    }

    /// With another flag and environment variable that name one.
    #[must_use]
    pub fn named_by(self, flag: &'static str, variable: &'static str, help: &'static str) -> Self {
        Self { flag, variable, help, ..self }
    }

    /// A command with the flags of all tasks; a flag that several have is theirs together.
    pub fn augment(&self, mut command: Command) -> Command {
        const HEADING: &str = "What is trained";
        let own: Vec<Arg> = command.get_arguments().cloned().collect();
        if self.entries.len() > 1 {
            let possible = |entry: &TaskEntry| PossibleValue::new(entry.name).help(entry.about);
            let possible: Vec<PossibleValue> = self.entries.iter().map(possible).collect();
            let arg = Arg::new(self.flag).long(self.flag).value_name(self.flag.to_uppercase()).env(self.variable);
            let arg = arg.help(self.help).value_parser(possible);
            command = command.arg(arg.help_heading(HEADING).display_order(0));
        }
        for arg in self.entries.iter().flat_map(|entry| &entry.args) {
            let is_taken = |own: &Arg| {
                own.get_id() == arg.get_id() || own.get_long().is_some_and(|long| arg.get_long() == Some(long))
            };
            assert!(
                !own.iter().any(is_taken),
                "{} is a flag of the program; give the task's another name",
                shown_flag(arg)
            );
            if !command.get_arguments().any(|known| known.get_id() == arg.get_id()) {
                let arg = arg.clone().display_order(1);
                let arg = if arg.get_help_heading().is_none() { arg.help_heading(HEADING) } else { arg };
                command = command.arg(arg);
            }
        }
        command.mut_args(|arg| match arg.get_id().as_str() {
            "data" => arg.help(self.entries[0].data_help),
            "epochs" => self.with_default(arg, |defaults| defaults.epochs.to_string()),
            "batch_size" => self.with_default(arg, |defaults| defaults.batch_size.to_string()),
            "optimizer" => self.with_default(arg, |defaults| defaults.optimizer.to_string()),
            "learning_rate" => self.with_default(arg, |defaults| defaults.learning_rate.to_string()),
            "lr_schedule" => self.with_default(arg, |defaults| defaults.lr_schedule.decay.to_string()),
            "warmup_steps" => self.with_default(arg, |defaults| defaults.lr_schedule.warmup_steps.to_string()),
            "clip_norm" => {
                let norm = |defaults: &Defaults| defaults.clip_norm.map_or("none".to_owned(), |norm| norm.to_string());
                self.with_default(arg, norm)
            }
            "patience" => self.with_default(arg, |defaults| defaults.patience.to_string()),
            _ => arg,
        })
    }

    /// A flag whose help says what the tasks have for it.
    fn with_default(&self, arg: Arg, default: impl Fn(&Defaults) -> String) -> Arg {
        let defaults: Vec<String> = self.entries.iter().map(|entry| default(&entry.defaults)).collect();
        let words = if defaults.windows(2).all(|pair| pair[0] == pair[1]) {
            defaults[0].clone()
        } else {
            let named = self.entries.iter().zip(&defaults).map(|(entry, default)| format!("{} {default}", entry.name));
            named.collect::<Vec<_>>().join(", ")
        };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        arg.help(format!("{help} [default: {words}]"))
    }

    /// Flags that name one of the tasks, with a space before them; none where there is only one.
    pub fn example(&self) -> String {
        match &self.entries[..] {
            [.., _, last] => format!(" --{} {}", self.flag, last.name),
            _ => String::new(),
        }
    }

    /// What a command line says of the task.
    ///
    /// # Errors
    /// If a flag of the task does not parse, or is another task's.
    pub fn choice(&self, matches: &ArgMatches) -> Result<TaskChoice, TaskError> {
        let name = match &self.entries[..] {
            [entry] => Some(entry.name.to_owned()),
            _ => matches.get_one::<String>(self.flag).cloned(),
        };
        let entry = name.as_deref().map(|name| self.entry(name)).transpose()?;
        let args = self.entries.iter().flat_map(|entry| &entry.args);
        let given: Vec<&Arg> = args.filter(|arg| is_given(matches, arg.get_id().as_str())).collect();
        if let Some(entry) = entry {
            let is_own = |arg: &Arg| entry.args.iter().any(|own| own.get_id() == arg.get_id());
            if let Some(other) = given.iter().find(|arg| !is_own(arg)) {
                return Err(TaskError::OtherTask { flag: shown_flag(other), task: entry.name });
            }
        }
        let given = given.into_iter().map(|arg| arg.get_id().to_string()).collect();
        Ok(TaskChoice { tasks: self.clone(), name: entry.map(|entry| entry.name), matches: matches.clone(), given })
    }

    /// A task as it was stored or received: its name, and its complete settings.
    ///
    /// # Errors
    /// If this program does not know it, or its settings are another version's.
    pub fn build(&self, name: &str, settings: &Value) -> Result<Arc<dyn AnyTask>, TaskError> {
        (self.entry(name)?.build)(settings)
    }

    fn entry(&self, name: &str) -> Result<&TaskEntry, TaskError> {
        self.entries.iter().find(|entry| entry.name == name).ok_or_else(|| TaskError::Unknown {
            known: self.names(),
            found: name.chars().filter(|character| !character.is_control()).take(64).collect(),
        })
    }

    /// The names in a sentence: `conv, recurrent or denoising`.
    fn names(&self) -> String {
        let names: Vec<&str> = self.entries.iter().map(|entry| entry.name).collect();
        match &names[..] {
            [] => String::new(),
            [name] => (*name).to_owned(),
            [others @ .., last] => format!("{} or {last}", others.join(", ")),
        }
    }
}

/// Whether a flag or its environment variable is there.
fn is_given(matches: &ArgMatches, id: &str) -> bool {
    matches!(matches.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable))
}

fn shown_flag(arg: &Arg) -> String {
    arg.get_long().map_or_else(|| arg.get_id().to_string(), |long| format!("--{long}"))
}

/// A setting as it is typed.
fn shown_setting(arg: &Arg, value: &Value) -> String {
    let flag = shown_flag(arg);
    match value {
        Value::Null | Value::Bool(false) => format!("no {flag}"),
        Value::Bool(true) => flag,
        Value::String(text) => format!("{flag} {text}"),
        other => format!("{flag} {other}"),
    }
}

/// What a command line says of the task: perhaps which, and some of its settings.
#[derive(Clone, Debug)]
pub struct TaskChoice {
    tasks: Tasks,
    name: Option<&'static str>,
    matches: ArgMatches,
    /// Settings whose flags or variables are given.
    given: BTreeSet<String>,
}

impl TaskChoice {
    /// The task that is named, if one is.
    pub fn name(&self) -> Option<&'static str> {
        self.name
    }

    /// The task for a new run.
    ///
    /// # Errors
    /// If none is named, or its settings cannot be followed.
    pub fn build(&self) -> Result<Arc<dyn AnyTask>, TaskError> {
        let name = self.name.ok_or_else(|| TaskError::None {
            flag: self.tasks.flag,
            names: self.tasks.names(),
            example: self.tasks.entries.last().expect("a program knows at least one task").name,
        })?;
        let entry = self.tasks.entry(name)?;
        (entry.build)(&(entry.flagged)(&self.matches)?)
    }

    /// The task of a run that goes on, with the settings that were stored. What is given has to say the same; else the flag as it
    /// was and as it is given.
    ///
    /// # Errors
    /// If the task is not known, its settings are another version's, or a flag does not parse.
    pub fn resume(&self, name: &str, settings: &Value) -> Result<Result<Arc<dyn AnyTask>, [String; 2]>, TaskError> {
        if let Some(found) = self.name.filter(|found| *found != name) {
            let flag = self.tasks.flag;
            return Ok(Err([format!("--{flag} {name}"), format!("--{flag} {found}")]));
        }
        let (said, found, wished) = self.overlaid(name, settings)?;
        // As it would be stored, where numbers may have lost a digit.
        let wished = self.tasks.build(name, &wished)?;
        for arg in said {
            let key = arg.get_id().as_str();
            if wished.spec().settings[key] != settings[key] {
                return Ok(Err([&settings[key], &found[key]].map(|value| shown_setting(arg, value))));
            }
        }
        self.tasks.build(name, settings).map(Ok)
    }

    /// Builds the task of a file of weights from the settings stored there, overridden by the flags that are given. A file without
    /// settings is of the task that is named.
    ///
    /// # Errors
    /// If the task is not known, its settings are another version's or cannot be followed, or a flag does not parse.
    pub fn build_stored(&self, name: Option<&str>, settings: Option<&Value>) -> Result<Arc<dyn AnyTask>, TaskError> {
        match name.zip(settings) {
            Some((name, settings)) if self.name.is_none_or(|found| found == name) => {
                let (_, _, wished) = self.overlaid(name, settings)?;
                self.tasks.build(name, &wished)
            }
            // Reading a file of another task reports the mismatch.
            Some(_) | None => self.build(),
        }
    }

    /// A task's settings as they are typed; empty if none is.
    pub fn flags_of(&self, spec: &TaskSpec) -> String {
        let args = self.tasks.entries.iter().filter(|entry| entry.name == spec.name).flat_map(|entry| &entry.args);
        let settings = args.map(|arg| (arg, &spec.settings[arg.get_id().as_str()]));
        let typed = settings.filter(|(_, value)| !value.is_null() && *value != false);
        typed.map(|(arg, value)| shown_setting(arg, value)).collect::<Vec<_>>().join(" ")
    }

    /// The flags of a task that are given, all settings as the flags alone make them, and the stored settings overridden by the
    /// flags that are given.
    fn overlaid(&self, name: &str, settings: &Value) -> Result<(Vec<&Arg>, Value, Value), TaskError> {
        let entry = self.tasks.entry(name)?;
        let found = (entry.flagged)(&self.matches)?;
        let flag_of =
            |id: &String| self.tasks.entries.iter().flat_map(|entry| &entry.args).find(|arg| arg.get_id() == id);
        if let Some(other) = self.given.iter().find(|id| !entry.args.iter().any(|own| own.get_id() == *id)) {
            let flag = flag_of(other).map_or_else(|| other.clone(), shown_flag);
            return Err(TaskError::OtherTask { flag, task: entry.name });
        }
        // What a file of settings says is as good as given.
        let is_said = |key: &str| self.given.contains(key) || found[key] != entry.unflagged[key];
        let said: Vec<&Arg> = entry.args.iter().filter(|arg| is_said(arg.get_id().as_str())).collect();
        let mut wished = settings.clone();
        if !wished.is_object() {
            // As the task itself would say of what was stored.
            self.tasks.build(name, settings)?;
        }
        for arg in &said {
            wished[arg.get_id().as_str()] = found[arg.get_id().as_str()].clone();
        }
        Ok((said, found, wished))
    }
}

impl From<TaskEntry> for Tasks {
    fn from(entry: TaskEntry) -> Self {
        Self::new([entry])
    }
}
