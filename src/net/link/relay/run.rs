//! The loop of a relay: wait, receive, decide, send.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::clients::{BUFFER, Clients, PATIENCE, STALE, is_shortage};
use super::control::Command;
use super::{RelayState, Shared};
use crate::net::address::Address;
use crate::net::error_class::{ErrorClass, may_be_of_earlier};
use crate::net::link::counts::DropReason;
use crate::net::link::fates::nanoseconds;
use crate::net::link::path::{Departure, LinkPath};
use crate::net::link::scripts::{Direction, Scripts};
use crate::net::link::verdict::Verdict;
use crate::net::meta::{Meta, Source};
use crate::net::recv_ring::Datagrams;
use crate::net::send_queue::SendQueue;
use crate::net::socket::{RecvCursor, Socket};
use crate::net::sys::{self, SendSlice};

/// The tokens of the descriptors that do not belong to a client.
const FRONT: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;
/// How many descriptors one wait reports.
const EVENTS: usize = 64;
/// How many kernel messages one receive takes.
const MESSAGES: usize = 64;
/// No kernel message takes less of a receive buffer, in bytes (udp(7) counts its overhead).
const SMALLEST: usize = 512;

/// A relay's thread.
pub(super) struct RelayThread {
    pub(super) shared: Arc<Shared>,
    address: SocketAddr,
    upstream: SocketAddr,
    scripts: Scripts,
    clients: Clients,
    started: Instant,
    /// How many datagrams have arrived in each direction.
    arrived: [u64; 2],
    arrivals: Vec<RelayArrival>,
    departures: Vec<(Direction, Departure)>,
}

/// A datagram that has arrived.
struct RelayArrival {
    direction: Direction,
    flow: u32,
    payload: Vec<u8>,
    verdict: Option<Verdict>,
}

/// A source and a destination.
type Ends = (SocketAddr, SocketAddr);

/// A datagram that was received from a client, and from which one.
type FromClient = (Address, Option<Source>, Vec<u8>);

impl RelayThread {
    pub(super) fn new(
        shared: Arc<Shared>,
        address: SocketAddr,
        upstream: SocketAddr,
        scripts: Scripts,
    ) -> io::Result<Self> {
        let epoll = sys::epoll()?;
        shared.front.with(|fd| sys::epoll_add(epoll.as_fd(), fd, FRONT))?;
        sys::epoll_add(epoll.as_fd(), shared.control.wake(), WAKE)?;
        Ok(Self {
            shared,
            address,
            upstream,
            scripts,
            clients: Clients::new(upstream, epoll),
            started: Instant::now(),
            arrived: [0; 2],
            arrivals: Vec::new(),
            departures: Vec::new(),
        })
    }

