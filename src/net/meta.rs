//! The kernel's metadata about a datagram, besides its payload and its sender.

mod send_meta;

pub use send_meta::SendMeta;

use std::ffi::c_int;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::cmsg::{self, ControlBuffer};

/// The control messages of one received message. Fields that were not requested are `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// When the kernel received it, in nanoseconds since 1970 (`SO_TIMESTAMPNS`).
    pub timestamp_ns: Option<i64>,
    /// When the device received it, in nanoseconds on the device's clock (`SO_TIMESTAMPING`).
    pub hardware_ns: Option<i64>,
    /// The address it was sent to (`IP_PKTINFO`, `IPV6_RECVPKTINFO`). For an IPv4 datagram on an
    /// IPv6 socket, this is an IPv4 address.
    pub destination: Option<IpAddr>,
    /// The index of the receiving interface.
    pub interface: Option<u32>,
    /// The reply source: the destination or, if that is a multicast or broadcast address, one of
    /// the interface's own addresses.
    pub local: Option<IpAddr>,
    /// Its time to live, or hop limit, on arrival (`IP_RECVTTL`, `IPV6_RECVHOPLIMIT`).
    pub ttl: Option<u8>,
    /// Its type of service, or traffic class (`IP_RECVTOS`, `IPV6_RECVTCLASS`).
    pub tos: Option<u8>,
    /// How many datagrams the socket's queue has dropped so far (`SO_RXQ_OVFL`); the kernel omits a
    /// zero.
    pub drops: Option<u32>,
    /// The length of each datagram except the last, if the kernel coalesced several (`UDP_GRO`).
    pub segment: Option<usize>,
}

impl Meta {
    /// Parses a control buffer.
    pub fn decode(control: &[u8]) -> Self {
        let mut meta = Self::default();
        for message in cmsg::decode(control) {
            let data = message.data;
            match (message.level, message.kind) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    meta.segment = int(data).and_then(|len| usize::try_from(len).ok());
                }
                (
                    libc::SOL_SOCKET,
                    libc::SCM_TIMESTAMPNS | libc::SCM_TIMESTAMP | libc::SCM_TIMESTAMPING,
                ) => {
                    meta.timestamp_ns = timestamp(message.kind, data).or(meta.timestamp_ns);
                    if message.kind == libc::SCM_TIMESTAMPING {
                        meta.hardware_ns = device_timestamp(data);
                    }
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => {
                    meta.drops = int(data).map(|drops| drops as u32);
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => meta.read_pktinfo(data),
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => meta.read_pktinfo6(data),
                (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    meta.ttl = int(data).map(|ttl| ttl as u8);
                }
                (libc::IPPROTO_IP, libc::IP_TOS) => meta.tos = data.first().copied(),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    meta.tos = int(data).map(|class| class as u8);
                }
                _ => {}
            }
        }
        meta
    }

    /// The reply source: the local address that the datagram was sent to.
    pub fn source(&self) -> Option<Source> {
        let address = self.local?;
        // A link-local address is only meaningful on its link.
        let is_of_link = matches!(address, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let interface = if is_of_link { self.interface.unwrap_or(0) } else { 0 };
        Some(Source { address, interface })
    }

    /// The length of each datagram except the last, from a message's control buffer. Ignores all
    /// other control messages.
    pub fn segment(control: &[u8]) -> Option<usize> {
        if control.is_empty() {
            return None; // the usual case
        }
        Self::decode(control).segment
    }

    /// When the kernel received a message, from its control buffer. Ignores all other control
    /// messages.
    pub fn timestamp(control: &[u8]) -> Option<i64> {
        cmsg::decode(control)
            .filter(|message| message.level == libc::SOL_SOCKET)
            .find_map(|message| timestamp(message.kind, message.data))
    }

    fn read_pktinfo(&mut self, data: &[u8]) {
        const DESTINATION: usize = std::mem::offset_of!(libc::in_pktinfo, ipi_addr);
        const LOCAL: usize = std::mem::offset_of!(libc::in_pktinfo, ipi_spec_dst);
        let address = |at: usize| {
            data.get(at..).and_then(<[u8]>::first_chunk::<4>).map(|ip| Ipv4Addr::from(*ip))
        };
        self.destination = address(DESTINATION).map(IpAddr::V4);
        // Unspecified for datagrams that were queued before the option was set.
        self.local = address(LOCAL).filter(|local| !local.is_unspecified()).map(IpAddr::V4);
        self.interface = int(data).map(|index| index as u32);
    }

    fn read_pktinfo6(&mut self, data: &[u8]) {
        const INTERFACE: usize = std::mem::offset_of!(libc::in6_pktinfo, ipi6_ifindex);
        let destination = data.first_chunk::<16>().map(|ip| Ipv6Addr::from(*ip).to_canonical());
        if let Some(IpAddr::V6(local)) = destination
            && !local.is_multicast()
        {
            self.local = destination; // for IPv4 it comes with IP_PKTINFO
        }
        self.destination = destination;
        self.interface = data.get(INTERFACE..).and_then(int).map(|index| index as u32);
    }
}

