//! Which library computes, and on what: the only file that names a backend.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use burn::tensor::{Device, TensorCreationOptions};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::numerics::REVISION;

/// A library that computes tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Pure Rust on the CPU; nothing to install.
    Flex,
    /// LibTorch: CPU, CUDA, or Metal (MPS).
    Tch,
    /// CUDA kernels compiled at run time (CubeCL).
    Cuda,
}

impl Backend {
    /// Those compiled in, the preferred one first.
    pub const COMPILED: &'static [Self] = &[
        #[cfg(feature = "flex")]
        Self::Flex,
        #[cfg(feature = "tch")]
        Self::Tch,
        #[cfg(feature = "cuda")]
        Self::Cuda,
    ];

    /// The device it computes on if none is named.
    pub fn usual_device(self) -> DeviceChoice {
        match self {
            Self::Flex | Self::Tch => DeviceChoice::Cpu,
            Self::Cuda => DeviceChoice::Cuda(0),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::Tch => "tch",
            Self::Cuda => "cuda",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// What a backend computes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The machine's own cores.
    Cpu,
    /// The NVIDIA GPU of this number, counted from 0.
    Cuda(usize),
    /// Apple's GPU.
    Mps,
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => out.write_str("cpu"),
            Self::Cuda(index) => write!(out, "cuda:{index}"),
            Self::Mps => out.write_str("mps"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = BackendError;

    fn from_str(text: &str) -> Result<Self, BackendError> {
        let error = || BackendError::UnknownDevice { found: text.to_owned() };
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "mps" => Ok(Self::Mps),
            _ => {
                let index = text.strip_prefix("cuda:").ok_or_else(error)?;
                index.parse().map(Self::Cuda).map_err(|_| error())
            }
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = BackendError;

    fn try_from(text: String) -> Result<Self, BackendError> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(device_choice: DeviceChoice) -> Self {
        device_choice.to_string()
    }
}

/// What a network's layers are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Operations {
    /// A whole layer at once, with handwritten gradients; for the backend flex.
    #[cfg(feature = "flex")]
    Fused,
    /// Burn's own operations.
    Plain,
}

impl Operations {
    /// Those of a backend if none are named: the fastest.
    pub fn usual(backend: Backend) -> Self {
        match backend {
            #[cfg(feature = "flex")]
            Backend::Flex => Self::Fused,
            _ => Self::Plain,
        }
    }

    fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "flex")]
            Self::Fused => "fused",
            Self::Plain => "plain",
        }
    }
}

impl fmt::Display for Operations {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// Where tensors are, and what computes on them.
#[derive(Clone, Debug)]
pub struct ComputeDevice {
    device: Device,
    /// What networks on it are made of.
    pub operations: Operations,
}

impl ComputeDevice {
    /// The same with autodiff.
    #[must_use]
    pub fn autodiff(self) -> Self {
        Self { device: self.device.autodiff(), ..self }
    }

    /// The same for networks of other operations.
    #[must_use]
    pub fn with_operations(self, operations: Operations) -> Self {
        Self { operations, ..self }
    }
}

/// The usual device of the first backend that the program is built with, without autodiff: the CPU, unless that has none.
///
/// # Panics
/// As [`reference_device`].
impl Default for ComputeDevice {
    fn default() -> Self {
        reference_device()
    }
}

impl Deref for ComputeDevice {
    type Target = Device;

    fn deref(&self) -> &Device {
        &self.device
    }
}

impl From<&ComputeDevice> for TensorCreationOptions {
    fn from(device: &ComputeDevice) -> Self {
        Self::from(&device.device)
    }
}

/// A backend or device that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// Not a device's name.
    #[error("expected a device as `cpu`, `cuda:N` or `mps`, found `{found}`; write for example `cuda:0`")]
    UnknownDevice {
        /// What was given.
        found: String,
    },
    /// The program was built without it.
    #[error(
        "the backend `{backend}` was not compiled in; build with `--features {backend}`, or use one of: {}",
        compiled()
    )]
    NotCompiled {
        /// What was asked for.
        backend: Backend,
    },
    /// The backend cannot use such a device at all.
    #[error("the backend `{backend}` does not compute on `{device}`; {advice}")]
    Unsupported {
        /// What was asked for.
        backend: Backend,
        /// What was asked for.
        device: DeviceChoice,
        /// What to write instead.
        advice: &'static str,
    },
    /// The backend has no such operations.
    #[error(
        "the operations `{operations}` are for the backend `flex`, found the backend `{backend}`; leave `--operations` out"
    )]
    NoOperations {
        /// What was asked for.
        operations: Operations,
        /// What was asked for.
        backend: Backend,
    },
    /// The device is not there, or its driver is not.
    #[error("no device `{device}` for the backend `{backend}`: {reason}")]
    NoDevice {
        /// What was asked for.
        backend: Backend,
        /// What was asked for.
        device: DeviceChoice,
        /// What was found, and what is missing.
        reason: String,
    },
}

