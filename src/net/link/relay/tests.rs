use std::net::UdpSocket;
use std::time::Duration;

use super::*;
use crate::net::link::counts::DropReason;
use crate::net::link::impairments::Impairments;

/// No test waits longer for a datagram that has to come.
const PATIENCE: Duration = Duration::from_secs(20);

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn options(server: &UdpSocket) -> RelayOptions {
    RelayOptions::new("127.0.0.1:0".parse().unwrap(), server.local_addr().unwrap(), 1, 1000)
}

fn delayed(options: &mut RelayOptions, delay: Duration) {
    options.paths[0].set(Impairments { delay, ..Impairments::default() });
}

fn relay(server: &UdpSocket, change: impl FnOnce(&mut RelayOptions)) -> Relay {
    let mut options = options(server);
    change(&mut options);
    Relay::start(options, [None, None]).unwrap()
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2000];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..len].to_vec(), from)
}

#[test]
fn each_client_has_a_port_of_its_own_and_gets_its_replies() {
    let server = socket();
    let relay = relay(&server, |_| ());
    let clients = [socket(), socket()];
    let mut ports = Vec::new();
    for (number, client) in clients.iter().enumerate() {
        client.send_to(&[number as u8], relay.address()).unwrap();
        let (payload, from) = receive(&server);
        assert_eq!(payload, [number as u8]);
        ports.push(from);
    }
    assert_ne!(ports[0], ports[1]);
    for (client, port) in clients.iter().zip(&ports).rev() {
        server.send_to(&port.port().to_be_bytes(), port).unwrap();
        assert_eq!(receive(client), (port.port().to_be_bytes().to_vec(), relay.address()));
    }
    let known = relay.clients();
    assert_eq!(known.iter().map(|client| client.outside).collect::<Vec<_>>(), ports);
    assert_eq!(known[1].client, clients[1].local_addr().unwrap());
    relay.stop().unwrap();
    for direction in Direction::BOTH {
        let counts = relay.with_path(direction, |path| path.counts().clone());
        assert_eq!((counts.received, counts.sent, counts.queued()), (2, 2, 0));
    }
}

#[test]
fn a_burst_arrives_complete_and_in_order() {
    let server = socket();
    let relay = relay(&server, |_| ());
    let client = socket();
    for number in 0..200_u16 {
        client.send_to(&number.to_be_bytes(), relay.address()).unwrap();
    }
    for number in 0..200_u16 {
        assert_eq!(receive(&server).0, number.to_be_bytes());
    }
    relay.stop().unwrap();
    assert_eq!(relay.kernel_drops(), 0);
}

#[test]
fn a_delayed_datagram_is_not_early() {
    let server = socket();
    let delay = Duration::from_millis(30);
    let relay = relay(&server, |options| delayed(options, delay));
    let client = socket();
    let sent = std::time::Instant::now();
    client.send_to(b"x", relay.address()).unwrap();
    receive(&server);
    assert!(sent.elapsed() >= delay);
}

#[test]
fn rebinding_changes_the_port_and_drops_replies_to_the_old_one() {
    let server = socket();
    let relay = relay(&server, |_| ());
    let client = socket();
    client.send_to(b"1", relay.address()).unwrap();
    let (_, old) = receive(&server);
    relay.rebind();
    client.send_to(b"2", relay.address()).unwrap();
    let (_, new) = receive(&server);
    assert_ne!(old, new);
    server.send_to(b"to the old", old).unwrap();
    let rebound = || {
        relay.with_path(Direction::ToClient, |path| {
            path.counts().dropped[DropReason::Rebound as usize]
        })
    };
    let start = std::time::Instant::now();
    while rebound() == 0 && start.elapsed() < PATIENCE {
        thread::yield_now();
    }
    assert_eq!(rebound(), 1);
    server.send_to(b"to the new", new).unwrap();
    assert_eq!(receive(&client).0, b"to the new");
}

#[test]
fn a_server_that_refuses_does_not_end_the_link() {
    let gone = socket().local_addr().unwrap();
    let server = socket();
    let relay = relay(&server, |options| options.upstream = gone);
    let client = socket();
    for _ in 0..5 {
        client.send_to(b"x", relay.address()).unwrap();
    }
    let start = std::time::Instant::now();
    while relay.icmp_errors()[0] == 0 && start.elapsed() < PATIENCE {
        client.send_to(b"x", relay.address()).unwrap();
        thread::yield_now();
    }
    assert!(relay.icmp_errors()[0] > 0);
    relay.stop().unwrap();
}

#[test]
fn a_function_decides_without_a_lock() {
    type Seen = Vec<(u64, Vec<u8>)>;
    struct Odd(Arc<Mutex<Seen>>);
    impl Decide for Odd {
        fn decide(&mut self, _: Direction, _: u32, index: u64, data: &[u8]) -> Option<Verdict> {
            self.0.lock().unwrap().push((index, data.to_vec()));
            (index % 2 == 1).then(|| Verdict::drop(DropReason::Scripted))
        }
    }
    let (server, client) = (socket(), socket());
    let seen = Arc::new(Mutex::default());
    let options = RelayOptions { captures: true, ..options(&server) };
    let relay = Relay::start(options, [Some(Box::new(Odd(Arc::clone(&seen)))), None]).unwrap();
    for payload in [b"a", b"b", b"c"] {
        client.send_to(payload, relay.address()).unwrap();
    }
    assert_eq!((receive(&server).0, receive(&server).0), (b"a".to_vec(), b"c".to_vec()));
    relay.stop().unwrap();
    let expected = [(0, b"a".to_vec()), (1, b"b".to_vec()), (2, b"c".to_vec())];
    assert_eq!(*seen.lock().unwrap(), expected);
    let (captured, missing) = relay.take_captured();
    let to_server = |it: &&Captured| it.to == server.local_addr().unwrap();
    assert_eq!((captured.len(), missing), (5, 0));
    assert_eq!(captured.iter().filter(to_server).count(), 2);
    assert_eq!(captured[0].from, client.local_addr().unwrap());
}

#[test]
fn stopping_drops_what_is_under_way() {
    let (server, client) = (socket(), socket());
    let relay = relay(&server, |options| delayed(options, Duration::from_secs(1000)));
    client.send_to(b"x", relay.address()).unwrap();
    let counts = || relay.with_path(Direction::ToServer, |path| path.counts().clone());
    let start = std::time::Instant::now();
    while counts().received == 0 && start.elapsed() < PATIENCE {
        thread::yield_now();
    }
    relay.stop().unwrap();
    relay.stop().unwrap(); // again does nothing
    assert_eq!((counts().dropped[DropReason::Cut as usize], counts().queued()), (1, 0));
}
