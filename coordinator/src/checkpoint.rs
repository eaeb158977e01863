//! Checkpoints: one `.safetensors` file each, complete when it is there, and enough alone to go on from.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine::early_stopping::BestEpoch;
use engine::files::read_bounded;
use engine::params::{ParamLayout, little_endian, params_blake3, params_fingerprint};
use engine::recipe::Recipe;
use engine::sums::{COUNTS_MAX, Sums};
use proto::limits::{OPTIMIZER_SLOTS_MAX, PARAMS_MAX};
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors};

use crate::training::{AuditSecret, State};

const FORMAT: &str = "telar-checkpoint-3";
/// Those before it: the first one named no numerics, and both knew no tasks but the autoencoders.
const OLDER_FORMATS: [&str; 2] = ["telar-checkpoint-1", "telar-checkpoint-2"];
/// Parameters, what the optimizer keeps, and residual, each at most of the largest layout, and room for the header.
pub(crate) const FILE_BYTES_MAX: u64 = (2 + OPTIMIZER_SLOTS_MAX as u64) * 4 * PARAMS_MAX as u64 + (1 << 20);
const NUMERICS_KEY: &str = "numerics";
/// The best epoch, counted from 0, and the bits of its validation loss.
const BEST_KEY: &str = "best_epoch";

/// A state of a run, with what it is a state of.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// What is the same in all checkpoints of the run.
    pub facts: RunFacts,
    /// What it has come to.
    pub state: State,
}

/// What is the same in all checkpoints of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunFacts {
    /// The run.
    pub run_id: String,
    /// What it trains.
    pub recipe: Recipe,
    /// Where each of its parameters lies.
    pub layout: Arc<ParamLayout>,
    /// blake3 of what it trains on.
    pub data_fingerprint: String,
    /// The [revisions](engine::numerics::REVISION) of what has computed it, the newest last.
    pub numerics: Vec<u32>,
    /// What audited shards are drawn by; none in files of versions that drew them by the seed.
    pub audit_secret: Option<AuditSecret>,
}

/// What a file's vectors are compared by when it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Identifies the content: collision resistant.
    Blake3,
    /// xxh3 of 64 bits, ten times as fast: enough to tell a file that was torn or has decayed, such as the journal's.
    Xxh3,
}

/// The content of a checkpoint's file: a header, and the vectors as they lie in memory.
#[derive(Debug)]
pub struct FileParts<'a> {
    header: Vec<u8>,
    groups: Vec<Cow<'a, [u8]>>,
}

impl FileParts<'_> {
    /// One after the other.
    pub fn slices(&self) -> Vec<&[u8]> {
        std::iter::once(&self.header[..]).chain(self.groups.iter().map(|group| &**group)).collect()
    }
}

/// A checkpoint that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is not a whole checkpoint.
    #[error("expected a whole checkpoint, found {reason} in {}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It says what this program does not know, as another version's does.
    #[error("expected a checkpoint that this program can read, found {reason} in {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is not known.
        reason: String,
    },
}

/// States of a run that were looked for.
#[derive(Debug, Default)]
pub struct FoundStates {
    /// The newest that can be used, and its file.
    pub newest: Option<(PathBuf, Checkpoint)>,
    /// What was found that cannot be used.
    pub skipped: Vec<CheckpointError>,
}

/// Why bytes are no checkpoint that can be used.
enum Fault {
    Damaged(String),
    Unreadable(String),
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Damaged(reason)
    }
}

impl From<&str> for Fault {
    fn from(reason: &str) -> Self {
        Self::Damaged(reason.to_owned())
    }
}

impl Checksum {
    /// The key of the checksum of all that a file says.
    fn key(self) -> &'static str {
        match self {
            Self::Blake3 => "blake3",
            Self::Xxh3 => "xxh3",
        }
    }

    fn of(self, values: &[f32]) -> String {
        match self {
            Self::Blake3 => params_blake3(values),
            Self::Xxh3 => format!("{:016x}", params_fingerprint(values)),
        }
    }
}