fn compiled() -> String {
    Backend::COMPILED.iter().map(|backend| format!("`{backend}`")).collect::<Vec<_>>().join(", ")
}

/// Opens a device for tensors without autodiff, with the backend's usual operations.
///
/// # Errors
/// If the backend was not compiled in, does not know such a device, or the device or its driver is missing.
pub fn open(backend: Backend, device_choice: DeviceChoice) -> Result<ComputeDevice, BackendError> {
    let device = open_device(backend, device_choice)?;
    Ok(ComputeDevice { device, operations: Operations::usual(backend) })
}

fn open_device(backend: Backend, device_choice: DeviceChoice) -> Result<Device, BackendError> {
    if !Backend::COMPILED.contains(&backend) {
        return Err(BackendError::NotCompiled { backend });
    }
    match (backend, device_choice) {
        #[cfg(feature = "flex")]
        (Backend::Flex, DeviceChoice::Cpu) => Ok(Device::flex()),
        #[cfg(feature = "tch")]
        (Backend::Tch, DeviceChoice::Cpu) => Ok(Device::libtorch()),
        #[cfg(feature = "tch")]
        (Backend::Tch, DeviceChoice::Cuda(index)) => libtorch::open_cuda(index),
        #[cfg(feature = "tch")]
        (Backend::Tch, DeviceChoice::Mps) => libtorch::open_mps(),
        #[cfg(feature = "cuda")]
        (Backend::Cuda, DeviceChoice::Cuda(index)) => cubecl::open_cuda(index),
        (Backend::Cuda, _) => {
            Err(BackendError::Unsupported { backend, device: device_choice, advice: "write `--device cuda:0`" })
        }
        _ => Err(BackendError::Unsupported {
            backend,
            device: device_choice,
            advice: "write `--device cpu`, or use the backend `tch` or `cuda`",
        }),
    }
}

/// The device for work that does not matter for speed: layouts, initial values.
///
/// # Panics
/// If the program was built with a GPU backend alone and no GPU is there.
pub fn reference_device() -> ComputeDevice {
    let backend = *Backend::COMPILED.first().expect("the program is built with at least one backend");
    open(backend, backend.usual_device()).unwrap_or_else(|error| panic!("{error}"))
}

/// Bounds the threads that a backend computes with on the CPU, if a number is given, and gives how many there are. To be
/// called once, before the first tensor.
pub fn set_threads(n_threads: Option<usize>) -> usize {
    let Some(n_threads) = n_threads else {
        return std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build_global();
    if let Err(error) = pool {
        tracing::warn!(%error, "the number of threads stays as it was set before");
    }
    #[cfg(feature = "tch")]
    libtorch::set_threads(n_threads);
    n_threads
}

/// The version of Burn, and with it that of its backends.
const BURN_VERSION: &str = "0.22.1";

/// Names the class within which results are equal in every bit, as far as a program can tell: the backend and its version, the
/// operations, the [revision](REVISION) of what is computed, the device, the CPU's widest vectors and its first cache, by whose
/// size Burn tiles matrix products, and for LibTorch the number of threads, over which it splits sums. Burn's functions such as eˣ
/// come from the system's C library, which is not part of the name.
pub fn compute_class(
    backend: Backend,
    operations: Operations,
    device_choice: DeviceChoice,
    n_threads: usize,
) -> String {
    let device = match (backend, device_choice) {
        (Backend::Tch, DeviceChoice::Cpu) => format!("{}/{n_threads}-threads", vector_level()),
        (_, DeviceChoice::Cpu) => format!("{}/{}", vector_level(), first_cache()),
        (_, DeviceChoice::Cuda(_)) => "cuda".to_owned(),
        (_, DeviceChoice::Mps) => "mps".to_owned(),
    };
    format!("{backend}-{BURN_VERSION}-{operations}/revision-{REVISION}/{}/{device}", std::env::consts::ARCH)
}

/// Size and ways of the first data cache, as `l1d-48K-12`; `l1d-unknown` where the system does not say.
fn first_cache() -> String {
    let read = |name: &str| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index0/{name}");
        std::fs::read_to_string(path).map(|text| text.trim().to_owned())
    };
    match (read("size"), read("ways_of_associativity")) {
        (Ok(size), Ok(n_ways)) => format!("l1d-{size}-{n_ways}"),
        _ => "l1d-unknown".to_owned(),
    }
}

