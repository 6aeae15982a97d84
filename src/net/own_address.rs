//! Datagrams whose source is the address of the socket that receives them.

use std::net::{IpAddr, SocketAddr};

use super::address::Address;
use super::socket::Socket;

/// A socket's own address. A datagram from it is forged, or the socket has sent it to itself. A
/// reply would arrive as the next request, without end.
///
/// On a socket that is bound to all addresses, these are all addresses of this machine with its port.
#[derive(Clone)]
pub struct OwnAddress {
    local: Address,
    ip: Option<SocketAddr>,
    /// The port, as the kernel writes it in addresses.
    port: [u8; 2],
    /// The last source with this port, and whether it is an address of this machine.
    last: Option<(IpAddr, bool)>,
}

impl OwnAddress {
    /// The address that a socket is bound to.
    pub fn of(socket: &Socket) -> Self {
        let local = socket.local_address().unwrap_or(Address::UNNAMED);
        let ip = local.ip();
        Self { local, ip, port: ip.map_or([0; 2], |ip| ip.port().to_be_bytes()), last: None }
    }

    /// Whether a datagram from this address is from the socket itself.
    #[inline]
    pub fn is_source(&mut self, from: &[u8]) -> bool {
        match self.ip {
            // In both families of IP, the port follows the family. It almost always differs.
            Some(own) => from.get(2..4) == Some(&self.port) && self.is_own_ip(own, from),
            None => !from.is_empty() && from == self.local.as_bytes(),
        }
    }

    /// Forgets which addresses belong to this machine, because they may change.
    pub fn forget(&mut self) {
        self.last = None;
    }

    fn is_own_ip(&mut self, own: SocketAddr, from: &[u8]) -> bool {
        let Some(source) = Address::from_bytes(from).ip() else { return false };
        let ip = source.ip().to_canonical();
        if ip.is_unspecified() {
            return true; // the kernel delivers what is sent there to this machine
        }
        if !own.ip().is_unspecified() {
            return ip == own.ip().to_canonical();
        }
        match self.last {
            Some((last, is_local)) if last == ip => is_local,
            _ => {
                let is_local = ip.is_loopback() || is_local(source);
                self.last = Some((ip, is_local));
                is_local
            }
        }
    }
}

/// Whether an address belongs to this machine: the kernel sends to such an address from itself.
fn is_local(address: SocketAddr) -> bool {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let found = Socket::open(family, libc::SOCK_DGRAM, 0).and_then(|probe| {
        probe.connect(&address.into())?; // on a datagram socket, this sends nothing
        probe.local_address()
    });
    found.is_ok_and(|found| found.ip().is_some_and(|ip| ip.ip() == address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(address: &str) -> (Socket, u16) {
        let address: SocketAddr = address.parse().unwrap();
        let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let socket = Socket::open(family, libc::SOCK_DGRAM, 0).unwrap();
        socket.bind(&address.into()).unwrap();
        let port = socket.local_address().unwrap().ip().unwrap().port();
        (socket, port)
    }

    fn is_own(socket: &Socket, ip: &str, port: u16) -> bool {
        let source = Address::from(SocketAddr::new(ip.parse().unwrap(), port));
        OwnAddress::of(socket).is_source(source.as_bytes())
    }

    #[test]
    fn bound_to_one_address_only_that_one_is_own() {
        let (socket, port) = bound("127.0.0.1:0");
        assert!(is_own(&socket, "127.0.0.1", port));
        assert!(is_own(&socket, "0.0.0.0", port));
        assert!(!is_own(&socket, "127.0.0.1", port ^ 1));
        assert!(!is_own(&socket, "127.0.0.2", port));
        assert!(!OwnAddress::of(&socket).is_source(&[]));
    }

    #[test]
    fn bound_to_all_addresses_those_of_this_machine_are_own() {
        let (socket, port) = bound("0.0.0.0:0");
        for ip in ["127.0.0.1", "127.1.2.3", "0.0.0.0"] {
            assert!(is_own(&socket, ip, port), "{ip}");
            assert!(!is_own(&socket, ip, port ^ 1), "{ip}");
        }
        assert!(!is_own(&socket, "192.0.2.1", port));
        let found = |ip: &str| is_local(SocketAddr::new(ip.parse().unwrap(), 9));
        assert!(found("127.0.0.1") && !found("192.0.2.1"));
    }

    #[test]
    fn a_mapped_address_is_the_same_as_a_plain_one() {
        let Ok(socket) = Socket::open(libc::AF_INET6, libc::SOCK_DGRAM, 0) else { return };
        let all: SocketAddr = "[::]:0".parse().unwrap();
        if socket.bind(&all.into()).is_err() {
            return;
        }
        let port = socket.local_address().unwrap().ip().unwrap().port();
        assert!(is_own(&socket, "::ffff:127.0.0.1", port));
        assert!(is_own(&socket, "::1", port));
        assert!(!is_own(&socket, "::ffff:192.0.2.1", port));
        assert!(!is_own(&socket, "2001:db8::1", port));
    }

    #[test]
    fn a_unix_name_is_own_if_it_is_the_same() {
        let socket = Socket::open(libc::AF_UNIX, libc::SOCK_DGRAM, 0).unwrap();
        assert!(!OwnAddress::of(&socket).is_source(&[]));
        socket.bind(&Address::unix(b"").unwrap()).unwrap();
        let mut own = OwnAddress::of(&socket);
        assert!(own.is_source(socket.local_address().unwrap().as_bytes()));
        assert!(
            !own.is_source(Address::unix(b"\0another").unwrap().as_bytes()) && !own.is_source(&[])
        );
    }
}
