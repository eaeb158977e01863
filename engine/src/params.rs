//! Parameters as one flat vector: the only place where their order is defined. The order is that in which the network's
//! structs declare their fields, the names are the fields' paths, as published.

#[cfg(feature = "flex")]
mod view;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::Hasher;
use std::sync::Arc;

use aligned_vec::AVec;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use twox_hash::XxHash3_64;

use crate::backend::{ComputeDevice, Operations, reference_device};
use crate::random::{Stream, lock_generator, seed_device};

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
    /// Whether it requires a gradient. One that does not is kept as it is.
    pub is_trained: bool,
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

/// A network whose parameters cannot be trained.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Parameters that have no gradient.
    #[error("expected parameters of floating point, found {kind} in {name}; keep it out of the module's parameters")]
    Kind {
        /// The parameter.
        name: String,
        /// What it holds.
        kind: &'static str,
    },
    /// Floating point of another width.
    #[error("expected parameters of f32, found {found} in {name}; make it f32")]
    Width {
        /// The parameter.
        name: String,
        /// What it holds.
        found: String,
    },
    /// Two parameters of one name.
    #[error("expected parameters with names of their own, found two of the name {name}; give their fields other names")]
    Name {
        /// The name.
        name: String,
    },
    /// One parameter in two fields, which would be two after the first step.
    #[error(
        "expected each parameter in one field, found {first} in {second} too; use the one field twice in the forward pass"
    )]
    Shared {
        /// One of its names.
        first: String,
        /// The other one.
        second: String,
    },
    /// State that changes without a gradient.
    #[error(
        "expected layers whose output is a function of parameters and input, found batch normalisation in {name}, which keeps \
         statistics of what each worker has seen; use layer or group normalisation"
    )]
    BatchNorm {
        /// The layer.
        name: String,
    },
    /// Nothing to train.
    #[error("expected at least one parameter, found none")]
    Empty,
    /// Another structure than before.
    #[error(
        "expected {expected} parameters whenever the network is made, found {found}; make it from the settings alone"
    )]
    Changed {
        /// Values of the layout.
        expected: usize,
        /// Values found.
        found: usize,
    },
}

impl ParamLayout {
    /// The layout of a network's parameters.
    ///
    /// # Errors
    /// If they cannot be trained.
    pub fn of(network: &impl Module) -> Result<Self, LayoutError> {
        let mut collector = EntryCollector::default();
        network.visit(&mut collector);
        let EntryCollector { entries, error, .. } = collector;
        if let Some(error) = error {
            return Err(error);
        }
        if entries.is_empty() {
            return Err(LayoutError::Empty);
        }
        Ok(Self::new(entries))
    }

    /// The layout of these tensors, in this order: name, shape, and whether it is trained.
    pub fn of_tensors(tensors: impl IntoIterator<Item = (String, Vec<usize>)>) -> Self {
        let mut offset = 0;
        let entry = |(name, shape)| {
            let entry = ParamEntry { name, shape, offset, is_trained: true };
            offset = entry.range().end;
            entry
        };
        Self::new(tensors.into_iter().map(entry).collect())
    }

    /// One tensor, that is not trained.
    #[cfg(test)]
    pub(crate) fn with_frozen_for_tests() -> Self {
        Self::new(vec![ParamEntry { name: "frozen".to_owned(), shape: vec![2], offset: 0, is_trained: false }])
    }

