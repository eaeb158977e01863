//! What keeps a mirror from being used, each with what to do.

use std::path::PathBuf;

use engine::exit;
use engine::files::WriteError;

use super::StoreError;
use crate::location::Location;

/// A mirror that cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MirrorError {
    /// There is no bucket.
    #[error(
        "expected a bucket at {url}, found none ({reason}); create it, or name another one with --mirror or --resume"
    )]
    NoBucket {
        /// The mirror.
        url: String,
        /// What the store says.
        reason: String,
    },
    /// Access is refused.
    #[error(
        "access to {url} is refused ({reason}); look at {credentials}, and allow reading, writing, listing and deleting \
         objects there"
    )]
    Denied {
        /// The mirror.
        url: String,
        /// What the store says.
        reason: String,
        /// Where credentials come from.
        credentials: &'static str,
    },
    /// The environment's settings do not go together.
    #[error("the settings for {url} make no sense ({reason}); look at {credentials}, and at {endpoint}")]
    Settings {
        /// The mirror.
        url: String,
        /// What is wrong.
        reason: String,
        /// Where credentials come from.
        credentials: &'static str,
        /// Where the endpoint comes from.
        endpoint: &'static str,
    },
    /// No answer.
    #[error("cannot reach {url} ({reason}); look at the network and {endpoint}, and try again")]
    Unreachable {
        /// The mirror.
        url: String,
        /// What is known of it.
        reason: String,
        /// Where the endpoint comes from.
        endpoint: &'static str,
    },
    /// Another run is there.
    #[error("expected run {expected} at {url}, found {found}; name another prefix with --mirror")]
    OtherRun {
        /// The mirror.
        url: String,
        /// The run that is mirrored.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A run is there already, and this one is new.
    #[error(
        "expected no run at {url}, found {found}; go on with it by `--resume {url}`, or name another prefix with --mirror"
    )]
    HoldsRun {
        /// The mirror.
        url: String,
        /// What is there.
        found: String,
    },
    /// A later process of the same run mirrors to it.
    #[error(
        "incarnation {found} of this run mirrors to {url}, and this is incarnation {ours}: another coordinator has resumed \
         the run; this one uploads nothing more"
    )]
    Superseded {
        /// The mirror.
        url: String,
        /// This process.
        ours: u32,
        /// The one that has left its mark there.
        found: u32,
    },
    /// There is no run to resume.
    #[error("expected a run to resume at {url}, found {found}")]
    NoRun {
        /// The mirror.
        url: String,
        /// What is there.
        found: String,
    },
    /// The folder to resume in holds a run.
    #[error(
        "expected no run in {}, where that of {url} would be downloaded, found one; resume it with `--resume {}`, or name \
         another folder with --run-dir", folder.display(), folder.display()
    )]
    LocalRun {
        /// The mirror.
        url: String,
        /// The folder.
        folder: PathBuf,
    },
    /// The mirror is the run folder.
    #[error("expected a mirror elsewhere than in the run folder, found {url}; name another place with --mirror")]
    RunFolder {
        /// The mirror.
        url: String,
    },
    /// A downloaded file cannot be written.
    #[error("cannot write what was downloaded ({reason}); name another folder with --run-dir, or make room")]
    Write {
        /// The file, and what the system says.
        reason: String,
    },
    /// The run is over, and the mirror lacks files.
    #[error("the mirror {url} lacks {missing} ({reason}); the run folder is whole: copy these files from there")]
    Incomplete {
        /// The mirror.
        url: String,
        /// The files.
        missing: String,
        /// What kept it from having them.
        reason: String,
    },
}

impl MirrorError {
    /// The error of a request.
    pub(super) fn of(location: &Location, error: StoreError) -> Self {
        let url = location.to_string();
        let (credentials, endpoint) = (location.kind().credentials(), location.kind().endpoint());
        match error {
            StoreError::NoBucket(reason) => Self::NoBucket { url, reason },
            StoreError::Denied(reason) => Self::Denied { url, reason, credentials },
            StoreError::Settings(reason) => Self::Settings { url, reason, credentials, endpoint },
            StoreError::File(reason) => Self::Write { reason },
            StoreError::NotFound(reason) | StoreError::TooLarge(reason) => Self::NoRun { url, found: reason },
            StoreError::Unreachable(reason) => Self::Unreachable { url, reason, endpoint },
        }
    }

    /// The exit code of a program that ends with it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoBucket { .. }
            | Self::Denied { .. }
            | Self::Unreachable { .. }
            | Self::Superseded { .. }
            | Self::Incomplete { .. } => exit::UNAVAILABLE,
            Self::OtherRun { .. } | Self::HoldsRun { .. } | Self::LocalRun { .. } | Self::Write { .. } => {
                exit::CANNOT_WRITE
            }
            Self::NoRun { .. } => exit::DATA,
            Self::RunFolder { .. } | Self::Settings { .. } => exit::CONFIGURATION,
        }
    }
}

impl From<WriteError> for MirrorError {
    fn from(error: WriteError) -> Self {
        Self::Write { reason: format!("{}: {}", error.path.display(), error.source) }
    }
}
