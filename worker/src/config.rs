//! What a worker is to do, checked: made once from the command line, then trusted.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use engine::args::{AccessArgs, OpenBackend};
use engine::backend::BackendError;
use engine::data::DataSource;
use proto::tls::{Client, IncompleteFlags, Reloaded, TlsError, TlsFiles};
use proto::token::{Token, TokenError};

use crate::args::Cli;

/// A worker's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the coordinator is.
    pub coordinator: Address,
    /// What this worker proves itself with there.
    pub access: Access,
    /// How long to look for it before giving up.
    pub connect_timeout: Duration,
    /// Whether to wait for messages without sleep at first.
    pub busy_poll: bool,
    /// Where an own copy of the data set may be, besides the usual places.
    pub data: DataSource,
    /// What computes.
    pub backend: OpenBackend,
}

impl Config {
    /// Checks the flags, and opens the device. To be called once, before the first tensor.
    ///
    /// # Errors
    /// If the address is none, or the device cannot be had.
    pub fn new(cli: Cli) -> Result<Self, ConfigError> {
        let (coordinator, access) = coordinator(&cli.coordinator, cli.access)?;
        Ok(Self {
            coordinator,
            access,
            connect_timeout: Duration::from_secs(cli.connect_timeout.into()),
            busy_poll: cli.busy_poll,
            data: cli.data.data,
            backend: cli.backend.open()?,
        })
    }
}

/// What a worker proves itself with.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// With TLS.
    pub tls: Option<Arc<Reloaded<Client>>>,
    /// The secret of the coordinator's workers.
    pub token: Option<Token>,
}

/// A configuration that cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No address.
    #[error("{0}")]
    Address(#[from] AddressError),
    /// One or two of three flags.
    #[error("{0}")]
    Incomplete(#[from] IncompleteFlags),
    /// A certificate for a connection that shows none.
    #[error(
        "expected --coordinator as https://HOST:PORT with --tls-cert, --tls-key and --tls-ca, found `{found}`; write https:// or \
         leave the three out"
    )]
    TlsUnused {
        /// The address.
        found: Address,
    },
    /// No certificate for one that needs it.
    #[error(
        "expected --tls-cert, --tls-key and --tls-ca with `--coordinator {found}`, found none of them; they name the files that \
         `coordinator certificates` made for this worker"
    )]
    TlsMissing {
        /// The address.
        found: Address,
    },
    /// A token that others could read.
    #[error(
        "expected TLS with --token-file, found `--coordinator {found}`: everyone on the way could read the token; write \
         https:// and give --tls-cert, --tls-key and --tls-ca, or write --insecure"
    )]
    TokenExposed {
        /// The address.
        found: Address,
    },
    /// Files that prove nothing.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// A file without a token.
    #[error("{0}")]
    Token(#[from] TokenError),
    /// No device.
    #[error("{0}")]
    Backend(#[from] BackendError),
}

/// Where the coordinator is, and what this worker proves itself with there.
fn coordinator(text: &str, access: AccessArgs) -> Result<(Address, Access), ConfigError> {
    let AccessArgs { tls_cert, tls_key, tls_ca, token_file, insecure } = access;
    let files = TlsFiles::of_flags([tls_cert, tls_key, tls_ca])?;
    let address = match (text.parse()?, &files) {
        // The flags say how to connect where the address does not.
        (Address::Tcp(place), Some(_)) if !text.starts_with(HTTP) => Address::Tls(place),
        (found @ (Address::Tcp(_) | Address::Unix(_)), Some(_)) => return Err(ConfigError::TlsUnused { found }),
        (found @ Address::Tls(_), None) => return Err(ConfigError::TlsMissing { found }),
        (address, _) => address,
    };
    let token = token_file.map(|path| Token::read(&path)).transpose()?;
    if token.is_some() && !insecure && address.is_readable_on_the_way() {
        return Err(ConfigError::TokenExposed { found: address });
    }
    let tls = files.map(|files| Reloaded::open(files, Client::new)).transpose()?.map(Arc::new);
    Ok((address, Access { tls, token }))
}

const HTTP: &str = "http://";
const HTTPS: &str = "https://";

/// Where a coordinator listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host and a port, as `HOST:PORT`.
    Tcp(String),
    /// The same, with TLS.
    Tls(String),
    /// The path of a Unix socket.
    Unix(String),
}

