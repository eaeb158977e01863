//! The command line, proved: values that make sense by themselves and together.

mod access;
mod address;
mod error;
mod http;

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use engine::args::{BackendArgs, DataArgs};
use engine::recipe::RecipeArgs;
use engine::task::TaskChoice;
use observe::trace::StepRange;
use proto::limits::{HEARTBEAT_INTERVAL, WORKERS_MAX};
use proto::v1::Encoding;

pub use access::{Access, Reach, check_target};
pub use address::ListenAddress;
pub use error::ConfigError;
pub use http::{Http, HttpReach, http};

use access::{access, check_no_access};
use address::{health_address, listen_address};

use crate::args::{Args, Launch, Wire};
use crate::invocation::Invocation;
use crate::location::Location;
use crate::training::CheckpointEvery;

/// What a coordinator is to do. The recipe is still as it was given, since a resumed run has one already.
#[derive(Clone, Debug)]
pub struct Config {
    /// What started this program.
    pub invocation: Invocation,
    /// What is trained, as far as it was said.
    pub task: TaskChoice,
    /// How.
    pub recipe: RecipeArgs,
    /// Shards of a step, if it was said.
    pub shards: Option<u32>,
    /// Workers to start or to expect.
    pub n_workers: NonZeroU32,
    /// Who starts them, and where they find the coordinator.
    pub workers: Workers,
    /// Where probes are answered, as `HOST:PORT`.
    pub health: Option<String>,
    /// Where the page is served.
    pub http: Http,
    /// Whether TensorBoard's files are written.
    pub tensorboard: bool,
    /// Steps of which a trace is written.
    pub trace: Option<StepRange>,
    /// How long to wait for the first one.
    pub join_timeout: Duration,
    /// How long one may be silent.
    pub heartbeat_timeout: Duration,
    /// The share of shards that are computed twice.
    pub audit: f64,
    /// How gradients travel, if it was said.
    pub wire: Option<Wire>,
    /// Which data set.
    pub data: DataArgs,
    /// Where the run goes.
    pub run: RunChoice,
    /// A run to download into the folder of `run` before it is resumed there.
    pub download: Option<Location>,
    /// Where the run's files are copied to.
    pub mirror: Option<Location>,
    /// What becomes of a run that other numerics have computed.
    pub other_numerics: OtherNumerics,
    /// When checkpoints are due.
    pub checkpoint_every: CheckpointEvery,
    /// How many stay.
    pub n_checkpoints_kept: usize,
    /// Whether each step reaches the disk.
    pub journal: JournalSteps,
    /// Whether each step's parameters are named.
    pub hash_steps: HashSteps,
    /// For whom it prints.
    pub output: Output,
}

/// Who starts the workers.
#[derive(Clone, Debug)]
pub enum Workers {
    /// The coordinator.
    Local {
        /// The program, with what it is started with first.
        program: WorkerProgram,
        /// What they compute with.
        backend: BackendArgs,
        /// Whether they and the coordinator wait for one another without sleep at first.
        busy_poll: bool,
    },
    /// Somebody else.
    External {
        /// Where they find the coordinator.
        listen: ListenAddress,
        /// What they have to prove there.
        access: Access,
    },
}

/// A program that is a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerProgram {
    /// The file.
    pub file: PathBuf,
    /// Its first arguments.
    pub arguments: Vec<&'static str>,
}

impl WorkerProgram {
    /// `worker`, beside this program.
    pub fn beside() -> Self {
        let name = format!("worker{}", std::env::consts::EXE_SUFFIX);
        let file = std::env::current_exe().unwrap_or_default().with_file_name(name);
        Self { file, arguments: Vec::new() }
    }

    /// This program itself, by its command `worker`.
    pub fn own() -> Self {
        Self { file: std::env::current_exe().unwrap_or_default(), arguments: vec!["worker"] }
    }
}

/// Where a run goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunChoice {
    /// To a folder of its own.
    New(Option<PathBuf>),
    /// On with the run of a folder, or with the newest.
    Resume(Option<PathBuf>),
    /// On with the run of a folder, or with the newest; where there is none, as [`RunChoice::New`].
    ResumeOrNew(Option<PathBuf>),
}

/// Whether a run is resumed that a program with other numerics has computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherNumerics {
    /// It is not.
    Refuse,
    /// It is, and says so.
    Allow,
}

/// Whether each step reaches the disk before the next one ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JournalSteps {
    /// Checkpoints do.
    No,
    /// Each one does.
    Yes,
}

