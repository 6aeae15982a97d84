//! Flows of proxies that put a header in front of the first datagram of each flow.

use std::collections::HashMap;
use std::net::{SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use super::header::{Header, Malformed};
use super::{Origin, Refusal};
use crate::net::address::Address;
use crate::net::fork_mutex::{Inherit, leave_to_parent};

/// The maximum number of flows. Further ones are refused until others have ended.
const MOST: usize = 65_536;

/// The flows of one socket. A flow is what arrives from one address and port of a proxy.
pub(super) struct Flows {
    /// A flow that has been silent for this long has ended: the proxy has forgotten it, too.
    idle: Duration,
    known: HashMap<Address, ProxyFlow>,
    /// When ended flows were last removed.
    cleared_at: Option<Instant>,
}

struct ProxyFlow {
    /// The client's address; `None` if it is the proxy itself.
    client: Option<Address>,
    seen_at: Instant,
    /// Whether its datagrams are accepted.
    is_open: bool,
}

/// The parent receives the datagrams of the flows that it knows.
impl Inherit for Flows {
    fn inherit(&mut self) {
        leave_to_parent(&mut self.known);
    }
}

impl Flows {
    pub(super) fn new(idle: Duration) -> Self {
        Self { idle, known: HashMap::new(), cleared_at: None }
    }

    /// Finds the origin of a datagram of a proxy.
    ///
    /// In a flow that has begun, the payload is the client's, which may write anything: a header
    /// with another address than the first one's is not believed. The client has forged it, or
    /// the proxy has begun another client's flow too early, so the flow is refused until it ends.
    pub(super) fn origin(
        &mut self,
        proxy: Address,
        payload: &[u8],
        now: Instant,
    ) -> Result<Origin, Refusal> {
        let header = Header::is_at_start(payload).then(|| Header::parse(payload)).transpose();
        let header = header.map_err(|Malformed| Refusal::Malformed)?;
        let client = header.map(|header| header.client.map(|client| client_of(&proxy, client)));
        let header_len = header.map_or(0, |header| header.len);
        let has_room = self.has_room(now);
        match self.known.get_mut(&proxy) {
            Some(flow) if now.duration_since(flow.seen_at) < self.idle => {
                flow.seen_at = now;
                flow.is_open &= client.is_none_or(|client| client == flow.client);
                let origin = Origin { client: flow.client, header_len };
                if flow.is_open { Ok(origin) } else { Err(Refusal::Malformed) }
            }
            ended => {
                let client = client.ok_or(Refusal::Malformed)?;
                if ended.is_none() && !has_room {
                    return Err(Refusal::Malformed);
                }
                self.known.insert(proxy, ProxyFlow { client, seen_at: now, is_open: true });
                Ok(Origin { client, header_len })
            }
        }
    }

    /// Whether another flow can begin. Removes ended flows if necessary, but not at each attempt.
    fn has_room(&mut self, now: Instant) -> bool {
        if self.known.len() >= MOST
            && self.cleared_at.is_none_or(|at| now.duration_since(at) > self.idle / 8)
        {
            self.known.retain(|_, flow| now.duration_since(flow.seen_at) < self.idle);
            self.cleared_at = Some(now);
        }
        self.known.len() < MOST && self.known.try_reserve(1).is_ok()
    }
}

/// The address of a client as the kernel would write it on the socket that its proxy sends to:
/// there, an IPv6 socket has IPv4 clients as IPv4-mapped addresses.
pub(super) fn client_of(proxy: &Address, client: SocketAddr) -> Address {
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    match (proxy.ip(), client) {
        (Some(SocketAddr::V6(_)), SocketAddr::V4(client)) => {
            SocketAddrV6::new(client.ip().to_ipv6_mapped(), client.port(), 0, 0).into()
        }
        _ => client.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(30);

    fn address(text: &str) -> Address {
        text.parse::<SocketAddr>().unwrap().into()
    }

    fn headed(client: &str, payload: &[u8]) -> Vec<u8> {
        let server = "198.51.100.1:53".parse().unwrap();
        let mut bytes = Header::encode(client.parse().unwrap(), server).unwrap();
        bytes.extend(payload);
        bytes
    }

    fn client(flows: &mut Flows, payload: &[u8], now: Instant) -> Option<Address> {
        let origin = flows.origin(address("10.0.0.1:5"), payload, now).ok()?;
        let is_header = Header::is_at_start(payload);
        assert_eq!(origin.header_len, if is_header { 28 } else { 0 });
        origin.client
    }

    #[test]
    fn a_flow_has_the_client_of_its_first_datagram() {
        let (mut flows, now) = (Flows::new(IDLE), Instant::now());
        assert_eq!(client(&mut flows, b"too early", now), None);
        let first = headed("192.0.2.1:7", b"first");
        let expected = Some(address("192.0.2.1:7"));
        assert_eq!(client(&mut flows, &first, now), expected);
        assert_eq!(client(&mut flows, b"second", now), expected);
        assert_eq!(client(&mut flows, &first, now), expected, "the network has duplicated it");
        assert!(flows.origin(address("10.0.0.1:6"), b"other flow", now).is_err());
    }

    #[test]
    fn a_header_in_the_middle_of_a_flow_is_not_believed() {
        let (mut flows, now) = (Flows::new(IDLE), Instant::now());
        client(&mut flows, &headed("192.0.2.1:7", b""), now).unwrap();
        let forged = headed("203.0.113.9:9", b"");
        for elapsed in [0, 1, 30, 59] {
            // Each refused datagram prolongs the refusal.
            let now = now + Duration::from_secs(elapsed);
            assert_eq!(client(&mut flows, &forged, now), None);
            assert_eq!(client(&mut flows, b"payload", now), None);
        }
    }

    #[test]
    fn a_silent_flow_ends() {
        let (mut flows, now) = (Flows::new(IDLE), Instant::now());
        client(&mut flows, &headed("192.0.2.1:7", b""), now).unwrap();
        let later = now + IDLE;
        assert_eq!(client(&mut flows, b"payload", later), None);
        let other = address("203.0.113.9:9");
        assert_eq!(client(&mut flows, &headed("203.0.113.9:9", b""), later), Some(other));
    }

    #[test]
    fn the_number_of_flows_is_limited_until_some_have_ended() {
        let (mut flows, now) = (Flows::new(IDLE), Instant::now());
        let first = headed("192.0.2.1:7", b"");
        let proxy =
            |number: usize| address(&format!("10.0.{}.1:{}", number >> 15, 1 + (number & 0x7fff)));
        for number in 0..MOST {
            flows.origin(proxy(number), &first, now).unwrap();
        }
        assert!(flows.origin(proxy(MOST), &first, now).is_err());
        assert!(flows.origin(proxy(0), b"known", now + IDLE / 2).is_ok());
        flows.origin(proxy(MOST), &first, now + IDLE).unwrap();
        assert_eq!(flows.known.len(), 2);
    }
}
