//! A run's files from a mirror into a run folder: the newest checkpoint that is whole, and all that a run needs besides.
//! They are downloaded beside their places and moved there when all are whole, the checkpoint last: a folder without a
//! checkpoint holds no run, so a process that is killed meanwhile leaves nothing that looks like one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::files::{WriteError, create_folder, sync_folder};
use engine::report::{DESCRIPTION_BYTES_MAX, LINE_BYTES_MAX, RunFolder};
use events::PICTURE_BYTES_MAX;
use proto::limits::PARAMS_MAX;
use serde_json::Value;
use tokio::time::sleep;
use tracing::{info, warn};

use super::store::PART_BYTES;
use super::survey::on_own_runtime;
use super::{MirrorError, RunFile, Store, StoreError, Survey};
use crate::checkpoint::{Checkpoint, CheckpointError, FILE_BYTES_MAX};
use crate::location::Location;

/// The folder that comes to its place last.
const CHECKPOINTS: &str = "checkpoints";
/// Where files are until all are whole.
const STAGING: &str = ".telar-download";
/// Bytes at most of a file of lines: what an object can have that is uploaded in parts. They are read in parts too.
const LINES_BYTES_MAX: u64 = 10_000 * PART_BYTES as u64;
/// Attempts at each file, each with the store's own deadlines.
const N_ATTEMPTS: u32 = 5;
/// How often checkpoints are listed while another coordinator removes them.
const N_LISTINGS: u32 = 5;
/// The pause after the first attempt; each one more doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(500);

/// Downloads a run into a folder that holds none and that no other process uses. Returns the steps of newer checkpoints at the
/// mirror that are damaged. For a whole checkpoint, `unreadable` gives the reason why this program cannot read it, if there is one.
///
/// # Errors
/// If there is no whole checkpoint, the newest is another version's that cannot be read, the store does not answer, or the folder
/// cannot be written.
pub fn download(
    location: &Location,
    survey: &Survey,
    folder: &Path,
    unreadable: impl Fn(&Checkpoint) -> Option<String> + Sync,
) -> Result<BTreeSet<u64>, MirrorError> {
    let store = Store::open(location).map_err(|error| MirrorError::of(location, error))?;
    let download = Download { location, store, survey, unreadable, staging: folder.join(STAGING) };
    let staged = on_own_runtime(location, download.stage());
    let moved = staged.and_then(|(step, files)| download.move_to(folder, &files).map(|()| (step, files)));
    if moved.is_err() {
        // What cannot be removed now is when the next attempt begins.
        let _ = fs::remove_dir_all(&download.staging);
    }
    let (step, files) = moved?;
    info!(from = %location, to = %folder.display(), n_files = files.len(), "run downloaded");
    Ok(files.iter().filter_map(|file| file.checkpoint_step()).filter(|&found| found > step).collect())
}

/// A checkpoint of the mirror, once it was asked for.
enum Fetched {
    Whole(Box<Checkpoint>),
    /// Why it cannot be used.
    Unusable(String),
    /// Another version wrote it, and why this one cannot read it.
    Unreadable(String),
    /// It is not there any more.
    Gone,
}

/// Whether a run can be resumed without a file.
fn is_extra(file: RunFile) -> bool {
    matches!(file, RunFile::Picture(_) | RunFile::Weights | RunFile::BestWeights | RunFile::Events)
}

struct Download<'a, U> {
    location: &'a Location,
    store: Store,
    survey: &'a Survey,
    unreadable: U,
    staging: PathBuf,
}