impl RunFacts {
    /// The content of a file with a state of the run.
    ///
    /// # Panics
    /// If a vector is neither empty nor as long as the network's layout.
    pub fn to_parts<'a>(&self, state: &'a State, checksum: Checksum) -> FileParts<'a> {
        let layout = &self.layout;
        let groups = self.groups(state);
        let checksums = checksums(&groups, checksum);
        let mut metadata = self.metadata(state);
        if checksum == Checksum::Blake3 {
            metadata.insert("params_blake3".to_owned(), checksums[0].1.clone());
        }
        metadata.insert(checksum.key().to_owned(), hash(&metadata, &checksums));
        let mut tensors = Vec::new();
        let mut group_start = 0;
        for (group, values) in groups.iter().filter(|(_, values)| !values.is_empty()) {
            assert_eq!(values.len(), layout.n_params(), "the {group} of a state has the length of its layout");
            for entry in layout.entries() {
                let range = entry.range();
                let data_offsets = (group_start + 4 * range.start, group_start + 4 * range.end);
                let info = TensorInfo { dtype: Dtype::F32, shape: entry.shape.clone(), data_offsets };
                tensors.push((format!("{group}.{}", entry.name), info));
            }
            group_start += 4 * values.len();
        }
        let metadata: HashMap<String, String> = metadata.into_iter().collect();
        let metadata = Metadata::new(Some(metadata), tensors).expect("tensors lie one after the other");
        let mut text = serde_json::to_vec(&metadata).expect("a header has only text keys");
        text.resize(text.len().next_multiple_of(8), b' '); // so that values are aligned in a file that is mapped
        let header = [&(text.len() as u64).to_le_bytes()[..], &text].concat();
        FileParts { header, groups: groups.into_iter().map(|(_, values)| little_endian(values)).collect() }
    }

    /// The vectors, by the first part of their tensors' names.
    fn groups<'a>(&self, state: &'a State) -> Vec<(&'static str, &'a [f32])> {
        let State { params, slots, residual, .. } = state;
        let names = self.recipe.optimizer.slot_names().iter().copied();
        let slots = names.zip(slots.iter().map(Vec::as_slice));
        std::iter::once(("parameters", &params[..])).chain(slots).chain([("residual", &residual[..])]).collect()
    }

    fn metadata(&self, state: &State) -> BTreeMap<String, String> {
        let State { step, epoch_sums, epoch_time, best, .. } = state;
        let recipe = serde_json::to_string(&self.recipe).expect("a recipe is numbers and words");
        let numerics = self.numerics.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let entries = [
            ("format", FORMAT.to_owned()),
            ("run_id", self.run_id.clone()),
            ("task", self.recipe.task.clone()),
            ("recipe", recipe),
            ("data_fingerprint", self.data_fingerprint.clone()),
            ("layout_fingerprint", self.layout.fingerprint().to_string()),
            (NUMERICS_KEY, numerics),
            ("step", step.to_string()),
            // As bits, since decimal digits may lose some.
            ("epoch_loss_sum", format!("{:016x}", epoch_sums.loss_sum.to_bits())),
            ("epoch_counts", epoch_sums.counts.map(|count| count.to_string()).join(",")),
            ("epoch_n_samples", epoch_sums.n_samples.to_string()),
            ("epoch_nanoseconds", epoch_time.as_nanos().to_string()),
        ];
        let secret = self.audit_secret.map(|secret| ("audit_secret", secret.to_hex()));
        let best = best.map(|best| (BEST_KEY, format!("{},{:016x}", best.epoch, best.val_loss.to_bits())));
        entries.into_iter().chain(secret).chain(best).map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

impl Checkpoint {
    /// Of two states of a run, the one with the greater age is the later one.
    pub fn age(&self) -> (u64, bool) {
        (self.state.step, self.state.epoch_sums.n_samples == 0)
    }

    /// The content of a file.
    ///
    /// # Panics
    /// See [`RunFacts::to_parts`].
    pub fn to_parts(&self) -> FileParts<'_> {
        self.facts.to_parts(&self.state, Checksum::Blake3)
    }

    /// Reads a file and checks every bit of it.
    ///
    /// # Errors
    /// If it is not there, not whole, does not say what was written, or is of another version that this one cannot read.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let bytes = read_bounded(path, FILE_BYTES_MAX)
            .map_err(|source| CheckpointError::Read { path: path.to_owned(), source })?;
        Self::from_bytes(&bytes).map_err(|fault| {
            let path = path.to_owned();
            match fault {
                Fault::Damaged(reason) => CheckpointError::Damaged { path, reason },
                Fault::Unreadable(reason) => CheckpointError::Unreadable { path, reason },
            }
        })
    }

    /// As [`Checkpoint::read`]; for one that is whole, `unreadable` gives the reason why it cannot be used, if there is one.
    ///
    /// # Errors
    /// As [`Checkpoint::read`], and if there is such a reason.
    pub fn read_usable(path: &Path, unreadable: impl Fn(&Self) -> Option<String>) -> Result<Self, CheckpointError> {
        let checkpoint = Self::read(path)?;
        match unreadable(&checkpoint) {
            Some(reason) => Err(CheckpointError::Unreadable { path: path.to_owned(), reason }),
            None => Ok(checkpoint),
        }
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Fault> {
        let words = |error: safetensors::SafeTensorError| error.to_string();
        let tensors = SafeTensors::deserialize(bytes).map_err(words)?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(words)?;
        let mut metadata: BTreeMap<String, String> =
            header.metadata().clone().unwrap_or_default().into_iter().collect();
        let (checksum, expected_hash) = [Checksum::Blake3, Checksum::Xxh3]
            .into_iter()
            .find_map(|checksum| Some((checksum, metadata.remove(checksum.key())?)))
            .ok_or("no checksum")?;
        let text = |key: &str| metadata.get(key).cloned().ok_or_else(|| format!("no `{key}`"));
        match text("format")? {
            format if format == FORMAT || OLDER_FORMATS.contains(&format.as_str()) => {}
            format => return Err(Fault::Unreadable(format!("the format `{format}`, which is not {FORMAT}"))),
        }
        let number = |key: &str| {
            let text = text(key)?;
            text.parse::<u64>().map_err(|_| format!("`{text}` as {key}"))
        };
        let layout = layout_of(&tensors, &header)?;
        let recipe: Recipe = serde_json::from_str(&text("recipe")?).map_err(|error| {
            let reason = format!("a recipe of which it cannot read: {error}");
            // A field or a word that is not known here, in a file that is as it was written.
            let is_as_written = || {
                let groups = groups_by_name(&tensors, &header, &layout)?;
                let groups: Vec<_> = groups.iter().map(|(name, values)| (name.as_str(), &values[..])).collect();
                Ok::<_, String>(hash(&metadata, &checksums(&groups, checksum)) == expected_hash)
            };
            if error.is_data() && is_as_written() == Ok(true) {
                Fault::Unreadable(reason)
            } else {
                Fault::Damaged(reason)
            }
        })?;
        // Files that are older than the number were all computed by the first one.
        let numerics = metadata.get(NUMERICS_KEY).map_or("1", String::as_str);
        let numerics = numerics.split(',').map(str::parse).collect::<Result<_, _>>();
        let numerics = numerics.map_err(|_| format!("`{}` as {NUMERICS_KEY}", metadata[NUMERICS_KEY]))?;
        let found = text("layout_fingerprint")?;
        if found != layout.fingerprint().to_string() {
            return Err(format!("parameters of the layout {} where {found} was written", layout.fingerprint()).into());
        }
        let loss_bits = text("epoch_loss_sum")?;
        let loss_bits = u64::from_str_radix(&loss_bits, 16).map_err(|_| format!("`{loss_bits}` as epoch_loss_sum"))?;
        let state = State {
            step: number("step")?,
            params: read_group(&tensors, &layout, "parameters")?,
            slots: recipe
                .optimizer
                .slot_names()
                .iter()
                .map(|name| read_group(&tensors, &layout, name))
                .collect::<Result<_, _>>()?,
            residual: read_group(&tensors, &layout, "residual")?,
            epoch_sums: Sums {
                loss_sum: f64::from_bits(loss_bits),
                counts: counts(&metadata)?,
                n_samples: number("epoch_n_samples")?,
            },
            epoch_time: Duration::from_nanos(number("epoch_nanoseconds")?),
            best: metadata.get(BEST_KEY).map(|text| best_of(text)).transpose()?,
        };
        let audit_secret = match metadata.get("audit_secret") {
            Some(text) => Some(AuditSecret::from_hex(text).ok_or("an audit_secret that is not 64 hexadecimal digits")?),
            None => None,
        };
        let (run_id, data_fingerprint) = (text("run_id")?, text("data_fingerprint")?);
        let layout = Arc::new(layout);
        let facts = RunFacts { run_id, recipe, layout, data_fingerprint, numerics, audit_secret };
        let checkpoint = Self { facts, state };
        checkpoint.check()?;
        let found = hash(&metadata, &checksums(&checkpoint.groups(), checksum));
        if expected_hash != found {
            return Err(format!("the checksum {found} where {expected_hash} was written: some bits are others").into());
        }
        Ok(checkpoint)
    }

    fn groups(&self) -> Vec<(&'static str, &[f32])> {
        self.facts.groups(&self.state)
    }

    /// Whether a run can be resumed from the content, whichever program wrote it.
    fn check(&self) -> Result<(), String> {
        let State { step, residual, epoch_sums, best, .. } = &self.state;
        let n_params = self.facts.layout.n_params();
        let slots = self.facts.recipe.optimizer.slots(n_params);
        let n_residual = if residual.is_empty() { 0 } else { n_params };
        let expected = std::iter::once(n_params).chain(slots.iter().map(Vec::len)).chain([n_residual]);
        for ((group, values), expected) in self.groups().into_iter().zip(expected) {
            if values.len() != expected {
                return Err(format!("{} values of {group} where {expected} belong", values.len()));
            }
        }
        if u32::try_from(*step).is_err() || (*step == 0 && epoch_sums.n_samples > 0) {
            return Err(format!("step {step} after {} samples of its epoch", epoch_sums.n_samples));
        }
        if let Some(BestEpoch { epoch, .. }) = best.filter(|best| u64::from(best.epoch) >= *step) {
            return Err(format!("a best epoch {epoch} after {step} steps"));
        }
        Ok(())
    }
}

