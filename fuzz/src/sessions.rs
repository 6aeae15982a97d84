//! A peer without keys cannot change a server's session.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tomada::net::Address;
use tomada::net::dtls::{
    Context, Endpoint, EndpointOptions, Incoming, Outbox, Packets, Role, SessionScratch,
};

const KEY: &[u8] = b"a key that the fuzzer cannot guess";

/// A server and a client with a session, which last for many inputs.
struct Pair {
    server: Endpoint,
    client: Endpoint,
    scratch: SessionScratch,
}

fn server() -> Address {
    SocketAddr::from(([192, 0, 2, 1], 1)).into()
}

fn client() -> Address {
    SocketAddr::from(([192, 0, 2, 2], 2)).into()
}

impl Pair {
    fn new() -> Self {
        let context = Context::new(Role::Server);
        context
            .change(|settings| settings.psk_server = Some(Arc::new(|_| Some(KEY.to_vec().into()))));
        let serving = Endpoint::new(Arc::new(context), EndpointOptions::default());
        let context = Context::new(Role::Client);
        context.change(|settings| {
            settings.psk_client = Some(Arc::new(|_| Some((b"me".to_vec(), KEY.to_vec().into()))));
        });
        let options = EndpointOptions { peer: Some(server()), ..EndpointOptions::default() };
        let asking = Endpoint::new(Arc::new(context), options);
        let (serving, asking) = (serving.expect("valid"), asking.expect("valid"));
        let mut pair = Self { server: serving, client: asking, scratch: SessionScratch::default() };
        let mut outbox = Outbox::default();
        pair.client.begin(&mut outbox).expect("valid");
        let mut is_servers_turn = true;
        while !outbox.is_empty() {
            let datagrams: Vec<_> = outbox.iter().map(|(packet, ..)| packet.to_vec()).collect();
            outbox = Outbox::default();
            let (endpoint, from) =
                if is_servers_turn { (&pair.server, client()) } else { (&pair.client, server()) };
            for payload in &datagrams {
                let incoming = Incoming { payload, from: &from, source: None, now: Instant::now() };
                endpoint.receive(&incoming, &mut pair.scratch, &mut outbox, |_, _| {});
            }
            is_servers_turn = !is_servers_turn;
        }
        assert_eq!(pair.server.sessions(), (1, 0));
        pair
    }

    /// Receives a datagram as if the client had sent it; returns how much is delivered and answered.
    fn receive(&mut self, payload: &[u8]) -> (usize, usize) {
        let (mut outbox, mut delivered, from) = (Outbox::default(), 0, client());
        let incoming = Incoming { payload, from: &from, source: None, now: Instant::now() };
        self.server.receive(&incoming, &mut self.scratch, &mut outbox, |_, _| delivered += 1);
        (delivered, outbox.iter().map(|(packet, ..)| packet.len()).sum())
    }

    fn seal(&self) -> Vec<u8> {
        let mut packets = Packets::default();
        self.client.seal(None, b"plaintext", &mut packets).expect("there is a session");
        packets.get(0).expect("one record").to_vec()
    }
}

thread_local! {
    static PAIR: RefCell<Option<Pair>> = const { RefCell::new(None) };
}

/// A datagram that no peer with keys has made is not delivered, ends no session, and is answered by
/// fewer bytes than it has. The same holds for a true record with some bytes changed.
pub fn sessions(data: &[u8]) {
    PAIR.with_borrow_mut(|pair| {
        let pair = pair.get_or_insert_with(Pair::new);
        let (delivered, answered) = pair.receive(data);
        assert!(delivered == 0 && answered <= data.len(), "{delivered}, {answered}");
        let record = pair.seal();
        let mut changed = record.clone();
        for (at, byte) in data.iter().take(4).enumerate() {
            let at = (usize::from(*byte) + 61 * at) % changed.len();
            changed[at] ^= byte | 1;
        }
        if changed != record {
            assert_eq!(pair.receive(&changed).0, 0);
        }
        assert_eq!(pair.receive(&record).0, 1, "the session has ended");
        assert_eq!(pair.receive(&record).0, 0, "a record was replayed");
        assert_eq!(pair.server.sessions(), (1, 0));
    });
}
