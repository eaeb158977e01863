//! A network as it was trained, from a file of weights.

use std::path::Path;
use std::sync::Arc;

use engine::backend::ComputeDevice;
use engine::params::{ParamLayout, load};
use engine::task::{BoxError, Task};
use engine::weights::WeightsFile;

/// The task that a file of weights was trained for, with its settings, and the trained network on a device.
///
/// # Errors
/// If the file cannot be read, is damaged, or of another task, or its settings cannot be followed.
pub fn load_trained<T: Task>(weights: &Path, device: &ComputeDevice) -> Result<(T, T::Network), BoxError> {
    let file = WeightsFile::read(weights)?;
    file.check_task(T::NAME)?;
    let missing = || format!("expected weights with the settings of {}, found none in {}", T::NAME, weights.display());
    let task = file.settings::<T>()?.ok_or_else(missing)?.checked()?;
    let network = task.network(device, 0);
    let layout = Arc::new(ParamLayout::of(&network)?);
    let values = file.weights(T::NAME, &layout)?;
    Ok((task, load(network, &values.params, device)))
}
