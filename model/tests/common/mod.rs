//! What several tests need: the data set, and the backends that this machine can run.

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Once;

use model::backend::{self, Backend, BackendError, Processor};
use model::data::{DataChoice, Dataset, FetchProgress, open};

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

/// The folder of the real data set: `$TELAR_DATA`, else beside the project, else in it. None, said aloud, where it is
/// nowhere: `autoencoder data fetch --dir data` brings it.
pub fn fashion_mnist_folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("TELAR_DATA") {
        return Some(PathBuf::from(folder));
    }
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let places = ["../shared/fashion-mnist", "data"].map(|place| project.join(place));
    let found = places.into_iter().find(|folder| folder.join("train-images-idx3-ubyte.gz").is_file());
    if found.is_none() {
        say("skipped: no Fashion-MNIST; `autoencoder data fetch --dir data` brings it");
    }
    found
}

/// The real data set, if it is there.
#[allow(dead_code, clippy::allow_attributes, reason = "not every test binary looks at images")]
pub fn fashion_mnist() -> Option<Dataset> {
    let folder = fashion_mnist_folder()?;
    Some(open(&DataChoice::Folder(folder), &mut NoProgress).expect("a whole data set"))
}

/// Every backend and device that was compiled in and is there; says which GPUs are not.
#[allow(dead_code, clippy::allow_attributes, reason = "not every test binary computes in its own process")]
pub fn backends() -> Vec<(Backend, Processor)> {
    // Tests run side by side; several of them on all cores each hold one another up, tenfold with LibTorch's spinning.
    static ONE_THREAD: Once = Once::new();
    ONE_THREAD.call_once(|| backend::set_threads(Some(NonZeroUsize::MIN)));
    let candidates = [
        (Backend::Flex, Processor::Cpu),
        (Backend::Tch, Processor::Cpu),
        (Backend::Tch, Processor::Cuda(0)),
        (Backend::Cuda, Processor::Cuda(0)),
    ];
    let is_there = |&(backend, processor): &(Backend, Processor)| match backend::open(backend, processor) {
        Ok(_) => true,
        Err(BackendError::NoDevice { .. }) => {
            say(&format!("{backend} on {processor}: skipped: no CUDA device"));
            false
        }
        Err(_) => false, // not compiled in
    };
    candidates.into_iter().filter(is_there).collect()
}
