//! Why a run cannot go on.

use std::path::PathBuf;

use engine::numerics;
use engine::params::LayoutFingerprint;
use engine::recipe::RecipeError;

use crate::checkpoints::NoCheckpoint;
use crate::invocation::quoted;

/// A run that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// There is no run at all.
    #[error("expected a run to resume in runs/, found none; name its folder with `--resume DIR`")]
    NoRun,
    /// It has no whole checkpoint.
    #[error(transparent)]
    NoCheckpoint(#[from] NoCheckpoint),
    /// Its newest state is another version's.
    #[error(
        "{found}; resume it with {}, or move what this program cannot read out of the run folder to go on from step {step}",
        version.as_ref().map_or("the version that wrote it".to_owned(), |version| format!("version {version}, which wrote it"))
    )]
    OtherVersion {
        /// What cannot be read, and why.
        found: String,
        /// What wrote it, if that is known.
        version: Option<String>,
        /// The newest step that can be read.
        step: u64,
    },
    /// The flags ask for another recipe.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// Its network has changed.
    #[error(
        "expected the parameters of {task} as in the run that is resumed (layout {expected}), found others (layout {found}); resume \
         it with the program that wrote it"
    )]
    OtherLayout {
        /// The task.
        task: String,
        /// The run's.
        expected: LayoutFingerprint,
        /// This program's.
        found: LayoutFingerprint,
    },
    /// It was trained on something else.
    #[error(
        "expected the data set that the run was begun with (blake3 {expected}), found another one (blake3 {found}); name \
         the former with --data"
    )]
    OtherData {
        /// The run's.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Another coordinator uses the folder.
    #[error("expected nobody at work in {}, found another coordinator; wait for its end, or name another folder", folder.display())]
    InUse {
        /// The run's folder.
        folder: PathBuf,
    },
    /// It would diverge again, since the same numbers come out.
    #[error(
        "expected a run that can go on in {folder}, found one that ended with: {error}; begin another one with --run-dir, or \
         try this one again with `--resume {}`", quoted(folder.as_os_str()), folder = folder.display()
    )]
    Diverged {
        /// The run's folder.
        folder: PathBuf,
        /// How it ended.
        error: String,
    },
    /// It was computed by a program that gives other bits.
    #[error(
        "expected a run of numerics revision {}, found one of revision {found}: the same steps give other bits here; resume it \
         with the version that wrote it, or go on with other bits by --allow-other-numerics",
        numerics::REVISION
    )]
    OtherNumerics {
        /// The run's.
        found: u32,
    },
    /// Its gradients were rounded in another way.
    #[error("expected {expected} as in the run that is resumed; leave --wire as it was, or start a new run")]
    OtherWire {
        /// The flag as it was.
        expected: &'static str,
    },
}
