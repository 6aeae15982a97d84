//! The metadata that one datagram is sent with.

use std::ffi::c_int;

use super::Source;
use crate::net::cmsg::ControlBuffer;

/// How to send a datagram, besides its payload and its destination. Fields that are `None` follow
/// the socket's options and the routing table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendMeta {
    /// Whether it is sent over IPv4, which IPv6 sockets also do (`::ffff:192.0.2.1`).
    pub is_ipv4: bool,
    /// The source address, which may be unspecified, and the interface.
    pub source: Option<Source>,
    /// The time to live, or hop limit.
    pub ttl: Option<u8>,
    /// The type of service, or traffic class.
    pub tos: Option<u8>,
    /// When to transmit it, in nanoseconds on the clock that `SO_TXTIME` has set.
    pub transmit_time_ns: Option<u64>,
}

impl From<Source> for SendMeta {
    fn from(source: Source) -> Self {
        let is_ipv4 = source.address.is_ipv4();
        Self { is_ipv4, source: Some(source), ..Self::default() }
    }
}

impl SendMeta {
    /// Encodes it as control messages (`ip(7)`, RFC 3542).
    pub fn encode(&self, control: &mut ControlBuffer) {
        if let Some(source) = self.source {
            source.encode(control);
        }
        let (level, ttl, tos) = if self.is_ipv4 {
            (libc::IPPROTO_IP, libc::IP_TTL, libc::IP_TOS)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, libc::IPV6_TCLASS)
        };
        for (kind, value) in [(ttl, self.ttl), (tos, self.tos)] {
            if let Some(value) = value {
                control.push(level, kind, &c_int::from(value).to_ne_bytes());
            }
        }
        if let Some(time) = self.transmit_time_ns {
            control.push(libc::SOL_SOCKET, libc::SCM_TXTIME, &time.to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::cmsg;

    fn encoded(meta: SendMeta) -> Vec<(c_int, c_int, Vec<u8>)> {
        let mut control = ControlBuffer::EMPTY;
        meta.encode(&mut control);
        let messages = cmsg::decode(control.as_bytes());
        messages.map(|message| (message.level, message.kind, message.data.to_vec())).collect()
    }

    #[test]
    fn a_datagram_without_metadata_has_no_control_messages() {
        assert_eq!(encoded(SendMeta::default()), []);
    }

    #[test]
    fn everything_fits_and_is_for_the_family() {
        let source = Source { address: "fe80::1".parse().unwrap(), interface: 3 };
        let meta = SendMeta {
            is_ipv4: false,
            source: Some(source),
            ttl: Some(255),
            tos: Some(0xba),
            transmit_time_ns: Some(1 << 40),
        };
        let kinds = |meta| encoded(meta).into_iter().map(|(level, kind, _)| (level, kind));
        let time = (libc::SOL_SOCKET, libc::SCM_TXTIME);
        assert!(kinds(meta).eq([
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO),
            (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            time,
        ]));
        let source = Source { address: "192.0.2.1".parse().unwrap(), interface: 0 };
        assert!(kinds(SendMeta { is_ipv4: true, source: Some(source), ..meta }).eq([
            (libc::IPPROTO_IP, libc::IP_PKTINFO),
            (libc::IPPROTO_IP, libc::IP_TTL),
            (libc::IPPROTO_IP, libc::IP_TOS),
            time,
        ]));
    }

    #[test]
    fn numbers_are_those_that_the_kernel_reads() {
        let meta = SendMeta { is_ipv4: true, ttl: Some(7), ..SendMeta::default() };
        let ttl = (libc::IPPROTO_IP, libc::IP_TTL, 7_i32.to_ne_bytes().to_vec());
        assert_eq!(encoded(meta), [ttl]);
        let meta = SendMeta { transmit_time_ns: Some(9), ..SendMeta::default() };
        let time = (libc::SOL_SOCKET, libc::SCM_TXTIME, 9_u64.to_ne_bytes().to_vec());
        assert_eq!(encoded(meta), [time]);
    }
}
