//! Sends the data set to workers that have no copy of it: once per session, to a few workers at once, and at a minimum rate, so
//! that a worker that does not read cannot block the others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine::task::OpenTask;
use prost::bytes::Bytes;
use proto::limits::{DATASET_FILE_BYTES_MAX, PIECE_BYTES};
use proto::v1::DatasetPiece;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use crate::training::Identity;

/// Data sets on their way at once.
const N_FETCHES_MAX: usize = 8;
/// Those to one identity.
const N_FETCHES_PER_IDENTITY_MAX: usize = 4;
/// Pieces that wait to be sent.
const PIECES_WAITING_MAX: usize = 4;
/// How long a worker may take for its first pieces, and for each one on the average: 64 KiB/s at least.
const FIRST_PIECES_WAIT_MAX: Duration = Duration::from_secs(3);
const PIECE_WAIT_MAX: Duration = Duration::from_secs(4);

/// Who is sent the data set at the moment.
#[derive(Debug)]
pub(crate) struct Fetches {
    all: Arc<Semaphore>,
    by_identity: Mutex<BTreeMap<Identity, Arc<Semaphore>>>,
}

/// Permission to fetch the data set, until it is dropped.
pub(crate) struct FetchPermit {
    _own: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Fetches {
    /// No fetches in progress.
    pub fn new() -> Self {
        Self { all: Arc::new(Semaphore::new(N_FETCHES_MAX)), by_identity: Mutex::default() }
    }

    /// Waits for a permit for an identity.
    pub async fn permit(&self, identity: Identity) -> Result<FetchPermit, AcquireError> {
        let own = {
            let mut by_identity = self.by_identity.lock().unwrap_or_else(PoisonError::into_inner);
            by_identity.retain(|_, own| Arc::strong_count(own) > 1);
            Arc::clone(
                by_identity.entry(identity).or_insert_with(|| Arc::new(Semaphore::new(N_FETCHES_PER_IDENTITY_MAX))),
            )
        };
        let own = own.acquire_owned().await?;
        Ok(FetchPermit { _own: own, _of_all: Arc::clone(&self.all).acquire_owned().await? })
    }
}

/// A data set on its way.
pub(crate) type Pieces = mpsc::Receiver<Result<DatasetPiece, Status>>;

/// Where pieces are put in, and where they come out.
pub(crate) fn pieces() -> (mpsc::Sender<Result<DatasetPiece, Status>>, Pieces) {
    mpsc::channel(PIECES_WAITING_MAX)
}

/// Sends all files, piece by piece, until the receiver has them, or is gone, or too slow.
pub(crate) async fn send_dataset(task: &dyn OpenTask, pieces: mpsc::Sender<Result<DatasetPiece, Status>>) {
    let mut deadline = Instant::now() + FIRST_PIECES_WAIT_MAX;
    for file in task.files() {
        let file_bytes = (file.header.len() + file.content.len()) as u64;
        assert!(file_bytes <= DATASET_FILE_BYTES_MAX, "a data set that was opened is within the bounds of its reader");
        let mut offset = 0;
        let header = std::iter::once(file.header.as_slice()).filter(|header| !header.is_empty());
        for content in header.chain(file.content.chunks(PIECE_BYTES)) {
            let piece = DatasetPiece {
                name: file.name.to_owned(),
                file_bytes,
                offset,
                content: Bytes::copy_from_slice(content),
            };
            // A worker that is too slow finds the pieces to end before all files are there.
            if !matches!(timeout_at(deadline, pieces.send(Ok(piece))).await, Ok(Ok(()))) {
                return;
            }
            offset += content.len() as u64;
            deadline += PIECE_WAIT_MAX;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The goal: an identity that reads nothing keeps others from nothing.
    #[tokio::test]
    async fn one_identity_cannot_use_all_fetch_slots() {
        let fetches = Fetches::new();
        let identity = |name: &str| Identity::new(name);
        let mut permits = Vec::new();
        for _ in 0..N_FETCHES_PER_IDENTITY_MAX {
            permits.push(fetches.permit(identity("one")).await.expect("a permit"));
        }
        let wait = Duration::from_millis(50);
        assert!(tokio::time::timeout(wait, fetches.permit(identity("one"))).await.is_err());
        permits.push(fetches.permit(identity("other")).await.expect("a permit"));
        permits.remove(0);
        assert!(tokio::time::timeout(wait, fetches.permit(identity("one"))).await.is_ok());
    }
}
