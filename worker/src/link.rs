//! The connection to a coordinator: its settings, its calls, and how gradients travel over it. Knows no order of messages.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use prost::bytes::Bytes;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tracing::info;

use proto::buffers::Buffers;
use proto::call::{self, Messages, call};
use proto::limits;
use proto::shared::{FreeSlot, OpenError, ResultSlots, SlotError, UpdateSlots};
use proto::tls::{Client, TlsRefusal};
use proto::token::Token;
use proto::v1::{CoordinatorMessage, DatasetPiece, Encoding, FetchDatasetRequest, SharedMemory, Update, WorkerMessage};
use proto::values::{self, ValuesError};

use crate::config::{Access, Address};

/// How long a connection may take to be made.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
/// Silence after which HTTP/2 asks whether the peer is there, and how long it waits for the answer.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Gradients on their way out, and some to come, that are kept for the next ones.
const GRADIENTS_FREE_MAX: usize = 4;
/// Bytes of the largest message.
const MESSAGE_BYTES_MAX: usize = limits::message_bytes_max(limits::PARAMS_MAX);

/// A connection to a coordinator.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    channel: Channel,
    address: Address,
    /// What it was made with, with TLS.
    tls: Option<Arc<Client>>,
    token: Option<Token>,
}

/// A connection that cannot be made, or is refused.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No coordinator answers, or not now.
    #[error("{0}")]
    Unreachable(String),
    /// The coordinator does not accept this worker's certificate.
    #[error(
        "the coordinator at {address} does not accept this worker's certificate: {reason}; make a new one with `coordinator \
         certificates` and name it with --tls-cert and --tls-key"
    )]
    OwnCertificate {
        /// Where the coordinator is.
        address: Address,
        /// What is wrong with it.
        reason: String,
    },
    /// Who is there proves to be no coordinator of this worker's.
    #[error(
        "the certificate of the coordinator at {address} is not accepted: {reason}; make a new one for the coordinator with \
         `coordinator certificates`, or name its CA with --tls-ca"
    )]
    CoordinatorCertificate {
        /// Where the coordinator is.
        address: Address,
        /// What is wrong with it.
        reason: String,
    },
    /// Who is there does not speak TLS.
    #[error(
        "expected TLS at {address}, found a peer without it; start the coordinator with --tls-cert, --tls-key and --tls-ca, or \
         this worker with http:// and without them"
    )]
    NoTls {
        /// Where the coordinator is.
        address: Address,
    },
    /// Who is there speaks TLS only.
    #[error(
        "the coordinator at {address} speaks TLS only; write https:// and give this worker --tls-cert, --tls-key and --tls-ca, \
         which `coordinator certificates` makes"
    )]
    TlsOnly {
        /// Where the coordinator is.
        address: Address,
    },
    /// The coordinator does not accept this worker's token.
    #[error("the coordinator at {address} refused this worker: {reason}")]
    Token {
        /// Where the coordinator is.
        address: Address,
        /// What it expected.
        reason: String,
    },
}

impl LinkError {
    /// Whether another connection would end in the same way.
    pub(crate) fn is_final(&self) -> bool {
        !matches!(self, Self::Unreachable(_))
    }

    /// The error of a connection that could not be made, or of a call on it.
    fn of(address: &Address, tls: Option<&Client>, error: &(dyn Error + 'static)) -> Self {
        let address = || address.clone();
        match (TlsRefusal::of(error), tls) {
            (Some(TlsRefusal::OwnCertificate(fault)), Some(tls)) => {
                Self::OwnCertificate { address: address(), reason: fault.describe(&tls.last_day) }
            }
            (Some(TlsRefusal::OtherCertificate(reason)), _) => {
                Self::CoordinatorCertificate { address: address(), reason }
            }
            (Some(TlsRefusal::NoTls), _) => Self::NoTls { address: address() },
            (Some(TlsRefusal::OwnCertificate(_)), None) | (None, _) => Self::Unreachable(innermost(error)),
        }
    }
}

impl Link {
    /// Connects anew, so that a name is resolved anew. Takes at most `wait_max`, and no more than 5 s.
    pub async fn connect(address: &Address, access: &Access, wait_max: Duration) -> Result<Self, LinkError> {
        let wait_max = wait_max.min(CONNECT_WAIT_MAX);
        let tls = access.tls.as_ref().map(|tls| tls.current());
        if matches!(address, Address::Tls(_)) && tls.is_none() {
            return Err(LinkError::Unreachable("expected a certificate to connect with TLS, found none".to_owned()));
        }
        let failed = |error| LinkError::of(address, tls.as_deref(), &error);
        let endpoint = Endpoint::from_shared(address.to_string())
            .map_err(failed)?
            .connect_timeout(wait_max)
            .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
            .max_frame_size(limits::FRAME_BYTES)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        // The endpoint's own time limit ends with the connection of a socket, before names and HTTP/2.
        let connected = async {
            match (address, &tls) {
                (Address::Tls(place), Some(tls)) => endpoint.connect_with_connector(tls.connector(place)).await,
                _ => endpoint.connect().await,
            }
        };
        let channel = match timeout(wait_max, connected).await {
            Ok(connected) => connected.map_err(failed)?,
            Err(_) => return Err(LinkError::Unreachable(format!("no connection within {} s", wait_max.as_secs_f32()))),
        };
        Ok(Self { channel, address: address.clone(), tls, token: access.token.clone() })
    }

