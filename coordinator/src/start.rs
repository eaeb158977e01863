//! How a run begins: anew, or from the newest whole checkpoint of an earlier process.

mod error;
mod existing;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use engine::data::DataSource;
use engine::numerics;
use engine::recipe::{Recipe, RecipeError};
use engine::report::RunFolder;
use engine::task::{AnyTask, OpenTask};
use engine::training::initial_weights;
use proto::v1::Encoding;
use rustix::rand::GetRandomFlags;
use tracing::{info, warn};

use crate::args::Wire;
use crate::checkpoint::{Checkpoint, RunFacts};
use crate::checkpoints::Checkpoints;
use crate::config::{Config, OtherNumerics, RunChoice};
use crate::training::{AuditSecret, Rounding, State};

pub use error::ResumeError;
pub use existing::checkpoints;
pub(crate) use existing::{can_begin_again, existing_run, has_state, lock, unreadable};

use existing::{check_can_go_on, newest_run, newest_state};

/// A run that is about to begin or to go on.
#[derive(Debug)]
pub struct Start {
    /// What is trained.
    pub recipe: Recipe,
    /// How gradients travel.
    pub wire: Wire,
    /// What it has come to.
    pub state: State,
    /// Its folder.
    pub folder: RunFolder,
    /// Its name: 16 hexadecimal digits.
    pub run_id: String,
    /// Which process of the run's coordinator this is, counted from 1.
    pub incarnation: u32,
    /// A number that no other process of the run's coordinator has, whatever becomes of `run.json`.
    pub coordinator_id: u64,
    /// The [revisions](numerics::REVISION) that compute it, the newest, which is this program's, last.
    pub numerics: Vec<u32>,
    /// What audited shards are drawn by.
    pub audit_secret: AuditSecret,
    /// The checkpoint that it goes on from, if it does.
    pub resumed_from: Option<PathBuf>,
    /// What came from the file of initial weights, if not all did.
    pub initial_text: Option<String>,
    /// Held as long as this process is at work in the folder.
    pub lock: File,
}

/// A run that is wished for, as far as it is known before its data set is open.
#[derive(Debug)]
pub struct RunPlan {
    /// What is trained.
    pub task: Arc<dyn AnyTask>,
    /// How.
    pub recipe: Recipe,
    begins: Begins,
}

/// How a run begins.
#[derive(Debug)]
enum Begins {
    /// In a folder of its own, which is named or the next free one.
    New(Option<PathBuf>),
    /// In the folder of a run that a coordinator began, and did not bring to its first checkpoint.
    Again(PathBuf),
    /// With a state of an earlier process.
    Resumed(Box<Resumed>),
}

#[derive(Debug)]
struct Resumed {
    path: PathBuf,
    lock: File,
    from: PathBuf,
    checkpoint: Checkpoint,
}

