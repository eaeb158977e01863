//! What a program's end tells the one who started it. The numbers are those of BSD's `sysexits.h` where it has one.

use crate::backend::BackendError;
use crate::configuration::ConfigurationError;
use crate::data::DataError;
use crate::files::WriteError;
use crate::recipe::RecipeError;
use crate::task::TaskError;
use crate::training::{InitialWeightsError, TrainingError};
use crate::weights::WeightsError;

/// Bad configuration.
pub const CONFIGURATION: u8 = 64;
/// Bad data: images, labels, weights.
pub const DATA: u8 = 65;
/// Something needed is not there: a GPU, the network.
pub const UNAVAILABLE: u8 = 69;
/// The program's own fault.
pub const INTERNAL: u8 = 70;
/// What this worker computes is wrong: its machine has a fault.
pub const EVICTED: u8 = 71;
/// A file cannot be written.
pub const CANNOT_WRITE: u8 = 73;
/// The run diverged.
pub const DIVERGED: u8 = 74;
/// The other side does not accept this program's certificate or token, or this program not the other side's.
pub const NO_PERMISSION: u8 = 77;
/// SIGTERM ended the program before its work was done: 128 + 15, as a shell has it. What was done is saved, but is not a
/// success: a supervisor that counts successes has to start the program again.
pub const TERMINATED: u8 = 143;

/// The exit code of an error, by the first of its causes that is known.
pub fn code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(code_of_cause).unwrap_or(INTERNAL)
}

fn code_of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if let Some(error) = cause.downcast_ref::<DataError>() {
        return Some(error.exit_code());
    }
    if let Some(error) = cause.downcast_ref::<BackendError>() {
        return Some(if matches!(error, BackendError::NoDevice { .. }) { UNAVAILABLE } else { CONFIGURATION });
    }
    if let Some(error) = cause.downcast_ref::<TrainingError>() {
        return Some(if matches!(error, TrainingError::Write(_)) { CANNOT_WRITE } else { DIVERGED });
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
