//! TLS at the coordinator's port: the handshake, who is at the other end by its certificate, and what is said to a peer that
//! cannot come in. Certificates are read anew for each connection after a file has changed, and on SIGHUP.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use proto::tls::{ALPN, Credentials, READ_BYTES, Reloaded, TlsError, TlsFiles, day, name, provider};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{AlertDescription, CertificateError, InvalidMessage, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::info;

/// HTTP/1.1 over TLS (RFC 7301, section 6).
const PAGE_ALPN: &[u8] = b"http/1.1";
/// The first byte of a TLS connection: a record with a handshake (RFC 8446, section 5.1).
const HANDSHAKE_RECORD: u8 = 22;
/// How long a peer that is refused may take to read why.
const REFUSAL_WAIT_MAX: Duration = Duration::from_secs(1);
/// What a client without TLS is answered: HTTP/2's SETTINGS, and a GOAWAY with `INADEQUATE_SECURITY` (RFC 9113, sections 6.5,
/// 6.8 and 7).
const TLS_ONLY: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0c";
/// What a client with TLS is answered where there is none. A client of TLS knows by the first byte that it found none.
pub const PLAINTEXT_ONLY: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// A connection after its handshake.
pub type TlsConnection = TlsStream<BufReader<TcpStream>>;

/// What TLS needs at a port.
#[derive(Debug)]
pub struct Tls {
    configs: Reloaded<ServerConfig>,
}

/// Why a peer cannot come in.
#[derive(Debug)]
pub struct HandshakeError(String);

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// If they prove nothing.
    pub fn open(files: TlsFiles) -> Result<Self, TlsError> {
        Ok(Self { configs: Reloaded::open(files, server_config)? })
    }

    /// Makes the handshake, and gives the stream and the name of the peer's certificate.
    ///
    /// # Errors
    /// If the peer proves nothing, or does not speak TLS; the peer has been answered.
    pub async fn handshake(&self, io: TcpStream) -> Result<(TlsConnection, String), HandshakeError> {
        let mut first = [0];
        let n_bytes = io.peek(&mut first).await.map_err(|error| HandshakeError(error.to_string()))?;
        if n_bytes == 1 && first != [HANDSHAKE_RECORD] {
            turn_away(io, TLS_ONLY).await;
            return Err(HandshakeError(
                "expected TLS, found a peer that speaks without; start it with `--coordinator https://…`, --tls-cert, \
                 --tls-key and --tls-ca"
                    .to_owned(),
            ));
        }
        let io = BufReader::with_capacity(READ_BYTES, io);
        let accepting = TlsAcceptor::from(self.configs.current()).accept(io).into_fallible();
        let stream = match accepting.await {
            Ok(stream) => stream,
            Err((error, io)) => {
                let refusal = HandshakeError(reason(&error));
                turn_away(io, &[]).await;
                return Err(refusal);
            }
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        match certificate.and_then(name) {
            Some(name) => Ok((stream, name)),
            None => Err(HandshakeError(
                "expected a certificate with the name of a host or a common name, found one without; make one with \
                 `coordinator certificates`"
                    .to_owned(),
            )),
        }
    }

    /// Reads the files anew at each SIGHUP, for as long as the future is polled.
    ///
    /// # Errors
    /// If the system refuses a handler.
    pub fn reload_on_hangup(self: Arc<Self>) -> std::io::Result<impl Future<Output = ()> + Send + use<>> {
        let mut hangup = signal(SignalKind::hangup())?;
        Ok(async move {
            // Ends with the task.
            while hangup.recv().await.is_some() {
                info!("SIGHUP: certificates are read anew");
                self.configs.read_again();
            }
        })
    }
}

