//! Who is at the other end of a connection, by what the operating system reports of the socket. A peer can choose every byte
//! that it sends, but not this.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use tokio::net::{TcpStream, UnixStream};

use crate::training::Identity;

/// The peer of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where its connection comes from.
    pub address: PeerAddress,
    /// Whether that is this machine, so that it may be able to open this process' memory.
    pub is_on_this_machine: bool,
    /// The name of the certificate that it proved itself with, with TLS.
    pub certificate: Option<String>,
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerAddress {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A process of this machine, by a Unix socket.
    Unix {
        /// Its number, where the system tells it.
        process: Option<u32>,
        /// Its user.
        user: u32,
    },
}

impl Peer {
    /// The peer of a TCP connection.
    ///
    /// # Errors
    /// If the connection is closed already.
    pub fn of_tcp(stream: &TcpStream) -> std::io::Result<Self> {
        let [address, own] = [stream.peer_addr()?, stream.local_addr()?];
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        // Who connects to an address of its own machine comes from it.
        let is_on_this_machine = address.ip().is_loopback() || address.ip() == own.ip().to_canonical();
        Ok(Self { address: PeerAddress::Tcp(address), is_on_this_machine, certificate: None })
    }

    /// The peer of a connection to a Unix socket.
    ///
    /// # Errors
    /// If the system does not tell whose it is.
    pub fn of_unix(stream: &UnixStream) -> std::io::Result<Self> {
        let owner = stream.peer_cred()?;
        let process = owner.pid().and_then(|process| u32::try_from(process).ok());
        let address = PeerAddress::Unix { process, user: owner.uid() };
        Ok(Self { address, is_on_this_machine: true, certificate: None })
    }

    /// What it counts as: its certificate, or else its address. Of an IPv6 address the first 64 bits count, since a host can
    /// take any address in its network.
    pub fn identity(&self) -> Identity {
        if let Some(name) = &self.certificate {
            return Identity::new(format!("certificate {name}"));
        }
        Identity::new(match self.address {
            PeerAddress::Tcp(address) => match address.ip() {
                IpAddr::V4(address) => address.to_string(),
                IpAddr::V6(address) => {
                    let [a, b, c, d, ..] = address.segments();
                    format!("{}/64", Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
                }
            },
            PeerAddress::Unix { process: Some(process), .. } => format!("process {process}"),
            PeerAddress::Unix { process: None, user } => format!("user {user}"),
        })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            PeerAddress::Tcp(address) => address.fmt(out),
            PeerAddress::Unix { process: Some(process), user } => write!(out, "process {process} of user {user}"),
            PeerAddress::Unix { process: None, user } => write!(out, "a process of user {user}"),
        }
    }
}

#[cfg(test)]
impl Peer {
    /// One at an address of another machine.
    pub fn at(address: PeerAddress) -> Self {
        Self { address, is_on_this_machine: false, certificate: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_is_certificate_process_or_network_address() {
        let check = |address: &str, expected: &str| {
            let address = PeerAddress::Tcp(address.parse().expect("an address"));
            assert_eq!(Peer::at(address).identity().to_string(), expected);
        };
        check("192.168.0.10:1", "192.168.0.10");
        check("192.168.0.10:65535", "192.168.0.10");
        check("[2001:db8:1:2:3:4:5:6]:7", "2001:db8:1:2::/64");
        check("[2001:db8:1:2:ffff:ffff:ffff:ffff]:7", "2001:db8:1:2::/64");
        let local = |process| Peer::at(PeerAddress::Unix { process, user: 1000 });
        assert_eq!([local(Some(42)), local(None)].map(|peer| peer.identity().to_string()), ["process 42", "user 1000"]);
        let proved = Peer { certificate: Some("worker-1".to_owned()), ..local(Some(42)) };
        assert_eq!(proved.identity().to_string(), "certificate worker-1");
    }
}
