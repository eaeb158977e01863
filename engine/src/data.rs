//! Data sets as the engine sees them: counted samples in three splits, and a name for their content.

use std::error::Error;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::exit_codes;
use crate::files::{WriteError, create_folder, write_parts_whole};

/// Part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// What the network is trained on.
    Train,
    /// What is evaluated after each epoch.
    Valid,
    /// What is evaluated when all is decided.
    Test,
}

impl fmt::Display for Split {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Train => "train",
            Self::Valid => "valid",
            Self::Test => "test",
        })
    }
}

/// A data set in memory, or mapped from files: any sample can be read at any time, in any order.
pub trait Dataset: Send + Sync + 'static {
    /// Samples on the host, as [`Task::loss`](crate::task::Task::loss) takes them.
    type Batch: Send + 'static;

    /// What it is and where it came from, for people.
    fn name(&self) -> String;

    /// Number of samples of a split. Training needs at least one of [`Split::Train`]; the others may have none.
    fn len(&self, split: Split) -> usize;

    /// The samples at these positions of the split, each below [`Dataset::len`], in this order; there may be none. A function of
    /// its arguments and the data set alone: every worker that gathers the same positions has to get the same bits.
    fn gather(&self, split: Split, samples: &[u32]) -> Self::Batch;

    /// Names the content: equal for equal data, wherever it came from, and for nothing else. Workers whose data set has another
    /// fingerprint than the coordinator's do not take part.
    fn fingerprint(&self) -> Fingerprint;
}

impl<D: Dataset> Dataset for Arc<D> {
    type Batch = D::Batch;

    fn name(&self) -> String {
        (**self).name()
    }

    fn len(&self, split: Split) -> usize {
        (**self).len(split)
    }

    fn gather(&self, split: Split, samples: &[u32]) -> D::Batch {
        (**self).gather(split, samples)
    }

    fn fingerprint(&self) -> Fingerprint {
        (**self).fingerprint()
    }
}

/// The blake3 of a data set's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// The fingerprint of some bytes, one after the other.
    pub fn of<B: AsRef<[u8]>>(parts: impl IntoIterator<Item = B>) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(part.as_ref());
        }
        Self(hasher.finalize().to_hex().to_string())
    }

    /// 64 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// Where to take a data set from: the value of `--data`, which each task reads in its own way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataSource(String);

impl DataSource {
    /// Where the task looks if nothing is said.
    pub const AUTO: &'static str = "auto";

    /// A folder or a file.
    pub fn at(path: &Path) -> Self {
        Self(path.display().to_string())
    }

    /// As it was typed.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether nothing was said.
    pub fn is_auto(&self) -> bool {
        self.0 == Self::AUTO
    }

    /// As a path.
    pub fn path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl Default for DataSource {
    fn default() -> Self {
        Self(Self::AUTO.to_owned())
    }
}

impl FromStr for DataSource {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(if text.is_empty() { Self::AUTO } else { text }.to_owned()))
    }
}

impl fmt::Display for DataSource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// A file of a data set as it is sent to workers that have no copy: a header, and then the content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile<'a> {
    /// Its name, one of [`Task::FILES`](crate::task::Task::FILES).
    pub name: &'static str,
    /// Its first bytes.
    pub header: Vec<u8>,
    /// The other ones.
    pub content: &'a [u8],
}

/// Writes files into a folder, making it where needed; each is whole or not there.
///
/// # Errors
/// If the folder cannot be written.
pub fn write_files(files: &[DataFile<'_>], folder: &Path) -> Result<(), WriteError> {
    create_folder(folder)?;
    for DataFile { name, header, content } in files {
        write_parts_whole(&folder.join(name), &[header, content])?;
    }
    Ok(())
}

/// A data set that cannot be opened.
#[derive(Debug)]
pub struct DataError {
    source: Box<dyn Error + Send + Sync>,
    exit_code: u8,
}

impl DataError {
    /// A task's error, with the exit code of a program that ends by it.
    pub fn new(source: Box<dyn Error + Send + Sync>, exit_code: u8) -> Self {
        Self { source, exit_code }
    }

    /// Positions in a split are counted in u32.
    pub(crate) fn too_many(split: Split, found: usize) -> Self {
        let text = format!("expected at most {} samples in the split {split}, found {found}", u32::MAX);
        Self::new(text.into(), exit_codes::DATA)
    }

    /// A split that cannot be trained on.
    pub(crate) fn empty() -> Self {
        Self::new(
            "expected at least one sample to train on, found none; name another data set with --data".into(),
            exit_codes::DATA,
        )
    }

    /// The exit code of a program that ends by this.
    pub fn exit_code(&self) -> u8 {
        self.exit_code
    }
}

impl fmt::Display for DataError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(out)
    }
}

impl Error for DataError {}
