//! Parameters as `.safetensors` files in the published names and layouts, both ways.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::arch::Architecture;
use crate::files::{WriteError, read_bounded, write_whole};
use crate::params::{ParamEntry, ParamLayout, little_endian, params_blake3};

/// Parameters with the network they belong to.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// The network.
    pub architecture: Architecture,
    /// In layout order.
    pub params: Vec<f32>,
}

const ARCHITECTURE_KEY: &str = "architecture";
const HASH_KEY: &str = "params_blake3";

/// The largest network's parameters are 655 KB; a hundred times that is a file of something else.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// A file of weights that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is no safetensors file, or a damaged one.
    #[error("expected a safetensors file, found {reason} in {}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It belongs to none of the networks.
    #[error("expected the tensors of conv, recurrent or denoising, found {found} in {}", path.display())]
    UnknownNetwork {
        /// The file.
        path: PathBuf,
        /// The first few names found.
        found: String,
    },
    /// It belongs to another network than the one asked for.
    #[error("expected weights of {expected}, found weights of {found} in {}", path.display())]
    OtherNetwork {
        /// The file.
        path: PathBuf,
        /// The network asked for.
        expected: Architecture,
        /// The network found.
        found: Architecture,
    },
    /// The file says two things.
    #[error("expected one network, found {tensors} by its tensors and `{metadata}` by its metadata in {}", path.display())]
    Contradiction {
        /// The file.
        path: PathBuf,
        /// The network of its tensors.
        tensors: Architecture,
        /// The network of its metadata.
        metadata: String,
    },
    /// A tensor is not as the network has it.
    #[error("expected {name} as {expected}, found {found} in {}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Type and shape of the network's tensor.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// A value is NaN or infinite.
    #[error("expected finite values, found {value} in {name}, value {position}, in {}", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Which value of the tensor, counted from 0.
        position: usize,
        /// The value.
        value: f32,
    },
    /// The values are not those that were written.
    #[error("expected parameters with blake3 {expected}, found {found} in {}: the file is damaged", path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// The hash in the file's metadata.
        expected: String,
        /// The hash of its values.
        found: String,
    },
}

impl Weights {
    /// Writes a file that is whole or not there.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), WriteError> {
        write_whole(path, &self.to_bytes())
    }

    /// The content of a file.
    ///
    /// # Panics
    /// If there are not as many parameters as the network has.
    pub fn to_bytes(&self) -> Vec<u8> {
        let layout = ParamLayout::of(self.architecture);
        assert_eq!(self.params.len(), layout.n_params(), "weights have the length of their layout");
        let bytes = little_endian(&self.params);
        let tensors: BTreeMap<&str, TensorView> = layout
            .entries()
            .iter()
            .map(|entry| {
                let range = entry.range();
                let data = &bytes[4 * range.start..4 * range.end];
                let view = TensorView::new(Dtype::F32, entry.shape.clone(), data);
                (entry.name.as_str(), view.expect("a range has as many values as its shape"))
            })
            .collect();
        let metadata = HashMap::from([
            ("format".to_owned(), "telar-weights-1".to_owned()),
            (ARCHITECTURE_KEY.to_owned(), self.architecture.name().to_owned()),
            ("layout_fingerprint".to_owned(), layout.fingerprint().to_string()),
            (HASH_KEY.to_owned(), params_blake3(&self.params)),
        ]);
        safetensors::serialize(tensors, Some(metadata)).expect("named f32 tensors can be written")
    }

    /// Reads a file of any of the networks. Which one is told by its tensors, so that a file written by another program,
    /// without metadata, is as good.
    ///
    /// # Errors
    /// If the file is not there, damaged, of no network, or holds other shapes, other types, or values that are not
    /// finite.
    pub fn read(path: &Path) -> Result<Self, WeightsError> {
        let bytes = read_bounded(path, FILE_BYTES_MAX)
            .map_err(|source| WeightsError::Read { path: path.to_owned(), source })?;
        Self::from_bytes(path, &bytes)
    }

    /// Reads a file of the network named.
    ///
    /// # Errors
    /// As [`Weights::read`], and if the file is of another network.
    pub fn read_of(architecture: Architecture, path: &Path) -> Result<Self, WeightsError> {
        let weights = Self::read(path)?;
        if weights.architecture == architecture {
            return Ok(weights);
        }
        let found = weights.architecture;
        Err(WeightsError::OtherNetwork { path: path.to_owned(), expected: architecture, found })
    }

    fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self, WeightsError> {
        let format = |error: safetensors::SafeTensorError| WeightsError::Format {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let tensors = SafeTensors::deserialize(bytes).map_err(format)?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(format)?;
        let (architecture, layout) = recognize(path, &tensors)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        if let Some(name) = metadata.get(ARCHITECTURE_KEY).filter(|name| *name != architecture.name()) {
            let (path, metadata) = (path.to_owned(), name.clone());
            return Err(WeightsError::Contradiction { path, tensors: architecture, metadata });
        }
        let mut params = Vec::with_capacity(layout.n_params());
        for entry in layout.entries() {
            append_tensor(path, entry, &tensors, &mut params)?;
        }
        if let Some(expected) = metadata.get(HASH_KEY) {
            let found = params_blake3(&params);
            if *expected != found {
                return Err(WeightsError::Hash { path: path.to_owned(), expected: expected.clone(), found });
            }
        }
        Ok(Self { architecture, params })
    }
}

