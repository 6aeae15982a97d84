//! Endpoints that talk to each other through a network of our own.

mod forged;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::net::address::Address;

const SERVER: &str = "192.0.2.1:4433";

fn address(text: &str) -> Address {
    text.parse::<SocketAddr>().unwrap().into()
}

fn context(role: Role, key: &'static [u8]) -> Arc<Context> {
    let context = Context::new(role);
    context.change(|settings| match role {
        Role::Client => {
            settings.psk_client =
                Some(Arc::new(|_| Some((b"tester".to_vec(), key.to_vec().into()))));
        }
        Role::Server => {
            let find = |identity: &[u8]| (identity == b"tester").then(|| key.to_vec().into());
            settings.psk_server = Some(Arc::new(find));
        }
    });
    Arc::new(context)
}

fn server(limits: TableLimits) -> Endpoint {
    let context = context(Role::Server, b"secret");
    context.change(|settings| settings.limits = limits);
    Endpoint::new(context, EndpointOptions::default()).unwrap()
}

/// Datagrams on their way: from, to, and content.
type Wire = VecDeque<(Address, Address, Vec<u8>)>;

/// A server and clients at several addresses, with the time that they see.
struct Network {
    server: Endpoint,
    clients: HashMap<Address, Endpoint>,
    wire: Wire,
    /// The clients' ciphers, if not the default.
    ciphers: Option<String>,
    now: Instant,
    /// The sender and the plaintext of each datagram that a side has received.
    received: Vec<(Address, Vec<u8>)>,
    scratch: SessionScratch,
}

impl Network {
    fn new() -> Self {
        Self::with(TableLimits::default())
    }

    fn with(limits: TableLimits) -> Self {
        Self {
            server: server(limits),
            clients: HashMap::new(),
            wire: VecDeque::new(),
            ciphers: None,
            now: Instant::now(),
            received: Vec::new(),
            scratch: SessionScratch::default(),
        }
    }

    /// Begins a session at an address, whose earlier client is forgotten.
    fn begin(&mut self, at: &str, key: &'static [u8]) -> Address {
        let context = context(Role::Client, key);
        if let Some(ciphers) = &self.ciphers {
            context.change(|settings| settings.set_ciphers(ciphers)).unwrap();
        }
        self.begin_with(at, context)
    }

    fn begin_with(&mut self, at: &str, context: Arc<Context>) -> Address {
        let (at, to) = (address(at), address(SERVER));
        let options = EndpointOptions { peer: Some(to), ..EndpointOptions::default() };
        let client = Endpoint::new(context, options).unwrap();
        let mut outbox = Outbox::default();
        client.begin(&mut outbox).unwrap();
        self.clients.insert(at, client);
        self.post(at, &outbox);
        at
    }

    fn connect(&mut self, at: &str) -> Address {
        let at = self.begin(at, b"secret");
        self.run();
        assert!(matches!(self.clients[&at].status(), Status::Established));
        at
    }

    fn post(&mut self, from: Address, outbox: &Outbox) {
        self.wire.extend(outbox.iter().map(|(packet, to, _)| (from, *to, packet.to_vec())));
    }

    /// Delivers one datagram; what its receiver answers goes onto the wire.
    fn deliver(&mut self, from: Address, to: Address, datagram: &[u8]) {
        let endpoint = match self.clients.get(&to) {
            Some(client) => client,
            None if to == address(SERVER) => &self.server,
            None => return,
        };
        let (mut outbox, received) = (Outbox::default(), &mut self.received);
        let incoming = Incoming { payload: datagram, from: &from, source: None, now: self.now };
        endpoint.receive(&incoming, &mut self.scratch, &mut outbox, |_, plaintext| {
            received.push((from, plaintext.to_vec()));
        });
        self.post(to, &outbox);
    }

    fn run(&mut self) {
        while let Some((from, to, datagram)) = self.wire.pop_front() {
            self.deliver(from, to, &datagram);
        }
    }

