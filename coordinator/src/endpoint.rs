//! Where workers find the coordinator: an address that is listened at, and a folder that is this process' alone.

use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use engine::files::{PrivateFolder, WriteError, restrict};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tracing::warn;

use crate::accept::Listener;
use crate::config::{Config, ListenAddress, Workers};
use crate::error::ClusterError;

/// Where workers find the coordinator.
#[derive(Debug)]
pub struct Endpoint {
    /// Until it is taken.
    pub listener: Option<Listener>,
    /// As a worker's flag has it, for local workers.
    pub address: Option<String>,
    /// As people type it.
    pub display_address: String,
    /// The socket and whatever else is of this run only; goes with it.
    pub private: PrivateFolder,
    /// A socket elsewhere.
    socket: Option<PathBuf>,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if let Some(socket) = &self.socket {
            // Somebody else may have removed it.
            let _ = std::fs::remove_file(socket);
        }
    }
}

impl Endpoint {
    /// Listens where the configuration says, or at a socket in the private folder.
    ///
    /// # Errors
    /// If the address cannot be listened at, or there is no place for the folder.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        let private = private_folder()?;
        let (listen, is_local) = match &config.workers {
            Workers::Local { .. } => (ListenAddress::Unix(private.path().join("socket")), true),
            Workers::External { listen, .. } => (listen.clone(), false),
        };
        let error = |source| ClusterError::Listen { flag: "--listen", address: listen.to_string(), source };
        let (listener, display_address) = match &listen {
            ListenAddress::Tcp(address) => {
                let listener = TcpListener::bind(address).await.map_err(error)?;
                let display_address = reachable(scheme(&config.workers), listener.local_addr().map_err(error)?);
                (Listener::Tcp(listener), display_address)
            }
            ListenAddress::Unix(path) => {
                remove_stale(path).await;
                let listener = UnixListener::bind(path).map_err(error)?;
                if is_local {
                    restrict(path)?;
                }
                (Listener::Unix(listener), listen.to_string())
            }
        };
        let address = is_local.then(|| display_address.clone());
        let socket = match listen {
            ListenAddress::Unix(path) if !is_local => Some(path),
            ListenAddress::Unix(_) | ListenAddress::Tcp(_) => None,
        };
        Ok(Self { listener: Some(listener), address, display_address, private, socket })
    }
}

/// The address to type for one that is listened at; a machine that listens everywhere is named by its name.
fn reachable(scheme: &str, address: SocketAddr) -> String {
    if !address.ip().is_unspecified() {
        return format!("{scheme}://{address}");
    }
    let host = host_name().unwrap_or_else(|| "HOST".to_owned());
    format!("{scheme}://{host}:{}", address.port())
}

/// The name of this machine, if it has one.
pub fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

fn scheme(workers: &Workers) -> &'static str {
    match workers {
        Workers::External { access, .. } if access.tls.is_some() => "https",
        Workers::External { .. } | Workers::Local { .. } => "http",
    }
}

/// Removes a socket that an earlier process left behind, which would prevent listening.
async fn remove_stale(path: &Path) {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    let is_refused = match UnixStream::connect(path).await {
        Ok(_) => false,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
    };
    if is_socket
        && is_refused
        && let Err(error) = std::fs::remove_file(path)
    {
        warn!(path = %path.display(), %error, "an old socket could not be removed");
    }
}

/// A folder that is this run's alone, with a path that is short enough for a socket in it (`sun_path` in unix(7)).
fn private_folder() -> Result<PrivateFolder, WriteError> {
    const PATH_BYTES_MAX: usize = 80;
    let usual = std::env::temp_dir();
    let parent = if usual.as_os_str().len() > PATH_BYTES_MAX { Path::new("/tmp") } else { &usual };
    PrivateFolder::create(parent, "telar-")
}
