//! Socket addresses: the kernel's representation and its meaning.

use std::ffi::c_int;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::mem::offset_of;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// A socket address in the kernel's format: a `struct sockaddr_…` and its length.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct Address {
    storage: [u8; size_of::<libc::sockaddr_storage>()],
    len: u32,
}

/// A parsed address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressKind<'a> {
    /// Without a name: an unbound peer, in a family that omits it.
    Unnamed,
    /// `AF_INET`
    V4(SocketAddrV4),
    /// `AF_INET6`
    V6(SocketAddrV6),
    /// `AF_UNIX`, a path; empty for a socket that is not bound.
    Path(&'a [u8]),
    /// `AF_UNIX`, a name in Linux's abstract namespace, with its leading zero byte.
    Abstract(&'a [u8]),
    /// A family that this library does not support.
    Other(u16),
}

impl Address {
    /// No address.
    pub const UNNAMED: Self = Self { storage: [0; size_of::<libc::sockaddr_storage>()], len: 0 };

    /// The maximum length of a socket address, `sizeof(struct sockaddr_storage)`.
    pub(crate) const CAPACITY: libc::socklen_t =
        size_of::<libc::sockaddr_storage>() as libc::socklen_t;

    /// Copies an address out of memory that the kernel filled.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut address = Self::UNNAMED;
        let len = bytes.len().min(address.storage.len());
        address.storage[..len].copy_from_slice(&bytes[..len]);
        address.len = len as u32;
        address
    }

    /// An `AF_UNIX` address: a path; with a leading zero byte, an abstract name; empty to let the
    /// kernel choose a name on binding (`unix(7)`, "autobind").
    ///
    /// Fails if the name is longer than `sun_path` (108 bytes; a path needs one of them for its
    /// end).
    pub fn unix(name: &[u8]) -> Result<Self, PathTooLong> {
        let is_path = name.first().is_some_and(|&first| first != 0);
        let end = UNIX_PATH + name.len() + usize::from(is_path);
        if end > size_of::<libc::sockaddr_un>() {
            return Err(PathTooLong);
        }
        let mut address = Self::UNNAMED;
        address.set_family(libc::AF_UNIX);
        address.storage[UNIX_PATH..UNIX_PATH + name.len()].copy_from_slice(name);
        address.len = end as u32;
        Ok(address)
    }

    /// The address's bytes, in the length that the kernel reported.
    pub fn as_bytes(&self) -> &[u8] {
        &self.storage[..self.len as usize]
    }

    /// The parsed address.
    pub fn kind(&self) -> AddressKind<'_> {
        AddressKind::of(self.as_bytes())
    }

    /// The IP address and port, if it is an IP address.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self.kind() {
            AddressKind::V4(address) => Some(address.into()),
            AddressKind::V6(address) => Some(address.into()),
            _ => None,
        }
    }

    pub(crate) fn storage_mut(&mut self) -> &mut [u8] {
        &mut self.storage
    }

    /// Sets the length that the kernel has written. It may exceed the available room.
    pub(crate) fn set_len(&mut self, len: libc::socklen_t) {
        self.len = len.min(Self::CAPACITY);
    }

    fn set_family(&mut self, family: c_int) {
        self.storage[..2].copy_from_slice(&(family as libc::sa_family_t).to_ne_bytes());
    }
}

const UNIX_PATH: usize = offset_of!(libc::sockaddr_un, sun_path);

/// An `AF_UNIX` name that does not fit.
#[derive(Debug)]
pub struct PathTooLong;

impl From<SocketAddrV4> for Address {
    fn from(from: SocketAddrV4) -> Self {
        const PORT: usize = offset_of!(libc::sockaddr_in, sin_port);
        const HOST: usize = offset_of!(libc::sockaddr_in, sin_addr);
        let mut address = Self::UNNAMED;
        address.set_family(libc::AF_INET);
        address.storage[PORT..PORT + 2].copy_from_slice(&from.port().to_be_bytes());
        address.storage[HOST..HOST + 4].copy_from_slice(&from.ip().octets());
        address.len = size_of::<libc::sockaddr_in>() as u32;
        address
    }
}

impl From<SocketAddrV6> for Address {
    fn from(from: SocketAddrV6) -> Self {
        const PORT: usize = offset_of!(libc::sockaddr_in6, sin6_port);
        const FLOW: usize = offset_of!(libc::sockaddr_in6, sin6_flowinfo);
        const HOST: usize = offset_of!(libc::sockaddr_in6, sin6_addr);
        const SCOPE: usize = offset_of!(libc::sockaddr_in6, sin6_scope_id);
        let mut address = Self::UNNAMED;
        address.set_family(libc::AF_INET6);
        address.storage[PORT..PORT + 2].copy_from_slice(&from.port().to_be_bytes());
        address.storage[FLOW..FLOW + 4].copy_from_slice(&from.flowinfo().to_be_bytes());
        address.storage[HOST..HOST + 16].copy_from_slice(&from.ip().octets());
        address.storage[SCOPE..SCOPE + 4].copy_from_slice(&from.scope_id().to_ne_bytes());
        address.len = size_of::<libc::sockaddr_in6>() as u32;
        address
    }
}