/// Names all that a file says, but for this name.
fn hash(metadata: &BTreeMap<String, String>, groups: &[(&str, String)]) -> String {
    let mut hasher = blake3::Hasher::new();
    for (key, value) in metadata {
        hasher.update(format!("{key}={value}\n").as_bytes());
    }
    for (group, values) in groups {
        hasher.update(format!("{group}={values}\n").as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// The checksum of each vector.
fn checksums<'a>(groups: &[(&'a str, &[f32])], checksum: Checksum) -> Vec<(&'a str, String)> {
    groups.iter().map(|&(group, values)| (group, checksum.of(values))).collect()
}

/// The layout of the parameters in a file: their names and shapes, in the order in which they lie.
fn layout_of(tensors: &SafeTensors, header: &Metadata) -> Result<ParamLayout, String> {
    const PREFIX: &str = "parameters.";
    let names = header.offset_keys();
    let params = names.iter().filter_map(|name| name.strip_prefix(PREFIX));
    let shape = |name: &str| tensors.tensor(&format!("{PREFIX}{name}")).map(|tensor| tensor.shape().to_vec());
    let entries: Result<Vec<_>, _> = params.map(|name| Ok((name.to_owned(), shape(name)?))).collect();
    let entries = entries.map_err(|error: safetensors::SafeTensorError| error.to_string())?;
    if entries.is_empty() {
        return Err("no parameters".to_owned());
    }
    Ok(ParamLayout::of_tensors(entries))
}

