//! Connections: how many, and how long a peer may take. One that never speaks, or never reads, costs a place and a little memory
//! for a bounded time.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::select;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::server::routes::Closing;

/// How long to wait after the system could not give a connection, as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long after the shutdown, with no connection left, a page may still ask for something.
const LAST_REQUESTS_WAIT: Duration = Duration::from_millis(300);
/// Bytes that a connection holds of a request, and of an answer besides the piece that is being sent.
const BUFFER_BYTES_MAX: usize = 16 << 10;

/// What peers may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; more are closed.
    pub connections_max: usize,
    /// Connections at a time from one address.
    pub connections_per_address_max: usize,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long a request may take to come whole, from the connection's beginning or the answer before.
    pub request_timeout: Duration,
    /// How long a peer may read nothing while there is something for it.
    pub write_timeout: Duration,
    /// How long answers may take after the shutdown.
    pub shutdown_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 256,
            connections_per_address_max: 64,
            handshake_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            shutdown_grace: Duration::from_secs(2),
        }
    }
}

/// Answers requests by HTTP/1.1 until `shutdown`, and ends with the last connection, or after the grace.
pub async fn serve(
    listener: TcpListener,
    tls: Option<impl Fn() -> TlsAcceptor>,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let router = router.layer(Extension(Closing(shutdown.clone())));
    let places = Places::default();
    let mut connections = JoinSet::new();
    let admit =
        |accepted: io::Result<(TcpStream, SocketAddr)>, connections: &mut JoinSet<()>, end: &CancellationToken| {
            let (socket, peer) = accepted?;
            let Some(place) = places.take(peer, &limits) else {
                debug!(%peer, "a connection to the page was refused: there are too many");
                return Ok(());
            };
            let (tls, router, end) = (tls.as_ref().map(|tls| tls()), router.clone(), end.clone());
            connections.spawn(async move {
                let _place = place;
                serve_connection(socket, tls, router, limits, end).await;
            });
            Ok::<(), io::Error>(())
        };
    // Ends with the shutdown.
    loop {
        let accepted = select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        if let Err(error) = admit(accepted, &mut connections, &shutdown) {
            warn!(%error, "a connection to the page could not be accepted");
            sleep(ACCEPT_PAUSE).await;
        }
    }
    let end = CancellationToken::new();
    let wait = (!connections.is_empty()).then_some(LAST_REQUESTS_WAIT);
    let last_requests = async {
        // Ends when no request has come for a while: clients fetch what the last event names, such as a picture.
        let Some(wait) = wait else { return };
        loop {
            select! {
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => {
                    let _ = admit(accepted, &mut connections, &end);
                }
                () = sleep(wait), if connections.is_empty() => break,
            }
        }
    };
    if timeout(limits.shutdown_grace, last_requests).await.is_err() {
        connections.shutdown().await;
    }
}

/// One connection, to its end.
async fn serve_connection(
    socket: TcpStream,
    tls: Option<TlsAcceptor>,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    // Only slower without.
    let _ = socket.set_nodelay(true);
    let Some(tls) = tls else { return answer(socket, router, limits, shutdown).await };
    let handshake = select! {
        () = shutdown.cancelled() => return,
        handshake = timeout(limits.handshake_timeout, tls.accept(socket)) => handshake,
    };
    match handshake {
        Ok(Ok(socket)) => answer(socket, router, limits, shutdown).await,
        Ok(Err(error)) => debug!(%error, "a TLS handshake with a page failed"),
        Err(_) => debug!("a TLS handshake with a page took too long"),
    }
}

async fn answer(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let has_spoken = Arc::new(AtomicBool::new(false));
    let io = TokioIo::new(PeerIo::new(io, limits.write_timeout, Arc::clone(&has_spoken)));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.request_timeout).max_buf_size(BUFFER_BYTES_MAX);
    let mut connection = pin!(http.serve_connection(io, TowerToHyperService::new(router)));
    let ended = select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            // Browsers open some in advance. hyper takes one for busy over which nothing has come yet.
            if !has_spoken.load(Ordering::Relaxed) {
                return;
            }
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection to the page broke");
    }
}

/// Connections by their peers' addresses.
#[derive(Clone, Debug, Default)]
struct Places(Arc<Mutex<BTreeMap<IpAddr, usize>>>);

/// One connection's place.
#[derive(Debug)]
struct Place {
    places: Places,
    address: IpAddr,
}

impl Places {
    /// Nothing if there are too many.
    fn take(&self, peer: SocketAddr, limits: &Limits) -> Option<Place> {
        let address = peer.ip().to_canonical();
        let mut taken = self.lock();
        let n_all: usize = taken.values().sum();
        let n_same = taken.get(&address).copied().unwrap_or(0);
        if n_all >= limits.connections_max || n_same >= limits.connections_per_address_max {
            return None;
        }
        taken.insert(address, n_same + 1);
        Some(Place { places: self.clone(), address })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        if let Some(n_same) = taken.get_mut(&self.address) {
            *n_same -= 1;
            if *n_same == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

/// A connection that breaks when its peer does not read for too long, and that notes whether it has ever sent something.
struct PeerIo<IO> {
    io: IO,
    has_spoken: Arc<AtomicBool>,
    write_timeout: Duration,
    /// Runs out while a write waits.
    timer: Pin<Box<Sleep>>,
    is_waiting: bool,
}

impl<IO> PeerIo<IO> {
    fn new(io: IO, write_timeout: Duration, has_spoken: Arc<AtomicBool>) -> Self {
        Self { io, has_spoken, write_timeout, timer: Box::pin(sleep(write_timeout)), is_waiting: false }
    }

    /// What a write gives, or an error if it has waited for too long.
    fn bounded<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.is_waiting = false;
            return written;
        }
        if !self.is_waiting {
            self.is_waiting = true;
            self.timer.as_mut().reset(Instant::now() + self.write_timeout);
        }
        self.timer.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for PeerIo<IO> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let n_before = into.filled().len();
        let read = Pin::new(&mut self.io).poll_read(context, into);
        if into.filled().len() > n_before {
            self.has_spoken.store(true, Ordering::Relaxed);
        }
        read
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for PeerIo<IO> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.bounded(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(context, pieces);
        self.bounded(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        self.bounded(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.io).poll_shutdown(context);
        self.bounded(context, closed)
    }
}