/// Whether each step's parameters are named in `steps.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashSteps {
    /// They are not.
    No,
    /// They are, by their blake3.
    Yes,
}

/// For whom the coordinator prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

impl Config {
    /// The settings of a command line, with what it says of the task. Local workers are this program, unless another one is named.
    ///
    /// # Errors
    /// If a value is out of its range, or values do not go together.
    pub fn new(
        invocation: Invocation,
        args: Args,
        task: TaskChoice,
        worker: WorkerProgram,
    ) -> Result<Self, ConfigError> {
        let join_timeout = seconds("--join-timeout", args.join_timeout, 0.001, "60")?;
        let heartbeat_min = 2.0 * HEARTBEAT_INTERVAL.as_secs_f64();
        let heartbeat_timeout = seconds("--heartbeat-timeout", args.heartbeat_timeout, heartbeat_min, "2")?;
        let checkpoint_every = checkpoint_every(&args.checkpoint_every)?;
        let n_workers = n_workers(args.workers)?;
        let audit = share("--audit", args.audit, "0.05")?;
        if args.keep == 0 {
            return Err(range("--keep", "above 0", 0, "3"));
        }
        let (run, download) = run_choice(args.resume, args.run_dir)?;
        let mirror = args.mirror.map(|url| Location::parse("--mirror", &url)).transpose()?;
        let health = args.health.map(health_address).transpose()?;
        let trace = args.trace.as_deref().map(str::parse).transpose()?;
        let http = http(args.http, args.launch, &args.access)?;
        let workers = match args.launch {
            Launch::Local => {
                if let Some(found) = args.listen {
                    return Err(ConfigError::ListenLocally { found });
                }
                check_no_access(&args.access)?;
                let backend = with_threads(args.backend, n_workers);
                let busy_poll = has_spare_core(&backend, n_workers);
                Workers::Local { program: worker_program(args.worker_program, worker)?, backend, busy_poll }
            }
            Launch::External if args.worker_program.is_some() => return Err(ConfigError::ProgramExternally),
            Launch::External => {
                check_no_backend(&args.backend)?;
                let listen = listen_address(args.listen.as_deref().unwrap_or("127.0.0.1:7187"))?;
                let access = access(&listen, args.access, args.reflection)?;
                Workers::External { listen, access }
            }
        };
        Ok(Self {
            invocation,
            task,
            recipe: args.recipe,
            shards: args.shards,
            n_workers,
            workers,
            health,
            http,
            tensorboard: args.tensorboard,
            trace,
            join_timeout,
            heartbeat_timeout,
            audit,
            wire: args.wire,
            data: args.data,
            run,
            download,
            mirror,
            other_numerics: if args.allow_other_numerics { OtherNumerics::Allow } else { OtherNumerics::Refuse },
            checkpoint_every,
            n_checkpoints_kept: args.keep as usize,
            journal: if args.journal { JournalSteps::Yes } else { JournalSteps::No },
            hash_steps: if args.hash_steps { HashSteps::Yes } else { HashSteps::No },
            output: if args.json { Output::Json } else { Output::Text },
        })
    }
}

impl Wire {
    /// What values are, wherever they lie.
    pub fn encoding(self) -> Encoding {
        match self {
            Self::Auto | Self::Grpc => Encoding::F32,
            Self::GrpcBf16 => Encoding::Bf16,
        }
    }
}

impl fmt::Display for CheckpointEvery {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Epoch => out.write_str("epoch"),
            Self::Steps(1) => out.write_str("step"),
            Self::Steps(n_steps) => write!(out, "{n_steps} steps"),
        }
    }
}

fn range(flag: &'static str, range: impl Into<String>, found: impl ToString, example: &'static str) -> ConfigError {
    ConfigError::Range { flag, range: range.into(), found: found.to_string(), example }
}

fn seconds(flag: &'static str, found: f64, min: f64, example: &'static str) -> Result<Duration, ConfigError> {
    const MAX: f64 = 30.0 * 86_400.0;
    if (min..=MAX).contains(&found) {
        return Ok(Duration::from_secs_f64(found));
    }
    Err(range(flag, format!("from {min} to {MAX} seconds"), found, example))
}

fn share(flag: &'static str, found: f64, example: &'static str) -> Result<f64, ConfigError> {
    if (0.0..=1.0).contains(&found) { Ok(found) } else { Err(range(flag, "from 0 to 1", found, example)) }
}