/// Only TLS 1.3, only with a certificate of the CAs, and every connection with a handshake of its own: a resumed one would
/// not look at the certificate again.
fn server_config(files: &TlsFiles, credentials: Credentials) -> Result<ServerConfig, TlsError> {
    let Credentials { chain, key, roots, last_day, is_valid_now, .. } = credentials;
    let path = || files.certificate.clone();
    if !is_valid_now {
        return Err(TlsError::NotValid { path: path(), reason: format!("is valid until {last_day} only, or not yet") });
    }
    let refused = |source| TlsError::Refused { path: path(), source };
    let provider = Arc::new(provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
    let verifier = verifier.map_err(|error| refused(rustls::Error::General(error.to_string())))?;
    let versions = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let config = versions.map_err(refused)?.with_client_cert_verifier(verifier).with_single_cert(chain, key);
    let mut config = config.map_err(refused)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// For a page: readers prove themselves with the token, not with a certificate.
///
/// # Errors
/// If the certificate is not valid now, or does not belong to the key.
pub fn page_config(files: &TlsFiles, credentials: Credentials) -> Result<ServerConfig, TlsError> {
    let Credentials { chain, key, last_day, is_valid_now, .. } = credentials;
    let path = || files.certificate.clone();
    if !is_valid_now {
        return Err(TlsError::NotValid { path: path(), reason: format!("is valid until {last_day} only, or not yet") });
    }
    let refused = |source| TlsError::Refused { path: path(), source };
    let versions = ServerConfig::builder_with_provider(Arc::new(provider()));
    let versions = versions.with_protocol_versions(&[&rustls::version::TLS13]).map_err(refused)?;
    let mut config = versions.with_no_client_auth().with_single_cert(chain, key).map_err(refused)?;
    config.alpn_protocols = vec![PAGE_ALPN.to_vec()];
    Ok(config)
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// Whether a connection begins as TLS does.
pub fn is_tls(first_bytes: &[u8]) -> bool {
    matches!(first_bytes, [HANDSHAKE_RECORD, 3, ..])
}

/// Answers a peer that cannot come in, and waits until it has closed its side: a connection that is closed while bytes of the
/// peer are unread is reset, and the peer loses the answer.
pub async fn turn_away(mut io: impl AsyncRead + AsyncWrite + Unpin, answer: &[u8]) {
    const BYTES_MAX: u64 = 1 << 20;
    let close = async {
        io.write_all(answer).await?;
        io.shutdown().await?;
        tokio::io::copy(&mut io.take(BYTES_MAX), &mut tokio::io::sink()).await
    };
    // Whatever becomes of it, the peer is not let in.
    let _ = timeout(REFUSAL_WAIT_MAX, close).await;
}

/// Why a handshake failed, and what to do about it.
fn reason(error: &std::io::Error) -> String {
    const MAKE: &str = "make one with `coordinator certificates`";
    let cause = error.get_ref().map(|error| error as &(dyn Error + 'static));
    let Some(cause) = cause.and_then(|cause| cause.downcast_ref::<rustls::Error>()) else {
        return format!("the TLS handshake broke off: {error}");
    };
    match cause {
        rustls::Error::NoCertificatesPresented => {
            format!("expected a certificate of the peer, found none; start it with --tls-cert and --tls-key, or {MAKE}")
        }
        rustls::Error::InvalidCertificate(error) => match error {
            CertificateError::ExpiredContext { not_after, .. } => {
                let last_day = day(i64::try_from(not_after.as_secs()).unwrap_or(i64::MAX));
                format!("the peer's certificate expired on {last_day}; {MAKE}")
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                format!("the peer's certificate is of none of the CAs in --tls-ca; {MAKE}, in the folder of this CA")
            }
            other => format!("the peer's certificate is not accepted: {other}; {MAKE}"),
        },
        rustls::Error::AlertReceived(alert) => {
            let what = match alert {
                AlertDescription::CertificateExpired => "it has expired",
                // The latter of a CA of the same name with another key.
                AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                    "it is of none of the CAs that the peer accepts"
                }
                AlertDescription::BadCertificate => "it may not name the host that the peer connects to",
                _ => return format!("the peer broke the TLS handshake off with the alert {alert:?}"),
            };
            format!("the peer does not accept this coordinator's certificate: {what}; {MAKE}")
        }
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "expected TLS, found something else".to_owned()
        }
        rustls::Error::PeerIncompatible(reason) => format!("expected TLS 1.3 of the peer, found {reason:?}"),
        other => format!("the TLS handshake failed: {other}"),
    }
}