    fn seal(&self, from: Address, to: Address, plaintext: &[u8]) -> Result<Vec<u8>, SessionError> {
        let mut packets = Packets::default();
        let endpoint = self.clients.get(&from).unwrap_or(&self.server);
        endpoint.seal(Some(&to), plaintext, &mut packets)?;
        assert_eq!(packets.len(), 1);
        Ok(packets.get(0).unwrap().to_vec())
    }

    fn send(&mut self, from: Address, to: Address, plaintext: &[u8]) {
        let record = self.seal(from, to, plaintext).unwrap();
        assert!(!record.windows(plaintext.len()).any(|part| part == plaintext));
        self.deliver(from, to, &record);
    }

    fn take_received(&mut self) -> Vec<(Address, Vec<u8>)> {
        std::mem::take(&mut self.received)
    }
}

#[test]
fn plaintexts_go_both_ways_and_stay_in_their_session() {
    let (mut net, to) = (Network::new(), address(SERVER));
    let clients: Vec<_> =
        (1..5).map(|host| net.connect(&format!("198.51.100.{host}:1000"))).collect();
    for (number, &client) in clients.iter().enumerate() {
        let text = format!("from client {number}");
        net.send(client, to, text.as_bytes());
        assert_eq!(net.take_received(), [(client, text.clone().into_bytes())]);
        net.send(to, client, text.as_bytes());
        assert_eq!(net.take_received(), [(to, text.into_bytes())]);
    }
    assert_eq!(net.server.sessions(), (4, 0));
    let identity = |ssl: &openssl::ssl::SslRef| ssl.psk_identity().map(<[u8]>::to_vec);
    assert_eq!(
        net.server.live(Some(&clients[0])).unwrap().inspect(identity),
        Some(Some(b"tester".to_vec()))
    );
}

#[test]
fn nothing_is_kept_for_a_client_that_does_not_repeat_its_cookie() {
    let mut net = Network::new();
    net.begin("198.51.100.1:1000", b"secret");
    let (from, to, hello) = net.wire.pop_front().unwrap();
    for port in 1..1000 {
        let spoofed = address(&format!("203.0.113.9:{port}"));
        net.deliver(spoofed, to, &hello);
        let (_, back, answer) = net.wire.pop_back().unwrap();
        assert!(back == spoofed && answer.len() < hello.len());
    }
    assert_eq!(net.server.sessions(), (0, 0));
    assert_eq!(net.server.counts().cookies_sent, 999);
    net.deliver(from, to, &hello);
    let (_, _, request) = net.wire.pop_back().unwrap();
    net.deliver(to, from, &request);
    let (_, _, with_cookie) = net.wire.pop_back().unwrap();
    // The cookie of another address.
    net.deliver(address("203.0.113.9:1"), to, &with_cookie);
    assert_eq!(net.server.sessions(), (0, 0));
    // After two rotations of the secret.
    net.now += Duration::from_secs(121);
    net.deliver(from, to, &with_cookie);
    assert_eq!(net.server.sessions(), (0, 0));
}

#[test]
fn a_wrong_key_ends_the_handshake_on_both_sides() {
    let mut net = Network::new();
    net.server.keep_events();
    let client = net.begin("198.51.100.1:1000", b"wrong");
    net.run();
    assert!(net.seal(client, address(SERVER), b"x").is_err());
    // A record that cannot be decrypted may be anyone's, so DTLS drops it.
    net.now += Duration::from_secs(60);
    net.server.handle_timeouts(net.now, &mut Outbox::default());
    net.clients[&client].handle_timeouts(net.now, &mut Outbox::default());
    assert_eq!((net.server.sessions(), net.server.counts().failed), ((0, 0), 1));
    assert!(
        matches!(net.server.take_event(), Some(SessionEvent::Failed(peer, _)) if peer == client)
    );
    let Status::Ended(failure) = net.clients[&client].status() else { panic!() };
    assert_eq!(failure.kind, SessionErrorKind::TimedOut);
    assert!(failure.text.contains("uses a different pre-shared key"), "{failure}");
}