impl RunPlan {
    /// Finds the run that is wished for, or what a new one is to be.
    ///
    /// # Errors
    /// If the task or the recipe cannot be followed, or the run is not there, is another one, or its folder is in use.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let n_kept = config.n_checkpoints_kept;
        match &config.run {
            RunChoice::New(Some(folder)) if can_begin_again(folder, n_kept) => {
                Self::begin(config, Begins::Again(folder.clone()))
            }
            RunChoice::New(folder) => Self::begin(config, Begins::New(folder.clone())),
            RunChoice::Resume(folder) => Self::resume(config, folder.as_deref()),
            RunChoice::ResumeOrNew(folder) => match existing_run(config) {
                Some(run) if has_state(&run, n_kept) => {
                    check_can_go_on(&run)?;
                    Self::resume(config, Some(&run))
                }
                Some(run) if can_begin_again(&run, n_kept) => Self::begin(config, Begins::Again(run)),
                Some(_) | None => Self::begin(config, Begins::New(folder.clone())),
            },
        }
    }

    fn begin(config: &Config, begins: Begins) -> anyhow::Result<Self> {
        let task = config.task.build()?;
        let shards = config.shards.unwrap_or(config.n_workers.get());
        let recipe = Recipe::new(config.recipe.clone(), task.spec(), shards)?;
        Ok(Self { task, recipe, begins })
    }

    fn resume(config: &Config, folder: Option<&Path>) -> anyhow::Result<Self> {
        let path = folder.map(Path::to_owned).or_else(|| newest_run(config)).ok_or(ResumeError::NoRun)?;
        let lock = path.is_dir().then(|| lock(&path)).transpose()?;
        let newest = newest_state(&path, config.n_checkpoints_kept, |checkpoint| unreadable(config, checkpoint));
        let (from, checkpoint) = newest?;
        let lock = lock.expect("a folder with a checkpoint is a folder");
        let RunFacts { recipe: resumed, layout, .. } = &checkpoint.facts;
        let Recipe { task: name, settings, .. } = resumed;
        let task = config
            .task
            .resume(name, settings)?
            .map_err(|[expected, found]| ResumeError::Recipe(RecipeError::NotAsBefore { expected, found }))?;
        let (expected, found) = (layout.fingerprint(), task.spec().layout.fingerprint());
        if expected != found {
            return Err(ResumeError::OtherLayout { task: name.clone(), expected, found }.into());
        }
        let mut flags = config.recipe.clone();
        if matches!(config.run, RunChoice::ResumeOrNew(_)) {
            // One command begins the run and goes on with it: what it begins from is in the checkpoint by now.
            (flags.init_from, flags.init_partial) = (None, false);
        }
        let recipe = resumed.clone().resumed(&flags, config.shards).map_err(ResumeError::Recipe)?;
        Ok(Self { task, recipe, begins: Begins::Resumed(Box::new(Resumed { path, lock, from, checkpoint })) })
    }

    /// The data set to open: for a run that is resumed, the kind that it was begun with. Otherwise a network that
    /// comes or goes between two starts would change it, and the run could not go on.
    pub fn data_source(&self, config: &Config) -> DataSource {
        let source = &config.data.data;
        let name = existing_run(config)
            .and_then(|run| RunFolder::read_description(&run))
            .and_then(|description| Some(description["data"]["name"].as_str()?.to_owned()));
        name.map_or_else(|| source.clone(), |name| self.task.resumed_source(source, &name))
    }

    /// Begins the run on the data set of this fingerprint.
    ///
    /// # Errors
    /// If the data set or something else is not that of the run, the initial weights cannot be had, or its folder cannot be written.
    pub fn start(self, config: &Config, data_fingerprint: &str) -> anyhow::Result<Start> {
        let Self { task, recipe, begins } = self;
        let folder = match begins {
            Begins::New(path) => RunFolder::create(path.as_deref(), &recipe.task)?,
            Begins::Again(path) => {
                let lock = lock(&path)?;
                Checkpoints::of(&path, config.n_checkpoints_kept).remove_unfinished()?;
                info!(folder = %path.display(), "the run here has no checkpoint yet; it is begun again");
                return Start::new(config, recipe, &*task, RunFolder::reopen(&path, 0, 0)?, lock);
            }
            Begins::Resumed(resumed) => return Start::resume(config, recipe, *resumed, data_fingerprint),
        };
        let lock = lock(folder.path())?;
        Start::new(config, recipe, &*task, folder, lock)
    }
}

impl Start {
    /// What is the same in all its checkpoints.
    pub fn facts(&self, task: &dyn OpenTask) -> RunFacts {
        RunFacts {
            run_id: self.run_id.clone(),
            recipe: self.recipe.clone(),
            layout: Arc::clone(&task.spec().layout),
            data_fingerprint: task.fingerprint().to_owned(),
            numerics: self.numerics.clone(),
            audit_secret: Some(self.audit_secret),
        }
    }

