//! Flags that several programs share: which data, what computes, who may connect, what the log looks like.

use std::path::PathBuf;

use clap::Args;

use crate::backend::{self, Backend, BackendError, ComputeDevice, DeviceChoice, Operations};
use crate::data::DataSource;
use crate::report::LogFormat;

/// Which data set.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// Where the data set is
    #[arg(long, env = "TELAR_DATA", value_name = "DATA", default_value = DataSource::AUTO)]
    pub data: DataSource,
}

/// What computes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "What computes")]
pub struct BackendArgs {
    /// Library that computes [default: flex]
    #[arg(long, env = "TELAR_BACKEND", value_enum)]
    pub backend: Option<Backend>,
    /// Device to compute on: cpu, cuda:N or mps [default: cpu, or cuda:0 for the backend cuda]
    #[arg(long, env = "TELAR_DEVICE", value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// Operations that networks are made of: whole layers at once, or Burn's own [default: fused for the backend flex, plain
    /// for the others]
    #[arg(long, env = "TELAR_OPERATIONS", value_enum)]
    pub operations: Option<Operations>,
    /// Threads to compute with on the CPU [default: all]
    #[arg(long, env = "TELAR_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

/// A device that is open, and what it is.
#[derive(Clone, Debug)]
pub struct OpenBackend {
    /// The library that computes.
    pub backend: Backend,
    /// The device as it was named.
    pub device_choice: DeviceChoice,
    /// The device, without autodiff.
    pub device: ComputeDevice,
    /// Threads that compute on the CPU.
    pub n_threads: usize,
}

impl BackendArgs {
    /// Opens the device asked for. To be called once, before the first tensor.
    ///
    /// # Errors
    /// As [`backend::open`].
    pub fn open(&self) -> Result<OpenBackend, BackendError> {
        let backend = self.backend.unwrap_or(Backend::COMPILED[0]);
        let device_choice = self.device.unwrap_or(backend.usual_device());
        let device = backend::open(backend, device_choice)?;
        let operations = self.operations.unwrap_or(device.operations);
        // Every backend has the plain ones; the usual ones of a backend are the fastest that it has.
        if ![Operations::Plain, device.operations].contains(&operations) {
            return Err(BackendError::NoOperations { operations, backend });
        }
        let device = device.with_operations(operations);
        let n_threads = backend::set_threads(self.threads.map(usize::from));
        Ok(OpenBackend { backend, device_choice, device, n_threads })
    }
}

impl OpenBackend {
    /// See [`backend::compute_class`].
    pub fn compute_class(&self) -> String {
        backend::compute_class(self.backend, self.device.operations, self.device_choice, self.n_threads)
    }
}

/// How coordinator and workers prove to each other who they are.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Security")]
pub struct AccessArgs {
    /// This program's certificate and those that lead to its CA, as PEM; read anew when the file changes. `coordinator
    /// certificates --out tls --host HOST` makes all that is needed; for example `--tls-cert tls/worker-1/tls.crt`
    #[arg(long, env = "TELAR_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, as PEM; for example `--tls-key tls/worker-1/tls.key`
    #[arg(long, env = "TELAR_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Certificates of the CAs that the other side's certificate has to come from, as PEM; for example
    /// `--tls-ca tls/worker-1/ca.crt`
    #[arg(long, env = "TELAR_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// File with the secret that workers have to send, at least 32 bytes, the same for all; for example
    /// `--token-file tls/worker-1/token`
    #[arg(long, env = "TELAR_TOKEN_FILE", hide_env_values = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Do without TLS what others could read or change on the way: at a coordinator a --listen beyond this machine, at a worker
    /// a token for another machine
    #[arg(long, env = "TELAR_INSECURE")]
    pub insecure: bool,
}

/// What the log looks like.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
pub struct LogArgs {
    /// Form of the log on standard error; `$RUST_LOG` says what is in it
    #[arg(long, env = "TELAR_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
}