/// The network whose tensors are nearest to those of the file: the one with most names in common.
fn recognize(path: &Path, tensors: &SafeTensors) -> Result<(Architecture, &'static ParamLayout), WeightsError> {
    let names = tensors.names();
    let n_common =
        |layout: &ParamLayout| layout.entries().iter().filter(|entry| names.contains(&entry.name.as_str())).count();
    let candidates = Architecture::ALL.map(|architecture| (architecture, ParamLayout::of(architecture)));
    let nearest = candidates.into_iter().max_by_key(|(_, layout)| n_common(layout));
    let (architecture, layout) = nearest.filter(|(_, layout)| n_common(layout) > 0).ok_or_else(|| {
        let mut names = names.clone();
        names.sort_unstable();
        names.truncate(5);
        let found = if names.is_empty() { "no tensor".to_owned() } else { names.join(", ") };
        WeightsError::UnknownNetwork { path: path.to_owned(), found }
    })?;
    let is_known = |name: &&str| layout.entries().iter().any(|entry| entry.name == *name);
    match names.iter().find(|name| !is_known(name)) {
        Some(name) => Err(WeightsError::Tensor {
            path: path.to_owned(),
            name: (*name).to_owned(),
            expected: format!("no tensor of {architecture}"),
            found: "it".to_owned(),
        }),
        None => Ok((architecture, layout)),
    }
}

fn append_tensor(
    path: &Path,
    entry: &ParamEntry,
    tensors: &SafeTensors,
    params: &mut Vec<f32>,
) -> Result<(), WeightsError> {
    let expected = || format!("F32 {:?}", entry.shape);
    let other =
        |found| WeightsError::Tensor { path: path.to_owned(), name: entry.name.clone(), expected: expected(), found };
    let tensor = tensors.tensor(&entry.name).map_err(|_| other("no such tensor".to_owned()))?;
    let found = format!("{:?} {:?}", tensor.dtype(), tensor.shape());
    if found != expected() {
        return Err(other(found));
    }
    for (position, bytes) in tensor.data().as_chunks::<4>().0.iter().enumerate() {
        let value = f32::from_le_bytes(*bytes);
        if !value.is_finite() {
            return Err(WeightsError::NotFinite { path: path.to_owned(), name: entry.name.clone(), position, value });
        }
        params.push(value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::params::initial_params;

    fn weights(architecture: Architecture) -> Weights {
        Weights { architecture, params: initial_params(architecture, 1) }
    }

    fn read(bytes: &[u8]) -> Result<Weights, String> {
        Weights::from_bytes(Path::new("w.safetensors"), bytes).map_err(|error| error.to_string())
    }

    #[test]
    fn weights_come_back_as_they_were_and_name_their_network() {
        for architecture in Architecture::ALL {
            let written = weights(architecture);
            assert_eq!(read(&written.to_bytes()), Ok(written));
        }
    }

    fn check(bytes: &[u8], part: &str) {
        let text = read(bytes).expect_err(part);
        assert!(text.contains(part), "`{text}` does not say `{part}`");
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(read(&bytes).is_err());
        }

        #[test]
        fn any_change_of_a_file_is_noticed(place in 0_usize..190_000, flipped in 1_u8..) {
            let written = weights(Architecture::Conv);
            let mut bytes = written.to_bytes();
            let place = place % bytes.len();
            bytes[place] ^= flipped;
            // A change in the part of the metadata that nobody asks for is none in the weights.
            if let Ok(found) = read(&bytes) {
                prop_assert_eq!(found, written);
            }
        }
    }

    #[test]
    fn damage_is_named() {
        let whole = weights(Architecture::Denoising).to_bytes();
        check(b"no weights at all", "expected a safetensors file");
        check(&whole[..whole.len() - 1], "expected a safetensors file");
        check(&[&whole[..], b"x"].concat(), "expected a safetensors file");
        let mut changed = whole.clone();
        let last = changed.len() - 3;
        changed[last] ^= 1;
        check(&changed, "the file is damaged");
    }

    #[test]
    fn values_that_are_not_finite_are_named() {
        let mut broken = weights(Architecture::Denoising);
        broken.params[78_400 + 3] = f32::NAN; // 100 * 784 weights before the bias
        check(&broken.to_bytes(), "found NaN in encoder.dense1.bias, value 3");
    }

    #[test]
    fn a_file_that_says_two_things_is_refused() {
        let whole = weights(Architecture::Recurrent).to_bytes();
        let place =
            whole.windows(11).position(|bytes| bytes == b"\"recurrent\"").expect("the metadata names the network");
        let mut changed = whole;
        changed[place + 1..place + 10].copy_from_slice(b"denoising");
        check(&changed, "found recurrent by its tensors and `denoising` by its metadata");
    }

    #[test]
    fn other_tensors_are_named() {
        let zeros = [0_u8; 16];
        let file = |name: &str, dtype, shape| {
            let view = TensorView::new(dtype, shape, &zeros).expect("16 bytes");
            safetensors::serialize([(name, view)], None).expect("one tensor")
        };
        check(&file("head.weight", Dtype::F32, vec![4]), "found head.weight");
        check(
            &file("encoder.dense1.weight", Dtype::F32, vec![2, 2]),
            "expected encoder.dense1.weight as F32 [100, 784], found F32 [2, 2]",
        );
        check(&file("encoder.dense1.weight", Dtype::F64, vec![2]), "found F64 [2]");
        check(
            &file("encoder.dense2.weight", Dtype::F32, vec![4]),
            "encoder.dense1.weight as F32 [100, 784], found no such",
        );
    }
}