    fn new(config: &Config, recipe: Recipe, task: &dyn AnyTask, folder: RunFolder, lock: File) -> anyhow::Result<Self> {
        let (weights, initial_text) = initial_weights(&recipe, task)?;
        let wire = config.wire.unwrap_or(Wire::Auto);
        let state = State::new(&recipe, rounding(wire.encoding()), weights.params);
        Ok(Self {
            recipe,
            wire,
            state,
            run_id: new_run_id(&folder),
            folder,
            incarnation: 1,
            coordinator_id: new_coordinator_id()?,
            audit_secret: new_audit_secret()?,
            numerics: vec![numerics::REVISION],
            resumed_from: None,
            initial_text,
            lock,
        })
    }

    fn resume(config: &Config, recipe: Recipe, resumed: Resumed, data_fingerprint: &str) -> anyhow::Result<Self> {
        let Resumed { path, lock, from, checkpoint: Checkpoint { facts, state } } = resumed;
        let RunFacts { run_id, data_fingerprint: expected, numerics, audit_secret, .. } = facts;
        if expected != data_fingerprint {
            return Err(ResumeError::OtherData { expected, found: data_fingerprint.to_owned() }.into());
        }
        let numerics = resumed_numerics(numerics, config.other_numerics)?;
        let (usual, flag) = if state.residual.is_empty() {
            (Wire::Auto, "--wire auto or grpc")
        } else {
            (Wire::GrpcBf16, "--wire grpc-bf16")
        };
        let wire = config.wire.unwrap_or(usual);
        if wire.encoding() != usual.encoding() {
            return Err(ResumeError::OtherWire { expected: flag }.into());
        }
        let incarnation = RunFolder::read_description(&path)
            .and_then(|description| description["incarnation"].as_u64())
            .and_then(|incarnation| u32::try_from(incarnation).ok())
            .unwrap_or(1);
        Checkpoints::of(&path, config.n_checkpoints_kept).remove_unfinished()?;
        // Of an epoch that the state has at its end and not validated yet, there may be a line: it is written anew.
        let validated_step = if state.epoch_sums.n_samples == 0 { state.step } else { state.step - 1 };
        let folder = RunFolder::reopen(&path, state.step, validated_step)?;
        info!(checkpoint = %from.display(), step = state.step, "run resumed");
        Ok(Self {
            recipe,
            wire,
            state,
            folder,
            run_id,
            incarnation: incarnation.saturating_add(1),
            coordinator_id: new_coordinator_id()?,
            numerics,
            audit_secret: audit_secret.map_or_else(new_audit_secret, Ok)?,
            resumed_from: Some(from),
            initial_text: None,
            lock,
        })
    }
}

/// The revisions of a run that this program goes on with.
fn resumed_numerics(mut numerics: Vec<u32>, other: OtherNumerics) -> Result<Vec<u32>, ResumeError> {
    let newest = *numerics.last().expect("a checkpoint has been computed");
    match other {
        _ if newest == numerics::REVISION => {}
        OtherNumerics::Refuse => return Err(ResumeError::OtherNumerics { found: newest }),
        OtherNumerics::Allow => {
            warn!(
                found = newest,
                own = numerics::REVISION,
                "the run goes on with another numerics revision, as --allow-other-numerics says: its bits are no longer those of \
                 one program"
            );
            numerics.push(numerics::REVISION);
        }
    }
    Ok(numerics)
}

/// What is done to averaged gradients so that they fit the wire.
pub fn rounding(encoding: Encoding) -> Rounding {
    match encoding {
        Encoding::Bf16 => Rounding::Bf16,
        Encoding::F32 | Encoding::Unspecified => Rounding::None,
    }
}

fn new_coordinator_id() -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    // So few bytes are always given together.
    rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(u64::from_le_bytes(bytes))
}

/// 32 random bytes that cannot be predicted.
fn new_audit_secret() -> std::io::Result<AuditSecret> {
    let mut bytes = [0; 32];
    rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(AuditSecret::new(bytes))
}

