//! The accept loop: who may connect, and how long a peer may take to be of use. A connection that never speaks would be kept for
//! ever by the HTTP/2 server, and would keep it from shutting down.

use std::io::{Error, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use proto::limits::{FIRST_MESSAGE_WAIT_MAX, UNADMITTED_BYTES_MAX};
use proto::tls::SEND_BYTES;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::{self, sleep, timeout_at};
use tokio_util::either::Either;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::admission::{Admission, ConnectionHandle, Lease};
use crate::peer::{Peer, PeerAddress};
use crate::tls::{PLAINTEXT_ONLY, Tls, TlsConnection, is_tls, turn_away};

/// What an HTTP/2 client says first (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long to wait after the system could not give a connection, as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where connections come from.
#[derive(Debug)]
pub enum Listener {
    /// Other machines, or this one.
    Tcp(TcpListener),
    /// This machine.
    Unix(UnixListener),
}

/// A connection as the system gives it.
type Socket = Either<TcpStream, UnixStream>;

/// A connection whose peer has begun to speak HTTP/2. It breaks when it has to give way, and when the peer sends more than a
/// join takes before it is admitted.
#[derive(Debug)]
pub struct Connection {
    io: Either<Socket, Box<TlsConnection>>,
    /// What was read of the preface and not given on yet.
    preface: &'static [u8],
    lease: Lease,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Bytes that came before it was admitted.
    n_unadmitted: usize,
}

impl Listener {
    async fn accept(&self) -> std::io::Result<(Socket, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let peer = Peer::of_tcp(&stream)?;
                Ok((Either::Left(stream), peer))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let peer = Peer::of_unix(&stream)?;
                Ok((Either::Right(stream), peer))
            }
        }
    }
}

/// Accepts connections until `shutdown`, as many as `admission` allows, and gives each to `accepted` once it has begun to
/// speak. With `tls`, a peer that comes by TCP has to prove itself first. One over which no worker has joined within 10 s is
/// closed.
pub async fn accept(
    listener: Listener,
    tls: Option<Arc<Tls>>,
    admission: Arc<Admission>,
    accepted: mpsc::Sender<std::io::Result<Connection>>,
    shutdown: CancellationToken,
) {
    let handshakes = TaskTracker::new();
    // Ends with the shutdown.
    loop {
        let next = tokio::select! {
            () = shutdown.cancelled() => break,
            next = listener.accept() => next,
        };
        let (io, peer) = match next {
            Ok(next) => next,
            // The peer was gone before it was looked at.
            Err(error) if matches!(error.kind(), ErrorKind::NotConnected | ErrorKind::ConnectionAborted) => continue,
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let identity = peer.identity();
        let lease = match admission.connect(peer.clone(), Instant::now()) {
            Ok(lease) => lease,
            Err(error) => {
                warn!(%peer, %identity, reason = %error, "a connection was refused");
                continue;
            }
        };
        let (accepted, shutdown, tls) = (accepted.clone(), shutdown.clone(), tls.clone());
        let closing = lease.handle().closing().clone();
        handshakes.spawn(async move {
            let connection = tokio::select! {
                () = shutdown.cancelled() => return,
                () = closing.cancelled() => return,
                connection = handshake(io, lease, tls.as_deref()) => connection,
            };
            let Some(connection) = connection else { return };
            let handle = connection.lease.handle().clone();
            // Fails only when the server has ended.
            let _ = accepted.send(Ok(connection)).await;
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = closing.cancelled() => {}
                () = sleep(FIRST_MESSAGE_WAIT_MAX) => if !handle.is_admitted() {
                    debug!(peer = %handle.peer, "a connection over which nobody joined was closed");
                    handle.close();
                }
            }
        });
    }
    handshakes.close();
    handshakes.wait().await;
}

