//! Why settings cannot be followed.

use std::path::PathBuf;

use observe::trace::StepRangeError;
use proto::tls::IncompleteFlags;

use crate::location::LocationError;

/// A setting that cannot be followed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A number outside its range.
    #[error("expected {flag} {range}, found {found}; write for example `{flag} {example}`")]
    Range {
        /// The flag.
        flag: &'static str,
        /// The range in words.
        range: String,
        /// The value found.
        found: String,
        /// A value that would do.
        example: &'static str,
    },
    /// Neither `epoch` nor a number.
    #[error(
        "expected --checkpoint-every as `epoch` or a number of steps above 0, found `{found}`; write for example `500`"
    )]
    CheckpointEvery {
        /// What was given.
        found: String,
    },
    /// No address.
    #[error("expected --listen as HOST:PORT or unix:PATH, found `{found}`; write for example `0.0.0.0:7187`")]
    Listen {
        /// What was given.
        found: String,
    },
    /// No address for probes.
    #[error("expected --health as HOST:PORT, found `{found}`; write for example `0.0.0.0:7189`")]
    Health {
        /// What was given.
        found: String,
    },
    /// No address for the page.
    #[error("expected --http as HOST:PORT or off, found `{found}`; write for example `127.0.0.1:7188`")]
    Http {
        /// What was given.
        found: String,
    },
    /// A page that others could read.
    #[error(
        "expected TLS and a token with `--http {found}`, which other machines can reach; give --tls-cert, --tls-key, --tls-ca \
         and --token-file, or write --insecure (for a run with `--launch external`); or keep it on this machine with `--http \
         127.0.0.1:7188`, and forward that port with `ssh -L 7188:127.0.0.1:7188 HOST`"
    )]
    HttpExposed {
        /// The address.
        found: String,
    },
    /// Nothing to serve a page with.
    #[error("--show serves a page; leave `--http off` out")]
    ShowWithoutHttp,
    /// No steps.
    #[error("--trace: {0}")]
    Trace(#[from] StepRangeError),
    /// No address to check.
    #[error("expected --check as HOST:PORT or unix:PATH, found `{found}`; write for example `127.0.0.1:7187`")]
    Check {
        /// What was given.
        found: String,
    },
    /// One or two of three flags.
    #[error(transparent)]
    Tls(#[from] IncompleteFlags),
    /// An address that others can reach, without TLS.
    #[error(
        "expected TLS with `--listen {found}`, which other machines can reach, found none; give --tls-cert, --tls-key and \
         --tls-ca (`coordinator certificates --out tls --host HOST` makes the files), or write --insecure, where everyone in \
         the network may read and change what is sent"
    )]
    Exposed {
        /// The address.
        found: String,
    },
    /// Neither needs the other.
    #[error("--insecure is for an address without TLS; leave it out, or --tls-cert, --tls-key and --tls-ca")]
    InsecureWithTls,
    /// TLS where there is no network.
    #[error("--tls-cert, --tls-key and --tls-ca are for --listen HOST:PORT; leave them out with `--listen {found}`")]
    TlsOnSocket {
        /// The address.
        found: String,
    },
    /// A check by TLS without the files for it.
    #[error("expected --tls-cert, --tls-key and --tls-ca of a worker with `--check {found}`, found none of them")]
    CheckWithoutTls {
        /// The address.
        found: String,
    },
    /// What local workers need not prove.
    #[error("{flag} is for workers that others start; write `--launch external`, or leave it out")]
    AccessLocally {
        /// The flag.
        flag: &'static str,
    },
    /// An address for workers that get theirs by themselves.
    #[error("--listen is for workers that others start; write `--launch external --listen {found}`, or leave it out")]
    ListenLocally {
        /// What was given.
        found: String,
    },
    /// A program for workers that this coordinator does not start.
    #[error("--worker-program is for `--launch local`; leave it out")]
    ProgramExternally,
    /// A backend flag for workers that this coordinator does not start.
    #[error("{flag} is for local workers; leave it out here, and give it to each `worker`")]
    BackendExternally {
        /// The flag.
        flag: &'static str,
    },
    /// No object store.
    #[error(transparent)]
    Location(#[from] LocationError),
    /// Two folders for one run.
    #[error("--resume goes on in the folder of the run; leave --run-dir out, or name the same folder")]
    TwoFolders,
    /// The worker's program is not there.
    #[error(
        "expected the program of a worker at {}, found none; build it with `cargo build --release`, or name it with \
         --worker-program", path.display()
    )]
    NoWorkerProgram {
        /// Where it was looked for.
        path: PathBuf,
    },
}