/// The counts since the last validation. Older files have the one that the autoencoders have.
fn counts(metadata: &BTreeMap<String, String>) -> Result<[u64; COUNTS_MAX], String> {
    let text = metadata.get("epoch_counts").or_else(|| metadata.get("epoch_correct_sum")).ok_or("no `epoch_counts`")?;
    let found: Option<Vec<u64>> = text.split(',').map(|count| count.parse().ok()).collect();
    let found = found.filter(|found| found.len() <= COUNTS_MAX).ok_or_else(|| format!("`{text}` as epoch_counts"))?;
    let mut counts = [0; COUNTS_MAX];
    counts[..found.len()].copy_from_slice(&found);
    Ok(counts)
}

/// The best epoch of a file's metadata.
fn best_of(text: &str) -> Result<BestEpoch, String> {
    let found = text.split_once(',').and_then(|(epoch, bits)| {
        let val_loss = f64::from_bits(u64::from_str_radix(bits, 16).ok()?);
        (!val_loss.is_nan()).then_some(BestEpoch { epoch: epoch.parse().ok()?, val_loss })
    });
    found.ok_or_else(|| format!("`{text}` as {BEST_KEY}"))
}

/// The vectors in a file of any optimizer, by the first part of their tensors' names, in the order of [`RunFacts::groups`].
fn groups_by_name(
    tensors: &SafeTensors,
    header: &Metadata,
    layout: &ParamLayout,
) -> Result<Vec<(String, Vec<f32>)>, String> {
    let keys = header.offset_keys().into_iter().chain(["residual.".to_owned()]);
    let mut names: Vec<String> = Vec::new();
    for group in keys.filter_map(|key| Some(key.split_once('.')?.0.to_owned())) {
        if !names.contains(&group) {
            names.push(group);
        }
    }
    names.into_iter().map(|name| read_group(tensors, layout, &name).map(|values| (name, values))).collect()
}

