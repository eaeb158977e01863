//! The end that connects: its settings, its connections, and why one was refused.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, InvalidMessage};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::http::Uri;
use tonic::codegen::{BoxFuture, Service};

use super::{ALPN, Credentials, READ_BYTES, SEND_BYTES, TlsError, TlsFiles, day, provider};

/// What a client has to prove itself with.
#[derive(Clone, Debug)]
pub struct Client {
    /// The settings of its connections.
    config: Arc<ClientConfig>,
    /// The day on which its certificate expires.
    pub last_day: String,
}

/// Makes connections to one server, for an endpoint of tonic. tonic's own connector encrypts 64 KiB at a time.
#[derive(Clone, Debug)]
pub struct Connector {
    config: Arc<ClientConfig>,
    /// Host and port.
    place: String,
}

impl Client {
    /// Settings of these credentials. An own certificate that is out of date is the other side's to refuse.
    ///
    /// # Errors
    /// If the certificate cannot be used.
    pub fn new(files: &TlsFiles, credentials: Credentials) -> Result<Self, TlsError> {
        let Credentials { chain, key, roots, last_day, .. } = credentials;
        let refused = |source| TlsError::Refused { path: files.certificate.clone(), source };
        let versions = ClientConfig::builder_with_provider(Arc::new(provider()));
        let versions = versions.with_protocol_versions(&[&rustls::version::TLS13]).map_err(refused)?;
        let mut config = versions.with_root_certificates(roots).with_client_auth_cert(chain, key).map_err(refused)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { config: Arc::new(config), last_day })
    }

    /// What connects to the server at `HOST:PORT`.
    pub fn connector(&self, place: &str) -> Connector {
        Connector { config: Arc::clone(&self.config), place: place.to_owned() }
    }
}

impl Connector {
    async fn connect(self) -> io::Result<TokioIo<TlsStream<BufReader<TcpStream>>>> {
        let host = self.place.rsplit_once(':').map_or(self.place.as_str(), |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let host = ServerName::try_from(host).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let stream = TcpStream::connect(self.place).await?;
        stream.set_nodelay(true)?;
        let stream = BufReader::with_capacity(READ_BYTES, stream);
        let mut stream = TlsConnector::from(self.config).connect(host, stream).await?;
        let session = stream.get_mut().1;
        if session.alpn_protocol() != Some(ALPN) {
            return Err(io::Error::other("expected a server of HTTP/2, found one of something else"));
        }
        session.set_buffer_limit(Some(SEND_BYTES));
        Ok(TokioIo::new(stream))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<BufReader<TcpStream>>>;
    type Error = io::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}

/// Why a connection came to nothing that another attempt would not get either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsRefusal {
    /// The other side does not accept this one's certificate.
    OwnCertificate(OwnFault),
    /// The other side's certificate is not accepted, and why.
    OtherCertificate(String),
    /// The other side does not speak TLS.
    NoTls,
}

/// What the other side has against a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnFault {
    /// It has expired.
    Expired,
    /// It is of another CA.
    UnknownCa,
    /// Something else.
    Other(AlertDescription),
}

/// Alerts about the certificate of the end that receives them (RFC 8446, section 6.2).
const CERTIFICATE_ALERTS: [AlertDescription; 9] = [
    AlertDescription::CertificateExpired,
    AlertDescription::UnknownCA,
    AlertDescription::CertificateRequired,
    AlertDescription::BadCertificate,
    AlertDescription::UnsupportedCertificate,
    AlertDescription::CertificateRevoked,
    AlertDescription::CertificateUnknown,
    AlertDescription::AccessDenied,
    AlertDescription::DecryptError,
];

impl TlsRefusal {
    /// The refusal among the causes of an error, if there is one.
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(refusal) = Self::of_cause(error) {
                return Some(refusal);
            }
            cause = error.source();
        }
        None
    }

    fn of_cause(cause: &(dyn Error + 'static)) -> Option<Self> {
        // An error of the system's kind does not give what is in it as its source.
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = inner.and_then(|inner| inner.downcast_ref()).or_else(|| cause.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::AlertReceived(alert)) => Self::of_alert(*alert),
            Some(rustls::Error::InvalidCertificate(error)) => Some(Self::OtherCertificate(reason(error))),
            Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => Some(Self::NoTls),
            Some(_) => None,
            // With TLS 1.3 a client learns that it is refused when its handshake is over, and HTTP/2 keeps only the text of that.
            None => {
                let text = inner?.to_string();
                let is_in_text = |alert: &AlertDescription| text == rustls::Error::AlertReceived(*alert).to_string();
                CERTIFICATE_ALERTS.into_iter().find(is_in_text).and_then(Self::of_alert)
            }
        }
    }

    fn of_alert(alert: AlertDescription) -> Option<Self> {
        let fault = match alert {
            AlertDescription::CertificateExpired => OwnFault::Expired,
            // A CA of the same name with another key is another one.
            AlertDescription::UnknownCA | AlertDescription::DecryptError => OwnFault::UnknownCa,
            other if CERTIFICATE_ALERTS.contains(&other) => OwnFault::Other(other),
            _ => return None,
        };
        Some(Self::OwnCertificate(fault))
    }
}

impl OwnFault {
    /// What it means for a certificate that expires on a day.
    pub fn describe(self, last_day: &str) -> String {
        match self {
            Self::Expired => format!("it expired on {last_day}, or the coordinator's clock is wrong"),
            Self::UnknownCa => "it is of none of the CAs that the coordinator accepts".to_owned(),
            Self::Other(alert) => format!("the coordinator says {alert:?}"),
        }
    }
}

impl fmt::Display for TlsRefusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnCertificate(fault) => write!(out, "a refusal of the certificate: {fault:?}"),
            Self::OtherCertificate(reason) => write!(out, "a certificate that is not accepted: {reason}"),
            Self::NoTls => out.write_str("a peer without TLS"),
        }
    }
}

fn reason(error: &CertificateError) -> String {
    match error {
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("it expired on {}", day(i64::try_from(not_after.as_secs()).unwrap_or(i64::MAX)))
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "it is of none of the CAs in --tls-ca".to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let expected = expected.to_str();
            format!("expected one for {expected}, found one for {}; make one with `--host {expected}`", list(presented))
        }
        other => other.to_string(),
    }
}

/// Names as rustls shows them, such as `DnsName("localhost")`, without what is around them.
fn list(presented: &[String]) -> String {
    let plain = presented.iter().map(|name| name.split('"').nth(1).unwrap_or(name));
    plain.collect::<Vec<_>>().join(" and ")
}
