//! The gRPC service on tonic's server: which calls there are. Sessions are in `session`, the data set in `fetch`.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use engine::task::OpenTask;
use proto::buffers::Buffers;
use proto::call::{self, Messages, answer};
use proto::limits::{
    CONNECTION_WINDOW_BYTES, FIRST_MESSAGE_WAIT_MAX, FRAME_BYTES, HEARTBEAT_INTERVAL, MESSAGE_OVERHEAD_BYTES_MAX,
    STREAM_WINDOW_BYTES, STREAMS_PER_CONNECTION_MAX,
};
use proto::v1::{DatasetPiece, FetchDatasetRequest, WorkerMessage, training_server::SERVICE_NAME};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, http};
use tonic::server::NamedService;
use tonic::transport::Server;
use tracing::{Instrument, info, warn};

use crate::accept::Connection;
use crate::admission::ConnectionHandle;
use crate::facts::Facts;
use crate::fetch::{self, send_dataset};
use crate::input::Input;
use crate::outbox::{OutboxStream, outbox};
use crate::peer::Peer;
use crate::session::{Session, Shared};

/// The service, with what its sessions share.
#[derive(Debug, Clone)]
pub struct Service {
    shared: Arc<Shared>,
}

impl Service {
    /// A service whose sessions speak to the driver through `inputs` and end with `shutdown`.
    pub fn new(
        facts: Arc<Facts>,
        task: Arc<dyn OpenTask>,
        buffers: Arc<Buffers>,
        inputs: mpsc::Sender<Input>,
        shutdown: CancellationToken,
    ) -> Self {
        Self { shared: Arc::new(Shared::new(facts, task, buffers, inputs, shutdown)) }
    }

    /// Serves the connections given until `shutdown`, and then until the last session has ended.
    ///
    /// # Errors
    /// If the server fails.
    pub async fn serve(self, connections: mpsc::Receiver<std::io::Result<Connection>>) -> anyhow::Result<()> {
        let (health_reporter, health) = tonic_health::server::health_reporter();
        health_reporter.set_serving::<Self>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let reflection = self.shared.facts.reflection.then_some(reflection);
        let shutdown = self.shared.shutdown.clone();
        let server = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .concurrency_limit_per_connection(STREAMS_PER_CONNECTION_MAX as usize)
            .load_shed(true)
            .http2_keepalive_interval(Some(4 * HEARTBEAT_INTERVAL))
            .http2_keepalive_timeout(Some(self.shared.facts.heartbeat_timeout))
            .add_service(health)
            .add_optional_service(reflection)
            .add_service(self.clone());
        server.serve_with_incoming_shutdown(ReceiverStream::new(connections), shutdown.cancelled_owned()).await?;
        self.shared.sessions.close();
        self.shared.sessions.wait().await;
        Ok(())
    }
}

impl NamedService for Service {
    const NAME: &'static str = SERVICE_NAME;
}

impl tonic::codegen::Service<http::Request<Body>> for Service {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            let connection = head.extensions.remove::<ConnectionHandle>().expect("every call comes over a connection");
            if let Some(status) = service.unauthenticated(&connection.peer, &head.headers) {
                return Ok(status.into_http());
            }
            Ok(match head.uri.path() {
                // The first message is a join: more is only read from a worker that was admitted.
                call::SESSION => {
                    answer(Ok(service.session(connection, Messages::of_request(body, MESSAGE_OVERHEAD_BYTES_MAX))))
                }
                call::FETCH_DATASET => answer(
                    service.fetch_dataset(connection, Messages::of_request(body, MESSAGE_OVERHEAD_BYTES_MAX)).await,
                ),
                path => Status::unimplemented(format!("expected a method of {SERVICE_NAME}, found {path}")).into_http(),
            })
        })
    }
}

impl Service {
    /// The answer to a call without the token of this run, if it needs one.
    fn unauthenticated(&self, peer: &Peer, headers: &http::HeaderMap) -> Option<Status> {
        if self.shared.facts.token.as_ref().is_none_or(|token| token.is_in(headers)) {
            return None;
        }
        let found = if headers.contains_key(http::header::AUTHORIZATION) { "another one" } else { "none" };
        warn!(%peer, identity = %peer.identity(), found, "call refused: expected the token of this run");
        Some(Status::unauthenticated(format!(
            "expected the token of this run, found {found}; start the worker with the --token-file of the coordinator"
        )))
    }

    fn session(&self, connection: ConnectionHandle, inbound: Messages<WorkerMessage>) -> OutboxStream {
        let (sender, stream) = outbox(self.shared.buffers.n_params());
        let session = Session::new(Arc::clone(&self.shared), connection, sender);
        self.shared.sessions.spawn(session.run(inbound).in_current_span());
        stream
    }

    async fn fetch_dataset(
        &self,
        connection: ConnectionHandle,
        mut inbound: Messages<FetchDatasetRequest>,
    ) -> Result<ReceiverStream<Result<DatasetPiece, Status>>, Status> {
        connection.begin_fetch().map_err(|error| Status::permission_denied(error.to_string()))?;
        let request = timeout(FIRST_MESSAGE_WAIT_MAX, inbound.message()).await;
        let request =
            request.map_err(|_| Status::deadline_exceeded("expected a data set's fingerprint, found nothing"))??;
        if request.unwrap_or_default().data_fingerprint != self.shared.facts.data_fingerprint {
            return Err(Status::not_found("expected the fingerprint of the welcome, found another one"));
        }
        let (pieces, stream) = fetch::pieces();
        let shared = Arc::clone(&self.shared);
        self.shared.sessions.spawn(
            async move {
                let (peer, identity) = (&connection.peer, connection.peer.identity());
                let sent = async {
                    let _permit = shared.fetches.permit(identity.clone()).await;
                    info!(%peer, %identity, "the data set is sent");
                    send_dataset(&*shared.task, pieces).await;
                };
                tokio::select! {
                    () = shared.shutdown.cancelled() => {}
                    () = connection.closing().cancelled() => {}
                    () = sent => {}
                }
            }
            .in_current_span(),
        );
        Ok(ReceiverStream::new(stream))
    }
}