impl From<SocketAddr> for Address {
    fn from(from: SocketAddr) -> Self {
        match from {
            SocketAddr::V4(from) => from.into(),
            SocketAddr::V6(from) => from.into(),
        }
    }
}

impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Address {}

impl Hash for Address {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind().fmt(f)
    }
}

impl<'a> AddressKind<'a> {
    /// Parses a `struct sockaddr_…`. An address too short for its family counts as unnamed.
    pub fn of(bytes: &'a [u8]) -> Self {
        let Some((&family, rest)) = bytes.split_first_chunk::<2>() else { return Self::Unnamed };
        let family = libc::sa_family_t::from_ne_bytes(family);
        let read = match c_int::from(family) {
            libc::AF_INET => read_v4(bytes).map(Self::V4),
            libc::AF_INET6 => read_v6(bytes).map(Self::V6),
            libc::AF_UNIX if rest.first() == Some(&0) => Some(Self::Abstract(rest)),
            libc::AF_UNIX => {
                let end = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
                Some(Self::Path(&rest[..end]))
            }
            _ => Some(Self::Other(family)),
        };
        read.unwrap_or(Self::Unnamed)
    }
}

fn read_v4(bytes: &[u8]) -> Option<SocketAddrV4> {
    let port = bytes.get(offset_of!(libc::sockaddr_in, sin_port)..)?.first_chunk()?;
    let host = bytes.get(offset_of!(libc::sockaddr_in, sin_addr)..)?.first_chunk::<4>()?;
    Some(SocketAddrV4::new(Ipv4Addr::from(*host), u16::from_be_bytes(*port)))
}

fn read_v6(bytes: &[u8]) -> Option<SocketAddrV6> {
    let port = bytes.get(offset_of!(libc::sockaddr_in6, sin6_port)..)?.first_chunk()?;
    let flow = bytes.get(offset_of!(libc::sockaddr_in6, sin6_flowinfo)..)?.first_chunk()?;
    let host = bytes.get(offset_of!(libc::sockaddr_in6, sin6_addr)..)?.first_chunk::<16>()?;
    let scope = bytes.get(offset_of!(libc::sockaddr_in6, sin6_scope_id)..)?.first_chunk()?;
    Some(SocketAddrV6::new(
        Ipv6Addr::from(*host),
        u16::from_be_bytes(*port),
        u32::from_be_bytes(*flow),
        u32::from_ne_bytes(*scope),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ip_addresses_survive_a_round_trip_through_the_kernels_format() {
        for text in ["127.0.0.1:1234", "255.255.255.255:65535", "[::1]:0", "[fe80::1%7]:53"] {
            let ip: SocketAddr = text.parse().unwrap();
            assert_eq!(Address::from(ip).ip(), Some(ip));
        }
        let with_flow = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 9, 0xfffff, 3);
        assert_eq!(Address::from(with_flow).kind(), AddressKind::V6(with_flow));
    }

    #[test]
    fn unix_names_keep_their_bytes() {
        for name in [&b"/run/x"[..], b"\xff\xfe", b""] {
            assert_eq!(Address::unix(name).unwrap().kind(), AddressKind::Path(name));
        }
        let name = b"\0abstract\0with zero";
        assert_eq!(Address::unix(name).unwrap().kind(), AddressKind::Abstract(name));
    }

    #[test]
    fn unix_names_end_where_sun_path_ends() {
        assert!(Address::unix(&[b'a'; 107]).is_ok());
        assert!(Address::unix(&[b'a'; 108]).is_err());
        assert!(Address::unix(&[0; 108]).is_ok());
        assert!(Address::unix(&[0; 109]).is_err());
    }

    #[test]
    fn a_short_or_unknown_address_is_not_an_error() {
        assert_eq!(AddressKind::of(&[]), AddressKind::Unnamed);
        assert_eq!(AddressKind::of(&[2]), AddressKind::Unnamed);
        let v4 = Address::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1));
        assert_eq!(AddressKind::of(&v4.as_bytes()[..7]), AddressKind::Unnamed);
        let netlink = (libc::AF_NETLINK as u16).to_ne_bytes();
        assert_eq!(AddressKind::of(&netlink), AddressKind::Other(libc::AF_NETLINK as u16));
    }
}