/// The vector of a group; empty if there is none of its tensors.
fn read_group(tensors: &SafeTensors, layout: &ParamLayout, group: &str) -> Result<Vec<f32>, String> {
    let prefix = format!("{group}.");
    if !tensors.names().iter().any(|name| name.starts_with(&prefix)) {
        return Ok(Vec::new());
    }
    let mut values = Vec::with_capacity(layout.n_params());
    for entry in layout.entries() {
        let name = format!("{prefix}{}", entry.name);
        let tensor = tensors.tensor(&name).map_err(|_| format!("no `{name}`"))?;
        if tensor.dtype() != Dtype::F32 || tensor.shape() != entry.shape {
            return Err(format!("{name} as {:?} {:?}", tensor.dtype(), tensor.shape()));
        }
        values.extend(tensor.data().as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)));
    }
    Ok(values)
}

#[cfg(test)]
pub(crate) mod tests {
    use engine::files::write_parts_whole;
    use engine::optimizer::{Adam, Optimizer, Rule};
    use engine::sums::counts;
    use model::arch::Architecture;
    use model::task::{book_task, initial_params};

    use super::*;
    use crate::training::Rounding;

    pub(crate) fn checkpoint(step: u64, momentum: f32) -> Checkpoint {
        let mut recipe = crate::training::tests::recipe("1 epochs of 10 images in batches of 4, 2 shards");
        recipe.optimizer = Optimizer::sgd(0.5, momentum, false);
        let params = initial_params(Architecture::Denoising, step);
        let mut state = State::new(&recipe, Rounding::Bf16, params);
        (state.step, state.epoch_time) = (step, Duration::from_nanos(12_345_678_901));
        state.best = (step > 0).then_some(BestEpoch { epoch: 0, val_loss: 0.1 + 0.2 });
        state.epoch_sums = Sums { loss_sum: 0.1 + 0.2, counts: counts(&[7, 0, 1]), n_samples: 3 };
        let mut value = 0.1_f32;
        for place in state.slots.iter_mut().flatten().chain(&mut state.residual) {
            value = (value * 1.7).fract() - 0.3;
            *place = value;
        }
        let (numerics, audit_secret) = (vec![engine::numerics::REVISION], Some(AuditSecret::new([0xCD; 32])));
        let (run_id, data_fingerprint) = ("0123".to_owned(), "ab".repeat(32));
        let layout = Arc::clone(&book_task(Architecture::Denoising).spec().layout);
        let facts = RunFacts { run_id, recipe, layout, data_fingerprint, numerics, audit_secret };
        Checkpoint { facts, state }
    }

