//! Addresses: where a coordinator waits for workers, and where it answers others.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use super::error::ConfigError;

/// Where a coordinator waits for workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// `HOST:PORT`.
    Tcp(String),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl ListenAddress {
    /// Whether other machines can reach it. A name other than `localhost` is taken for one that they can.
    pub(super) fn is_beyond_this_machine(&self) -> bool {
        let Self::Tcp(place) = self else { return false };
        let host = place.rsplit_once(':').map_or(place.as_str(), |(host, _)| host);
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host != "localhost" && !address.is_ok_and(|address| address.to_canonical().is_loopback())
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => out.write_str(address),
            Self::Unix(path) => write!(out, "unix:{}", path.display()),
        }
    }
}

pub(super) fn listen_address(text: &str) -> Result<ListenAddress, ConfigError> {
    address(text).ok_or_else(|| ConfigError::Listen { found: text.to_owned() })
}

/// The address to ask with `--check`, also as a worker has it.
///
/// # Errors
/// If it is none.
pub fn check_address(text: &str) -> Result<ListenAddress, ConfigError> {
    let place = text.strip_prefix("http://").map_or(text, |rest| rest.strip_suffix('/').unwrap_or(rest));
    address(place).ok_or_else(|| ConfigError::Check { found: text.to_owned() })
}

pub(super) fn health_address(found: String) -> Result<String, ConfigError> {
    match address(&found) {
        Some(ListenAddress::Tcp(place)) => Ok(place),
        Some(ListenAddress::Unix(_)) | None => Err(ConfigError::Health { found }),
    }
}

/// An address, if it is one.
pub(super) fn address(text: &str) -> Option<ListenAddress> {
    if let Some(path) = text.strip_prefix("unix:") {
        return (!path.is_empty()).then(|| ListenAddress::Unix(PathBuf::from(path)));
    }
    let (host, port) = text.rsplit_once(':')?;
    // The address of an IPv6 host stands in brackets.
    let is_host = !host.is_empty() && !host.contains('/') && (!host.contains(':') || host.ends_with(']'));
    let is_address = is_host && port.parse::<u16>().is_ok();
    is_address.then(|| ListenAddress::Tcp(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_flag_accepts_worker_address_forms() {
        for text in ["localhost:7187", "http://localhost:7187", "http://localhost:7187/"] {
            assert_eq!(check_address(text), Ok(ListenAddress::Tcp("localhost:7187".to_owned())));
        }
        assert_eq!(check_address("unix:a/b"), Ok(ListenAddress::Unix("a/b".into())));
        assert_eq!(check_address("[::1]:7187"), Ok(ListenAddress::Tcp("[::1]:7187".to_owned())));
        assert_eq!(check_address("::1:7187"), Err(ConfigError::Check { found: "::1:7187".to_owned() }));
    }
}
