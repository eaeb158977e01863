//! Parameters as `.safetensors` files in the published names and layouts, both ways.

mod mapping;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::files::{WriteError, read_bounded, write_whole};
use crate::params::{ParamEntry, ParamLayout, little_endian, params_blake3};
use crate::spec::TaskSpec;

pub use mapping::{PrefixMapping, PrefixMappingError};

use mapping::Unmapped;

/// Parameters with the network they belong to.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// The name of the task.
    pub task: String,
    /// Its settings, if they are known.
    pub settings: Option<Value>,
    /// Where each tensor lies.
    pub layout: Arc<ParamLayout>,
    /// In layout order.
    pub params: Vec<f32>,
    /// The epoch after which they were these, counted from 1, if they are of one.
    pub epoch: Option<u32>,
}

/// The name of the task, in a file's metadata.
const TASK_KEY: &str = "task";
/// Its older name, which is written too, for programs that read it.
const OLDER_TASK_KEY: &str = "architecture";
const SETTINGS_KEY: &str = "settings";
const SETTINGS_HASH_KEY: &str = "settings_blake3";
const EPOCH_KEY: &str = "epoch";
const HASH_KEY: &str = "params_blake3";

/// Four times the largest network that can be trained.
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
    #[error("expected the tensors of {expected}, found {found} in {}", path.display())]
    UnknownNetwork {
        /// The file.
        path: PathBuf,
        /// The networks that it may belong to.
        expected: String,
        /// The first few names found.
        found: String,
    },
    /// It belongs to another network than the one asked for.
    #[error("expected weights of {expected}, found weights of {found} in {}", path.display())]
    OtherNetwork {
        /// The file.
        path: PathBuf,
        /// The network asked for.
        expected: String,
        /// The network found.
        found: String,
    },
    /// It has no tensor of the network.
    #[error("expected some of the tensors {expected}, found only {found} in {}; use the same names", path.display())]
    NothingKnown {
        /// The file.
        path: PathBuf,
        /// The first few names of the network.
        expected: String,
        /// The first few names found.
        found: String,
    },
    /// A mapping of names changes nothing.
    #[error("expected {expected} for `--init-map {mapping}`, found {found} in {}; correct the mapping or leave it out", path.display())]
    UnusedMapping {
        /// The file.
        path: PathBuf,
        /// The mapping.
        mapping: PrefixMapping,
        /// What was looked for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Two tensors of the file have one name in the network.
    #[error(
        "expected one tensor for {name}, found {} and {} in {}; leave one of them out by another --init-map", sources[0],
        sources[1], path.display()
    )]
    Ambiguous {
        /// The file.
        path: PathBuf,
        /// The network's name.
        name: String,
        /// The file's.
        sources: [String; 2],
    },
    /// The file says two things.
    #[error("expected one network, found {tensors} by its tensors and `{metadata}` by its metadata in {}", path.display())]
    Contradiction {
        /// The file.
        path: PathBuf,
        /// The network of its tensors.
        tensors: String,
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
    /// The task's settings differ from the ones that were written.
    #[error("expected the settings of a task, found {reason} in {}", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        reason: String,
    },
    /// The values differ from the ones that were written.
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
    /// Parameters of a task.
    pub fn new(spec: &TaskSpec, params: Vec<f32>) -> Self {
        let (task, settings) = (spec.name.to_owned(), Some(spec.settings.clone()));
        Self { task, settings, layout: Arc::clone(&spec.layout), params, epoch: None }
    }

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
        let layout = &self.layout;
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
        let mut metadata = HashMap::from([
            ("format".to_owned(), "telar-weights-1".to_owned()),
            (TASK_KEY.to_owned(), self.task.clone()),
            (OLDER_TASK_KEY.to_owned(), self.task.clone()),
            ("layout_fingerprint".to_owned(), layout.fingerprint().to_string()),
            (HASH_KEY.to_owned(), params_blake3(&self.params)),
        ]);
        if let Some(settings) = self.settings.as_ref().map(Value::to_string) {
            metadata.insert(SETTINGS_HASH_KEY.to_owned(), hash_of(&settings));
            metadata.insert(SETTINGS_KEY.to_owned(), settings);
        }
        metadata.extend(self.epoch.map(|epoch| (EPOCH_KEY.to_owned(), epoch.to_string())));
        with_sorted_header(safetensors::serialize(tensors, Some(metadata)).expect("named f32 tensors can be written"))
    }

    /// Reads a file of a task's network.
    ///
    /// # Errors
    /// If the file is not there, damaged, of another network, or holds other shapes, other types, or values that are not finite.
    pub fn read_of(task: &str, layout: &Arc<ParamLayout>, path: &Path) -> Result<Self, WeightsError> {
        WeightsFile::read(path)?.weights_of(task, layout)
    }
}

