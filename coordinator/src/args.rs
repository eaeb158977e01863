//! The command line, as it is typed.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use engine::args::{AccessArgs, BackendArgs, DataArgs, LogArgs};
use engine::recipe::RecipeArgs;
use serde::Serialize;

use crate::certificates::CertificatesArgs;

/// Checkpoints that stay.
pub const KEEP_DEFAULT: u32 = 3;

/// Trains a network on many workers, synchronously, to the same bits for any number of them.
#[derive(Parser, Debug)]
#[command(version, args_conflicts_with_subcommands = true, max_term_width = 110)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct Args {
    /// What to do instead of training.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// File of settings (TOML)
    #[arg(long, env = "TELAR_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// What is trained.
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Parts into which each step is cut, for workers to compute and the coordinator to add in order [default: as many as
    /// --workers]
    #[arg(long, env = "TELAR_SHARDS", value_name = "N", help_heading = "What is trained")]
    pub shards: Option<u32>,

    /// Workers to start, or to expect; fewer or more of them change nothing but the speed [default: one for each core, at
    /// most 4]
    #[arg(long, env = "TELAR_WORKERS", value_name = "N", help_heading = "Who computes")]
    pub workers: Option<u32>,
    /// Who starts the workers
    #[arg(long, env = "TELAR_LAUNCH", value_enum, default_value_t = Launch::Local, help_heading = "Who computes")]
    pub launch: Launch,
    /// Where to wait for workers that others start: HOST:PORT or unix:PATH; beyond this machine with --tls-cert, --tls-key and
    /// --tls-ca, or with --insecure [default: 127.0.0.1:7187]
    #[arg(long, env = "TELAR_LISTEN", value_name = "ADDRESS", help_heading = "Who computes")]
    pub listen: Option<String>,
    /// Where to answer the probes of an orchestrator, HOST:PORT: grpc.health.v1 and nothing else, with the services liveness
    /// and readiness, unencrypted
    #[arg(long, env = "TELAR_HEALTH", value_name = "ADDRESS", help_heading = "Who computes")]
    pub health: Option<String>,
    /// Where to serve the page of the run, and its metrics to Prometheus (/metrics): HOST:PORT, or off; beyond this machine with
    /// --tls-cert, --tls-key, --tls-ca and --token-file, or with --insecure [default: 127.0.0.1:7188, or another free port, for
    /// local workers; else off]
    #[arg(long, env = "TELAR_HTTP", value_name = "ADDRESS|off", help_heading = "Output")]
    pub http: Option<String>,
    /// Show the page of runs that are over or that another process trains, by their folders, until Ctrl-C
    #[arg(long, value_name = "DIR", num_args = 1.., help_heading = "Output")]
    pub show: Vec<PathBuf>,
    /// Write files for TensorBoard, into tensorboard/ in the run's folder
    #[arg(long, env = "TELAR_TENSORBOARD", help_heading = "What comes out")]
    pub tensorboard: bool,
    /// Write when which worker computed what in some steps, such as 100..200, into trace.json in the run's folder, for Perfetto
    /// (ui.perfetto.dev)
    #[arg(long, env = "TELAR_TRACE", value_name = "FIRST..LAST", help_heading = "What comes out")]
    pub trace: Option<String>,
    /// Ask the coordinator at ADDRESS (HOST:PORT, https://HOST:PORT with a worker's certificate, or unix:PATH) whether workers
    /// can join, and end: with 0 if they can, else with 69
    #[arg(long, value_name = "ADDRESS", help_heading = "Who computes")]
    pub check: Option<String>,
    /// How long to wait for the first worker, for each one to open its data set, and for an answer
    #[arg(
        long,
        env = "TELAR_JOIN_TIMEOUT",
        value_name = "SECONDS",
        default_value_t = 300.0,
        help_heading = "Who computes",
        allow_negative_numbers = true
    )]
    pub join_timeout: f64,
    /// After how long a silent worker is taken for dead
    #[arg(
        long,
        env = "TELAR_HEARTBEAT_TIMEOUT",
        value_name = "SECONDS",
        default_value_t = 2.0,
        help_heading = "Who computes",
        allow_negative_numbers = true
    )]
    pub heartbeat_timeout: f64,
    /// Share of shards, from 0 to 1, that two workers of different identity compute, whose results are compared bit for bit;
    /// where they differ, a third one says who is evicted. The coordinator computes the shard where no such worker is there: on
    /// its own CPU, and the step waits for it
    #[arg(
        long,
        env = "TELAR_AUDIT",
        value_name = "SHARE",
        default_value_t = 0.0,
        help_heading = "Who computes",
        allow_negative_numbers = true
    )]
    pub audit: f64,
    /// How gradients travel [default: auto, or grpc-bf16 if the run that is resumed was begun so]
    #[arg(long, env = "TELAR_WIRE", value_enum, help_heading = "Who computes")]
    pub wire: Option<Wire>,
    /// The program of a worker [default: `worker` beside this program]
    #[arg(long, env = "TELAR_WORKER_PROGRAM", value_name = "FILE", help_heading = "Who computes")]
    pub worker_program: Option<PathBuf>,

    /// How workers prove who they are.
    #[command(flatten)]
    pub access: AccessArgs,
    /// Describe the service to whoever asks (grpc.reflection.v1) also at an address beyond this machine
    #[arg(long, env = "TELAR_REFLECTION", help_heading = "Security")]
    pub reflection: bool,

    /// Which data set.
    #[command(flatten)]
    pub data: DataArgs,
    /// What local workers compute with.
    #[command(flatten)]
    pub backend: BackendArgs,

    /// Folder for what comes out [default: the next free runs/TASK-NNN]
    #[arg(long, env = "TELAR_RUN_DIR", value_name = "DIR", help_heading = "What comes out")]
    pub run_dir: Option<PathBuf>,
    /// Go on from the newest whole checkpoint of the run in DIR [default: --run-dir, or else the newest run in runs/]; with
    /// the URL of a mirror, download it into --run-dir first, or into the next free runs/TASK-NNN; with `auto`, take the run
    /// in --run-dir or else that at --mirror, and begin one where there is none
    #[arg(long, env = "TELAR_RESUME", value_name = "DIR|URL|auto", num_args = 0..=1, help_heading = "What comes out")]
    pub resume: Option<Option<PathBuf>>,
    /// Resume a run also if a version has computed it that gives other bits, and note that in run.json
    #[arg(long, env = "TELAR_ALLOW_OTHER_NUMERICS", help_heading = "What comes out")]
    pub allow_other_numerics: bool,
    /// Copy what comes out to an object store, behind the training: `s3://BUCKET/PREFIX`, `gs://…`, `az://…`, `abfs://…` or
    /// `file:///DIR`, with credentials and endpoint from the environment [default: the URL of --resume]
    #[arg(long, env = "TELAR_MIRROR", value_name = "URL", help_heading = "What comes out")]
    pub mirror: Option<String>,
    /// When to keep a checkpoint: after each epoch, or after every so many steps
    #[arg(
        long,
        env = "TELAR_CHECKPOINT_EVERY",
        value_name = "epoch|N",
        default_value = "epoch",
        help_heading = "What comes out"
    )]
    pub checkpoint_every: String,
    /// How many checkpoints stay
    #[arg(long, env = "TELAR_KEEP", value_name = "N", default_value_t = KEEP_DEFAULT, help_heading = "What comes out")]
    pub keep: u32,
    /// Bring every step to the disk before the next one ends, so that a coordinator that dies takes at most the step at hand
    /// with it
    #[arg(long, env = "TELAR_JOURNAL", help_heading = "What comes out")]
    pub journal: bool,
    /// Name the parameters after every step in steps.jsonl
    #[arg(long, env = "TELAR_HASH_STEPS", help_heading = "What comes out")]
    pub hash_steps: bool,

    /// What the log looks like.
    #[command(flatten)]
    pub log: LogArgs,
    /// Print JSON, a line for each epoch and one at the end
    #[arg(long, env = "TELAR_JSON", help_heading = "Output")]
    pub json: bool,
}