#[test]
fn a_replayed_forged_or_garbled_record_is_dropped() {
    let (mut net, to) = (Network::new(), address(SERVER));
    let client = net.connect("198.51.100.1:1000");
    let record = net.seal(client, to, b"once").unwrap();
    net.deliver(client, to, &record);
    assert_eq!(net.take_received(), [(client, b"once".to_vec())]);
    net.deliver(client, to, &record);
    let next = net.seal(client, to, b"next").unwrap();
    for at in 0..next.len() {
        let mut garbled = next.clone();
        garbled[at] ^= 0x55;
        net.deliver(client, to, &garbled);
        net.deliver(client, to, &next[..at]);
    }
    // Alerts that are not encrypted: close_notify, and a fatal one.
    for alert in [[1, 0], [2, 40]] {
        let header = [21, 254, 253, 0, 0, 0, 0, 0, 0, 0, 9, 0, 2];
        net.deliver(client, to, &[&header[..], &alert].concat());
    }
    // A record of another session, and one from an address without a session.
    let other = net.connect("198.51.100.2:1000");
    let foreign = net.seal(other, to, b"foreign").unwrap();
    net.deliver(client, to, &foreign);
    net.deliver(address("203.0.113.9:1"), to, &next);
    assert_eq!(net.take_received(), []);
    net.deliver(client, to, &next);
    assert_eq!(net.take_received(), [(client, b"next".to_vec())]);
    assert_eq!(net.server.sessions(), (2, 0));
}

#[test]
fn records_may_arrive_in_any_order() {
    let (mut net, to) = (Network::new(), address(SERVER));
    let client = net.connect("198.51.100.1:1000");
    let records: Vec<_> =
        (0..20_u8).map(|number| net.seal(client, to, &[number; 9]).unwrap()).collect();
    for record in records.iter().rev() {
        net.deliver(client, to, record);
    }
    let received = net.take_received();
    assert!(received.iter().map(|(_, text)| text[0]).eq((0..20).rev()));
}

#[test]
fn a_new_session_replaces_the_live_one_when_it_is_complete_and_not_before() {
    let (mut net, to) = (Network::new(), address(SERVER));
    net.server.keep_events();
    let at = net.connect("198.51.100.1:1000");
    assert!(matches!(net.server.take_event(), Some(SessionEvent::Established(_))));
    let record = net.seal(at, to, b"of the old session").unwrap();
    // A client that has lost its state begins anew, as far as the server's last flight.
    let old = net.clients.remove(&at).unwrap();
    net.begin("198.51.100.1:1000", b"secret");
    for _ in 0..3 {
        let (from, to, datagram) = net.wire.pop_front().unwrap();
        net.deliver(from, to, &datagram);
    }
    assert_eq!(net.server.sessions(), (1, 1));
    net.deliver(at, to, &record);
    assert_eq!(net.take_received(), [(at, b"of the old session".to_vec())]);
    net.run();
    assert_eq!(net.server.sessions(), (1, 0));
    assert!(matches!(net.server.take_event(), Some(SessionEvent::Lost(..))));
    assert!(matches!(net.server.take_event(), Some(SessionEvent::Established(_))));
    net.send(at, to, b"of the new session");
    net.send(to, at, b"answer");
    assert_eq!(net.take_received().len(), 2);
    let mut packets = Packets::default();
    old.seal(None, b"late", &mut packets).unwrap();
    net.deliver(at, to, packets.get(0).unwrap());
    assert_eq!(net.take_received(), []);
}

#[test]
fn a_handshake_that_is_left_in_the_lurch_ends_and_the_live_session_stays() {
    let (mut net, to) = (Network::new(), address(SERVER));
    let at = net.connect("198.51.100.1:1000");
    let old = net.clients.remove(&at).unwrap();
    net.begin("198.51.100.1:1000", b"secret");
    for _ in 0..3 {
        let (from, to, datagram) = net.wire.pop_front().unwrap();
        net.deliver(from, to, &datagram);
    }
    net.clients.insert(at, old);
    net.wire.clear();
    net.now += Duration::from_secs(60);
    net.server.handle_timeouts(net.now, &mut Outbox::default());
    assert_eq!(net.server.sessions(), (1, 0));
    net.send(at, to, b"still here");
    assert_eq!(net.take_received(), [(at, b"still here".to_vec())]);
}