    pub(crate) fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    fn write(folder: &tempfile::TempDir, written: &Checkpoint) -> PathBuf {
        let path = folder.path().join("written.safetensors");
        write_parts_whole(&path, &written.to_parts().slices()).expect("the folder can be written");
        path
    }

    #[test]
    fn checkpoint_round_trip_is_bit_exact() {
        for momentum in [0.0, 0.9] {
            let folder = folder();
            let written = checkpoint(5, momentum);
            let path = write(&folder, &written);
            assert_eq!(Checkpoint::read(&path).expect("a whole checkpoint"), written);
        }
    }

    #[test]
    fn adamw_moments_survive_round_trip() {
        let folder = folder();
        let mut written = checkpoint(5, 0.9);
        let rule = Rule::AdamW(Adam::default());
        written.facts.recipe.optimizer = Optimizer { learning_rate: 0.1, weight_decay: 0.3, rule };
        written.state.slots = [0.25, 0.75].map(|value| vec![value; written.state.params.len()]).into();
        let path = write(&folder, &written);
        assert_eq!(Checkpoint::read(&path).expect("a whole checkpoint"), written);
    }

    /// As versions wrote it that had nothing but SGD.
    #[test]
    fn checkpoint_with_legacy_sgd_recipe_is_read() {
        let folder = folder();
        let (path, written) = (folder.path().join("old"), checkpoint(5, 0.9));
        write_with_metadata(&path, &written, |metadata| {
            let mut recipe: serde_json::Value = serde_json::from_str(&metadata["recipe"]).expect("JSON");
            let fields = recipe.as_object_mut().expect("fields");
            for name in ["optimizer", "lr_schedule", "clip_norm", "patience", "init_partial"] {
                fields.remove(name).expect(name);
            }
            let sgd = serde_json::json!({"learning_rate": 0.5, "momentum": f64::from(0.9_f32), "nesterov": false});
            fields.insert("sgd".to_owned(), sgd);
            metadata.insert("recipe".to_owned(), recipe.to_string());
        });
        assert_eq!(Checkpoint::read(&path).expect("a whole checkpoint"), written);
    }

    #[test]
    fn checkpoint_without_audit_secret_is_read() {
        let folder = folder();
        let mut written = checkpoint(5, 0.9);
        written.facts.audit_secret = None;
        let path = write(&folder, &written);
        assert_eq!(Checkpoint::read(&path).expect("a whole checkpoint"), written);
    }

    #[test]
    fn changed_metadata_fails_checksum() {
        let folder = folder();
        let path = write(&folder, &checkpoint(5, 0.0));
        let bytes = std::fs::read(&path).expect("a file");
        let at = bytes.windows(8).position(|window| window == b"\"step\":\"").expect("a step") + 8;
        let mut changed = bytes.clone();
        changed[at] = b'6';
        std::fs::write(&path, &changed).expect("it can be written");
        let error = Checkpoint::read(&path).expect_err("another step").to_string();
        assert!(error.contains("some bits are others"), "{error}");
    }

    /// Writes a checkpoint with another line of metadata, as another version would.
    fn write_with_metadata(path: &Path, written: &Checkpoint, change: impl FnOnce(&mut BTreeMap<String, String>)) {
        let parts = written.to_parts();
        let bytes = parts.slices().concat();
        let (n_header, header) = SafeTensors::read_metadata(&bytes).expect("a header");
        let mut metadata: BTreeMap<String, String> =
            header.metadata().clone().expect("metadata").into_iter().filter(|(key, _)| key != "blake3").collect();
        change(&mut metadata);
        let checksums = checksums(&written.groups(), Checksum::Blake3);
        metadata.insert("blake3".to_owned(), hash(&metadata, &checksums));
        let mut text: serde_json::Value = serde_json::from_slice(&bytes[8..8 + n_header]).expect("a header is JSON");
        text["__metadata__"] = serde_json::json!(metadata);
        let text = serde_json::to_vec(&text).expect("JSON");
        std::fs::write(path, [&(text.len() as u64).to_le_bytes(), &text[..], &bytes[8 + n_header..]].concat())
            .expect("it can be written");
    }