/// A text that names no coordinator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected --coordinator as https://HOST:PORT, http://HOST:PORT or unix:PATH, found `{found}`; write for example \
     `--coordinator https://192.168.0.10:7187`"
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
        let web = [HTTP, HTTPS].iter().find_map(|scheme| text.strip_prefix(scheme));
        let place = web.map_or(text, |rest| rest.strip_suffix('/').unwrap_or(rest));
        let (host, port) = place.rsplit_once(':').ok_or_else(error)?;
        let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        if !is_host(host) || !is_port {
            return Err(error());
        }
        let place = place.to_owned();
        Ok(if text.starts_with(HTTPS) { Self::Tls(place) } else { Self::Tcp(place) })
    }
}

impl Address {
    /// Whether others could read what goes there: it leaves this machine, without TLS.
    fn is_readable_on_the_way(&self) -> bool {
        let Self::Tcp(place) = self else { return false };
        let host = place.rsplit_once(':').map_or(place.as_str(), |(host, _)| host);
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host != "localhost" && !address.is_ok_and(|address| address.to_canonical().is_loopback())
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
            Self::Tcp(place) => write!(out, "{HTTP}{place}"),
            Self::Tls(place) => write!(out, "{HTTPS}{place}"),
            Self::Unix(path) => write!(out, "unix:{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_address_forms_are_parsed() {
        let check = |text: &str, read: &str| assert_eq!(text.parse::<Address>().expect(text).to_string(), read);
        check("http://localhost:7187", "http://localhost:7187");
        check("http://localhost:7187/", "http://localhost:7187");
        check("https://localhost:7187/", "https://localhost:7187");
        check("telar_coordinator.example-1:1", "http://telar_coordinator.example-1:1");
        check("[::1]:7187", "http://[::1]:7187");
        check("unix:run/socket", "unix:run/socket");
        check("unix:///run/telar/a b", "unix:/run/telar/a b");
    }

    #[test]
    fn address_scheme_must_match_tls_flags() {
        let files = || AccessArgs {
            tls_cert: Some("/nowhere/tls.crt".into()),
            tls_key: Some("/nowhere/tls.key".into()),
            tls_ca: Some("/nowhere/ca.crt".into()),
            ..AccessArgs::default()
        };
        let check = |address: &str, access, part: &str| {
            let text = coordinator(address, access).expect_err("a configuration that cannot be followed").to_string();
            assert!(text.contains(part), "{text}");
        };
        check("http://localhost:7187", files(), "expected --coordinator as https://HOST:PORT");
        check("unix:socket", files(), "found `unix:socket`");
        check("https://localhost:7187", AccessArgs::default(), "found none of them");
        check("localhost:7187", AccessArgs { tls_ca: None, ..files() }, "found only --tls-cert and --tls-key");
        // Where TLS is used, the files are looked for.
        check("localhost:7187", files(), "cannot read /nowhere/tls.crt");
        check("https://localhost:7187", files(), "cannot read /nowhere/tls.crt");
        assert!(coordinator("http://host:7187", AccessArgs::default()).is_ok_and(|(_, access)| access.tls.is_none()));
    }

    #[test]
    fn token_for_remote_address_needs_tls_or_insecure() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("token");
        std::fs::write(&path, "0123456789abcdef0123456789abcdef").expect("a file");
        let access = |insecure| AccessArgs { token_file: Some(path.clone()), insecure, ..AccessArgs::default() };
        for address in ["localhost:1", "http://127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "unix:socket"] {
            assert!(coordinator(address, access(false)).expect(address).1.token.is_some());
        }
        for address in ["http://192.168.0.10:1", "host:1", "localhost.example:1"] {
            let text = coordinator(address, access(false)).expect_err(address).to_string();
            assert!(text.contains("everyone on the way could read the token"), "{text}");
            assert!(coordinator(address, access(true)).expect(address).1.token.is_some());
        }
    }

    #[test]
    fn invalid_addresses_are_refused() {
        for text in [
            "",
            "localhost",
            "localhost:0",
            "localhost:65536",
            "localhost:",
            ":7187",
            "::1:7187",
            "[localhost]:7187",
            "https://localhost",
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