/// A name that no other run has: of where and when it was begun, and by which process.
fn new_run_id(folder: &RunFolder) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let path = folder.path().canonicalize().unwrap_or_default();
    let text = format!("{} {} {}", path.display(), now.as_nanos(), std::process::id());
    blake3::hash(text.as_bytes()).to_hex()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use engine::exit;

    use super::*;
    use crate::checkpoint::tests::checkpoint;
    use crate::config::tests::config_of;
    use crate::exit_code::exit_code;

    /// What comes of resuming a run that these revisions have computed: the revisions from then on.
    fn resume(numerics: &[u32], flags: &str) -> anyhow::Result<Vec<u32>> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut written = checkpoint(5, 0.9);
        written.facts.numerics = numerics.to_vec();
        Checkpoints::of(folder.path(), 1).save(&written).expect("it can be written");
        let run = folder.path().display().to_string();
        let flags = ["coordinator", "--launch", "external", "--wire", "grpc-bf16", "--resume", &run]
            .into_iter()
            .chain(flags.split_whitespace());
        let config = config_of(flags).expect("a configuration");
        let plan = RunPlan::new(&config)?;
        plan.start(&config, &written.facts.data_fingerprint).map(|start| start.numerics)
    }

    /// The goal: no run goes on beside states that another version would take for its newest ones.
    #[test]
    fn newer_state_of_other_version_is_error_that_names_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        let mut checkpoints = Checkpoints::of(folder.path(), 9);
        let mut newer = checkpoint(10, 0.9);
        newer.facts.recipe.settings["colour"] = "grey".into();
        for written in [&checkpoint(5, 0.9), &newer] {
            checkpoints.save(written).expect("it can be written");
        }
        std::fs::write(path("run.json"), r#"{"version": "7.1.2"}"#).expect("a file");
        let run = folder.path().display().to_string();
        let config = config_of(["coordinator", "--launch", "external", "--resume", &run]).expect("a configuration");
        let check_error = |parts: &[&str]| {
            let error = RunPlan::new(&config).expect_err("another version's");
            assert_eq!(exit_code(&error), exit::DATA);
            assert!(parts.iter().all(|part| error.to_string().contains(part)), "{error}");
        };
        let resumed_step = || match RunPlan::new(&config).expect("it can be read").begins {
            Begins::Resumed(resumed) => resumed.checkpoint.state.step,
            other => panic!("{other:?}"),
        };
        let advice = "with version 7.1.2, which wrote it, or move what this program cannot read out of the run folder";
        check_error(&["unknown field `colour`", "step-00000010.safetensors", advice, "to go on from step 5"]);
        std::fs::remove_file(path("checkpoints/step-00000010.safetensors")).expect("a file");
        assert_eq!(resumed_step(), 5);
        // So is the journal of that version, and so are its states where there are no others.
        crate::journal::tests::write(folder.path(), &newer);
        check_error(&["a.safetensors", advice]);
        std::fs::remove_file(path("checkpoints/step-00000005.safetensors")).expect("a file");
        check_error(&["unknown field `colour`", "with version 7.1.2, which wrote it"]);
    }

    /// The goal: bits of two kinds never come into one run unnoticed.
    #[test]
    fn resume_with_other_numerics_needs_flag() {
        let (own, other) = (numerics::REVISION, numerics::REVISION + 1);
        assert_eq!(resume(&[own], "").expect("its own"), [own]);
        let error = resume(&[own, other], "").expect_err("another one's");
        assert_eq!(exit_code(&error), exit::CONFIGURATION);
        let expected = format!("expected a run of numerics revision {own}, found one of revision {other}");
        assert!(error.to_string().starts_with(&expected), "{error}");
        assert!(error.to_string().ends_with("by --allow-other-numerics"), "{error}");
        assert_eq!(resume(&[other], "--allow-other-numerics").expect("allowed"), [other, own]);
    }
}