fn checkpoint_every(text: &str) -> Result<CheckpointEvery, ConfigError> {
    match text.parse() {
        _ if text == "epoch" => Ok(CheckpointEvery::Epoch),
        Ok(n_steps) if n_steps > 0 => Ok(CheckpointEvery::Steps(n_steps)),
        _ => Err(ConfigError::CheckpointEvery { found: text.to_owned() }),
    }
}

fn n_workers(given: Option<u32>) -> Result<NonZeroU32, ConfigError> {
    let n_workers = given.unwrap_or(u32::try_from(n_cores().min(4)).unwrap_or(1));
    let checked = NonZeroU32::new(n_workers).filter(|n_workers| n_workers.get() as usize <= WORKERS_MAX);
    checked.ok_or_else(|| range("--workers", format!("from 1 to {WORKERS_MAX}"), n_workers, "4"))
}

/// Where the run goes, and what is downloaded there first.
#[expect(clippy::option_option, reason = "clap's form of a flag that may stand alone")]
fn run_choice(
    resume: Option<Option<PathBuf>>,
    run_dir: Option<PathBuf>,
) -> Result<(RunChoice, Option<Location>), ConfigError> {
    let Some(resume) = resume else { return Ok((RunChoice::New(run_dir), None)) };
    let text = resume.as_ref().and_then(|resume| resume.to_str());
    if let Some(url) = text.filter(|text| Location::is_url(text)) {
        return Ok((RunChoice::Resume(run_dir), Some(Location::parse("--resume", url)?)));
    }
    if text == Some("auto") {
        return Ok((RunChoice::ResumeOrNew(run_dir), None));
    }
    match (&resume, &run_dir) {
        (Some(folder), Some(run_dir)) if folder != run_dir => Err(ConfigError::TwoFolders),
        _ => Ok((RunChoice::Resume(resume.or(run_dir)), None)),
    }
}

fn worker_program(given: Option<PathBuf>, usual: WorkerProgram) -> Result<WorkerProgram, ConfigError> {
    let program = match given {
        Some(file) => WorkerProgram { file, ..usual },
        None => usual,
    };
    // In full, since a bare name would be looked for along $PATH.
    match program.file.canonicalize() {
        Ok(file) if file.is_file() => Ok(WorkerProgram { file, ..program }),
        Ok(_) | Err(_) => Err(ConfigError::NoWorkerProgram { path: program.file }),
    }
}

fn check_no_backend(backend: &BackendArgs) -> Result<(), ConfigError> {
    let BackendArgs { backend, device, operations, threads } = backend;
    let given = [
        ("--backend", backend.is_some()),
        ("--device", device.is_some()),
        ("--operations", operations.is_some()),
        ("--threads", threads.is_some()),
    ];
    match given.into_iter().find(|(_, is_given)| *is_given) {
        Some((flag, _)) => Err(ConfigError::BackendExternally { flag }),
        None => Ok(()),
    }
}

fn n_cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

/// Whether a core is left for busy waiting, besides the ones that compute.
fn has_spare_core(backend: &BackendArgs, n_workers: NonZeroU32) -> bool {
    let n_threads = backend.threads.map_or(1, usize::from);
    n_workers.get() as usize * n_threads < n_cores()
}

