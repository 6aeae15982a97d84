use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::*;
use crate::net::link::counts::{DropReason, LinkCounts};
use crate::net::link::impairments::Loss;
use crate::net::link::scripts::{Decide, Steps};
use crate::net::link::verdict::Verdict;
use crate::net::send_queue::SendQueue;
use crate::net::sys::SendSlice;

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
    Relay::start(options, Scripts::default()).unwrap()
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2000];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..len].to_vec(), from)
}

/// Waits until a command was carried out.
fn done(mut pending: Pending) {
    pending.wait(PATIENCE).expect("the thread carries out its commands").unwrap();
}

fn stop(relay: &Relay) {
    done(relay.stop());
    relay.close().unwrap();
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
    stop(&relay);
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
    stop(&relay);
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
    done(relay.rebind());
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
    stop(&relay);
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
    let mut scripts = Scripts::default();
    scripts.set(Scope::One(Direction::ToServer), Some(Box::new(Odd(Arc::clone(&seen)))));
    let relay = Relay::start(options, scripts).unwrap();
    for payload in [b"a", b"b", b"c"] {
        client.send_to(payload, relay.address()).unwrap();
    }
    assert_eq!((receive(&server).0, receive(&server).0), (b"a".to_vec(), b"c".to_vec()));
    stop(&relay);
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
    stop(&relay);
    stop(&relay); // again does nothing
    assert_eq!((counts().dropped[DropReason::Cut as usize], counts().queued()), (1, 0));
}

/// A script that waits about the first datagrams, as many as its last field says.
struct Waits(Sender<()>, Receiver<()>, u64);

impl Decide for Waits {
    fn decide(&mut self, _: Direction, _: u32, index: u64, _: &[u8]) -> Option<Verdict> {
        if index < self.2 {
            self.0.send(()).unwrap();
            self.1.recv_timeout(PATIENCE).unwrap();
        }
        None
    }
}

#[test]
fn a_command_that_comes_while_the_thread_catches_up_is_carried_out() {
    let (server, client) = (socket(), socket());
    let ((entered, entering), (opening, opened)) = (channel(), channel());
    let mut scripts = Scripts::default();
    scripts.set(Scope::Both, Some(Box::new(Waits(entered, opened, 2))));
    let relay = Relay::start(options(&server), scripts).unwrap();
    let send = || client.send_to(b"x", relay.address()).unwrap();
    let wait = || entering.recv_timeout(PATIENCE).unwrap();
    send();
    wait();
    let first = relay.cut(BOTH);
    send();
    opening.send(()).unwrap();
    wait(); // it receives the second datagram before it cuts
    let second = relay.heal(BOTH);
    opening.send(()).unwrap();
    done(first);
    done(second);
}

/// A relay whose thread waits in a script for [`Gate::open`], about the first datagram, while
/// another one waits in the receive buffer.
struct Gate {
    server: UdpSocket,
    client: UdpSocket,
    relay: Relay,
    opening: Sender<()>,
}

