//! What sessions have in common.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::task::OpenTask;
use proto::buffers::Buffers;
use proto::shared::Results;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::admission::ConnectionHandle;
use crate::facts::Facts;
use crate::fetch::Fetches;
use crate::inbox::Inbox;
use crate::input::Input;
use crate::training::WorkerId;

/// What sessions have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The run.
    pub facts: Arc<Facts>,
    /// What is trained, on what.
    pub task: Arc<dyn OpenTask>,
    /// Vectors for gradients.
    pub buffers: Arc<Buffers>,
    /// Where events go.
    pub inputs: mpsc::Sender<Input>,
    /// The sessions, and data sets on their way.
    pub sessions: TaskTracker,
    /// Ends all of them.
    pub shutdown: CancellationToken,
    /// Who is sent the data set.
    pub fetches: Fetches,
    last_worker_id: AtomicU64,
}

impl Shared {
    /// For sessions that speak to the driver through `inputs` and end with `shutdown`.
    pub fn new(
        facts: Arc<Facts>,
        task: Arc<dyn OpenTask>,
        buffers: Arc<Buffers>,
        inputs: mpsc::Sender<Input>,
        shutdown: CancellationToken,
    ) -> Self {
        let (sessions, last_worker_id) = (TaskTracker::new(), AtomicU64::new(0));
        let fetches = Fetches::new();
        Self { facts, task, buffers, inputs, sessions, shutdown, fetches, last_worker_id }
    }

    /// A number that no worker had before.
    pub fn next_worker_id(&self) -> WorkerId {
        WorkerId(self.last_worker_id.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Reads a new worker's messages, with memory for its results where the run shares any with workers of this machine.
    pub fn inbox(&self, connection: &ConnectionHandle) -> Inbox {
        let is_shared = self.facts.updates.is_some() && connection.peer.is_on_this_machine;
        let offered = is_shared.then(|| Results::create(self.buffers.n_params())).and_then(|created| {
            let report = |error: &std::io::Error| {
                let peer = &connection.peer;
                warn!(%peer, %error, "no shared memory for a worker; its gradients travel over gRPC");
            };
            created.inspect_err(report).ok()
        });
        Inbox::new(Arc::clone(&self.facts), Arc::clone(&self.buffers), offered)
    }
}
