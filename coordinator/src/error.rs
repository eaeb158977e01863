//! Why a run ends before its time, beside what the files below have errors of their own for.

use std::time::Duration;

use proto::limits::PARAMS_MAX;

/// Why a run ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The address cannot be listened at.
    #[error("cannot listen at {address}: {source}; name another address with {flag}")]
    Listen {
        /// The flag that names it.
        flag: &'static str,
        /// The address.
        address: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// A network that messages are too small for.
    #[error("expected a network of at most {PARAMS_MAX} parameters, found {found} in the task {task}")]
    TooManyParams {
        /// The task.
        task: &'static str,
        /// Its parameters.
        found: usize,
    },
    /// No worker joined in time.
    #[error(
        "expected a worker within {} seconds, none came; start one with `{command}`, or wait longer \
         with --join-timeout", waited.as_secs_f64()
    )]
    NobodyCame {
        /// What starts one, as it is typed.
        command: String,
        /// How long.
        waited: Duration,
    },
}