/// What to do instead of training.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Make a CA, and for the coordinator and each worker a certificate, its key, and the token
    Certificates(CertificatesArgs),
}

/// Who starts the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Launch {
    /// The coordinator, on its own machine
    Local,
    /// Somebody else: a second terminal, another machine, Kubernetes
    External,
}

/// How gradients travel between the processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Wire {
    /// As f32, to workers of this machine through shared memory, to others over gRPC
    Auto,
    /// As f32 over gRPC, to the same bits
    Grpc,
    /// As bf16 over gRPC, in half the bytes, with error feedback: other bits, and a loss that differs in the fifth digit
    GrpcBf16,
}

/// What stands below the flags, for a program that is started as `coordinator` and `worker`, whose flags in `task` name what is trained.
pub fn after_help(coordinator: &str, worker: &str, task: &str) -> String {
    format!(
        "Example:\n  {coordinator} --workers 4{task}\n\nOn several machines:\n  \
        {coordinator} certificates --out tls --host HOST --workers 4\n  \
        {coordinator} --launch external --listen 0.0.0.0:7187 --workers 4{task} --tls-cert tls/coordinator/tls.crt \\\n    \
        --tls-key tls/coordinator/tls.key --tls-ca tls/coordinator/ca.crt --token-file tls/coordinator/token\n  \
        {worker} --coordinator https://HOST:7187 --tls-cert worker-1/tls.crt …       (on each, with a folder of its own)\n\n\
        The first Ctrl-C or SIGTERM ends the run with a checkpoint, from which --resume goes on; a second one ends it at \
        once.\nThe exit code is 0 after Ctrl-C and 143 after SIGTERM, which supervisors take for unfinished work.\nEvery flag \
        --some-flag is also the environment variable TELAR_SOME_FLAG and a key some-flag of the file given with\n--config; the \
        flag counts first, then the variable, then the file.\n\n\
        In a TrainJob of Kubeflow Trainer, which sets KUBEFLOW_TRAINER_SERVER_URL, _CA_CERT and _TOKEN, the coordinator \
        posts to status.trainerStatus: the percentage of the steps, the time left, and the metrics loss and those of the task (of \
        the newest step), the same with val_ (of the newest validation), images_per_second or what samples are called (over the \
        last minute), current_step, total_steps, current_epoch and total_epochs."
    )
}
