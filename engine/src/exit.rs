//! Which exit code an error gives. The codes themselves are in `exit_codes`, which the files that have the errors may know.

use std::error::Error;
use std::fmt::Display;
use std::process::ExitCode;

use crate::backend::BackendError;
use crate::configuration::ConfigurationError;
use crate::data::DataError;
use crate::files::WriteError;
use crate::recipe::RecipeError;
use crate::report::write_stderr_line;
use crate::task::{BoxError, TaskError};
use crate::training::{InitialWeightsError, TrainingError};
use crate::weights::WeightsError;

pub use crate::exit_codes::{
    CANNOT_WRITE, CONFIGURATION, DATA, DIVERGED, EVICTED, INTERNAL, NO_PERMISSION, TERMINATED, UNAVAILABLE,
};

/// What a program ends with: an error is written to standard error, and `code` gives its exit code.
pub fn ended<E: Display>(ended: Result<ExitCode, E>, code: impl FnOnce(&E) -> u8) -> ExitCode {
    ended.unwrap_or_else(|error| {
        write_stderr_line(&format!("error: {error}"));
        ExitCode::from(code(&error))
    })
}

/// An error with the exit code of the program that it ends, such as [`CONFIGURATION`] for flags that cannot be followed.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct ExitError {
    exit_code: u8,
    source: BoxError,
}

impl ExitError {
    /// The error, or the text of one.
    pub fn new(exit_code: u8, source: impl Into<BoxError>) -> Self {
        Self { exit_code, source: source.into() }
    }
}

/// The exit code of an error, by the first of its causes that is known.
pub fn code(error: &anyhow::Error) -> u8 {
    code_of(error.as_ref()).unwrap_or(INTERNAL)
}

/// The exit code of an error, if it or one of its causes is known.
pub fn code_of(error: &(dyn Error + 'static)) -> Option<u8> {
    std::iter::successors(Some(error), |cause| (*cause).source()).find_map(code_of_cause)
}

fn code_of_cause(cause: &(dyn Error + 'static)) -> Option<u8> {
    if let Some(ExitError { exit_code, .. }) = cause.downcast_ref() {
        return Some(*exit_code);
    }
    if let Some(error) = cause.downcast_ref::<DataError>() {
        return Some(error.exit_code());
    }
    if let Some(error) = cause.downcast_ref::<BackendError>() {
        return Some(if matches!(error, BackendError::NoDevice { .. }) { UNAVAILABLE } else { CONFIGURATION });
    }
    if let Some(error) = cause.downcast_ref::<TrainingError>() {
        return Some(match error {
            TrainingError::Diverged { .. } => DIVERGED,
            TrainingError::Count(_) => INTERNAL,
            TrainingError::Write(_) => CANNOT_WRITE,
        });
    }
    if let Some(TaskError::Data { source, .. }) = cause.downcast_ref() {
        return Some(source.exit_code());
    }
    if cause.is::<RecipeError>() || cause.is::<ConfigurationError>() || cause.is::<TaskError>() {
        return Some(CONFIGURATION);
    }
    if let Some(error) = cause.downcast_ref::<InitialWeightsError>() {
        return Some(if matches!(error, InitialWeightsError::File(_)) { DATA } else { CONFIGURATION });
    }
    if cause.is::<WeightsError>() {
        return Some(DATA);
    }
    cause.is::<WriteError>().then_some(CANNOT_WRITE)
}