/// The options that enable the contents of [`Meta`], for a socket of a family. IPv6 sockets also
/// receive from IPv4 peers, for which the IPv4 options apply.
pub(super) fn options(family: c_int) -> &'static [(c_int, c_int)] {
    match family {
        libc::AF_INET => &ASKED[..5],
        libc::AF_INET6 => &ASKED,
        _ => &[],
    }
}

/// The options among them that enable the destination.
pub(super) fn destination_options(family: c_int) -> &'static [(c_int, c_int)] {
    match family {
        libc::AF_INET => &[(libc::IPPROTO_IP, libc::IP_PKTINFO)],
        libc::AF_INET6 => {
            &[(libc::IPPROTO_IP, libc::IP_PKTINFO), (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)]
        }
        _ => &[],
    }
}

const ASKED: [(c_int, c_int); 8] = [
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS),
    (libc::SOL_SOCKET, libc::SO_RXQ_OVFL),
    (libc::IPPROTO_IP, libc::IP_PKTINFO),
    (libc::IPPROTO_IP, libc::IP_RECVTTL),
    (libc::IPPROTO_IP, libc::IP_RECVTOS),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
];

/// The kinds of timestamp. A socket has at most one of them.
pub(super) const TIMESTAMPS: [c_int; 3] =
    [libc::SO_TIMESTAMP, libc::SO_TIMESTAMPNS, libc::SO_TIMESTAMPING];

fn int(data: &[u8]) -> Option<c_int> {
    data.first_chunk().map(|bytes| c_int::from_ne_bytes(*bytes))
}

/// Parses a control message of `SOL_SOCKET`, if it has a timestamp.
fn timestamp(kind: c_int, data: &[u8]) -> Option<i64> {
    match kind {
        libc::SCM_TIMESTAMPNS => time(data, 1),
        libc::SCM_TIMESTAMP => time(data, 1000),
        // Three timestamps: the kernel's own, none, and the device's.
        libc::SCM_TIMESTAMPING => time(data, 1).filter(|&stamp| stamp != 0),
        _ => None,
    }
}

/// Parses the device's timestamp from the three of a control message.
fn device_timestamp(data: &[u8]) -> Option<i64> {
    const DEVICE: usize = 2 * size_of::<libc::timespec>();
    data.get(DEVICE..).and_then(|data| time(data, 1)).filter(|&stamp| stamp != 0)
}

/// Parses seconds and a fraction of `unit` nanoseconds: a `timespec` or a `timeval`.
fn time(data: &[u8], unit: i64) -> Option<i64> {
    const WORD: usize = size_of::<libc::c_long>();
    let word = |at: usize| {
        let bytes = data.get(at..)?.first_chunk::<WORD>()?;
        #[allow(clippy::useless_conversion)] // c_long has 32 bits on some machines
        Some(i64::from(libc::c_long::from_ne_bytes(*bytes)))
    };
    word(0)?.checked_mul(1_000_000_000)?.checked_add(word(WORD)?.checked_mul(unit)?)
}

/// The source address and the interface to send a datagram with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The local address.
    pub address: IpAddr,
    /// The interface's index; 0 lets the routing table decide.
    pub interface: u32,
}

