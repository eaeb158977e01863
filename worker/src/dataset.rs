//! The run's data set: this machine's own copy, or one fetched from the coordinator and kept for the next time.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tonic::Status;
use tracing::{info, warn};

use engine::data::{DataError, DataSource};
use engine::files::{PrivateFolder, WriteError, create_folder};
use engine::task::{AnyTask, OpenTask};
use proto::call::Messages;
use proto::limits;
use proto::v1::DatasetPiece;

use crate::link::Link;

/// Pieces that wait to be written.
const PIECES_MAX: usize = 4;
/// How long the first piece may take: others may be sent the data set before this worker.
const FIRST_PIECE_WAIT_MAX: Duration = Duration::from_mins(5);
/// How long each further piece may take.
const PIECE_WAIT_MAX: Duration = limits::FIRST_MESSAGE_WAIT_MAX;

/// The data set, kept open from one session to the next.
#[derive(Debug)]
pub(crate) struct DatasetCache {
    source: DataSource,
    cached: Option<Arc<dyn OpenTask>>,
}

/// A data set that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The folder that the user named holds none.
    #[error("{0}")]
    Data(#[from] DataError),
    /// It is not here, and cannot be fetched.
    #[error(
        "expected the data set of the run (blake3 {expected}) at --data {source_text}, found another one; name with --data what the \
         coordinator trains on"
    )]
    NotFetchable {
        /// The run's.
        expected: String,
        /// Where it was looked for.
        source_text: DataSource,
    },
    /// What was fetched cannot be kept.
    #[error("{0}")]
    Write(#[from] WriteError),
    /// The coordinator stopped sending it.
    #[error("the data set could not be fetched: {}", .0.message())]
    Status(#[from] Status),
    /// The coordinator did not go on sending it.
    #[error("expected the next piece of the data set within {} s, found none", .waited.as_secs())]
    Silent {
        /// How long it was waited for.
        waited: Duration,
    },
    /// What the coordinator sent is no data set.
    #[error("{0}")]
    Piece(#[from] PieceError),
    /// What the coordinator sent is another data set.
    #[error("expected the data set with the blake3 {expected} from the coordinator, found {found}")]
    Other {
        /// The run's.
        expected: String,
        /// That of the files.
        found: String,
    },
}

impl DatasetError {
    /// Whether another connection could bring it.
    pub(crate) fn is_of_connection(&self) -> bool {
        matches!(self, Self::Status(_) | Self::Silent { .. } | Self::Piece(PieceError::Torn { .. }))
    }
}

impl DatasetCache {
    /// An empty cache; `source` is where a copy may be besides the usual places.
    pub fn new(source: DataSource) -> Self {
        Self { source, cached: None }
    }

    /// A task on the data set of this fingerprint, which has the form of one.
    pub async fn open(
        &mut self,
        link: &Link,
        task: &Arc<dyn AnyTask>,
        fingerprint: &str,
    ) -> Result<Arc<dyn OpenTask>, DatasetError> {
        let is_same = |cached: &&Arc<dyn OpenTask>| {
            let (cached_spec, spec) = (cached.spec(), task.spec());
            cached.fingerprint() == fingerprint
                && (cached_spec.name, &cached_spec.settings) == (spec.name, &spec.settings)
        };
        if let Some(open) = self.cached.as_ref().filter(is_same) {
            return Ok(Arc::clone(open));
        }
        self.cached = None;
        let (known, source, wanted) = (Arc::clone(task), self.source.clone(), fingerprint.to_owned());
        let open = match blocking(move || known.find(&source, &wanted)).await? {
            Some(open) => open,
            None if task.file_names().is_empty() => {
                let (expected, source_text) = (fingerprint.to_owned(), self.source.clone());
                return Err(DatasetError::NotFetchable { expected, source_text });
            }
            None => fetch(link, task, fingerprint).await?,
        };
        info!(data = open.data_name(), "the data set is open");
        self.cached = Some(Arc::clone(&open));
        Ok(open)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work).await.expect("reading and writing files does not panic")
}

async fn fetch(link: &Link, task: &Arc<dyn AnyTask>, fingerprint: &str) -> Result<Arc<dyn OpenTask>, DatasetError> {
    info!(fingerprint, "no copy of the data set here; fetching it from the coordinator");
    let silent = |_| DatasetError::Silent { waited: PIECE_WAIT_MAX };
    let asked = timeout(PIECE_WAIT_MAX, link.fetch_dataset(fingerprint.to_owned())).await;
    let mut pieces = asked.map_err(silent)??;
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    let (known, wanted) = (Arc::clone(task), fingerprint.to_owned());
    let stored = blocking(move || store(receiver, &*known, &wanted));
    let (passed_on, stored) = tokio::join!(pass_on(&mut pieces, sender), stored);
    passed_on?;
    stored
}

/// Ends when there are no more pieces, or their receiver is gone.
async fn pass_on(pieces: &mut Messages<DatasetPiece>, sender: mpsc::Sender<DatasetPiece>) -> Result<(), DatasetError> {
    let mut waited = FIRST_PIECE_WAIT_MAX;
    loop {
        let next = timeout(waited, pieces.message()).await.map_err(|_| DatasetError::Silent { waited })??;
        waited = PIECE_WAIT_MAX;
        let Some(piece) = next else { return Ok(()) };
        if sender.send(piece).await.is_err() {
            return Ok(()); // why it takes no more is what the other end returns
        }
    }
}

/// Writes the files beside where they belong, and puts them there when they are what they should be.
fn store(
    mut pieces: mpsc::Receiver<DatasetPiece>,
    task: &dyn AnyTask,
    fingerprint: &str,
) -> Result<Arc<dyn OpenTask>, DatasetError> {
    let place = task.shared_folder(fingerprint);
    let staging = folder_beside(place.as_deref())?;
    let folder = staging.path().join("data");
    create_folder(&folder)?;
    let mut incoming = Incoming::new(&folder, task.file_names());
    while let Some(piece) = pieces.blocking_recv() {
        incoming.add(&piece)?;
    }
    incoming.finish()?;
    if let Some(name) = task.file_names().iter().find(|name| !folder.join(name).is_file()) {
        return Err(PieceError::Torn { name: (*name).to_owned(), n_bytes: 0 }.into());
    }

    let open_folder = |folder: &Path| task.open(&DataSource::at(folder));
    let data = open_folder(&folder)?;
    let found = data.fingerprint();
    if found != fingerprint {
        return Err(DatasetError::Other { expected: fingerprint.to_owned(), found: found.to_owned() });
    }
    let Some(place) = place else { return Ok(data) };
    match std::fs::rename(&folder, &place) {
        Ok(()) => Ok(open_folder(&place)?),
        // Another process of this machine was faster: with its files, memory holds the images once.
        Err(_) => Ok(open_folder(&place).ok().filter(|data| data.fingerprint() == fingerprint).unwrap_or_else(|| {
            // Or what lies there is damaged, and goes out of the way. Ours are open, and stay so wherever they are.
            let moved = move_aside(&place).and_then(|()| std::fs::rename(&folder, &place));
            warn!(folder = %place.display(), is_replaced = moved.is_ok(), "the copy of the data set there is damaged");
            data
        })),
    }
}

/// Moves a damaged copy to where it can be looked at. The one before it goes.
fn move_aside(place: &Path) -> std::io::Result<()> {
    let aside = place.with_extension("damaged");
    match std::fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    std::fs::rename(place, &aside)
}

/// A folder on the file system of `place` if there can be one, else elsewhere: data can be trained on unkept.
fn folder_beside(place: Option<&Path>) -> Result<PrivateFolder, WriteError> {
    const PREFIX: &str = ".fetching-";
    let private = || PrivateFolder::create(&std::env::temp_dir(), PREFIX);
    let Some(parent) = place.and_then(Path::parent) else { return private() };
    let beside = create_folder(parent).and_then(|()| PrivateFolder::create(parent, PREFIX));
    beside.or_else(|error| {
        warn!(folder = %parent.display(), %error, "the data set cannot be kept there for the next time");
        private()
    })
}

/// Pieces that do not make up a data set.
#[derive(Debug, thiserror::Error)]
pub enum PieceError {
    /// Not one of the data set's files.
    #[error("expected one of the files {expected}, found `{found}`")]
    Name {
        /// Their names.
        expected: String,
        /// The name found.
        found: String,
    },
    /// A file that is too large.
    #[error("expected {name} to have at most {} bytes, found {found}", limits::DATASET_FILE_BYTES_MAX)]
    Size {
        /// The file.
        name: String,
        /// Its bytes, as announced.
        found: u64,
    },
    /// A piece that does not go on where the last one ended.
    #[error("expected a piece of {expected}, found one of {found}")]
    Order {
        /// File, place and bytes.
        expected: String,
        /// File, place and bytes.
        found: String,
    },
    /// The pieces ended within a file.
    #[error("expected all of {name}, found its pieces to end at byte {n_bytes}")]
    Torn {
        /// The file.
        name: String,
        /// What there is of it.
        n_bytes: u64,
    },
    /// A file cannot be written.
    #[error("{0}")]
    Write(#[from] WriteError),
}

/// A data set that comes in piece by piece.
#[derive(Debug)]
pub struct Incoming {
    folder: PathBuf,
    /// Names that files may have.
    names: &'static [&'static str],
    /// The file that is not yet whole.
    file: Option<IncomingFile>,
}

#[derive(Debug)]
struct IncomingFile {
    file: File,
    name: String,
    n_bytes: u64,
    file_bytes: u64,
}

impl Incoming {
    /// Nothing yet; files of these names go to a folder that has none of them.
    pub fn new(folder: &Path, names: &'static [&'static str]) -> Self {
        Self { folder: folder.to_owned(), names, file: None }
    }

    /// Adds the next piece.
    ///
    /// # Errors
    /// If it does not go on where the last one ended, or cannot be written; what is there is of no use then.
    pub fn add(&mut self, piece: &DatasetPiece) -> Result<(), PieceError> {
        let mut incoming = match self.file.take() {
            Some(incoming) => incoming,
            None => self.begin(piece)?,
        };
        let IncomingFile { name, n_bytes, file_bytes, .. } = &incoming;
        let n_added = piece.content.len() as u64;
        let is_continuation = (&piece.name, piece.file_bytes, piece.offset) == (name, *file_bytes, *n_bytes);
        // An empty piece would let a stream go on for ever.
        let is_within = (1..=file_bytes - n_bytes).contains(&n_added);
        if !is_continuation || !is_within {
            let expected = format!("`{name}` from byte {n_bytes} of {file_bytes}, not empty and not beyond its end");
            let found =
                format!("`{}` from byte {} of {} with {n_added} bytes", piece.name, piece.offset, piece.file_bytes);
            return Err(PieceError::Order { expected, found });
        }
        let path = self.folder.join(name);
        incoming.file.write_all(&piece.content).map_err(WriteError::at(&path))?;
        incoming.n_bytes += n_added;
        if incoming.n_bytes < incoming.file_bytes {
            self.file = Some(incoming);
        }
        Ok(())
    }

    /// Begins the file that a piece is of.
    fn begin(&self, piece: &DatasetPiece) -> Result<IncomingFile, PieceError> {
        let DatasetPiece { name, file_bytes, .. } = piece;
        if !self.names.contains(&name.as_str()) {
            return Err(PieceError::Name { expected: self.names.join(", "), found: name.clone() });
        }
        if *file_bytes > limits::DATASET_FILE_BYTES_MAX {
            return Err(PieceError::Size { name: name.clone(), found: *file_bytes });
        }
        let path = self.folder.join(name);
        // A new one, so that no file comes twice.
        let file = File::create_new(&path).map_err(WriteError::at(&path))?;
        Ok(IncomingFile { file, name: name.clone(), n_bytes: 0, file_bytes: *file_bytes })
    }

    /// Ends. Whether all files are there shows when they are opened.
    ///
    /// # Errors
    /// If the last file is not whole.
    pub fn finish(self) -> Result<(), PieceError> {
        match self.file {
            Some(IncomingFile { name, n_bytes, .. }) => Err(PieceError::Torn { name, n_bytes }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGES: &str = "train-images";
    const LABELS: &str = "train-labels";

    fn piece(name: &str, file_bytes: u64, offset: u64, content: &[u8]) -> DatasetPiece {
        DatasetPiece { name: name.to_owned(), file_bytes, offset, content: content.to_vec().into() }
    }

    /// What comes of the pieces: the error's words, or nothing.
    fn check(pieces: &[DatasetPiece], part: &str) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut incoming = Incoming::new(folder.path(), &[IMAGES, LABELS]);
        let added = pieces.iter().try_for_each(|piece| incoming.add(piece)).and_then(|()| incoming.finish());
        match added {
            Ok(()) => assert!(part.is_empty(), "`{part}` expected"),
            Err(error) => {
                let text = error.to_string();
                assert!(!part.is_empty() && text.contains(part), "`{text}` does not say `{part}`");
            }
        }
    }

    #[test]
    fn newer_damaged_copy_replaces_older_one() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let place = cache.path().join("0123456789abcdef");
        for content in ["first", "second"] {
            std::fs::create_dir(&place).expect("a folder");
            std::fs::write(place.join(IMAGES), content).expect("a file");
            move_aside(&place).expect("the folder can be written");
            assert!(!place.exists());
            let aside = std::fs::read_to_string(cache.path().join("0123456789abcdef.damaged").join(IMAGES));
            assert_eq!(aside.expect("a file"), content);
        }
        assert_eq!(std::fs::read_dir(cache.path()).expect("the folder").count(), 1);
    }

    #[test]
    fn only_complete_files_of_known_names_are_accepted() {
        let whole = piece(IMAGES, 3, 0, b"abc");
        check(&[whole.clone(), piece(LABELS, 2, 0, b"a"), piece(LABELS, 2, 1, b"b")], "");
        check(&[piece("../weights", 3, 0, b"abc")], "found `../weights`");
        check(&[piece(IMAGES, limits::DATASET_FILE_BYTES_MAX + 1, 0, b"abc")], "found 470400161");
        check(&[piece(IMAGES, 3, 1, b"bc")], "from byte 0 of 3, not empty and not beyond its end, found one of");
        check(&[piece(IMAGES, 3, 0, b"ab"), piece(IMAGES, 3, 1, b"b")], "from byte 2 of 3");
        check(&[piece(IMAGES, 3, 0, b"ab"), piece(IMAGES, 4, 2, b"c")], "from byte 2 of 4");
        check(&[piece(IMAGES, 3, 0, b"ab"), piece(LABELS, 3, 2, b"c")], "found one of `train-labels`");
        check(&[piece(IMAGES, 3, 0, b"abcd")], "with 4 bytes");
        check(&[piece(IMAGES, 3, 0, b"")], "with 0 bytes");
        check(&[piece(IMAGES, 0, 0, b"")], "with 0 bytes");
        check(&[piece(IMAGES, 3, 0, b"ab")], "to end at byte 2");
        check(&[whole.clone(), whole], "File exists");
    }
}
