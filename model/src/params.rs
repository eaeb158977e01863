//! Parameters as one flat vector: the only place where their order is defined. The order is that in which the network's
//! structs declare their fields, the names are the fields' paths, as published.

#[cfg(feature = "flex")]
mod view;

use std::borrow::Cow;
use std::fmt;
use std::hash::Hasher;
use std::sync::{Arc, OnceLock};

use aligned_vec::AVec;
use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use twox_hash::XxHash3_64;

use crate::arch::{Architecture, Network};
use crate::backend::{ComputeDevice, Operations, reference_device};

/// Where each tensor lies in the flat vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamLayout {
    entries: Vec<ParamEntry>,
    n_params: usize,
    fingerprint: LayoutFingerprint,
}

/// One tensor's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamEntry {
    /// Published name, such as `encoder.dense1.weight`.
    pub name: String,
    /// Shape, the last axis closest together.
    pub shape: Vec<usize>,
    /// Position of the first value in the flat vector.
    pub offset: usize,
}

impl ParamEntry {
    /// The places of its values in the flat vector.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.shape.iter().product::<usize>()
    }
}

/// Names a layout: equal for equal names, shapes and order, and for nothing else. Travels with every gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayoutFingerprint(pub u64);

impl fmt::Display for LayoutFingerprint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:016x}", self.0)
    }
}

impl ParamLayout {
    /// The layout of a network's parameters. To find it, a network is built, once in a process.
    pub fn of(architecture: Architecture) -> &'static Self {
        static LAYOUTS: [OnceLock<ParamLayout>; Architecture::ALL.len()] =
            [const { OnceLock::new() }; Architecture::ALL.len()];
        LAYOUTS[architecture as usize].get_or_init(|| Self::visit(architecture))
    }

    fn visit(architecture: Architecture) -> Self {
        let mut entries = EntryCollector::default();
        Network::new(architecture, 0, &reference_device()).visit(&mut entries);
        let EntryCollector { entries, n_params, .. } = entries;
        let fingerprint = fingerprint(&entries);
        Self { entries, n_params, fingerprint }
    }

    /// The tensors in order.
    pub fn entries(&self) -> &[ParamEntry] {
        &self.entries
    }

    /// Length of the flat vector.
    pub fn n_params(&self) -> usize {
        self.n_params
    }

    /// See [`LayoutFingerprint`].
    pub fn fingerprint(&self) -> LayoutFingerprint {
        self.fingerprint
    }
}

fn fingerprint(entries: &[ParamEntry]) -> LayoutFingerprint {
    let mut hasher = blake3::Hasher::new();
    for entry in entries {
        hasher.update(format!("{} {:?}\n", entry.name, entry.shape).as_bytes());
    }
    let mut first = [0_u8; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    LayoutFingerprint(u64::from_le_bytes(first))
}

/// Values as little-endian f32, as files have them; a copy only where memory has another order.
pub fn little_endian(values: &[f32]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(values))
    } else {
        Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
}

/// The blake3 of the parameters, as little-endian f32 in layout order: the name of a run's result.
pub fn params_blake3(params: &[f32]) -> String {
    blake3::hash(&little_endian(params)).to_hex().to_string()
}

/// A short name of the parameters for comparing replicas after every step: the xxh3 of the bytes that
/// [`params_blake3`] hashes. Takes some tens of microseconds; nobody is kept from making another vector of this name.
pub fn params_fingerprint(params: &[f32]) -> u64 {
    XxHash3_64::oneshot(&little_endian(params))
}

/// [`params_fingerprint`] of parameters that come block by block.
#[derive(Clone, Default)]
pub struct Fingerprinter(XxHash3_64);

impl Fingerprinter {
    /// Goes on with these.
    pub fn add(&mut self, params: &[f32]) {
        self.0.write(&little_endian(params));
    }

    /// The name of all.
    pub fn finish(&self) -> u64 {
        self.0.finish()
    }
}

/// The initial parameters of a network, drawn from the seed: the same bits for every backend.
pub fn initial_params(architecture: Architecture, seed: u64) -> Vec<f32> {
    let mut values = ValueCollector { params: Vec::new() };
    Network::new(architecture, seed, &reference_device()).visit(&mut values);
    values.params
}

impl Network {
    /// Takes its parameters from the flat vector in layout order, each copied once, onto the device.
    ///
    /// # Panics
    /// If the vector has not the length of the network's layout.
    #[must_use]
    pub fn load(self, params: &[f32], device: &Device) -> Self {
        let mut loader = Loader { rest: params, device };
        let network = self.map(&mut loader);
        assert!(loader.rest.is_empty(), "the vector is {} values longer than the network", loader.rest.len());
        network
    }
}

impl Network {
    /// As [`Network::load`], but where tensors can be views of the vector, nothing is copied: it cannot be changed then as long
    /// as the network is there.
    ///
    /// # Panics
    /// If the vector has not the length of the network's layout.
    #[must_use]
    pub fn view(self, params: &Arc<AVec<f32>>, device: &ComputeDevice) -> Self {
        match device.operations {
            #[cfg(feature = "flex")]
            Operations::Fused => {
                let mut viewer = Viewer { params, start: 0, device };
                let network = self.map(&mut viewer);
                assert_eq!(viewer.start, params.len(), "the vector has the length of the network's layout");
                network
            }
            Operations::Plain => self.load(params, device),
        }
    }
}

