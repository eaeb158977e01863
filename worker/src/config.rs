//! What a worker is to do, checked: made once from the command line, then trusted.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::time::Duration;

use model::args::OpenBackend;
use model::backend::BackendError;
use model::data::DataChoice;

use crate::args::Cli;

/// A worker's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the coordinator is.
    pub coordinator: Address,
    /// How long to look for it before giving up.
    pub connect_timeout: Duration,
    /// Whether to wait for messages without sleep at first.
    pub watch: bool,
    /// Where an own copy of the data set may be, besides the usual places.
    pub data: DataChoice,
    /// What computes.
    pub backend: OpenBackend,
}

impl Config {
    /// Checks the flags, and opens the device. To be called once, before the first tensor.
    ///
    /// # Errors
    /// If the address is none, or the device cannot be had.
    pub fn new(cli: Cli) -> Result<Self, ConfigError> {
        Ok(Self {
            coordinator: cli.coordinator.parse()?,
            connect_timeout: Duration::from_secs(cli.connect_timeout.into()),
            watch: cli.watch,
            data: cli.data.data,
            backend: cli.backend.open()?,
        })
    }
}

/// A configuration that cannot be followed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// No address.
    #[error("{0}")]
    Address(#[from] AddressError),
    /// No device.
    #[error("{0}")]
    Backend(#[from] BackendError),
}

/// Where a coordinator listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host and a port, as `HOST:PORT`.
    Tcp(String),
    /// The path of a Unix socket.
    Unix(String),
}

/// A text that names no coordinator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected --coordinator as http://HOST:PORT or unix:PATH, found `{found}`; write for example \
     `--coordinator http://192.168.0.10:7187`"
)]
pub struct AddressError {
    /// What was given.
    pub found: String,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError { found: text.to_owned() };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(error()) } else { Ok(Self::Unix(path.to_owned())) };
        }
        let place = text.strip_prefix("http://").map_or(text, |rest| rest.strip_suffix('/').unwrap_or(rest));
        let (host, port) = place.rsplit_once(':').ok_or_else(error)?;
        let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        if is_host(host) && is_port { Ok(Self::Tcp(place.to_owned())) } else { Err(error()) }
    }
}

/// A name, an IPv4 address, or an IPv6 address in brackets.
fn is_host(text: &str) -> bool {
    if let Some(inner) = text.strip_prefix('[') {
        return inner.strip_suffix(']').is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok());
    }
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    !text.is_empty() && text.bytes().all(is_part)
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(place) => write!(out, "http://{place}"),
            Self::Unix(path) => write!(out, "unix:{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_may_be_written() {
        let check = |text: &str, read: &str| assert_eq!(text.parse::<Address>().expect(text).to_string(), read);
        check("http://localhost:7187", "http://localhost:7187");
        check("http://localhost:7187/", "http://localhost:7187");
        check("telar_coordinator.example-1:1", "http://telar_coordinator.example-1:1");
        check("[::1]:7187", "http://[::1]:7187");
        check("unix:run/socket", "unix:run/socket");
        check("unix:///run/telar/a b", "unix:/run/telar/a b");
    }

    #[test]
    fn other_addresses_are_told_what_to_write() {
        for text in [
            "",
            "localhost",
            "localhost:0",
            "localhost:65536",
            "localhost:",
            ":7187",
            "::1:7187",
            "[localhost]:7187",
            "https://localhost:7187",
            "http://localhost:7187/path",
            "http://user@localhost:7187",
            "/run/telar/socket",
            "unix:",
            "unix://",
        ] {
            assert_eq!(text.parse::<Address>(), Err(AddressError { found: text.to_owned() }));
        }
    }
}
