//! The runs that are served.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use events::{PictureFile, RecordedEvent};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::folder::FolderReader;
use crate::page::{self, Fragment};
use crate::server::board::Board;
use crate::summary::Summary;

/// How long a folder that is followed is left alone between two looks.
const FOLLOW_PAUSE: Duration = Duration::from_millis(500);

/// Runs by name, in the order in which they were added.
#[derive(Clone, Debug, Default)]
pub struct Runs(Vec<RunHandle>);

/// A run that is served. Clones are of the same run.
#[derive(Clone, Debug)]
pub struct RunHandle(Arc<Run>);

#[derive(Debug)]
struct Run {
    name: String,
    folder: Option<PathBuf>,
    summary: Mutex<Summary>,
    board: Board,
}

/// What makes a page's parts of a run as it is at a time in seconds since 1970.
pub type Render = fn(&Summary, f64) -> Vec<Fragment>;

impl Runs {
    /// Adds a run, whose pictures are in `folder`, if it has any. Where the name is taken, it gets a number.
    pub fn add(&mut self, name: &str, folder: Option<&Path>) -> RunHandle {
        self.add_rendered(name, folder, page::fragments)
    }

    /// Adds a run whose page has other parts.
    pub(super) fn add_rendered(&mut self, name: &str, folder: Option<&Path>, render: Render) -> RunHandle {
        let numbered = (2_u64..).map(|number| format!("{name}~{number}"));
        let mut names = [name.to_owned()].into_iter().chain(numbered);
        let name = names.find(|name| self.named(name).is_none()).expect("there are fewer runs than numbers");
        let summary = Mutex::new(Summary { name: name.clone(), ..Summary::default() });
        let run =
            RunHandle(Arc::new(Run { name, folder: folder.map(Path::to_owned), summary, board: Board::new(render) }));
        self.0.push(run.clone());
        run
    }

    /// The run of a name.
    pub fn named(&self, name: &str) -> Option<&RunHandle> {
        self.iter().find(|run| run.name() == name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &RunHandle> {
        self.0.iter()
    }
}

impl RunHandle {
    /// Its name, which its address has.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Where its files are.
    pub fn folder(&self) -> Option<&Path> {
        self.0.folder.as_deref()
    }

    /// Takes in what happened. It costs about a microsecond; pages are rendered elsewhere, and only while one is open.
    pub fn apply(&self, recorded: &RecordedEvent) {
        self.lock().apply(recorded);
    }

    /// Takes in `run.json`.
    pub fn describe(&self, description: Value) {
        self.lock().describe(description);
    }

    /// Takes in that there is a picture of an epoch in the folder.
    pub fn add_picture(&self, file: PictureFile) {
        self.lock().add_picture(file);
    }

    /// Takes a summary that was made elsewhere, such as from a folder, in the place of what was known. The name stays.
    pub fn replace(&self, summary: Summary) {
        *self.lock() = Summary { name: self.0.name.clone(), ..summary };
    }

    /// What is known by now.
    pub fn summary(&self) -> Summary {
        self.lock().clone()
    }

    /// Follows a run's folder until `shutdown`, for a thread of its own: looks for what is new twice a second.
    pub fn follow(&self, mut reader: FolderReader, shutdown: &CancellationToken) {
        let mut summary = Summary { name: self.0.name.clone(), ..Summary::default() };
        while !shutdown.is_cancelled() {
            if reader.poll(&mut summary) {
                self.replace(summary.clone());
            }
            sleep(FOLLOW_PAUSE);
        }
    }

    pub(super) fn board(&self) -> &Board {
        &self.0.board
    }

    /// Which summary it is by now, and whether the run has ended.
    pub(super) fn state(&self) -> (u64, bool) {
        let summary = self.lock();
        (summary.version, summary.outcome.is_some())
    }

    /// Whether a picture belongs to the run.
    pub(super) fn has_picture(&self, file: PictureFile) -> bool {
        self.lock().has_picture(file)
    }

    /// A summary that was left half changed by a panic is shown all the same.
    fn lock(&self) -> MutexGuard<'_, Summary> {
        self.0.summary.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