#[cfg(feature = "flex")]
struct Viewer<'a> {
    params: &'a Arc<AVec<f32>>,
    start: usize,
    device: &'a Device,
}

#[cfg(feature = "flex")]
impl ModuleMapper for Viewer<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.shape();
        let range = self.start..self.start + shape.num_elements();
        self.start = range.end;
        let data = TensorData::from_bytes(view::bytes_of(self.params, range), shape, DType::F32);
        Param::from_tensor(Tensor::from_data(data, self.device))
    }
}

struct Loader<'a> {
    rest: &'a [f32],
    device: &'a Device,
}

impl ModuleMapper for Loader<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.shape();
        let (values, rest) = self.rest.split_at(shape.num_elements());
        self.rest = rest;
        Param::from_tensor(Tensor::from_data(TensorData::new(values.to_vec(), shape), self.device))
    }
}

/// Collects names and shapes, following the path of fields.
#[derive(Default)]
struct EntryCollector {
    path: Vec<String>,
    entries: Vec<ParamEntry>,
    n_params: usize,
}

impl ModuleVisitor for EntryCollector {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let entry = ParamEntry { name: self.path.join("."), shape: param.dims().to_vec(), offset: self.n_params };
        self.n_params = entry.range().end;
        self.entries.push(entry);
    }
}

struct ValueCollector {
    params: Vec<f32>,
}

impl ModuleVisitor for ValueCollector {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let data = param.val().into_data();
        self.params.extend_from_slice(data.as_slice().expect("parameters are f32"));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn layouts_have_the_published_names_and_counts() {
        let check = |architecture, n_params, first: &str, last: &str| {
            let layout = ParamLayout::of(architecture);
            assert_eq!(layout.n_params(), n_params);
            assert_eq!(layout.entries()[0].name, first);
            let end = layout.entries().last().expect("a network has parameters");
            assert_eq!((end.name.as_str(), end.range().end), (last, n_params));
        };
        check(Architecture::Conv, 46_529, "encoder.conv1.weight", "decoder.deconv3.bias");
        check(Architecture::Recurrent, 122_548, "encoder.lstm1.weight_ih", "decoder.dense.bias");
        check(Architecture::Denoising, 163_814, "encoder.dense1.weight", "decoder.dense2.bias");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn loading_and_collecting_give_back_every_bit(which in 0_usize..3, pattern in prop::collection::vec(any::<u32>(), 1..50)) {
            let (architecture, device) = (Architecture::ALL[which], reference_device());
            let n_params = ParamLayout::of(architecture).n_params();
            // Any bits, those of infinities and NaN among them.
            let params: Vec<f32> = pattern.iter().copied().map(f32::from_bits).cycle().take(n_params).collect();
            let network = Network::new(architecture, 0, &device).load(&params, &device);
            let mut values = ValueCollector { params: Vec::new() };
            network.visit(&mut values);
            prop_assert!(values.params.iter().map(|value| value.to_bits()).eq(params.iter().map(|value| value.to_bits())));
        }
    }

    #[test]
    fn a_seed_names_its_initial_parameters() {
        for architecture in Architecture::ALL {
            let hash = |seed| params_blake3(&initial_params(architecture, seed));
            assert_eq!(hash(1), hash(1));
            assert_ne!(hash(1), hash(2));
        }
    }

    #[test]
    fn a_fingerprint_names_parameters_to_the_last_bit() {
        assert_eq!(params_fingerprint(&[]), 0x2d06_8005_38d3_94c2); // XXH3_64bits of nothing, by the reference code
        // `python3 -c "import struct, xxhash; print(xxhash.xxh3_64_hexdigest(struct.pack('<3f', 1, -2.5, 0)))"`
        assert_eq!(params_fingerprint(&[1.0, -2.5, 0.0]), 0x2131_b078_4650_2dd8);
        let params = initial_params(Architecture::Denoising, 1);
        for place in [0, 1, params.len() / 2, params.len() - 1] {
            let mut flipped = params.clone();
            flipped[place] = f32::from_bits(flipped[place].to_bits() ^ 1);
            assert_ne!(params_fingerprint(&flipped), params_fingerprint(&params), "bit of value {place}");
        }
    }

    #[test]
    fn a_fingerprint_of_blocks_is_that_of_the_whole() {
        let params = initial_params(Architecture::Conv, 1);
        for n_block in [1, 7, 1024, params.len()] {
            let mut fingerprinter = Fingerprinter::default();
            params.chunks(n_block).for_each(|block| fingerprinter.add(block));
            assert_eq!(fingerprinter.finish(), params_fingerprint(&params), "blocks of {n_block}");
        }
    }

    #[test]
    fn a_fingerprint_names_one_layout() {
        let [conv, recurrent, denoising] =
            Architecture::ALL.map(|architecture| ParamLayout::of(architecture).entries().to_vec());
        let swapped: Vec<_> = denoising.iter().rev().cloned().collect();
        let mut reshaped = denoising.clone();
        reshaped[0].shape.reverse();
        let mut fingerprints = [conv, recurrent, denoising, swapped, reshaped].map(|entries| fingerprint(&entries).0);
        fingerprints.sort_unstable();
        assert!(fingerprints.windows(2).all(|pair| pair[0] != pair[1]), "{fingerprints:?}");
    }
}