impl Source {
    /// Encodes it as control messages: `IP_PKTINFO` (`ip(7)`), `IPV6_PKTINFO` (RFC 3542, section
    /// 6).
    pub fn encode(&self, control: &mut ControlBuffer) {
        match self.address {
            IpAddr::V4(address) => {
                // struct in_pktinfo: the interface, the source, and a destination that is ignored.
                const SOURCE: usize = std::mem::offset_of!(libc::in_pktinfo, ipi_spec_dst);
                let mut info = [0; size_of::<libc::in_pktinfo>()];
                info[..4].copy_from_slice(&self.interface.to_ne_bytes());
                info[SOURCE..SOURCE + 4].copy_from_slice(&address.octets());
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            IpAddr::V6(address) => {
                let mut info = [0; size_of::<libc::in6_pktinfo>()];
                info[..16].copy_from_slice(&address.octets());
                info[16..].copy_from_slice(&self.interface.to_ne_bytes());
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
    }
}

/// Whether a datagram may have been refused because of its source address. The error for an address
/// that no longer exists depends on the family and the kernel version.
pub fn may_be_of_source(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::ENETUNREACH | libc::EADDRNOTAVAIL | libc::ENODEV)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(messages: &[(c_int, c_int, &[u8])]) -> Vec<u8> {
        let mut control = Vec::new();
        for (level, kind, data) in messages {
            cmsg::encode(&mut control, *level, *kind, data);
        }
        control
    }

    #[test]
    fn every_requested_message_is_decoded() {
        let stamp = [1_700_000_000_u64.to_ne_bytes(), 123_456_789_u64.to_ne_bytes()].concat();
        let info = [&3_u32.to_ne_bytes()[..], &[127, 0, 0, 1], &[127, 0, 0, 2]].concat();
        let decoded = Meta::decode(&control(&[
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS, &stamp),
            (libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &7_u32.to_ne_bytes()),
            (libc::SOL_UDP, libc::UDP_GRO, &1200_i32.to_ne_bytes()),
            (libc::IPPROTO_IP, libc::IP_PKTINFO, &info),
            (libc::IPPROTO_IP, libc::IP_TTL, &64_i32.to_ne_bytes()),
            (libc::IPPROTO_IP, libc::IP_TOS, &[0xb9]),
        ]));
        let expected = Meta {
            timestamp_ns: Some(1_700_000_000_123_456_789),
            hardware_ns: None,
            destination: Some(Ipv4Addr::new(127, 0, 0, 2).into()),
            interface: Some(3),
            local: Some(Ipv4Addr::LOCALHOST.into()),
            ttl: Some(64),
            tos: Some(0xb9),
            drops: Some(7),
            segment: Some(1200),
        };
        assert_eq!(decoded, expected);
    }

    #[test]
    fn a_timestamp_is_found_among_other_messages() {
        let stamp = [5_u64.to_ne_bytes(), 6_u64.to_ne_bytes()].concat();
        let drops = (libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &7_u32.to_ne_bytes()[..]);
        let ttl = (libc::IPPROTO_IP, libc::IP_TTL, &64_i32.to_ne_bytes()[..]);
        for (kind, expected) in [
            (libc::SCM_TIMESTAMPNS, 5_000_000_006),
            (libc::SCM_TIMESTAMP, 5_000_006_000),
            (libc::SCM_TIMESTAMPING, 5_000_000_006),
        ] {
            let control = control(&[ttl, drops, (libc::SOL_SOCKET, kind, &stamp)]);
            assert_eq!(Meta::timestamp(&control), Some(expected));
            assert_eq!(Meta::decode(&control).timestamp_ns, Some(expected));
        }
        assert_eq!(Meta::timestamp(&control(&[ttl, drops])), None);
        let zeros = (libc::SOL_SOCKET, libc::SCM_TIMESTAMPING, &[0; 48][..]);
        assert_eq!(Meta::timestamp(&control(&[zeros])), None);
    }

    #[test]
    fn ipv6_and_the_users_own_timestamps_are_read() {
        let destination: Ipv6Addr = "fe80::1".parse().unwrap();
        let info = [&destination.octets()[..], &2_u32.to_ne_bytes()].concat();
        let stamp = [5_u64.to_ne_bytes(), 6_u64.to_ne_bytes()].concat();
        let decoded = Meta::decode(&control(&[
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMP, &stamp),
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info),
            (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, &1_i32.to_ne_bytes()),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &0x2e_i32.to_ne_bytes()),
        ]));
        assert_eq!(decoded.timestamp_ns, Some(5_000_006_000));
        assert_eq!(decoded.destination, Some(destination.into()));
        assert_eq!((decoded.interface, decoded.ttl, decoded.tos), (Some(2), Some(1), Some(0x2e)));
    }

    #[test]
    fn a_mapped_destination_is_plain_ipv4() {
        let mapped = Ipv4Addr::new(192, 0, 2, 9).to_ipv6_mapped();
        let info = [&mapped.octets()[..], &0_u32.to_ne_bytes()].concat();
        let decoded = Meta::decode(&control(&[(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info)]));
        assert_eq!(decoded.destination, Some(Ipv4Addr::new(192, 0, 2, 9).into()));
    }

    #[test]
    fn short_and_unknown_messages_are_skipped() {
        for len in 0..20 {
            let bytes = vec![0xff; len];
            let all = [
                (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS, &bytes[..]),
                (libc::SOL_SOCKET, libc::SCM_RIGHTS, &bytes),
                (libc::SOL_UDP, libc::UDP_GRO, &bytes),
                (libc::IPPROTO_IP, libc::IP_PKTINFO, &bytes),
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &bytes),
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &bytes),
                (9999, -1, &bytes),
            ];
            Meta::decode(&control(&all)); // must not panic
        }
        assert_eq!(Meta::segment(&[]), None);
    }

    #[test]
    fn a_source_is_what_the_kernel_reads() {
        for address in ["127.0.0.2", "::1"] {
            let source = Source { address: address.parse().unwrap(), interface: 1 };
            let mut control = ControlBuffer::EMPTY;
            source.encode(&mut control);
            let message = cmsg::decode(control.as_bytes()).next().unwrap();
            let fits = match source.address {
                IpAddr::V4(_) => message.kind == libc::IP_PKTINFO && message.data.len() == 12,
                IpAddr::V6(_) => message.kind == libc::IPV6_PKTINFO && message.data.len() == 20,
            };
            assert!(fits, "{message:?}");
        }
    }
}