/// The widest vectors of this CPU that numbers are computed in.
#[cfg(target_arch = "x86_64")]
pub fn vector_level() -> &'static str {
    if is_x86_feature_detected!("avx512f") {
        "avx512"
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        "avx2"
    } else {
        "sse2"
    }
}

/// The widest vectors of this CPU that numbers are computed in.
#[cfg(not(target_arch = "x86_64"))]
pub fn vector_level() -> &'static str {
    "generic"
}

#[cfg(feature = "tch")]
mod libtorch {
    //! LibTorch's own questions: how many GPUs, which threads.

    use burn::tensor::{Device, TensorCreationOptions};

    use super::{Backend, BackendError, DeviceChoice};

    pub(super) fn open_cuda(index: usize) -> Result<Device, BackendError> {
        let n_found = tch::Cuda::device_count();
        if usize::try_from(n_found).unwrap_or(0) > index {
            return Ok(Device::libtorch_cuda(index));
        }
        let reason = if tch::Cuda::is_available() || n_found > 0 {
            format!("{n_found} CUDA device(s) found; the highest is cuda:{}", n_found - 1)
        } else {
            "no CUDA device found; it needs an NVIDIA GPU, its driver, and a LibTorch built for CUDA".to_owned()
        };
        Err(BackendError::NoDevice { backend: Backend::Tch, device: DeviceChoice::Cuda(index), reason })
    }

    pub(super) fn open_mps() -> Result<Device, BackendError> {
        if tch::utils::has_mps() {
            return Ok(Device::libtorch_mps());
        }
        let reason = "it needs a Mac with Apple silicon and a LibTorch built for it".to_owned();
        Err(BackendError::NoDevice { backend: Backend::Tch, device: DeviceChoice::Mps, reason })
    }

    pub(super) fn set_threads(n_threads: usize) {
        let n_threads = i32::try_from(n_threads).unwrap_or(i32::MAX);
        tch::set_num_threads(n_threads);
    }
}

#[cfg(feature = "cuda")]
mod cubecl {
    //! Whether CubeCL finds a driver and a GPU.

    use burn::tensor::{Device, DeviceType};

    use super::{Backend, BackendError, DeviceChoice};

    pub(super) fn open_cuda(index: usize) -> Result<Device, BackendError> {
        let no_device =
            |reason| BackendError::NoDevice { backend: Backend::Cuda, device: DeviceChoice::Cuda(index), reason };
        let devices = Device::enumerate(DeviceType::Cuda).into_vec();
        match devices.len() {
            0 => Err(no_device(
                "no CUDA device found; it needs an NVIDIA GPU and its driver (libcuda.so.1); `--backend flex` needs neither"
                    .to_owned(),
            )),
            n_found if n_found <= index => {
                Err(no_device(format!("{n_found} CUDA device(s) found; the highest is cuda:{}", n_found - 1)))
            }
            _ => Ok(Device::cuda(index)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_text_round_trips() {
        for text in ["cpu", "cuda:0", "cuda:3", "mps"] {
            assert_eq!(text.parse::<DeviceChoice>().expect(text).to_string(), text);
        }
        for text in ["gpu", "cuda:", "cuda:-1", "cuda:x", ""] {
            assert_eq!(text.parse::<DeviceChoice>(), Err(BackendError::UnknownDevice { found: text.to_owned() }));
        }
    }

    #[test]
    fn burn_version_matches_lock_file() {
        let lock = include_str!("../../Cargo.lock");
        assert!(lock.contains(&format!("name = \"burn\"\nversion = \"{BURN_VERSION}\"\n")));
    }

    #[test]
    fn missing_backend_or_device_is_named_in_error() {
        let check = |backend, device_choice, part: &str| {
            let text = open(backend, device_choice).expect_err("it is not there").to_string();
            assert!(text.contains(part), "`{text}` does not say `{part}`");
        };
        if !Backend::COMPILED.contains(&Backend::Tch) {
            check(Backend::Tch, DeviceChoice::Cpu, "build with `--features tch`");
        }
        if !Backend::COMPILED.contains(&Backend::Cuda) {
            check(Backend::Cuda, DeviceChoice::Cuda(0), "build with `--features cuda`");
        }
        if Backend::COMPILED.contains(&Backend::Flex) {
            check(Backend::Flex, DeviceChoice::Cuda(0), "does not compute on `cuda:0`");
        }
        if Backend::COMPILED.contains(&Backend::Tch) {
            check(Backend::Tch, DeviceChoice::Cuda(99), "CUDA device");
        }
    }
}
