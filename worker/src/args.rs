//! The command line, as it is typed.

use std::path::PathBuf;

use clap::Parser;

use engine::args::{AccessArgs, BackendArgs, DataArgs, LogArgs};

/// Computes gradients for a coordinator, until that has no more work.
#[derive(Parser, Debug)]
#[command(
    name = "worker",
    version,
    after_help = "Example:\n  worker --coordinator https://192.168.0.10:7187 --tls-cert worker-1/tls.crt --tls-key \
    worker-1/tls.key --tls-ca worker-1/ca.crt --token-file worker-1/token\n\nEach flag is also a variable, \
    such as TELAR_THREADS, and a key of the file named by --config. The first Ctrl-C or SIGTERM lets the worker \
    finish what it computes, for at most 5 seconds; a second one ends it at once. The exit code is 0 when the run is over or \
    after Ctrl-C, 143 after SIGTERM, and 77 if the coordinator does not accept the certificate or the \
    token, or this worker not the coordinator's certificate."
)]
pub struct Cli {
    /// Where the coordinator listens: https://HOST:PORT with TLS, http://HOST:PORT without, HOST:PORT with TLS if a certificate
    /// is given, or unix:PATH on this machine
    #[arg(long, env = "TELAR_COORDINATOR", value_name = "ADDRESS", help_heading = "Connection")]
    pub coordinator: String,
    /// Give up after so many seconds without a coordinator
    #[arg(
        long,
        env = "TELAR_CONNECT_TIMEOUT",
        value_name = "SECONDS",
        default_value_t = 60,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000),
        help_heading = "Connection"
    )]
    pub connect_timeout: u32,
    /// End when standard input ends: for a parent that must leave no process behind
    #[arg(long, env = "TELAR_SUPERVISED", help_heading = "Connection")]
    pub supervised: bool,
    /// Look for messages for up to a millisecond before sleeping: quicker by what it takes to wake up, for part of a CPU
    #[arg(long, env = "TELAR_BUSY_POLL", help_heading = "Connection")]
    pub busy_poll: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become help")]
    pub access: AccessArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become help")]
    pub data: DataArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become help")]
    pub backend: BackendArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a doc comment would become help")]
    pub log: LogArgs,
    /// File with flags, as TOML: `threads = 4`
    #[arg(long, env = "TELAR_CONFIG", value_name = "FILE", help_heading = "Configuration")]
    pub config: Option<PathBuf>,
}
