//! The accept loop: who may connect, how many at once, and how long a peer may take to say its first word. A connection
//! that never speaks would be kept for ever by the HTTP/2 server, and would keep it from shutting down.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use proto::limits::FIRST_MESSAGE_WAIT_MAX;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::peer::Peer;

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

/// A connection whose peer has begun to speak HTTP/2.
#[derive(Debug)]
pub struct Connection {
    io: Either<TcpStream, UnixStream>,
    peer: Peer,
    /// What was read of the preface and not given on yet.
    preface: &'static [u8],
    _permit: OwnedSemaphorePermit,
}

impl Listener {
    async fn accept(&self) -> std::io::Result<(Either<TcpStream, UnixStream>, Peer)> {
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

/// Accepts connections until `shutdown`, at most `n_connections_max` at a time, and gives each to `accepted` once it has
/// begun to speak.
pub async fn accept(
    listener: Listener,
    n_connections_max: usize,
    accepted: mpsc::Sender<std::io::Result<Connection>>,
    shutdown: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(n_connections_max));
    let greetings = TaskTracker::new();
    // Ends with the shutdown.
    loop {
        let next = async {
            let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
            listener.accept().await.map(|(io, peer)| (io, peer, permit))
        };
        let next = tokio::select! {
            () = shutdown.cancelled() => break,
            next = next => next,
        };
        match next {
            Ok((io, peer, permit)) => {
                let (accepted, shutdown) = (accepted.clone(), shutdown.clone());
                greetings.spawn(async move {
                    tokio::select! {
                        () = shutdown.cancelled() => {}
                        connection = greet(io, peer, permit) => if let Some(connection) = connection {
                            // Nobody takes it any more only when the server has ended.
                            let _ = accepted.send(Ok(connection)).await;
                        },
                    }
                });
            }
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    greetings.close();
    greetings.wait().await;
}

/// Waits for the preface, for so long.
async fn greet(mut io: Either<TcpStream, UnixStream>, peer: Peer, permit: OwnedSemaphorePermit) -> Option<Connection> {
    let mut found = [0_u8; PREFACE.len()];
    match timeout(FIRST_MESSAGE_WAIT_MAX, io.read_exact(&mut found)).await {
        Ok(Ok(_)) if found == *PREFACE => Some(Connection { io, peer, preface: PREFACE, _permit: permit }),
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

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        if this.preface.is_empty() {
            return Pin::new(&mut this.io).poll_read(context, buffer);
        }
        let (now, later) = this.preface.split_at(this.preface.len().min(buffer.remaining()));
        buffer.put_slice(now);
        this.preface = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
