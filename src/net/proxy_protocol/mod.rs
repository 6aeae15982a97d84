//! The PROXY protocol, version 2: a proxy's header says which client a datagram comes from.
//!
//! <https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>, section 2.2.

mod flows;
mod header;

pub use header::{Header, Malformed};

use std::time::{Duration, Instant};

use self::flows::{Flows, client_of};
use super::address::Address;
use super::fork_mutex::ForkMutex;
use super::guard::Networks;

/// The proxies that a socket trusts, and what it knows about their flows.
pub struct Proxies {
    networks: Networks,
    /// `None` if each datagram has a header.
    flows: Option<ForkMutex<Flows>>,
}

/// Where a datagram comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The client's address, if another one than the sender's.
    pub client: Option<Address>,
    /// The length of the header in front of the client's payload.
    pub header_len: usize,
}

/// Why a datagram is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It has a header, and its sender is not a trusted proxy.
    Untrusted,
    /// Its sender is a trusted proxy, and its header is missing or malformed.
    Malformed,
}

impl Proxies {
    /// Trusts the senders in these networks. With `idle`, a header precedes only the first datagram
    /// of each flow, and a flow ends when it has been silent for that long.
    pub fn new(networks: Networks, idle: Option<Duration>) -> Self {
        Self { networks, flows: idle.map(|idle| ForkMutex::new(Flows::new(idle))) }
    }

    /// Whether a sender is a trusted proxy.
    pub fn trust(&self, sender: &Address) -> bool {
        sender.ip().is_some_and(|sender| self.networks.allow(sender.ip()))
    }

    /// Finds the origin of a datagram.
    pub fn origin(&self, sender: &[u8], payload: &[u8]) -> Result<Origin, Refusal> {
        let sender = Address::from_bytes(sender);
        if !self.trust(&sender) {
            return if Header::is_at_start(payload) {
                Err(Refusal::Untrusted)
            } else {
                Ok(Origin { client: None, header_len: 0 })
            };
        }
        if let Some(flows) = &self.flows {
            return flows.lock().origin(sender, payload, Instant::now());
        }
        let header = Header::parse(payload).map_err(|Malformed| Refusal::Malformed)?;
        let client = header.client.map(|client| client_of(&sender, client));
        Ok(Origin { client, header_len: header.len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::guard::parse_network;
    use std::net::SocketAddr;

    fn address(text: &str) -> Address {
        text.parse::<SocketAddr>().unwrap().into()
    }

    #[test]
    fn only_the_header_of_a_trusted_proxy_counts() {
        let networks = [parse_network("10.0.0.0/8").unwrap(), parse_network("fd00::/8").unwrap()];
        let proxies = Proxies::new(Networks::new(Some(&networks), &[]).unwrap(), None);
        let origin =
            |sender: &str, payload: &[u8]| proxies.origin(address(sender).as_bytes(), payload);
        let client: SocketAddr = "192.0.2.1:7".parse().unwrap();
        let header = Header::encode(client, "198.51.100.1:53".parse().unwrap()).unwrap();
        let of =
            |client: &str| Ok(Origin { client: Some(address(client)), header_len: header.len() });
        assert_eq!(origin("10.1.2.3:5", &header), of("192.0.2.1:7"));
        assert_eq!(origin("[::ffff:10.1.2.3]:5", &header), of("[::ffff:192.0.2.1]:7"));
        assert_eq!(origin("[fd00::1]:5", &header), of("[::ffff:192.0.2.1]:7"));
        assert_eq!(origin("10.1.2.3:5", b"no header"), Err(Refusal::Malformed));
        assert_eq!(origin("10.1.2.3:5", &header[..20]), Err(Refusal::Malformed));
        assert_eq!(origin("11.1.2.3:5", &header), Err(Refusal::Untrusted));
        assert_eq!(origin("11.1.2.3:5", &header[..20]), Err(Refusal::Untrusted));
        let direct = Ok(Origin { client: None, header_len: 0 });
        assert_eq!(origin("11.1.2.3:5", b"no header"), direct);
    }
}