    fn new(entries: Vec<ParamEntry>) -> Self {
        let n_params = entries.last().map_or(0, |entry| entry.range().end);
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

    /// The first tensor that is not trained, if there is one.
    pub fn frozen(&self) -> Option<&ParamEntry> {
        self.entries.iter().find(|entry| !entry.is_trained)
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
/// [`params_blake3`] hashes. Takes some tens of microseconds. Not collision resistant.
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

/// The initial values of a network that `build` makes on the reference device with Burn's generator seeded, in layout order.
///
/// # Errors
/// If they are not f32, or not those of the layout.
pub fn with_initial_values<M: Module>(
    seed: u64,
    layout: &ParamLayout,
    build: impl FnOnce(&ComputeDevice) -> M,
) -> Result<Vec<f32>, LayoutError> {
    let _alone = lock_generator();
    let device = reference_device();
    seed_device(&device, seed, Stream::Network);
    let mut values = ValueCollector { params: Vec::with_capacity(layout.n_params()), error: None };
    // Parameters may draw their values only now, one after the other.
    build(&device).visit(&mut values);
    match values.error {
        Some(error) => Err(error),
        None if values.params.len() != layout.n_params() => {
            Err(LayoutError::Changed { expected: layout.n_params(), found: values.params.len() })
        }
        None => Ok(values.params),
    }
}

/// The network with its parameters taken from the flat vector in layout order, each copied once, onto the device.
///
/// # Panics
/// If the vector has not the length of the network's layout.
#[must_use]
pub fn load<M: Module>(network: M, params: &[f32], device: &Device) -> M {
    let mut loader = Loader { rest: params, device };
    let network = network.map(&mut loader);
    assert!(loader.rest.is_empty(), "the vector is {} values longer than the network", loader.rest.len());
    network
}

/// As [`load`], but where tensors can be views of the vector, nothing is copied: it cannot be changed then as long
/// as the network is there.
///
/// # Panics
/// If the vector has not the length of the network's layout.
#[must_use]
pub fn view<M: Module>(network: M, params: &Arc<AVec<f32>>, device: &ComputeDevice) -> M {
    match device.operations {
        #[cfg(feature = "flex")]
        Operations::Fused => {
            let mut viewer = Viewer { params, start: 0, device };
            let network = network.map(&mut viewer);
            assert_eq!(viewer.start, params.len(), "the vector has the length of the network's layout");
            network
        }
        Operations::Plain => load(network, params, device),
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
        let shape = param.lazy_shape();
        let range = self.start..self.start + shape.num_elements();
        self.start = range.end;
        let data = TensorData::from_bytes(view::bytes_of(self.params, range), shape, DType::F32);
        replaced(&param, Tensor::from_data(data, self.device))
    }
}

struct Loader<'a> {
    rest: &'a [f32],
    device: &'a Device,
}

impl ModuleMapper for Loader<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape();
        let (values, rest) = self.rest.split_at(shape.num_elements());
        self.rest = rest;
        replaced(&param, Tensor::from_data(TensorData::new(values.to_vec(), shape), self.device))
    }
}

/// A parameter with other values, that is trained if it was before.
fn replaced<const D: usize>(param: &Param<Tensor<D>>, values: Tensor<D>) -> Param<Tensor<D>> {
    let replaced = Param::from_tensor(values);
    if param.val().is_require_grad() { replaced } else { replaced.set_require_grad(false) }
}

/// Collects names and shapes, following the path of fields.
#[derive(Default)]
struct EntryCollector {
    /// Of each module that was entered: its field's name, or none for the variant of an enum.
    path: Vec<Option<String>>,
    entries: Vec<ParamEntry>,
    names: BTreeMap<ParamId, String>,
    n_params: usize,
    /// The first thing that cannot be trained.
    error: Option<LayoutError>,
}

impl EntryCollector {
    fn name(&self) -> String {
        self.path.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(".")
    }

    fn fail(&mut self, error: impl FnOnce(String) -> LayoutError) {
        let name = self.name();
        self.error.get_or_insert_with(|| error(name));
    }
}

impl ModuleVisitor for EntryCollector {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        if container_type == "Struct:BatchNorm" {
            self.fail(|name| LayoutError::BatchNorm { name });
        }
        let is_variant = container_type.starts_with("Enum:");
        self.path.push((!is_variant).then(|| name.to_owned()));
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let name = self.name();
        if let Some(first) = self.names.insert(param.id, name.clone()) {
            let second = name.clone();
            self.error.get_or_insert(LayoutError::Shared { first, second });
        }
        if self.entries.iter().any(|entry| entry.name == name) {
            self.fail(|name| LayoutError::Name { name });
        }
        let shape = param.lazy_shape().to_vec();
        let entry = ParamEntry { name, shape, offset: self.n_params, is_trained: param.val().is_require_grad() };
        self.n_params = entry.range().end;
        self.entries.push(entry);
    }

    fn visit_int<const D: usize>(&mut self, _param: &Param<Tensor<D, Int>>) {
        self.fail(|name| LayoutError::Kind { name, kind: "integers" });
    }

    fn visit_bool<const D: usize>(&mut self, _param: &Param<Tensor<D, Bool>>) {
        self.fail(|name| LayoutError::Kind { name, kind: "booleans" });
    }
}