impl Gate {
    fn new(change: impl FnOnce(&Relay)) -> Self {
        let (server, client) = (socket(), socket());
        let ((entered, entering), (opening, opened)) = (channel(), channel());
        let mut scripts = Scripts::default();
        let waits = Box::new(Waits(entered, opened, 1));
        scripts.set(Scope::One(Direction::ToServer), Some(waits));
        let options = RelayOptions { captures: true, ..options(&server) };
        let relay = Relay::start(options, scripts).unwrap();
        change(&relay);
        client.send_to(b"first", relay.address()).unwrap();
        entering.recv_timeout(PATIENCE).unwrap();
        client.send_to(b"arrived", relay.address()).unwrap();
        let is_readable = relay.shared.front.with(|fd| {
            let mut fds = [libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
            sys::poll(&mut fds, Some(PATIENCE))
        });
        assert_eq!(is_readable.unwrap(), 1);
        Self { server, client, relay, opening }
    }

    /// Lets the thread continue, and waits until a command was carried out.
    fn open(&self, pending: Pending) {
        self.opening.send(()).unwrap();
        done(pending);
    }

    fn send(&self, payload: &[u8]) {
        self.client.send_to(payload, self.relay.address()).unwrap();
    }

    fn receives(&self, payload: &[u8]) -> SocketAddr {
        let (received, from) = receive(&self.server);
        assert_eq!(received, payload);
        from
    }

    fn counts(&self) -> LinkCounts {
        self.relay.with_path(Direction::ToServer, |path| path.counts().clone())
    }
}

const BOTH: [bool; 2] = [true; 2];

#[test]
fn a_cut_lets_what_has_arrived_pass_and_nothing_else() {
    let gate = Gate::new(|_| ());
    gate.open(gate.relay.cut(BOTH));
    assert_eq!((gate.counts().received, gate.counts().sent), (2, 2));
    gate.relay.take_captured();
    gate.send(b"later");
    gate.receives(b"first");
    gate.receives(b"arrived");
    done(gate.relay.heal(BOTH));
    gate.send(b"healed");
    gate.receives(b"healed");
    assert_eq!(gate.counts().dropped[DropReason::Cut as usize], 1);
}

#[test]
fn stopping_is_a_cut() {
    let gate = Gate::new(|_| ());
    gate.open(gate.relay.stop());
    gate.receives(b"first");
    gate.receives(b"arrived");
    let counts = gate.counts();
    assert_eq!((counts.received, counts.sent), (2, 2));
}

#[test]
fn a_function_that_stops_the_link_leaves_no_datagram_unaccounted() {
    struct Closes(Receiver<Arc<Relay>>);
    impl Decide for Closes {
        fn decide(&mut self, _: Direction, _: u32, index: u64, _: &[u8]) -> Option<Verdict> {
            if index == 0 {
                done(self.0.recv_timeout(PATIENCE).unwrap().stop());
            }
            None
        }
    }
    let server = socket();
    let (sender, receiver) = channel();
    let mut scripts = Scripts::default();
    scripts.set(Scope::Both, Some(Box::new(Closes(receiver))));
    let relay = Arc::new(Relay::start(options(&server), scripts).unwrap());
    sender.send(Arc::clone(&relay)).unwrap();
    // Coalesced, so that the link receives all of them at once.
    let client = clients::open(relay.address()).unwrap();
    client.connect(&relay.address().into()).unwrap();
    let mut queue = SendQueue::default();
    for _ in 0..3 {
        queue.push(SendSlice::new(b"x"), None, None).unwrap();
    }
    client.with(|fd| client.send_queue(fd, &mut queue, 0)).unwrap();
    let start = std::time::Instant::now();
    while !relay.shared.control.is_stopping() && start.elapsed() < PATIENCE {
        thread::yield_now();
    }
    stop(&relay);
    let counts = relay.with_path(Direction::ToServer, |path| path.counts().clone());
    assert_eq!((counts.received, counts.dropped[DropReason::Cut as usize]), (3, 3));
}

#[test]
fn a_heal_drops_what_has_arrived() {
    let gate = Gate::new(|relay| done(relay.cut(BOTH)));
    gate.open(gate.relay.heal(BOTH));
    gate.send(b"healed");
    gate.receives(b"healed");
    assert_eq!(gate.counts().dropped[DropReason::Cut as usize], 2);
}

#[test]
fn a_cut_and_a_heal_together_drop_only_what_is_under_way() {
    let gate = Gate::new(|relay| {
        let mut impaired = [Impairments::default(), Impairments::default()];
        impaired[0].delay = Duration::from_secs(1000);
        done(relay.change(impaired, Vec::new()));
    });
    let (cut, heal) = (gate.relay.cut([true, false]), gate.relay.heal([true, false]));
    gate.open(cut);
    done(heal);
    let counts = gate.counts();
    assert_eq!((counts.received, counts.dropped[DropReason::Cut as usize]), (2, 2));
    done(gate.relay.change(<[Impairments; 2]>::default(), Vec::new()));
    gate.send(b"healed");
    gate.receives(b"healed");
}

#[test]
fn rebinding_concerns_what_arrives_later() {
    let gate = Gate::new(|_| ());
    gate.open(gate.relay.rebind());
    let outside = gate.relay.clients()[0].outside;
    gate.send(b"later");
    let old = gate.receives(b"first");
    assert_eq!(gate.receives(b"arrived"), old);
    assert_eq!(gate.receives(b"later"), outside);
    assert_ne!(outside, old);
}

#[test]
fn datagrams_under_way_leave_from_the_new_port() {
    let (server, client) = (socket(), socket());
    let relay = relay(&server, |_| ());
    let counts = || relay.with_path(Direction::ToServer, |path| path.counts().clone());
    loop {
        client.send_to(b"1", relay.address()).unwrap();
        let (_, old) = receive(&server);
        // The second one is under way until the third arrives, but not for long.
        let script = Steps::script(["reorder".parse().ok()]);
        let scripts = vec![(Scope::One(Direction::ToServer), script)];
        done(relay.change(<[Impairments; 2]>::default(), scripts));
        let before = counts();
        client.send_to(b"2", relay.address()).unwrap();
        while counts().received == before.received {
            thread::yield_now();
        }
        done(relay.rebind());
        let was_under_way = counts().sent == before.sent;
        client.send_to(b"3", relay.address()).unwrap();
        let (first, second) = (receive(&server), receive(&server));
        if was_under_way {
            assert_ne!(first.1, old);
            assert_eq!(first.1, second.1);
            break;
        }
    }
}

#[test]
fn a_change_concerns_what_arrives_later() {
    let gate = Gate::new(|_| ());
    let mut impaired = [Impairments::default(), Impairments::default()];
    impaired[0].loss = Loss::Independent(1.0);
    let pass = Steps::script([None, "pass".parse().ok()]);
    gate.open(gate.relay.change(impaired, vec![(Scope::One(Direction::ToServer), pass)]));
    gate.send(b"lost");
    gate.send(b"passed by the script");
    gate.receives(b"first");
    gate.receives(b"arrived");
    gate.receives(b"passed by the script");
    assert_eq!(gate.counts().dropped[DropReason::Lost as usize], 1);
}

#[test]
fn commands_to_a_relay_that_has_ended_need_no_wait() {
    let (server, client) = (socket(), socket());
    let relay = relay(&server, |_| ());
    client.send_to(b"x", relay.address()).unwrap();
    receive(&server);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| stop(&relay));
        }
    });
    for pending in [relay.cut(BOTH), relay.heal(BOTH), relay.rebind(), relay.stop()] {
        done(pending);
    }
}
