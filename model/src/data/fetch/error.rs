//! Why a download fails, in sentences that say what to do.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a file is not there. A `url` is the whole address asked, a length is in bytes, and a hash is
/// a SHA-256 in lower-case hexadecimal.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the fields have the same meaning in all variants, told above")]
pub enum FetchError {
    /// Name look-up, connection or TLS failed, or the server stopped sending.
    #[error(
        "{url} could not be reached or fell silent ({reason}); check the network connection, and \
         run the download again to go on from what has arrived."
    )]
    Network { url: String, reason: String },
    /// The address makes no sense, or what answered there does not speak HTTP.
    #[error(
        "{url} gave no usable HTTP answer ({reason}); check the address of the mirror or use \
         another one."
    )]
    Unusable { url: String, reason: String },
    /// The server does not have the file, or does not give it.
    #[error(
        "{url} answered with HTTP status {status} where 200 or 206 was expected; check the \
         address of the mirror or use another one."
    )]
    Status { url: String, status: u16 },
    /// The body is shorter or longer than the file, by its announcement or in fact. Of one that
    /// goes on too long, only the first byte too many is counted.
    #[error(
        "{url} brought {found} bytes where {expected} were expected; {}.",
        length_advice(*.expected, *.found)
    )]
    Length { url: String, expected: u64, found: u64 },
    /// The length is right and the content is not.
    #[error(
        "{url} brought a file with SHA-256 {found} where {expected} was expected; it was deleted, \
         so use another mirror."
    )]
    Hash { url: String, expected: String, found: String },
    /// Every mirror failed, for the reasons in `tries`, in the order of the mirrors.
    #[error("{name} could not be downloaded from any mirror:{}", one_per_line(.tries))]
    AllMirrorsFailed { name: String, tries: Vec<FetchError> },
    /// The file is in the folder already, with the wrong content.
    #[error(
        "{} has SHA-256 {found} where {expected} was expected; delete it and run the download \
         again.",
        .path.display()
    )]
    Corrupted { path: PathBuf, expected: String, found: String },
    /// The file is in the folder and cannot be read.
    #[error("{} could not be read ({source}); check its permissions.", .path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The file, its partial file, the lock or the folder cannot be written.
    #[error(
        "{} could not be written ({source}); check its permissions and the free space, or choose \
         another folder.",
        .path.display()
    )]
    Write { path: PathBuf, source: io::Error },
}

impl FetchError {
    /// Whether the network is to blame and nothing else: name look-up, connection, TLS or silence,
    /// at every mirror. A caller may then fall back to something that needs no network.
    pub fn is_offline(&self) -> bool {
        match self {
            Self::Network { .. } => true,
            Self::AllMirrorsFailed { tries, .. } => !tries.is_empty() && tries.iter().all(Self::is_offline),
            _ => false,
        }
    }

    /// Whether this machine is to blame, so that another mirror would not help.
    pub(super) fn is_local(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Write { .. })
    }
}

fn length_advice(expected: u64, found: u64) -> &'static str {
    if found < expected {
        "what has arrived stays in the .part file, so run the download again to go on from there"
    } else {
        "it is another file, so use another mirror"
    }
}

fn one_per_line(tries: &[FetchError]) -> String {
    if tries.is_empty() {
        return " no mirror was named, so name one.".to_owned();
    }
    tries.iter().map(|error| format!("\n- {error}")).collect()
}