struct ValueCollector {
    params: Vec<f32>,
    error: Option<LayoutError>,
}

impl ModuleVisitor for ValueCollector {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let data = param.val().into_data();
        if let Ok(values) = data.as_slice() {
            self.params.extend_from_slice(values);
        } else {
            let (name, found) = (format!("parameter {}", param.id), format!("{:?}", data.dtype()));
            self.error.get_or_insert(LayoutError::Width { name, found });
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::nn::{BatchNorm, BatchNormConfig, Dropout, DropoutConfig, Linear, LinearConfig};
    use proptest::prelude::*;

    use super::*;

    #[derive(Module, Debug)]
    struct Net {
        first: Linear,
        more: Vec<Linear>,
        dropout: Dropout,
        scale: Param<Tensor<3>>,
    }

    fn net(device: &Device) -> Net {
        Net {
            first: LinearConfig::new(3, 2).init(device),
            more: (0..2).map(|_| LinearConfig::new(2, 2).with_bias(false).init(device)).collect(),
            dropout: DropoutConfig::new(0.5).init(),
            scale: Param::from_tensor(Tensor::ones([1, 2, 1], device)),
        }
    }

    /// Values may be drawn when they are first asked for: tests that make networks draw one at a time.
    fn layout() -> ParamLayout {
        let _alone = lock_generator();
        ParamLayout::of(&net(&reference_device().autodiff())).expect("a network that can be trained")
    }

    #[test]
    fn layout_lists_every_parameter_by_path() {
        let layout = layout();
        let entries: Vec<_> =
            layout.entries().iter().map(|entry| (entry.name.as_str(), &entry.shape[..], entry.offset)).collect();
        let expected: [(&str, &[usize], usize); 5] = [
            ("first.weight", &[3, 2], 0),
            ("first.bias", &[2], 6),
            ("more.0.weight", &[2, 2], 8),
            ("more.1.weight", &[2, 2], 12),
            ("scale", &[1, 2, 1], 16),
        ];
        assert_eq!((entries, layout.n_params()), (expected.to_vec(), 18));
        assert!(layout.frozen().is_none());
    }

    #[test]
    fn frozen_parameters_stay_frozen_after_load() {
        let _alone = lock_generator();
        let device = reference_device().autodiff();
        let mut network = net(&device);
        network.first = network.first.no_grad();
        let layout = ParamLayout::of(&network).expect("a network that can be trained");
        assert_eq!(layout.frozen().map(|entry| entry.name.as_str()), Some("first.weight"));
        let params = Arc::new(AVec::from_slice(64, &[0.5; 18]));
        for network in [load(network.clone(), &params, &device), view(network, &params, &device)] {
            assert_eq!(ParamLayout::of(&network), Ok(layout.clone()));
        }
    }

    #[derive(Module, Debug)]
    struct Odd {
        linear: Linear,
        counts: Option<Param<Tensor<1, Int>>>,
        mask: Option<Param<Tensor<1, Bool>>>,
        norm: Option<BatchNorm>,
        twin: Option<Linear>,
    }

    #[test]
    fn untrainable_parameters_are_named_in_error() {
        let _alone = lock_generator();
        let device = reference_device().autodiff();
        let check = |change: fn(&mut Odd, &Device), part: &str| {
            let linear = LinearConfig::new(1, 1).init(&device);
            let mut odd = Odd { linear, counts: None, mask: None, norm: None, twin: None };
            change(&mut odd, &device);
            let error = ParamLayout::of(&odd).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        };
        let integers = "found integers in counts; keep it out of";
        check(
            |odd, device| {
                odd.counts = Some(Param::initialized(ParamId::new(), Tensor::<1, Int>::from_ints([1], device)));
            },
            integers,
        );
        let booleans = "found booleans in mask";
        check(
            |odd, device| {
                odd.mask = Some(Param::initialized(
                    ParamId::new(),
                    Tensor::<1, Bool>::from_bool(TensorData::from([true]), device),
                ));
            },
            booleans,
        );
        check(|odd, device| odd.norm = Some(BatchNormConfig::new(1).init(device)), "found batch normalisation in norm");
        check(|odd, _| odd.twin = Some(odd.linear.clone()), "found linear.weight in twin.weight too");
    }

    proptest! {
        #[test]
        fn load_and_collect_round_trip_is_bit_exact(pattern in prop::collection::vec(any::<u32>(), 1..50)) {
            let _alone = lock_generator();
            let device = reference_device();
            // Any bits, those of infinities and NaN among them.
            let params: Vec<f32> = pattern.iter().copied().map(f32::from_bits).cycle().take(18).collect();
            let mut values = ValueCollector { params: Vec::new(), error: None };
            load(net(&device), &params, &device).visit(&mut values);
            prop_assert!(values.params.iter().map(|value| value.to_bits()).eq(params.iter().map(|value| value.to_bits())));
        }
    }

    #[test]
    fn seed_determines_initial_values() {
        let layout = layout();
        let hash = |seed| params_blake3(&with_initial_values(seed, &layout, |device| net(device)).expect("f32"));
        assert_eq!(hash(1), hash(1));
        assert_ne!(hash(1), hash(2));
    }

    #[test]
    fn network_with_other_parameter_count_is_refused() {
        let small = ParamLayout::of_tensors([("w".to_owned(), vec![2])]);
        let found = with_initial_values(1, &small, |device| net(device));
        assert_eq!(found, Err(LayoutError::Changed { expected: 2, found: 18 }));
    }

    /// Numbers that are not all alike.
    fn numbers(n: u16) -> Vec<f32> {
        (0..n).map(|place| (f32::from(place) * 0.7).sin()).collect()
    }

    #[test]
    fn params_fingerprint_changes_with_any_bit() {
        assert_eq!(params_fingerprint(&[]), 0x2d06_8005_38d3_94c2); // XXH3_64bits of nothing, by the reference code
        // `python3 -c "import struct, xxhash; print(xxhash.xxh3_64_hexdigest(struct.pack('<3f', 1, -2.5, 0)))"`
        assert_eq!(params_fingerprint(&[1.0, -2.5, 0.0]), 0x2131_b078_4650_2dd8);
        let params = numbers(10_000);
        for place in [0, 1, params.len() / 2, params.len() - 1] {
            let mut flipped = params.clone();
            flipped[place] = f32::from_bits(flipped[place].to_bits() ^ 1);
            assert_ne!(params_fingerprint(&flipped), params_fingerprint(&params), "bit of value {place}");
        }
    }

    #[test]
    fn blockwise_fingerprint_equals_whole() {
        let params = numbers(5_000);
        for n_block in [1, 7, 1024, params.len()] {
            let mut fingerprinter = Fingerprinter::default();
            params.chunks(n_block).for_each(|block| fingerprinter.add(block));
            assert_eq!(fingerprinter.finish(), params_fingerprint(&params), "blocks of {n_block}");
        }
    }

    #[test]
    fn layout_fingerprint_differs_for_order_and_shape() {
        let entries = layout().entries().to_vec();
        let swapped: Vec<_> = entries.iter().rev().cloned().collect();
        let mut reshaped = entries.clone();
        reshaped[0].shape.reverse();
        let mut fingerprints = [entries, swapped, reshaped].map(|entries| fingerprint(&entries).0);
        fingerprints.sort_unstable();
        assert!(fingerprints.windows(2).all(|pair| pair[0] != pair[1]), "{fingerprints:?}");
    }
}