#[test]
fn a_session_ends_with_close_notify() {
    for is_client in [true, false] {
        let (mut net, to) = (Network::new(), address(SERVER));
        let client = net.connect("198.51.100.1:1000");
        let mut outbox = Outbox::default();
        if is_client {
            assert!(net.clients[&client].close(None, &mut outbox));
            net.post(client, &outbox);
        } else {
            net.server.close_all(&mut outbox);
            net.post(to, &outbox);
        }
        net.run();
        assert_eq!(net.server.sessions(), (0, 0));
        let Status::Ended(failure) = net.clients[&client].status() else { panic!() };
        assert_eq!(failure.kind, SessionErrorKind::Closed);
    }
}

#[test]
fn a_server_that_closes_ends_handshakes_in_every_state() {
    for is_resumed in [false, true] {
        for steps in 3.. {
            let (mut net, to) = (Network::new(), address(SERVER));
            let context = context(Role::Client, b"secret");
            if is_resumed {
                net.begin_with("198.51.100.2:1000", Arc::clone(&context));
                net.run();
                net.server.close_all(&mut Outbox::default());
            }
            let client = net.begin_with("198.51.100.1:1000", context);
            for _ in 0..steps {
                let Some((from, to, datagram)) = net.wire.pop_front() else { break };
                net.deliver(from, to, &datagram);
            }
            if net.server.sessions() == (1, 0) {
                assert!(steps > 3);
                break;
            }
            assert_eq!(net.server.sessions(), (0, 1));
            let mut outbox = Outbox::default();
            net.server.close_handshakes(&mut outbox);
            assert_eq!((net.server.sessions(), net.server.counts().failed), ((0, 0), 0));
            net.post(to, &outbox);
            net.run();
            let Status::Ended(failure) = net.clients[&client].status() else { panic!("{steps}") };
            let is_fatal = matches!(failure.kind, SessionErrorKind::Protocol);
            assert!(is_fatal == is_resumed, "{:?}", failure.kind);
            assert!(is_fatal || matches!(failure.kind, SessionErrorKind::Closed));
        }
    }
}

#[test]
fn datagrams_that_no_record_can_carry_are_refused() {
    let (mut net, to) = (Network::new(), address(SERVER));
    let client = net.connect("198.51.100.1:1000");
    let limit = net.clients[&client].live(None).unwrap().limit().unwrap();
    assert!((DEFAULT_MTU - 100..DEFAULT_MTU).contains(&limit), "{limit}");
    let record = net.seal(client, to, &vec![1; limit]).unwrap();
    assert!(record.len() <= DEFAULT_MTU);
    net.deliver(client, to, &record);
    assert_eq!(net.take_received()[0].1.len(), limit);
    let failure = net.seal(client, to, &vec![1; limit + 1]).unwrap_err();
    assert_eq!(failure.kind, SessionErrorKind::TooLong);
    assert!(failure.text.contains(&limit.to_string()), "{failure}");
    assert_eq!(net.seal(client, to, b"").unwrap_err().kind, SessionErrorKind::Empty);
    let nobody = address("203.0.113.9:1");
    assert_eq!(net.seal(to, nobody, b"x").unwrap_err().kind, SessionErrorKind::NoSession);
}

#[test]
fn sessions_and_handshakes_beyond_the_limits_make_room() {
    let limits = TableLimits { sessions: 3, handshakes: 2, ..TableLimits::default() };
    let (mut net, to) = (Network::with(limits), address(SERVER));
    let clients: Vec<_> = (1..4).map(|port| net.connect(&format!("198.51.100.1:{port}"))).collect();
    net.now += Duration::from_secs(1);
    net.send(clients[0], to, b"in use");
    net.now += Duration::from_secs(1);
    net.connect("198.51.100.1:9");
    assert_eq!(net.server.sessions(), (3, 0));
    let is_left = |client: &Address| net.server.live(Some(client)).is_some();
    assert!(is_left(&clients[0]));
    assert_eq!(clients.iter().filter(|client| is_left(client)).count(), 2);
    for port in 11..15 {
        net.begin(&format!("198.51.100.1:{port}"), b"secret");
        for _ in 0..3 {
            let (from, to, datagram) = net.wire.pop_front().unwrap();
            net.deliver(from, to, &datagram);
        }
        net.wire.clear();
    }
    assert_eq!(net.server.sessions(), (3, 2));
    assert_eq!(net.server.counts().evicted, 3);
}