impl<U: Fn(&Checkpoint) -> Option<String> + Sync> Download<'_, U> {
    /// Downloads all files; gives the checkpoint's step, and all files that were listed with it. The lines come
    /// first, since those of all listed checkpoints are there by then; pictures and weights come last. Another coordinator may
    /// still replace its checkpoints there: if all that were listed are gone, they are listed again.
    async fn stage(&self) -> Result<(u64, BTreeSet<RunFile>), MirrorError> {
        if self.staging.exists() {
            fs::remove_dir_all(&self.staging).map_err(WriteError::at(&self.staging))?;
        }
        let checkpoints = self.staging.join(CHECKPOINTS);
        fs::create_dir_all(&checkpoints).map_err(WriteError::at(&checkpoints))?;
        let mut files: BTreeSet<RunFile> = self.survey.files.keys().copied().collect();
        let mut listing = 1;
        let Checkpoint { facts, state } = loop {
            let is_needed = |file: &&RunFile| file.checkpoint_step().is_none() && !is_extra(**file);
            for &file in files.iter().filter(is_needed) {
                self.stage_file(file).await?;
            }
            match self.stage_checkpoint(&files).await? {
                Some(checkpoint) => break checkpoint,
                None if listing == N_LISTINGS => {
                    return Err(self.no_run("checkpoints that another coordinator removes; stop it first".to_owned()));
                }
                None => {
                    let listed = self.store.list().await.map_err(|error| MirrorError::of(self.location, error))?;
                    files = listed.into_keys().collect();
                    listing += 1;
                }
            }
        };
        for &file in files.iter().filter(|file| is_extra(**file)) {
            self.stage_file(file).await?;
        }
        // Without it, the next process would take itself for the run's second one.
        let description = RunFolder::read_description(&self.staging);
        match description.as_ref().and_then(|description| description["run_id"].as_str()) {
            Some(found) if found == facts.run_id => Ok((state.step, files)),
            found => Err(self.no_run(format!(
                "a checkpoint of run {}, and run.json of {}",
                facts.run_id,
                found.map_or("none".to_owned(), |found| format!("run {found}"))
            ))),
        }
    }

    /// Downloads a file that is not a checkpoint.
    async fn stage_file(&self, file: RunFile) -> Result<(), MirrorError> {
        let path = self.staging.join(file.path());
        let folder = path.parent().expect("a file is in a folder");
        fs::create_dir_all(folder).map_err(WriteError::at(folder))?;
        match self.fetch(file).await {
            Err(StoreError::NotFound(reason)) => warn!(reason, "file skipped"),
            Err(StoreError::TooLarge(reason) | StoreError::Denied(reason)) if is_extra(file) => {
                warn!(reason, "file skipped");
            }
            fetched => fetched.map_err(|error| MirrorError::of(self.location, error))?,
        }
        Ok(())
    }

    /// Downloads the newest checkpoint among these files that is whole and has its lines, else the newest that is whole; None if all of
    /// them are gone.
    async fn stage_checkpoint(&self, files: &BTreeSet<RunFile>) -> Result<Option<Checkpoint>, MirrorError> {
        let lines_step = last_step(&self.staging.join(RunFile::Steps.path()));
        let (mut skipped, mut without_lines, mut n_gone) = (Vec::new(), None, 0);
        for file in files.iter().copied().filter(|file| file.checkpoint_step().is_some()) {
            match self.fetch_checkpoint(file).await? {
                Fetched::Whole(checkpoint) if checkpoint.state.step <= lines_step => return Ok(Some(*checkpoint)),
                Fetched::Whole(checkpoint) => {
                    // Two coordinators that were at work there together can bring this about, for a moment.
                    let step = checkpoint.state.step;
                    warn!(from = %self.location, step, lines_step, "checkpoint skipped: its lines are not there");
                    without_lines.get_or_insert(file);
                }
                Fetched::Unusable(reason) => {
                    warn!(from = %self.location, reason, "checkpoint skipped");
                    skipped.push(reason);
                }
                Fetched::Unreadable(reason) => return Err(self.other_version(&reason)),
                Fetched::Gone => n_gone += 1,
            }
            let path = self.staging.join(file.path());
            fs::remove_file(&path).or_else(ignore_missing).map_err(WriteError::at(&path))?;
        }
        if let Some(file) = without_lines {
            match self.fetch_checkpoint(file).await? {
                Fetched::Whole(checkpoint) => return Ok(Some(*checkpoint)),
                Fetched::Unusable(reason) => skipped.push(reason),
                Fetched::Unreadable(reason) => return Err(self.other_version(&reason)),
                Fetched::Gone => n_gone += 1,
            }
        }
        if n_gone > 0 {
            return Ok(None);
        }
        Err(self.no_run(if skipped.is_empty() {
            "no checkpoint".to_owned()
        } else {
            format!("only damaged checkpoints: {}", skipped.join("; "))
        }))
    }

    async fn fetch_checkpoint(&self, file: RunFile) -> Result<Fetched, MirrorError> {
        match self.fetch(file).await {
            Ok(()) => {
                let owner = self.survey.owner.as_ref().map(|owner| owner.run_id.as_str());
                Ok(match Checkpoint::read_usable(&self.staging.join(file.path()), &self.unreadable) {
                    Ok(checkpoint) if owner.is_some_and(|owner| owner != checkpoint.facts.run_id) => {
                        Fetched::Unusable(format!("{} is of run {}", file.path(), checkpoint.facts.run_id))
                    }
                    Ok(checkpoint) => Fetched::Whole(Box::new(checkpoint)),
                    Err(CheckpointError::Unreadable { reason, .. }) => {
                        Fetched::Unreadable(format!("{reason} in {}", file.path()))
                    }
                    Err(error) => Fetched::Unusable(error.to_string()),
                })
            }
            Err(StoreError::NotFound(_)) => Ok(Fetched::Gone),
            Err(StoreError::TooLarge(reason)) => Ok(Fetched::Unusable(reason)),
            Err(error) => Err(MirrorError::of(self.location, error)),
        }
    }

    async fn fetch(&self, file: RunFile) -> Result<(), StoreError> {
        let mut pause = PAUSE_MIN;
        let path = self.staging.join(file.path());
        for attempt in 1.. {
            match self.store.download(file, &path, n_bytes_max(file)).await {
                Err(error @ StoreError::Unreachable(_)) if attempt < N_ATTEMPTS => {
                    warn!(%error, "download: trying again");
                    sleep(pause).await;
                    pause *= 2;
                }
                done => return done,
            }
        }
        unreachable!("the last attempt is returned")
    }

    /// Gives the files their names in the run folder.
    fn move_to(&self, folder: &Path, files: &BTreeSet<RunFile>) -> Result<(), MirrorError> {
        let mut changed = BTreeSet::from([folder.to_owned()]);
        let others = files.iter().filter(|file| file.checkpoint_step().is_none()).map(|file| file.path());
        for name in others.filter(|name| self.staging.join(name).exists()).chain([CHECKPOINTS.to_owned()]) {
            let to = folder.join(&name);
            let parent = to.parent().expect("a file is in a folder");
            if !changed.contains(parent) {
                create_folder(parent)?;
                changed.insert(parent.to_owned());
            }
            if name == CHECKPOINTS {
                // The other names are on the disk before this one, which makes the folder a run.
                for folder in &changed {
                    sync_folder(folder).map_err(WriteError::at(folder))?;
                }
                let staged = self.staging.join(&name);
                sync_folder(&staged).map_err(WriteError::at(&staged))?;
            }
            fs::rename(self.staging.join(&name), &to).map_err(WriteError::at(&to))?;
        }
        sync_folder(folder).map_err(WriteError::at(folder))?;
        fs::remove_dir_all(&self.staging).map_err(WriteError::at(&self.staging))?;
        Ok(())
    }

    /// A run that went on without it would upload other states of the same steps.
    fn other_version(&self, reason: &str) -> MirrorError {
        let advice = "resume it with the version that wrote it, or remove that object to go on from an older one";
        self.no_run(format!("a checkpoint that this program cannot read: {reason}; {advice}"))
    }

    fn no_run(&self, found: String) -> MirrorError {
        MirrorError::NoRun { url: self.location.to_string(), found }
    }
}