    #[test]
    fn checkpoint_without_numerics_is_revision_one() {
        let folder = folder();
        let path = folder.path().join("old");
        write_with_metadata(&path, &checkpoint(5, 0.9), |metadata| {
            metadata.remove(NUMERICS_KEY);
            metadata.insert("format".to_owned(), OLDER_FORMATS[0].to_owned());
            // With the one count that there was.
            metadata.remove("epoch_counts");
            metadata.insert("epoch_correct_sum".to_owned(), "7".to_owned());
        });
        let mut expected = checkpoint(5, 0.9);
        expected.facts.numerics = vec![1];
        expected.state.epoch_sums.counts = counts(&[7]);
        assert_eq!(Checkpoint::read(&path).expect("a whole checkpoint"), expected);
        for found in ["", "one", "1,,2"] {
            write_with_metadata(&path, &checkpoint(5, 0.9), |metadata| {
                metadata.insert(NUMERICS_KEY.to_owned(), found.to_owned());
            });
            let error = Checkpoint::read(&path).expect_err(found).to_string();
            assert!(error.contains(&format!("`{found}` as numerics")), "{error}");
        }
    }

    /// The goal: a file that another version wrote is not reported as damaged.
    #[test]
    fn checkpoint_of_other_version_is_unreadable_not_damaged() {
        let check = |change: fn(&mut BTreeMap<String, String>), part: &str| {
            let folder = folder();
            let path = folder.path().join("newer");
            write_with_metadata(&path, &checkpoint(5, 0.9), change);
            match Checkpoint::read(&path) {
                Err(CheckpointError::Unreadable { reason, .. }) => assert!(reason.contains(part), "{reason}"),
                other => panic!("{other:?}"),
            }
        };
        check(
            |metadata| _ = metadata.insert("format".to_owned(), "telar-checkpoint-9".to_owned()),
            "`telar-checkpoint-9`",
        );
        check(
            |metadata| {
                *metadata.get_mut("recipe").expect("a recipe") = metadata["recipe"].replacen('{', r#"{"hue":1,"#, 1);
            },
            "unknown field `hue`",
        );
    }

    /// The goal: a file that has decayed is skipped, and not taken for another version's.
    #[test]
    fn changed_name_in_recipe_is_damage() {
        let folder = folder();
        let path = write(&folder, &checkpoint(5, 0.9));
        let mut bytes = std::fs::read(&path).expect("a file");
        let at = bytes.windows(10).position(|window| window == b"batch_size").expect("a recipe");
        bytes[at + 9] ^= 1;
        std::fs::write(&path, &bytes).expect("a file");
        let error = Checkpoint::read(&path).expect_err("another name");
        assert!(matches!(error, CheckpointError::Damaged { .. }), "{error}");
    }

    /// The goal: a file that is whole, and says what no run has come to, is refused and ends no program.
    #[test]
    fn inconsistent_checkpoint_is_refused() {
        let check = |change: fn(&mut Checkpoint), part: &str| {
            let mut written = checkpoint(5, 0.9);
            change(&mut written);
            let folder = folder();
            let path = write(&folder, &written);
            let error = Checkpoint::read(&path).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        };
        check(|written| written.state.params.clear(), "found no parameters");
        check(|written| written.state.slots[0].clear(), "found 0 values of velocity where 163814 belong");
        check(
            |written| written.facts.recipe.optimizer = Optimizer::sgd(0.5, 0.0, false),
            "163814 values of velocity where 0 belong",
        );
        check(|written| written.state.step = 0, "step 0 after 3 samples");
        check(|written| written.state.step = u64::MAX, "step 18446744073709551615 after 3 samples");
        check(|written| written.state.best = Some(BestEpoch { epoch: 5, val_loss: 0.5 }), "best epoch 5 after 5 steps");
    }
}