/// Makes the TLS handshake, if there is to be one, and waits for the preface; for so long in all.
async fn handshake(io: Socket, mut lease: Lease, tls: Option<&Tls>) -> Option<Connection> {
    let deadline = time::Instant::now() + FIRST_MESSAGE_WAIT_MAX;
    let peer = lease.handle().peer.clone();
    if let PeerAddress::Unix { user, .. } = peer.address
        && user != rustix::process::geteuid().as_raw()
    {
        warn!(%peer, "connection refused: expected a peer of this process' user, found another user's");
        return None;
    }
    let mut io = match (io, tls) {
        (Either::Left(io), Some(tls)) => {
            let proved = match timeout_at(deadline, tls.handshake(io)).await {
                Ok(Ok((io, certificate))) => {
                    lease.prove(certificate, Instant::now()).map(|()| io).map_err(|error| error.to_string())
                }
                Ok(Err(refusal)) => Err(refusal.to_string()),
                Err(_) => Err("expected a TLS handshake, found none in time".to_owned()),
            };
            match proved {
                Ok(io) => Either::Right(Box::new(io)),
                Err(reason) => {
                    warn!(%peer, reason, "connection refused");
                    return None;
                }
            }
        }
        (io, _) => Either::Left(io),
    };
    let peer = &lease.handle().peer;
    let mut found = [0_u8; PREFACE.len()];
    match timeout_at(deadline, io.read_exact(&mut found)).await {
        Ok(Ok(_)) if found == *PREFACE => {
            debug!(%peer, identity = %peer.identity(), "connection accepted");
            let closing = Box::pin(lease.handle().closing().clone().cancelled_owned());
            Some(Connection { io, preface: PREFACE, lease, closing, n_unadmitted: 0 })
        }
        Ok(Ok(_)) if is_tls(&found) => {
            let reason = "expected no TLS, found a peer that begins with it; start this coordinator with --tls-cert, \
                          --tls-key and --tls-ca, or the worker with `--coordinator http://…` and without them";
            warn!(%peer, reason, "connection refused");
            turn_away(io, PLAINTEXT_ONLY).await;
            None
        }
        Ok(Ok(_)) => {
            debug!(%peer, "a peer that does not speak HTTP/2 was closed");
            None
        }
        Ok(Err(_)) | Err(_) => {
            debug!(%peer, "a peer that did not speak was closed");
            None
        }
    }
}

impl Connection {
    /// An error once it is to be closed. Asked for before each read and each write: a peer that reads nothing keeps HTTP/2 from
    /// reading, too.
    fn poll_closing(&mut self, context: &mut Context<'_>) -> std::io::Result<()> {
        if self.closing.as_mut().poll(context).is_ready() {
            return Err(Error::new(ErrorKind::ConnectionAborted, "the connection gave way"));
        }
        Ok(())
    }

    /// Counts bytes that came in, as long as no worker has joined. Once one has, more is encrypted at a time.
    fn count_unadmitted(&mut self, n_bytes: usize) -> std::io::Result<()> {
        if self.lease.handle().is_admitted() {
            if let Either::Right(tls) = &mut self.io {
                tls.get_mut().1.set_buffer_limit(Some(SEND_BYTES));
            }
            return Ok(());
        }
        self.n_unadmitted += n_bytes;
        if self.n_unadmitted <= UNADMITTED_BYTES_MAX {
            return Ok(());
        }
        let peer = &self.lease.handle().peer;
        debug!(%peer, "a peer that sent more than a join takes before it had joined was closed");
        self.lease.handle().close();
        Err(Error::new(ErrorKind::ConnectionAborted, "expected a join, found more than it takes"))
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionHandle;

    fn connect_info(&self) -> ConnectionHandle {
        self.lease.handle().clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        this.poll_closing(context)?;
        if this.preface.is_empty() {
            let n_before = buffer.filled().len();
            let polled = Pin::new(&mut this.io).poll_read(context, buffer);
            return match this.count_unadmitted(buffer.filled().len() - n_before) {
                Ok(()) => polled,
                Err(error) => Poll::Ready(Err(error)),
            };
        }
        let (now, later) = this.preface.split_at(this.preface.len().min(buffer.remaining()));
        buffer.put_slice(now);
        this.preface = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let this = self.get_mut();
        this.poll_closing(context)?;
        Pin::new(&mut this.io).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        this.poll_closing(context)?;
        Pin::new(&mut this.io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        this.poll_closing(context)?;
        Pin::new(&mut this.io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let this = self.get_mut();
        this.poll_closing(context)?;
        Pin::new(&mut this.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