/// The cores shared among the workers, if nothing else is said.
fn with_threads(backend: BackendArgs, n_workers: NonZeroU32) -> BackendArgs {
    let share = u16::try_from(n_cores() / n_workers.get() as usize).unwrap_or(1).clamp(1, 1024);
    BackendArgs { threads: Some(backend.threads.unwrap_or(share)), ..backend }
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::builder::Resettable;
    use clap::{CommandFactory, FromArgMatches};

    use super::*;

    /// What a command line comes to in a program of the autoencoders.
    pub(crate) fn config_of<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Config, ConfigError> {
        let tasks = model::task::tasks();
        // Whatever the variables of the tests are.
        let command = tasks.augment(Args::command()).mut_args(|arg| arg.env(Resettable::Reset));
        let matches = command.try_get_matches_from(words).expect("flags that are known");
        let args = Args::from_arg_matches(&matches).expect("flags that are known");
        let invocation = Invocation::new(["coordinator".into()]);
        Config::new(invocation, args, tasks.choice(&matches).expect("flags of the task"), WorkerProgram::beside())
    }

    pub(crate) fn config(flags: &str) -> Result<Config, ConfigError> {
        let program = std::env::current_exe().expect("a test is a program");
        let program = format!("--worker-program={}", program.display());
        let local = if flags.contains("external") { None } else { Some(program.as_str()) };
        let flags = ["coordinator", "--arch", "conv"].into_iter().chain(local).chain(flags.split_whitespace());
        config_of(flags)
    }

    #[test]
    fn invalid_flags_are_refused_with_advice() {
        let check = |flags: &str, part: &str| {
            let text = config(flags).expect_err(flags).to_string();
            assert!(text.contains(part), "`{text}` does not say `{part}`");
        };
        check("--workers 0", "expected --workers from 1 to 1024, found 0; write for example `--workers 4`");
        check("--workers 5000", "found 5000");
        check("--keep 0", "--keep 3");
        check("--checkpoint-every 0", "found `0`; write for example `500`");
        check("--checkpoint-every often", "`epoch` or a number of steps");
        check("--heartbeat-timeout 0.5", "from 1 to");
        check("--join-timeout -1", "found -1");
        check("--join-timeout nan", "found NaN");
        check("--listen 0.0.0.0:1", "--launch external --listen 0.0.0.0:1");
        check("--launch external --listen 7187", "write for example `0.0.0.0:7187`");
        check("--launch external --listen http://localhost:7187", "HOST:PORT or unix:PATH");
        check("--launch external --listen localhost:70000", "found `localhost:70000`");
        check("--launch external --worker-program x", "--launch local");
        check("--launch external --listen ::1:7187", "found `::1:7187`");
        check("--health 7189", "expected --health as HOST:PORT, found `7189`");
        check("--health unix:socket", "write for example `0.0.0.0:7189`");
        check("--launch external --threads 2", "--threads is for local workers");
        check("--token-file a", "--token-file is for workers that others start");
        check("--tls-ca a", "--tls-ca is for workers that others start");
        check("--launch external --tls-cert a --tls-ca b", "found only --tls-cert and --tls-ca");
        check("--launch external --listen unix:a --tls-cert a --tls-key b --tls-ca c", "leave them out with");
        check("--resume a --run-dir b", "name the same folder");
        check("--mirror bucket/prefix", "expected the URL of an object store as --mirror, found `bucket/prefix`");
        check("--resume http://localhost/run", "expected the URL of an object store as --resume");
    }

    #[test]
    fn resume_and_run_dir_flags_select_run() {
        let check = |flags: &str, expected| assert_eq!(config(flags).expect(flags).run, expected);
        check("", RunChoice::New(None));
        check("--run-dir a", RunChoice::New(Some("a".into())));
        check("--resume", RunChoice::Resume(None));
        check("--resume a", RunChoice::Resume(Some("a".into())));
        check("--resume --run-dir a", RunChoice::Resume(Some("a".into())));
        check("--resume auto", RunChoice::ResumeOrNew(None));
        check("--resume auto --run-dir a", RunChoice::ResumeOrNew(Some("a".into())));
        check("--resume ./auto", RunChoice::Resume(Some("./auto".into())));
    }

    #[test]
    fn resume_from_url_downloads_mirrored_run() {
        let check = |flags: &str, run, download: Option<&str>, mirror: Option<&str>| {
            let found = config(flags).expect(flags);
            let urls = [&found.download, &found.mirror].map(|location| location.as_ref().map(ToString::to_string));
            assert_eq!(found.run, run, "{flags}");
            assert_eq!(urls, [download, mirror].map(|url| url.map(str::to_owned)), "{flags}");
        };
        let url = "s3://bucket/a";
        check("--mirror s3://bucket/a", RunChoice::New(None), None, Some(url));
        check("--resume s3://bucket/a", RunChoice::Resume(None), Some(url), None);
        check("--resume s3://bucket/a --run-dir b", RunChoice::Resume(Some("b".into())), Some(url), None);
        let elsewhere = "--resume s3://bucket/a --mirror gs://bucket/b";
        check(elsewhere, RunChoice::Resume(None), Some(url), Some("gs://bucket/b"));
        check("--resume auto --mirror s3://bucket/a", RunChoice::ResumeOrNew(None), None, Some(url));
    }

    #[test]
    fn missing_worker_program_is_reported_with_path() {
        let found = config_of(["coordinator", "--worker-program", "/nowhere/worker"]);
        let text = found.expect_err("it is not there").to_string();
        assert!(text.contains("at /nowhere/worker") && text.contains("cargo build --release"), "{text}");
    }
}
