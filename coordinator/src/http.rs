//! The port of the page, the metrics and the probes, on a thread of its own, so that readers take no time from the driver.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use observe::metrics::Metrics;
use observe::server::{Access, Extras, Limits, Runs, router, serve};
use proto::tls::{Reloaded, TlsError};
use proto::token::{Token, TokenError};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::config::{Http, HttpReach};
use crate::endpoint::host_name;
use crate::error::ClusterError;
use crate::tls::page_config;

/// Where the page is by default.
const DEFAULT_ADDRESS: &str = "127.0.0.1:7188";
/// How long the last news may take to the pages that are open, when the run is over.
const LAST_NEWS_WAIT: Duration = Duration::from_secs(2);

/// A bound listener for the page, before it is served.
#[derive(Debug)]
pub struct HttpPort {
    listener: std::net::TcpListener,
    tls: Option<Arc<Reloaded<ServerConfig>>>,
    access: Access,
    /// As it is typed into a browser.
    pub url: String,
}

/// What answers there, until it is dropped.
#[derive(Debug)]
pub struct HttpServer {
    shutdown: CancellationToken,
    thread: Option<JoinHandle<()>>,
    /// As it is typed into a browser.
    pub url: String,
    /// Whether workers can join, for `/readyz`.
    pub is_ready: Arc<AtomicBool>,
}

/// Why there is no such port.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address cannot be listened at.
    #[error(transparent)]
    Listen(#[from] ClusterError),
    /// There is no certificate for it.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// There is no token for it.
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl HttpPort {
    /// Listens.
    ///
    /// # Errors
    /// If the address is in use, or what readers have to prove cannot be read.
    pub fn open(http: &Http) -> Result<Option<Self>, HttpError> {
        let (address, reach) = match http {
            Http::Off => return Ok(None),
            Http::Default => (DEFAULT_ADDRESS, &HttpReach::ThisMachine),
            Http::At(address, reach) => (address.as_str(), reach),
        };
        let bound = std::net::TcpListener::bind(address);
        // Another run on this machine has the usual one.
        let bound = match bound {
            Err(error) if *http == Http::Default && error.kind() == ErrorKind::AddrInUse => {
                std::net::TcpListener::bind("127.0.0.1:0")
            }
            bound => bound,
        };
        // The page was not asked for: a run does without.
        if let (Err(error), Http::Default) = (&bound, http) {
            warn!(%error, "no page: nothing can be listened at on this machine");
            return Ok(None);
        }
        let opened = bound.and_then(|listener| {
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        });
        let error = |source| ClusterError::Listen { flag: "--http", address: address.to_owned(), source };
        let (listener, found) = opened.map_err(error)?;
        let (tls, access) = match reach {
            HttpReach::ThisMachine => (None, Access::loopback()),
            HttpReach::Others(files, token_file) => {
                let configs = Reloaded::open(files.clone(), page_config)?;
                (Some(Arc::new(configs)), with_token(named(address), token_file)?)
            }
            HttpReach::OthersInsecurely(None) => (None, named(address)),
            HttpReach::OthersInsecurely(Some(token_file)) => (None, with_token(named(address), token_file)?),
        };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let given = host_of(address);
        let host = if found.ip().is_unspecified() {
            host_name().unwrap_or_else(|| given.to_owned())
        } else {
            given.to_owned()
        };
        let url = format!("{scheme}://{host}:{}/", found.port());
        Ok(Some(Self { listener, tls, access, url }))
    }

    /// Answers from now on.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn start(self, runs: Runs, metrics: Option<Arc<Metrics>>) -> std::io::Result<HttpServer> {
        let Self { listener, tls, access, url } = self;
        let (shutdown, is_ready) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
        let ready = Arc::clone(&is_ready);
        let extras = Extras { is_ready: Box::new(move || ready.load(Ordering::Relaxed)), metrics };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
        let ending = shutdown.clone();
        let answer = async move {
            let listener = TcpListener::from_std(listener)?;
            let tls = tls.map(|configs| move || TlsAcceptor::from(configs.current()));
            serve(listener, tls, router(runs, access, extras), Limits::default(), ending).await;
            Ok::<(), std::io::Error>(())
        };
        let thread = std::thread::Builder::new().name("http".to_owned()).spawn(move || {
            if let Err(error) = runtime.block_on(answer) {
                warn!(%error, "the page's server failed");
            }
            runtime.shutdown_background();
        })?;
        Ok(HttpServer { shutdown, thread: Some(thread), url, is_ready })
    }
}

impl HttpServer {
    /// Ends, once the pages that are open have the last news, or two seconds have passed.
    pub fn finish(mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.shutdown.cancel();
        let deadline = Instant::now() + LAST_NEWS_WAIT;
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Readers that call the server by its address, the name it was given, or this machine's.
fn named(address: &str) -> Access {
    Access::named(host_name().into_iter().chain([host_of(address).to_owned()]))
}

fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

fn with_token(access: Access, file: &Path) -> Result<Access, TokenError> {
    let token = Token::read(file)?;
    Ok(access.with_token(token.expose()).expect("a token is not empty"))
}