/// A file of weights whose network is not known yet.
#[derive(Clone, Debug)]
pub struct WeightsFile {
    path: PathBuf,
    bytes: Vec<u8>,
    metadata: HashMap<String, String>,
}

impl WeightsFile {
    /// Reads a file.
    ///
    /// # Errors
    /// If it is not there, or no whole safetensors file.
    pub fn read(path: &Path) -> Result<Self, WeightsError> {
        let bytes = read_bounded(path, FILE_BYTES_MAX)
            .map_err(|source| WeightsError::Read { path: path.to_owned(), source })?;
        Self::from_bytes(path, bytes)
    }

    /// The file of this content.
    ///
    /// # Errors
    /// If it is no whole safetensors file.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, WeightsError> {
        let format = |error: safetensors::SafeTensorError| WeightsError::Format {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        SafeTensors::deserialize(&bytes).map_err(format)?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(format)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        Ok(Self { path: path.to_owned(), bytes, metadata })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).expect("it was read before")
    }

    /// The names of its tensors, in alphabetical order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.tensors().names().into_iter().map(str::to_owned).collect();
        names.sort_unstable();
        names
    }

    /// The task named by its metadata, if it has any.
    pub fn task(&self) -> Option<&str> {
        self.metadata.get(TASK_KEY).or_else(|| self.metadata.get(OLDER_TASK_KEY)).map(String::as_str)
    }

    /// The task's settings, such as a `T` of the task's own type, if its metadata has them.
    ///
    /// # Errors
    /// If they differ from the settings that were written, or are of another type.
    pub fn settings<T: DeserializeOwned>(&self) -> Result<Option<T>, WeightsError> {
        let Some(text) = self.metadata.get(SETTINGS_KEY) else { return Ok(None) };
        let error = |reason| WeightsError::Settings { path: self.path.clone(), reason };
        if self.metadata.get(SETTINGS_HASH_KEY).is_some_and(|expected| *expected != hash_of(text)) {
            return Err(error("others than were written".to_owned()));
        }
        serde_json::from_str(text).map(Some).map_err(|reason| error(reason.to_string()))
    }

    /// The epoch after which the values were these, counted from 1, if its metadata names one.
    pub fn epoch(&self) -> Option<u32> {
        self.metadata.get(EPOCH_KEY)?.parse().ok()
    }

    /// Copies the tensors that a layout has too, by their names after the mappings, over those of `params`, which are in layout
    /// order, and says how many they are. The file may be of another network, and hold others.
    ///
    /// # Errors
    /// If there is none of them, a mapping changes nothing, or a tensor has another shape or type, or values that are not finite.
    pub fn copy_known(
        &self,
        layout: &ParamLayout,
        mappings: &[PrefixMapping],
        params: &mut [f32],
    ) -> Result<usize, WeightsError> {
        let (tensors, names) = (self.tensors(), self.names());
        let known: Vec<&str> = layout.entries().iter().map(|entry| entry.name.as_str()).collect();
        let sources = mapping::sources(&names, &known, mappings).map_err(|unmapped| {
            let path = self.path.clone();
            match unmapped {
                Unmapped::Unused { mapping, expected, found } => {
                    WeightsError::UnusedMapping { path, mapping, expected, found }
                }
                Unmapped::Twice { name, sources } => WeightsError::Ambiguous { path, name, sources },
            }
        })?;
        let mut n_copied = 0;
        for entry in layout.entries() {
            let Some(source) = sources.get(&entry.name) else { continue };
            let mut values = Vec::new();
            append_tensor(&self.path, source, entry, &tensors, &mut values)?;
            params[entry.range()].copy_from_slice(&values);
            n_copied += 1;
        }
        if n_copied == 0 {
            return Err(WeightsError::NothingKnown {
                path: self.path.clone(),
                expected: first_names(layout.entries().iter().map(|entry| entry.name.clone())),
                found: first_names(names.into_iter()),
            });
        }
        Ok(n_copied)
    }

    /// Its values as the weights of a task's network.
    ///
    /// # Errors
    /// If it is of another task, or as [`WeightsFile::weights`].
    pub fn weights_of(&self, task: &str, layout: &Arc<ParamLayout>) -> Result<Weights, WeightsError> {
        self.check_task(task)?;
        self.weights(task, layout)
    }

    /// Whether its metadata names no other task.
    ///
    /// # Errors
    /// If it does.
    pub fn check_task(&self, task: &str) -> Result<(), WeightsError> {
        match self.task() {
            Some(found) if found != task => {
                let (path, expected) = (self.path.clone(), task.to_owned());
                Err(WeightsError::OtherNetwork { path, expected, found: found.to_owned() })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Its values as the weights of a network.
    ///
    /// # Errors
    /// If it has other tensors, shapes or types, non-finite values, or values that differ from the ones that were written.
    pub fn weights(&self, task: &str, layout: &Arc<ParamLayout>) -> Result<Weights, WeightsError> {
        let (path, tensors) = (&self.path, self.tensors());
        let is_known = |name: &String| layout.entries().iter().any(|entry| entry.name == *name);
        if let Some(name) = self.names().into_iter().find(|name| !is_known(name)) {
            let expected = format!("no tensor of {task}");
            return Err(WeightsError::Tensor { path: path.clone(), name, expected, found: "it".to_owned() });
        }
        let mut params = Vec::with_capacity(layout.n_params());
        for entry in layout.entries() {
            append_tensor(path, &entry.name, entry, &tensors, &mut params)?;
        }
        if let Some(expected) = self.metadata.get(HASH_KEY) {
            let found = params_blake3(&params);
            if *expected != found {
                return Err(WeightsError::Hash { path: path.clone(), expected: expected.clone(), found });
            }
        }
        let (task, settings, layout) = (task.to_owned(), self.settings()?, Arc::clone(layout));
        Ok(Weights { task, settings, layout, params, epoch: self.epoch() })
    }
}

fn hash_of(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

/// A file with the keys of its header in alphabetical order, so that equal weights give equal files.
fn with_sorted_header(mut file: Vec<u8>) -> Vec<u8> {
    let (length, rest) = file.split_first_chunk_mut::<8>().expect("a header begins with its length");
    let length = usize::try_from(u64::from_le_bytes(*length)).expect("a header is in memory");
    let header: BTreeMap<String, BTreeMap<String, Value>> =
        serde_json::from_slice(&rest[..length]).expect("a header is an object of objects");
    let mut sorted = serde_json::to_vec(&header).expect("a header has only text keys");
    sorted.resize(length, b' ');
    rest[..length].copy_from_slice(&sorted);
    file
}

/// The first few names, and that there are more.
fn first_names(mut names: impl Iterator<Item = String>) -> String {
    let first: Vec<String> = names.by_ref().take(3).collect();
    format!("{}{}", first.join(", "), if names.next().is_some() { ", …" } else { "" })
}

/// Appends the values of the file's tensor of this name, which has to be as the network has the entry.
fn append_tensor(
    path: &Path,
    name: &str,
    entry: &ParamEntry,
    tensors: &SafeTensors,
    params: &mut Vec<f32>,
) -> Result<(), WeightsError> {
    let shape = format!("F32 {:?}", entry.shape);
    let other = |found| {
        let place = if name == entry.name { String::new() } else { format!(" for {}", entry.name) };
        let expected = format!("{shape}{place}");
        WeightsError::Tensor { path: path.to_owned(), name: name.to_owned(), expected, found }
    };
    let tensor = tensors.tensor(name).map_err(|_| other("no such tensor".to_owned()))?;
    let found = format!("{:?} {:?}", tensor.dtype(), tensor.shape());
    if found != shape {
        return Err(other(found));
    }
    for (position, bytes) in tensor.data().as_chunks::<4>().0.iter().enumerate() {
        let value = f32::from_le_bytes(*bytes);
        if !value.is_finite() {
            return Err(WeightsError::NotFinite { path: path.to_owned(), name: name.to_owned(), position, value });
        }
        params.push(value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(tensors: &[(&str, &[usize])]) -> Arc<ParamLayout> {
        Arc::new(ParamLayout::of_tensors(tensors.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec()))))
    }

    #[test]
    fn tensors_of_known_names_are_copied_from_other_network() {
        let encoder_and_decoder = layout(&[("encoder.weight", &[2, 2]), ("decoder.weight", &[3])]);
        let params = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
        let settings = Some(serde_json::json!({ "width": 2 }));
        let weights =
            Weights { task: "pair".to_owned(), settings, layout: encoder_and_decoder, params, epoch: Some(3) };
        let file = WeightsFile::from_bytes(Path::new("w.safetensors"), weights.to_bytes()).expect("a whole file");
        let copied_by = |tensors, mappings: &[&str]| {
            let layout = layout(tensors);
            let mut params = vec![0.0; layout.n_params()];
            let mappings: Vec<PrefixMapping> = mappings.iter().map(|text| text.parse().expect("a mapping")).collect();
            let copied = file.copy_known(&layout, &mappings, &mut params).map_err(|error| error.to_string());
            copied.map(|n_copied| (n_copied, params))
        };
        let copied = |tensors| copied_by(tensors, &[]);
        assert_eq!(weights.to_bytes(), weights.to_bytes(), "equal weights give equal files");
        assert_eq!(file.weights_of("pair", &weights.layout).expect("the same network"), weights);
        let found = copied(&[("head.weight", &[2]), ("encoder.weight", &[2, 2])]);
        assert_eq!(found, Ok((1, vec![0.0, 0.0, 1.0, 2.0, 3.0, 4.0])));
        let error = copied(&[("encoder.weight", &[4])]).expect_err("another shape");
        assert!(error.contains("expected encoder.weight as F32 [4], found F32 [2, 2]"), "{error}");
        let error = copied(&[("head.weight", &[2])]).expect_err("no tensor of the network");
        assert!(error.contains("tensors head.weight, found only decoder.weight, encoder.weight in w.saf"), "{error}");
        let elsewhere: &[(&str, &[usize])] = &[("net.encoder.weight", &[2, 2])];
        let found = copied_by(elsewhere, &["encoder=net.encoder"]);
        assert_eq!(found, Ok((1, vec![1.0, 2.0, 3.0, 4.0])));
        let check = |tensors, mapping: &str, part: &str| {
            let error = copied_by(tensors, &[mapping]).expect_err(part);
            assert!(error.contains(part), "{error}");
        };
        check(
            elsewhere,
            "enc=net",
            "expected tensors below enc for `--init-map enc=net`, found decoder, encoder in w.safetensors; correct",
        );
        check(
            &[("decoder.weight", &[3])],
            "encoder=decoder",
            "found decoder.weight and encoder.weight in w.safetensors",
        );
        check(
            &[("net.encoder.weight", &[4])],
            "encoder=net.encoder",
            "expected encoder.weight as F32 [4] for net.encoder.weight, found F32 [2, 2]",
        );
    }
}
