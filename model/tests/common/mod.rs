//! What several tests need: the data set, and the backends that this machine can run.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Once;

use engine::backend::{self, Backend, BackendError, ComputeDevice, DeviceChoice, Operations};
use model::data::{DataChoice, FILES, FetchProgress, Garments, cache_folder, open};

/// A test downloads nothing.
struct NoProgress;

impl FetchProgress for NoProgress {
    fn begin(&mut self, _name: &str, _n_bytes: u64, _already: u64) {}
    fn advance(&mut self, _n_bytes: u64) {}
    fn end(&mut self) {}
}

/// Says it also where the test passes: the test runner keeps back only what goes through the print macros.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The folder of the real data set: `$TELAR_DATA`, else beside the project, in it, or the user's cache folder. None,
/// with a message, where it is nowhere: `autoencoder data fetch --dir data` brings it.
pub fn fashion_mnist_folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("TELAR_DATA").filter(|folder| Path::new(folder).is_absolute()) {
        return Some(PathBuf::from(folder));
    }
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let places = ["../shared/fashion-mnist", "data"].map(|place| project.join(place));
    let is_there = |folder: &PathBuf| FILES.iter().all(|file| folder.join(file.name).is_file());
    let found = places.into_iter().chain(cache_folder()).find(is_there);
    if found.is_none() {
        say("skipped: no Fashion-MNIST; `autoencoder data fetch --dir data` brings it");
    }
    found
}

/// The real data set, if it is there.
#[allow(dead_code, clippy::allow_attributes, reason = "not every test binary looks at images")]
pub fn fashion_mnist() -> Option<Garments> {
    let folder = fashion_mnist_folder()?;
    Some(open(&DataChoice::Folder(folder), &mut NoProgress).expect("a whole data set"))
}

/// Images that are always there.
#[allow(dead_code, clippy::allow_attributes, reason = "not every test binary looks at images")]
pub fn garments() -> Garments {
    open(&DataChoice::Synthetic, &mut NoProgress).expect("garments are drawn, not fetched")
}

/// Every backend and device that was compiled in and is there, with each kind of operations that it has, and what it is
/// called; says which GPUs are not there.
#[allow(dead_code, clippy::allow_attributes, reason = "not every test binary computes in its own process")]
pub fn devices() -> Vec<(String, ComputeDevice)> {
    // Tests run side by side; several of them on all cores each hold one another up, tenfold with LibTorch's spinning.
    static ONE_THREAD: Once = Once::new();
    ONE_THREAD.call_once(|| {
        backend::set_threads(Some(1));
    });
    let candidates = [
        (Backend::Flex, DeviceChoice::Cpu),
        (Backend::Tch, DeviceChoice::Cpu),
        (Backend::Tch, DeviceChoice::Cuda(0)),
        (Backend::Cuda, DeviceChoice::Cuda(0)),
    ];
    let mut devices = vec![];
    for (backend, device_choice) in candidates {
        match backend::open(backend, device_choice) {
            Ok(device) => {
                let mut operations = vec![Operations::Plain, device.operations];
                operations.dedup();
                devices.extend(operations.into_iter().map(|operations| {
                    let name = format!("{backend} on {device_choice}, {operations}");
                    (name, device.clone().with_operations(operations))
                }));
            }
            Err(BackendError::NoDevice { .. }) => {
                say(&format!("{backend} on {device_choice}: skipped: no CUDA device"));
            }
            Err(_) => {} // not compiled in
        }
    }
    devices
}