fn ignore_missing(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// The step of the last line of a file of steps; 0 if there is none.
fn last_step(path: &Path) -> u64 {
    let read = || {
        let mut file = File::open(path)?;
        let n_bytes = file.metadata()?.len();
        file.seek(SeekFrom::Start(n_bytes.saturating_sub(LINE_BYTES_MAX)))?;
        let mut end = Vec::new();
        file.take(LINE_BYTES_MAX).read_to_end(&mut end).map(|_| end)
    };
    let step = |line: &[u8]| serde_json::from_slice::<Value>(line).ok()?["step"].as_u64();
    read().unwrap_or_default().rsplit(|&byte| byte == b'\n').find_map(step).unwrap_or(0)
}

fn n_bytes_max(file: RunFile) -> u64 {
    match file {
        RunFile::Description => DESCRIPTION_BYTES_MAX,
        RunFile::Picture(_) => PICTURE_BYTES_MAX,
        RunFile::Weights | RunFile::BestWeights => 4 * PARAMS_MAX as u64 + (1 << 20),
        RunFile::History | RunFile::Steps | RunFile::Events => LINES_BYTES_MAX,
        RunFile::Checkpoint(_) => FILE_BYTES_MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::tests::checkpoint;
    use crate::checkpoints::Checkpoints;
    use crate::mirror::survey;

    /// A mirror in a folder with checkpoints of steps 3 and 4.
    fn mirror() -> (tempfile::TempDir, Location) {
        let root = tempfile::tempdir().expect("a temporary folder");
        let folder = root.path().join("mirror");
        let mut checkpoints = Checkpoints::of(&folder, 9);
        for step in [3, 4] {
            checkpoints.save(&checkpoint(step, 0.0)).expect("it can be written");
        }
        for name in ["reconstructions", "codes", "maps", "notes"] {
            fs::create_dir(folder.join(name)).expect("a folder");
        }
        let description = r#"{"run_id":"0123","incarnation":2,"recipe":{"architecture":"denoising"}}"#;
        for (name, content) in [
            ("run.json", description),
            ("history.jsonl", "{}\n"),
            ("steps.jsonl", "{\"step\":3}\n{\"step\":4}\n"),
            ("reconstructions/epoch-01.png", "a picture"),
            ("codes/epoch-01.png", "codes"),
            ("maps/epoch-01.png", "a map"),
            ("maps/other.png", "no picture of an epoch"),
            ("notes/text", "no picture"),
        ] {
            fs::write(folder.join(name), content).expect("a file");
        }
        let location = Location::parse("--resume", &format!("file://{}", folder.display())).expect("a URL");
        (root, location)
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort_unstable();
        names
    }

    fn fetch(location: &Location, into: &Path) -> Result<BTreeSet<u64>, MirrorError> {
        fetch_unless(location, into, |_| None)
    }

    fn fetch_unless(
        location: &Location,
        into: &Path,
        unreadable: impl Fn(&Checkpoint) -> Option<String> + Sync,
    ) -> Result<BTreeSet<u64>, MirrorError> {
        fs::create_dir_all(into).expect("a folder");
        download(location, &survey(location).expect("a folder can be listed"), into, unreadable)
    }

    #[test]
    fn download_fetches_newest_checkpoint_and_all_other_files() {
        let (root, location) = mirror();
        let run = root.path().join("run");
        // What a process has left that was killed while it downloaded.
        fs::create_dir_all(run.join(STAGING).join("checkpoints/torn")).expect("a folder");
        fs::write(run.join("run.json"), "{}").expect("a file");
        fetch(&location, &run).expect("a whole run");
        let expected = ["checkpoints", "codes", "history.jsonl", "maps", "reconstructions", "run.json", "steps.jsonl"];
        assert_eq!(names(&run), expected);
        assert_eq!(names(&run.join("checkpoints")), ["step-00000004.safetensors"]);
        assert_eq!(fs::read_to_string(run.join("history.jsonl")).expect("a file"), "{}\n");
        assert_eq!(fs::read(run.join("reconstructions/epoch-01.png")).expect("a file"), b"a picture");
        assert_eq!(
            (names(&run.join("codes")), names(&run.join("maps"))),
            (vec!["epoch-01.png".to_owned()], vec!["epoch-01.png".to_owned()])
        );
        assert_eq!(RunFolder::read_description(&run).expect("a description")["incarnation"], 2);
    }

    #[test]
    fn damaged_checkpoint_is_skipped() {
        let (root, location) = mirror();
        let newest = root.path().join("mirror/checkpoints/step-00000004.safetensors");
        fs::write(&newest, b"torn").expect("a file");
        let run = root.path().join("run");
        assert_eq!(fetch(&location, &run).expect("one is whole"), BTreeSet::from([4]));
        assert_eq!(names(&run.join("checkpoints")), ["step-00000003.safetensors"]);
    }

    /// The goal: no run goes on beside states that another version would take for its newest ones.
    #[test]
    fn checkpoint_of_other_version_is_error() {
        let (root, location) = mirror();
        let unreadable = |found: &Checkpoint| (found.state.step == 4).then(|| "settings of another kind".to_owned());
        let run = root.path().join("run");
        let error = fetch_unless(&location, &run, unreadable).expect_err("another version's").to_string();
        assert!(
            error.contains("cannot read: settings of another kind in checkpoints/")
                && error.contains("or remove that object"),
            "{error}"
        );
        assert!(names(&run).is_empty());
    }

    #[test]
    fn checkpoints_replaced_after_listing_are_listed_again() {
        let (root, location) = mirror();
        let listed = survey(&location).expect("a folder can be listed");
        let folder = root.path().join("mirror");
        remove_all(&folder.join("checkpoints"));
        fs::write(folder.join("steps.jsonl"), "{\"step\":9}\n").expect("a file");
        Checkpoints::of(&folder, 9).save(&checkpoint(9, 0.0)).expect("it can be written");
        let run = root.path().join("run");
        fs::create_dir(&run).expect("a folder");
        assert_eq!(download(&location, &listed, &run, |_| None).expect("a whole run"), BTreeSet::new());
        assert_eq!(names(&run.join("checkpoints")), ["step-00000009.safetensors"]);
    }

    #[test]
    fn checkpoint_with_step_lines_is_preferred() {
        let check = |lines: &str, expected: &str| {
            let (root, location) = mirror();
            fs::write(root.path().join("mirror/steps.jsonl"), lines).expect("a file");
            let run = root.path().join("run");
            fetch(&location, &run).expect("two are whole");
            assert_eq!(names(&run.join("checkpoints")), [expected]);
        };
        check("{\"step\":4}\n", "step-00000004.safetensors");
        check("{\"step\":3}\n", "step-00000003.safetensors");
        check("{\"step\":3}\n{\"step\":", "step-00000003.safetensors");
        // Without the lines of any, the newest one is worth most.
        check("", "step-00000004.safetensors");
    }

    #[test]
    fn incomplete_mirror_leaves_no_local_run() {
        let check = |change: fn(&Path), part: &str| {
            let (root, location) = mirror();
            change(&root.path().join("mirror"));
            let run = root.path().join("run");
            let error = fetch(&location, &run).expect_err(part).to_string();
            assert!(error.contains(part), "`{error}` does not contain `{part}`");
            assert!(names(&run).is_empty(), "{:?}", names(&run));
        };
        let remove = |path: PathBuf| fs::remove_file(path).expect("a file");
        check(|mirror| remove_all(&mirror.join("checkpoints")), "found no checkpoint");
        check(
            |mirror| {
                remove_all(&mirror.join("checkpoints"));
                fs::create_dir(mirror.join("checkpoints")).expect("a folder");
                fs::write(mirror.join("checkpoints/step-00000009.safetensors"), b"torn").expect("a file");
            },
            "found only damaged checkpoints",
        );
        let (root, location) = mirror();
        remove(root.path().join("mirror/run.json"));
        let error = fetch(&location, &root.path().join("run")).expect_err("no description").to_string();
        assert!(error.contains("a checkpoint of run 0123, and run.json of none"), "{error}");
    }

    fn remove_all(folder: &Path) {
        fs::remove_dir_all(folder).expect("a folder");
    }
}
