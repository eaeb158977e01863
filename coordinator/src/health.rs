//! Whether a coordinator lives and takes workers, by `grpc.health.v1`: a port for probes that serves nothing else, and the
//! client behind `--check`.

use std::time::Duration;

use proto::tls::{Client, TlsError, TlsFiles, TlsRefusal};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::{Endpoint, Server};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus as FoundStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::server::HealthReporter;
use tracing::warn;

use crate::accept::{Listener, accept};
use crate::admission::{Admission, Limits};
use crate::config::ListenAddress;

/// Serves from the first moment on: a probe that fails here means that the process hangs.
pub const LIVENESS: &str = "liveness";
/// Serves while workers can join. The service without a name says the same.
pub const READINESS: &str = "readiness";

/// Connections of probes at a time, of which the oldest gives way to a new one; the kubelet has one for each of its three
/// probes.
const CONNECTIONS_MAX: usize = 16;
const LIMITS: Limits =
    Limits { n_connections_max: CONNECTIONS_MAX, n_per_identity_max: CONNECTIONS_MAX, n_sessions_max: 0 };
/// How long one of them may stay.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(10);
/// How long a check may take.
const CHECK_WAIT_MAX: Duration = Duration::from_secs(5);

/// The port for probes.
#[derive(Debug)]
pub struct HealthPort {
    reporter: HealthReporter,
}

impl HealthPort {
    /// Listens, and serves until `shutdown`.
    ///
    /// # Errors
    /// If the address cannot be listened at.
    pub async fn open(address: &str, shutdown: CancellationToken) -> std::io::Result<Self> {
        let listener = Listener::Tcp(TcpListener::bind(address).await?);
        let (reporter, service) = tonic_health::server::health_reporter();
        reporter.set_service_status(LIVENESS, ServingStatus::Serving).await;
        for name in [READINESS, ""] {
            reporter.set_service_status(name, ServingStatus::NotServing).await;
        }
        let (accepted, connections) = mpsc::channel(CONNECTIONS_MAX);
        tokio::spawn(accept(listener, None, Admission::new(LIMITS), accepted, shutdown.clone()));
        // A probe has a connection of its own, and is soon done: who stays would keep the next one out.
        let server = Server::builder()
            .timeout(CHECK_WAIT_MAX)
            .max_connection_age(CONNECTION_AGE_MAX)
            .concurrency_limit_per_connection(1)
            .max_concurrent_streams(1)
            .add_service(service);
        tokio::spawn(async move {
            let served =
                server.serve_with_incoming_shutdown(ReceiverStream::new(connections), shutdown.cancelled_owned());
            if let Err(error) = served.await {
                warn!(%error, "the port for probes is closed");
            }
        });
        Ok(Self { reporter })
    }

    /// Workers can join from now on.
    pub async fn set_ready(&self) {
        for name in [READINESS, ""] {
            self.reporter.set_service_status(name, ServingStatus::Serving).await;
        }
    }
}

/// A coordinator that does not serve.
#[derive(Debug, thiserror::Error)]
#[error("expected a coordinator that takes workers at {address}, found {found}; see its log, or check another address")]
pub struct NotServing {
    /// Where it was looked for.
    address: ListenAddress,
    /// What was there instead.
    found: String,
}

/// Why a check has failed.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// No coordinator is serving there.
    #[error(transparent)]
    NotServing(#[from] NotServing),
    /// There is nothing to prove oneself with.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Asks a coordinator whether workers can join, at its address for workers or at its port for probes.
///
/// # Errors
/// If it does not say so within 5 s.
pub async fn check(address: &ListenAddress, tls: Option<TlsFiles>) -> Result<(), CheckError> {
    let tls = tls.map(|files| Client::new(&files, files.read()?)).transpose()?;
    let error = |found: String| NotServing { address: address.clone(), found };
    let uri = match address {
        ListenAddress::Tcp(place) if tls.is_some() => format!("https://{place}"),
        ListenAddress::Tcp(place) => format!("http://{place}"),
        ListenAddress::Unix(path) => format!("unix:{}", path.display()),
    };
    let words = |error: &(dyn std::error::Error + 'static)| match (TlsRefusal::of(error), &tls) {
        (Some(TlsRefusal::OwnCertificate(fault)), Some(tls)) => {
            format!("one that does not accept this certificate: {}", fault.describe(&tls.last_day))
        }
        (Some(refusal), _) => refusal.to_string(),
        (None, _) => innermost(error),
    };
    let ask = async {
        let endpoint = Endpoint::from_shared(uri).map_err(|error| words(&error))?;
        let connected = match (&tls, address) {
            (Some(tls), ListenAddress::Tcp(place)) => endpoint.connect_with_connector(tls.connector(place)).await,
            _ => endpoint.connect().await,
        };
        let channel = connected.map_err(|error| words(&error))?;
        let request = HealthCheckRequest { service: String::new() };
        let answer = HealthClient::new(channel).check(request).await.map_err(|status| match status.code() {
            Code::PermissionDenied => {
                "one that speaks TLS only: write https://, --tls-cert, --tls-key and --tls-ca".to_owned()
            }
            _ => words(&status),
        })?;
        match answer.into_inner().status() {
            FoundStatus::Serving => Ok(()),
            FoundStatus::Unknown | FoundStatus::NotServing | FoundStatus::ServiceUnknown => {
                Err("one that is not ready yet".to_owned())
            }
        }
    };
    let answered = timeout(CHECK_WAIT_MAX, ask).await;
    let answered = answered.unwrap_or_else(|_| Err(format!("no answer within {} s", CHECK_WAIT_MAX.as_secs())));
    Ok(answered.map_err(error)?)
}

/// What the system says, without what each layer above it says of that.
fn innermost(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.last().map(ToString::to_string).unwrap_or_default()
}