#[test]
fn a_session_that_is_idle_for_too_long_ends() {
    let limits = TableLimits { idle_time: Duration::from_secs(10), ..TableLimits::default() };
    let (mut net, to) = (Network::with(limits), address(SERVER));
    let (busy, idle) = (net.connect("198.51.100.1:1"), net.connect("198.51.100.1:2"));
    for _ in 0..3 {
        net.now += Duration::from_secs(6);
        net.send(busy, to, b"hello");
        let mut outbox = Outbox::default();
        net.server.handle_timeouts(net.now, &mut outbox);
        net.post(to, &outbox);
        net.run();
    }
    assert_eq!(net.server.sessions(), (1, 0));
    assert!(matches!(net.clients[&idle].status(), Status::Ended(_)));
    assert!(matches!(net.clients[&busy].status(), Status::Established));
    assert!(net.server.next_timeout().is_some_and(|at| at > net.now));
}

#[test]
fn an_end_that_overtakes_the_last_message_of_a_handshake_follows_it() {
    let (mut net, to) = (Network::new(), address(SERVER));
    net.server.keep_events();
    let at = address("198.51.100.1:1000");
    let context = context(Role::Client, b"secret");
    let begin = |net: &mut Network| {
        let options = EndpointOptions { peer: Some(to), ..EndpointOptions::default() };
        let client = Endpoint::new(Arc::clone(&context), options).unwrap();
        let mut outbox = Outbox::default();
        client.begin(&mut outbox).unwrap();
        net.clients.insert(at, client);
        net.post(at, &outbox);
    };
    begin(&mut net);
    net.run();
    let mut outbox = Outbox::default();
    net.clients[&at].close(None, &mut outbox);
    net.post(at, &outbox);
    net.run();
    while net.server.take_event().is_some() {}
    // The second session resumes the first one, so that the client's message is the last.
    begin(&mut net);
    while !matches!(net.clients[&at].status(), Status::Established) {
        let (from, to, datagram) = net.wire.pop_front().unwrap();
        net.deliver(from, to, &datagram);
    }
    let last: Vec<_> = net.wire.drain(..).collect();
    let [(_, _, last)] = &last[..] else { panic!("{} datagrams", last.len()) };
    let change = 13 + usize::from(last[12]); // the length of the first record
    let data = net.seal(at, to, b"early").unwrap();
    let mut outbox = Outbox::default();
    net.clients[&at].close(None, &mut outbox);
    net.deliver(at, to, &last[..change]);
    net.deliver(at, to, &data);
    for (packet, _, _) in outbox.iter() {
        net.deliver(at, to, packet);
    }
    net.deliver(at, to, &last[change..]);
    assert_eq!(net.take_received(), [(at, b"early".to_vec())]);
    assert!(matches!(net.server.take_event(), Some(SessionEvent::Established(_))));
    assert!(matches!(net.server.take_event(), Some(SessionEvent::Lost(..))));
    assert!(net.server.take_event().is_none());
    assert_eq!((net.server.counts().established, net.server.counts().failed), (2, 0));
    assert_eq!(net.server.sessions(), (0, 0));
}

#[test]
fn events_that_are_not_read_hold_no_sessions() {
    let mut net = Network::new();
    net.server.keep_events();
    for is_left in [true, false] {
        net.connect("198.51.100.1:1000");
        if !is_left {
            net.server.close_all(&mut Outbox::default());
        }
        let Some(SessionEvent::Established(session)) = net.server.take_event() else { panic!() };
        assert_eq!(session.upgrade().is_some(), is_left);
        while net.server.take_event().is_some() {}
        net.server.close_all(&mut Outbox::default());
        while net.server.take_event().is_some() {}
    }
}