    /// Relays datagrams until it is stopped, or the machine refuses to.
    pub(super) fn run(&mut self) -> io::Result<()> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        while !self.shared.control.is_stopping() {
            let ready = self.wait(&mut events)?;
            self.relay(&events[..ready])?;
            self.obey_all(&mut events)?;
        }
        Ok(())
    }

    /// Carries out the commands of other threads. Catching up also clears the wake-up of a command
    /// that came meanwhile, so this ends only once there is none.
    fn obey_all(&mut self, events: &mut [libc::epoll_event]) -> io::Result<()> {
        loop {
            let requests = self.shared.control.take();
            if requests.is_empty() {
                return Ok(());
            }
            self.catch_up(events)?;
            for (command, reply) in requests {
                // A thread that does not wait any longer was interrupted.
                let _ = reply.send(self.obey(command));
            }
        }
    }

    /// Receives from the sockets that are ready, and sends what is due.
    fn relay(&mut self, ready: &[libc::epoll_event]) -> io::Result<()> {
        for event in ready {
            self.receive(event.u64)?;
        }
        self.accept();
        self.send_due();
        Ok(())
    }

    /// Relays the datagrams that have arrived by now. Others may arrive all the time, so this ends
    /// after as many as the receive buffers hold.
    fn catch_up(&mut self, events: &mut [libc::epoll_event]) -> io::Result<()> {
        let of_one = 2 * BUFFER as usize / SMALLEST / MESSAGES + 1;
        let rounds = of_one * self.clients.sockets().div_ceil(EVENTS);
        for _ in 0..rounds {
            let ready = ignore_signals(sys::epoll_wait(self.clients.epoll(), events, false))?;
            if ready == 0 || self.shared.control.is_stopping() {
                break;
            }
            self.relay(&events[..ready])?;
        }
        Ok(())
    }

    /// Carries out a command. Datagrams that are due leave before.
    fn obey(&mut self, command: Command) -> io::Result<()> {
        self.send_due();
        let chosen = |state: &mut RelayState, chosen: [bool; 2], change: fn(&mut LinkPath)| {
            let paths = state.paths.iter_mut().zip(chosen).filter(|(_, is_chosen)| *is_chosen);
            paths.for_each(|(path, _)| change(path));
        };
        match command {
            Command::Cut(directions) => {
                chosen(&mut self.shared.state.lock(), directions, LinkPath::cut);
            }
            Command::Heal(directions) => {
                chosen(&mut self.shared.state.lock(), directions, LinkPath::heal);
            }
            Command::Rebind => self.clients.rebind(&self.shared)?,
            Command::End => {
                chosen(&mut self.shared.state.lock(), [true; 2], LinkPath::cut);
                self.shared.control.end_soon();
            }
            Command::Change(impairments, scripts) => {
                let mut state = self.shared.state.lock();
                for (path, impairments) in state.paths.iter_mut().zip(*impairments) {
                    path.set(impairments);
                }
                drop(state); // a script that is replaced may be Python's
                for (scope, script) in scripts {
                    self.scripts.set(scope, script);
                }
            }
        }
        Ok(())
    }

    fn now(&self) -> u64 {
        nanoseconds(self.started.elapsed())
    }

    /// Waits until a descriptor is ready or a datagram is due.
    fn wait(&self, events: &mut [libc::epoll_event]) -> io::Result<usize> {
        let due = {
            let state = self.shared.state.lock();
            state.paths.iter().filter_map(LinkPath::next_due).min()
        };
        let left = due.map(|due| Duration::from_nanos(due.saturating_sub(self.now())));
        if let Some(left) = left.filter(|left| !left.is_zero()) {
            // In nanoseconds; epoll_wait(2) counts in milliseconds.
            let fd = self.clients.epoll().as_raw_fd();
            let mut fds = [libc::pollfd { fd, events: libc::POLLIN, revents: 0 }];
            ignore_signals(sys::poll(&mut fds, Some(left)))?;
        }
        ignore_signals(sys::epoll_wait(self.clients.epoll(), events, left.is_none()))
    }

    /// Receives what is queued at the socket of a token.
    fn receive(&mut self, token: u64) -> io::Result<()> {
        match token {
            WAKE => {
                self.shared.control.clear();
                Ok(())
            }
            FRONT => self.receive_from_clients(),
            token => {
                let flow = token as u32;
                let sockets = if token & STALE == 0 {
                    let client = self.clients.by_flow.get(&flow);
                    client.map(|client| Arc::clone(&client.back)).into_iter().collect()
                } else {
                    self.clients.stale.get(&flow).cloned().unwrap_or_default()
                };
                let verdict = (token & STALE != 0).then(|| Verdict::drop(DropReason::Rebound));
                for socket in sockets {
                    for (_, _, payload) in self.drain(&socket, Direction::ToServer)? {
                        let (direction, verdict) = (Direction::ToClient, verdict.clone());
                        self.arrivals.push(RelayArrival { direction, flow, payload, verdict });
                    }
                }
                Ok(())
            }
        }
    }

    fn receive_from_clients(&mut self) -> io::Result<()> {
        let (shared, now, direction) = (Arc::clone(&self.shared), self.now(), Direction::ToServer);
        let received = self.drain(&shared.front, Direction::ToClient)?;
        let is_of_one =
            |(one, by, _): &FromClient, (other, too, _): &FromClient| (one, by) == (other, too);
        let mut flows = Vec::with_capacity(received.len());
        for run in received.chunk_by(is_of_one) {
            let (address, source, _) = run[0];
            let flow = match self.clients.find(&shared, address, source, now) {
                Ok(flow) => Some(flow),
                Err(error) => {
                    if is_shortage(&error) {
                        shared.state.lock().shortage.get_or_insert(error);
                    }
                    None
                }
            };
            flows.extend(run.iter().map(|_| flow));
        }
        for (flow, (_, _, payload)) in flows.into_iter().zip(received) {
            // Without a socket for the client, its datagrams are lost.
            let verdict = flow.is_none().then(|| Verdict::drop(DropReason::Unsendable));
            let flow = flow.unwrap_or(u32::MAX);
            self.arrivals.push(RelayArrival { direction, flow, payload, verdict });
        }
        Ok(())
    }

    /// Receives the datagrams of one call. ICMP errors that it reports are about datagrams of the
    /// direction `sent`.
    fn drain(&self, socket: &Socket, sent: Direction) -> io::Result<Vec<FromClient>> {
        let mut cursor = RecvCursor::of_thread(socket)?;
        let receive = |cursor: &mut RecvCursor<'_>| {
            socket.with(|fd| cursor.receive_messages(fd, MESSAGES, libc::MSG_DONTWAIT))
        };
        let mut received = Vec::new();
        match receive(&mut cursor) {
            Ok(filled) => received.reserve(filled.datagrams),
            Err(error) if is_nothing(&error) => return Ok(received),
            Err(error) if ErrorClass::of(&error) == ErrorClass::Own => return Err(error),
            Err(_) => {
                self.shared.state.lock().icmp_errors[sent as usize] += 1;
                return Ok(received); // if there are datagrams, the next wait reports them
            }
        }
        while let Some(datagram) = cursor.current() {
            let source = Meta::decode(datagram.control).source();
            let from = Address::from_bytes(datagram.from);
            received.push((from, source, datagram.payload.to_vec()));
            cursor.advance();
        }
        Ok(received)
    }

    /// Asks the scripts about what has arrived, and passes it to its direction.
    fn accept(&mut self) {
        let (now, shared) = (self.now(), Arc::clone(&self.shared));
        let headers = if self.upstream.is_ipv4() { 28 } else { 48 };
        let mut arrivals = std::mem::take(&mut self.arrivals);
        let (mut locked, mut has_stopped) = (None, false);
        for RelayArrival { direction, flow, payload, mut verdict } in arrivals.drain(..) {
            let index = self.arrived[direction as usize];
            self.arrived[direction as usize] += 1;
            if has_stopped {
                verdict = Some(Verdict::drop(DropReason::Cut));
            } else if let (Some(script), None) = (self.scripts.of(direction), &verdict) {
                locked = None; // it may run Python code
                verdict = script.decide(direction, flow, index, &payload);
                self.obey_function();
                has_stopped = shared.control.is_stopping();
            }
            let state = locked.get_or_insert_with(|| shared.state.lock());
            if state.captured.is_some()
                && let Some((from, to)) = self.ends(direction, flow, false)
            {
                state.capture(from, to, &payload);
            }
            state.paths[direction as usize].accept(now, flow, payload, headers, verdict);
        }
        drop(locked);
        arrivals.clear();
        self.arrivals = arrivals;
    }

    /// Carries out the commands that a script's function has just given.
    fn obey_function(&mut self) {
        while let Some(command) = self.shared.control.next_of_function() {
            if let Err(error) = self.obey(command) {
                self.shared.state.lock().shortage.get_or_insert(error);
            }
        }
    }

    /// The source and the destination of a flow's datagrams before the link, or after it.
    fn ends(&self, direction: Direction, flow: u32, is_after: bool) -> Option<Ends> {
        let client = self.clients.by_flow.get(&flow)?;
        let outside = || client.back.local_address().ok()?.ip();
        Some(match (direction, is_after) {
            (Direction::ToServer, false) => (client.address.ip()?, self.address),
            (Direction::ToServer, true) => (outside()?, self.upstream),
            (Direction::ToClient, false) => (self.upstream, outside()?),
            (Direction::ToClient, true) => (self.address, client.address.ip()?),
        })
    }

    /// Sends the datagrams that are due.
    fn send_due(&mut self) {
        let now = self.now();
        let mut departures = std::mem::take(&mut self.departures);
        let mut state = self.shared.state.lock();
        for direction in Direction::BOTH {
            let path = &mut state.paths[direction as usize];
            departures.extend(std::iter::from_fn(|| Some((direction, path.pop_due(now)?))));
        }
        drop(state);
        self.send(&departures);
        departures.clear();
        self.departures = departures;
    }

    /// Sends datagrams, consecutive ones of one socket together.
    fn send(&self, departures: &[(Direction, Departure)]) {
        let is_together = |(one, first): &(Direction, Departure),
                           (other, next): &(_, Departure)| {
            one == other && (*one == Direction::ToClient || first.flow == next.flow)
        };
        for chunk in departures.chunk_by(is_together) {
            let (direction, Departure { flow, .. }) = chunk[0];
            let unsent = match (direction, self.clients.by_flow.get(&flow)) {
                (Direction::ToServer, None) => (0..chunk.len()).collect(),
                (Direction::ToServer, Some(client)) => self.send_on(&client.back, chunk),
                (Direction::ToClient, _) => self.send_on(&self.shared.front, chunk),
            };
            let mut state = self.shared.state.lock();
            let mut is_sent = vec![true; chunk.len()];
            for index in unsent {
                is_sent[index] = false;
                state.paths[direction as usize].was_not_sent(&chunk[index].1);
            }
            if state.captured.is_some() {
                let sent = chunk.iter().zip(is_sent).filter(|(_, is_sent)| *is_sent);
                for ((_, departure), _) in sent {
                    if let Some((from, to)) = self.ends(direction, departure.flow, true) {
                        state.capture(from, to, &departure.payload);
                    }
                }
            }
        }
    }

    /// Sends datagrams through one socket; returns the indexes of those that were not sent.
    fn send_on(&self, socket: &Socket, chunk: &[(Direction, Departure)]) -> Vec<usize> {
        let mut unsent = Vec::new();
        let mut indexes = Vec::with_capacity(chunk.len());
        let mut queue = SendQueue::default();
        for (index, (direction, departure)) in chunk.iter().enumerate() {
            let client = self.clients.by_flow.get(&departure.flow);
            let (to, source) = match (direction, client) {
                (Direction::ToClient, Some(client)) => (Some(&client.address), client.source),
                (Direction::ToClient, None) => {
                    unsent.push(index);
                    continue;
                }
                (Direction::ToServer, _) => (None, None),
            };
            match queue.push(SendSlice::new(&departure.payload), to, source) {
                Ok(()) => indexes.push(index),
                Err(_) => unsent.push(index),
            }
        }
        let (mut has_waited, mut retried) = (false, None);
        while !queue.is_empty() {
            let sent = socket.with(|fd| socket.send_queue(fd, &mut queue, 0));
            let Err(error) = sent else { continue };
            let position = queue.position();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            if error.kind() == io::ErrorKind::WouldBlock && !has_waited {
                has_waited = wait_for_room(socket).is_ok();
                continue;
            }
            if may_be_of_earlier(&error) && retried != Some(position) {
                self.shared.state.lock().icmp_errors[chunk[0].0 as usize] += 1;
                retried = Some(position);
                continue;
            }
            let failed = queue.skip();
            unsent.extend(&indexes[position..position + failed]);
        }
        unsent
    }
}

/// Waits a moment for room in a socket's send buffer.
fn wait_for_room(socket: &Socket) -> io::Result<()> {
    socket.with(|fd| {
        let events = libc::POLLOUT;
        let mut fds = [libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }];
        ignore_signals(sys::poll(&mut fds, Some(PATIENCE))).map(drop)
    })
}

/// Whether a receive has found nothing.
fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn ignore_signals(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        result => result,
    }
}
