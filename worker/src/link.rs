//! The connection to a coordinator: its settings, its calls, and how gradients travel over it. Knows no order of messages.

use std::error::Error;
use std::time::Duration;

use prost::bytes::Bytes;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use proto::limits;
use proto::v1::training_client::TrainingClient;
use proto::v1::{CoordinatorMessage, DatasetPiece, Encoding, FetchDatasetRequest, WorkerMessage};
use proto::values::{self, ValuesError};

use crate::config::Address;

/// How long a connection may take to be made.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
/// Silence after which HTTP/2 asks whether the peer is there, and how long it waits for the answer.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// A connection to a coordinator.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    client: TrainingClient<Channel>,
}

/// A connection that cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct LinkError {
    /// What the system says.
    reason: String,
}

impl Link {
    /// Connects anew, so that a name is resolved anew. Takes at most `wait_max`, and no more than 5 s.
    pub async fn connect(address: &Address, wait_max: Duration) -> Result<Self, LinkError> {
        let wait_max = wait_max.min(CONNECT_WAIT_MAX);
        let endpoint = Endpoint::from_shared(address.to_string())
            .map_err(|error| LinkError { reason: innermost(&error) })?
            .connect_timeout(wait_max)
            .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
            .max_frame_size(limits::FRAME_BYTES)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        // The endpoint's own time limit ends with the connection of a socket, before names and HTTP/2.
        let channel = match timeout(wait_max, endpoint.connect()).await {
            Ok(connected) => connected.map_err(|error| LinkError { reason: innermost(&error) })?,
            Err(_) => return Err(LinkError { reason: format!("no connection within {} s", wait_max.as_secs_f32()) }),
        };
        let message_bytes_max = limits::message_bytes_max(limits::PARAMS_MAX);
        let client = TrainingClient::new(channel)
            .max_decoding_message_size(message_bytes_max)
            .max_encoding_message_size(message_bytes_max);
        Ok(Self { client })
    }

    /// Opens the session; what is in `outbound` already goes with it.
    pub async fn open_session(
        &self,
        outbound: ReceiverStream<WorkerMessage>,
    ) -> Result<Streaming<CoordinatorMessage>, Status> {
        Ok(self.client.clone().session(outbound).await?.into_inner())
    }

    /// Asks for the data set of this fingerprint.
    pub async fn fetch_dataset(&self, data_fingerprint: String) -> Result<Streaming<DatasetPiece>, Status> {
        let request = FetchDatasetRequest { data_fingerprint };
        Ok(self.client.clone().fetch_dataset(request).await?.into_inner())
    }
}

/// How gradients travel, both ways: settled when a worker is admitted, and of no interest to who computes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GradientPath {
    encoding: Encoding,
}

/// A way of gradients that this program does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected gradients as f32 or bf16, found the encoding number {found}")]
pub(crate) struct GradientPathError {
    found: i32,
}

impl GradientPath {
    /// The way that the coordinator has chosen.
    pub fn new(encoding: i32) -> Result<Self, GradientPathError> {
        match Encoding::try_from(encoding) {
            Ok(encoding @ (Encoding::F32 | Encoding::Bf16)) => Ok(Self { encoding }),
            Ok(Encoding::Unspecified) | Err(_) => Err(GradientPathError { found: encoding }),
        }
    }

    /// A gradient as it goes out.
    pub fn put(self, gradient: &[f32]) -> Bytes {
        values::encode(self.encoding, gradient)
    }

    /// A gradient as it came in; if it is none, what is in `gradient` then is of no use.
    pub fn take(self, bytes: &[u8], gradient: &mut [f32]) -> Result<(), ValuesError> {
        values::decode(self.encoding, bytes, gradient)
    }
}

/// What lies behind an error whose own words say little, such as "transport error".
fn innermost(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
