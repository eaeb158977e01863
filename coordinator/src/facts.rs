//! What every session has to know of the run.

use std::time::Duration;

use prost::bytes::Bytes;
use proto::token::Token;
use proto::v1::{self, Encoding, SharedMemory, Welcome};

use crate::training::WorkerId;

/// What every session has to know of the run.
#[derive(Debug)]
pub struct Facts {
    /// What a message has to carry to be of this run and this process.
    pub fence: v1::Fence,
    /// The recipe as JSON, as it is sent to workers.
    pub recipe: Bytes,
    /// blake3 of the data set.
    pub data_fingerprint: String,
    /// The parameter layout.
    pub layout_fingerprint: u64,
    /// How gradients travel.
    pub encoding: Encoding,
    /// Where averaged gradients lie for workers of this machine, if they do.
    pub updates: Option<v1::Region>,
    /// How long a worker may be silent.
    pub heartbeat_timeout: Duration,
    /// What every call has to carry, if anything.
    pub token: Option<Token>,
    /// Whether gRPC reflection is on.
    pub reflection: bool,
}

impl Facts {
    /// The welcome of a worker, with where its results can lie, if it is on this machine.
    pub fn welcome(&self, worker_id: WorkerId, results: Option<v1::Region>) -> Welcome {
        Welcome {
            worker_id: worker_id.0,
            fence: Some(self.fence.clone()),
            recipe: self.recipe.clone(),
            data_fingerprint: self.data_fingerprint.clone(),
            layout_fingerprint: self.layout_fingerprint,
            encoding: self.encoding.into(),
            shared_memory: results.map(|results| SharedMemory {
                process: std::process::id(),
                results: Some(results),
                updates: self.updates.clone(),
            }),
        }
    }
}