    /// Opens the session; what is in `outbound` already goes with it.
    pub async fn open_session(
        &self,
        outbound: ReceiverStream<WorkerMessage>,
    ) -> Result<Messages<CoordinatorMessage>, Status> {
        call(self.channel.clone(), call::SESSION, self.token.as_ref(), outbound, MESSAGE_BYTES_MAX).await
    }

    /// Why the session could not be opened, if it is for want of a right.
    pub fn refusal(&self, status: &Status) -> Option<LinkError> {
        let address = self.address.clone();
        match (status.code(), &self.address) {
            (Code::Unauthenticated, _) => Some(LinkError::Token { address, reason: status.message().to_owned() }),
            // HTTP/2's word for a connection without TLS, which is no answer to the call.
            (Code::PermissionDenied, Address::Tcp(_)) if status.source().is_some() => {
                Some(LinkError::TlsOnly { address })
            }
            _ => Some(LinkError::of(&self.address, self.tls.as_deref(), status)).filter(LinkError::is_final),
        }
    }

    /// Asks for the data set of this fingerprint.
    pub async fn fetch_dataset(&self, data_fingerprint: String) -> Result<Messages<DatasetPiece>, Status> {
        let request = tokio_stream::once(FetchDatasetRequest { data_fingerprint });
        call(self.channel.clone(), call::FETCH_DATASET, self.token.as_ref(), request, MESSAGE_BYTES_MAX).await
    }
}

/// How gradients travel, both ways: settled when a worker is admitted, and of no interest to who computes them.
#[derive(Debug)]
pub(crate) struct GradientTransport {
    encoding: Encoding,
    /// For gradients that lie in no slot.
    buffers: Arc<Buffers>,
    /// Memory of the coordinator, if this worker is on its machine.
    shared: Option<SharedSlots>,
}

#[derive(Debug)]
struct SharedSlots {
    results: ResultSlots,
    updates: UpdateSlots,
}

/// A gradient that did not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GradientError {
    #[error("{0}")]
    Values(#[from] ValuesError),
    #[error("{0}")]
    Slot(#[from] SlotError),
    #[error("expected bytes, found a slot of memory that this worker does not share")]
    NotShared,
}

impl GradientTransport {
    /// The way that the coordinator has chosen, or the one that this worker can go: what is in memory or in messages is the
    /// same.
    pub fn open(encoding: Encoding, offered: Option<&SharedMemory>, n_params: usize) -> Self {
        let shared = offered.and_then(|offered| match SharedSlots::open(offered, n_params) {
            Ok(shared) => Some(shared),
            Err(error) => {
                info!(%error, "gradients travel over the connection, since the coordinator's memory is out of reach");
                None
            }
        });
        Self { encoding, buffers: Arc::new(Buffers::new(n_params, GRADIENTS_FREE_MAX)), shared }
    }

    /// Whether gradients may lie in the coordinator's memory.
    pub fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// Where to write a gradient that is sent.
    pub fn outbound_gradient(&self) -> OutboundGradient<'_> {
        // If all slots are full, the coordinator is late: the gradient goes into the message instead.
        let free = self.shared.as_ref().and_then(|shared| shared.results.free());
        free.map_or_else(|| OutboundGradient::Message(self, self.buffers.take()), OutboundGradient::Slot)
    }

    /// Takes a gradient that came in, part by part: `apply` is given the position of the first value of each, and the values.
    /// After an error, parts may have been given that are of no use.
    pub fn take(&self, update: &Update, apply: impl FnMut(usize, &[f32])) -> Result<(), GradientError> {
        match (update.slot, &self.shared) {
            (None, _) => Ok(values::decode_blocks(self.encoding, &update.gradient, self.buffers.n_params(), apply)?),
            (Some(slot), Some(shared)) => Ok(shared.updates.read(slot, update.step, apply)?),
            (Some(_), None) => Err(GradientError::NotShared),
        }
    }
}

impl SharedSlots {
    fn open(offered: &SharedMemory, n_params: usize) -> Result<Self, OpenError> {
        let SharedMemory { process, results, updates } = offered;
        let [results, updates] = [results, updates].map(|region| region.clone().unwrap_or_default());
        Ok(Self {
            results: ResultSlots::open(*process, &results, n_params)?,
            updates: UpdateSlots::open(*process, &updates, n_params)?,
        })
    }
}

/// Where a gradient is written that is sent.
#[derive(Debug)]
pub(crate) enum OutboundGradient<'a> {
    Slot(FreeSlot<'a>),
    Message(&'a GradientTransport, Vec<f32>),
}

impl OutboundGradient<'_> {
    /// The memory for its values, with undefined contents.
    pub fn values(&mut self) -> &mut [f32] {
        match self {
            Self::Slot(slot) => slot.values(),
            Self::Message(_, values) => values,
        }
    }

    /// What the message says of it: its bytes, or its slot.
    pub fn close(self) -> (Bytes, Option<u32>) {
        match self {
            Self::Slot(slot) => (Bytes::new(), Some(slot.fill())),
            Self::Message(transport, values) => {
                (values::encode_owned(transport.encoding, transport.buffers.lend(values)), None)
            }
        }
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
