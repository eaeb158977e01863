//! What is at a mirror before anything is uploaded there: the files of a run, and which run they are of.

use std::collections::BTreeMap;
use std::time::Duration;

use engine::report::DESCRIPTION_BYTES_MAX;
use serde::Deserialize;
use tokio::time::timeout;

use super::{MirrorError, RunFile, Store, StoreError};
use crate::location::Location;

/// How long all questions to the store may take together.
const SURVEY_DEADLINE: Duration = Duration::from_secs(20);

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// The run, if its description is there.
    pub owner: Option<Owner>,
    /// Its files, with their sizes.
    pub files: BTreeMap<RunFile, u64>,
}

/// The part of a run's description that says whose files these are.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Owner {
    /// The run.
    pub run_id: String,
    /// Which process of its coordinator has written last.
    pub incarnation: u32,
    /// What it trains; None if that is unknown here.
    pub recipe: Option<OwnerRecipe>,
}

/// The part of a recipe that names a run's folder.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct OwnerRecipe {
    /// The name of the task.
    #[serde(alias = "architecture")]
    pub task: String,
}

/// Asks the store what is there, and whether objects can be written.
///
/// # Errors
/// If it does not answer in time, or refuses.
pub fn survey(location: &Location) -> Result<Survey, MirrorError> {
    on_own_runtime(location, async {
        let surveyed = timeout(SURVEY_DEADLINE, async {
            let store = Store::open(location)?;
            let files = store.list().await?;
            let owner = owner(&store).await?;
            store.probe().await?;
            Ok(Survey { owner, files })
        });
        let no_answer = |_| Err(StoreError::Unreachable(format!("no answer in {} s", SURVEY_DEADLINE.as_secs())));
        surveyed.await.unwrap_or_else(no_answer).map_err(|error| MirrorError::of(location, error))
    })
}

impl Survey {
    /// The step of the newest checkpoint.
    pub fn newest_step(&self) -> Option<u64> {
        self.files.keys().find_map(|file| file.checkpoint_step())
    }

    /// Makes sure that a new run may be mirrored there.
    ///
    /// # Errors
    /// If there is one already.
    pub fn check_free(&self, location: &Location) -> Result<(), MirrorError> {
        let found = match &self.owner {
            Some(owner) => format!("run {}", owner.run_id),
            None => match self.files.keys().next() {
                Some(file) => format!("{} without run.json", file.path()),
                None => return Ok(()),
            },
        };
        Err(MirrorError::HoldsRun { url: location.to_string(), found })
    }

    /// Makes sure that a run may be mirrored there that was begun earlier.
    ///
    /// # Errors
    /// If another one is there.
    pub fn check_owner(&self, location: &Location, run_id: &str) -> Result<(), MirrorError> {
        match &self.owner {
            Some(owner) if owner.run_id == run_id => Ok(()),
            None if self.files.is_empty() => Ok(()),
            owner => Err(MirrorError::OtherRun {
                url: location.to_string(),
                expected: run_id.to_owned(),
                found: owner
                    .as_ref()
                    .map_or("files without run.json".to_owned(), |owner| format!("run {}", owner.run_id)),
            }),
        }
    }
}

/// The run that a mirror belongs to; None if it has no description yet.
pub(super) async fn owner(store: &Store) -> Result<Option<Owner>, StoreError> {
    let bytes = match store.read(RunFile::Description, DESCRIPTION_BYTES_MAX).await {
        Err(StoreError::NotFound(_)) => return Ok(None),
        read => read?,
    };
    let unknown = Owner { run_id: "of an unknown program".to_owned(), incarnation: u32::MAX, recipe: None };
    // They are printed, and become parts of paths.
    let is_name = |owner: &Owner| {
        let is_plain = |text: &str| text.len() <= 64 && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        is_plain(&owner.run_id) && owner.recipe.as_ref().is_none_or(|recipe| is_plain(&recipe.task))
    };
    Ok(Some(serde_json::from_slice(&bytes).ok().filter(is_name).unwrap_or(unknown)))
}

/// Runs a future that queries a store to its end, on a thread of its own: the caller may be on a runtime already.
///
/// # Errors
/// Those of the future, and if it panics, as a client does for settings that it does not check.
pub(super) fn on_own_runtime<T: Send>(
    location: &Location,
    future: impl Future<Output = Result<T, MirrorError>> + Send,
) -> Result<T, MirrorError> {
    std::thread::scope(|scope| {
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("the system has a timer and a poll to give");
            let output = runtime.block_on(future);
            // A name that is still being looked up is not waited for.
            runtime.shutdown_background();
            output
        };
        let failed = |_| Err(MirrorError::of(location, StoreError::Settings("the client has failed".to_owned())));
        scope.spawn(run).join().unwrap_or_else(failed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey_of(run_id: Option<&str>, files: &[RunFile]) -> Survey {
        let owner = run_id.map(|run_id| Owner { run_id: run_id.to_owned(), incarnation: 1, recipe: None });
        Survey { owner, files: files.iter().map(|file| (*file, 1)).collect() }
    }

    #[test]
    fn new_run_needs_empty_mirror_and_resumed_run_its_own() {
        let location = Location::parse("--mirror", "s3://bucket/a").expect("a URL");
        let files = [RunFile::Steps, RunFile::checkpoint(3), RunFile::checkpoint(12)];
        let (free, torn) = (survey_of(None, &[]), survey_of(None, &files));
        let taken = survey_of(Some("0123"), &files);
        assert_eq!(taken.newest_step(), Some(12));
        assert!(free.check_free(&location).is_ok() && free.check_owner(&location, "0123").is_ok());
        assert!(taken.check_owner(&location, "0123").is_ok());
        let check = |checked: Result<(), MirrorError>, part: &str| {
            let error = checked.expect_err(part);
            assert!(error.to_string().contains(part), "`{error}` does not contain `{part}`");
            assert_eq!(error.exit_code(), engine::exit::CANNOT_WRITE);
        };
        check(taken.check_free(&location), "found run 0123; go on with it by `--resume s3://bucket/a`");
        check(torn.check_free(&location), "found steps.jsonl without run.json");
        check(taken.check_owner(&location, "4567"), "expected run 4567 at s3://bucket/a, found run 0123");
        check(torn.check_owner(&location, "4567"), "found files without run.json");
    }
}
