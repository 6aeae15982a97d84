//! A thread that moves datagrams between clients and a server, through the two directions of a
//! link.

mod clients;
mod run;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use self::run::RelayThread;
use super::path::LinkPath;
use super::verdict::Verdict;
use crate::net::fork_mutex::{ForkMutex, ForkMutexGuard, Inherit, leave_to_parent};
use crate::net::socket::Socket;
use crate::net::sys;

/// The two directions of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the clients to the server.
    ToServer,
    /// From the server to the clients.
    ToClient,
}

impl Direction {
    /// Both directions.
    pub const BOTH: [Self; 2] = [Self::ToServer, Self::ToClient];
}

/// Decides about datagrams, one after another.
pub trait Decide: Send {
    /// Decides about the datagram at `index` of its direction; `None` leaves it to be drawn.
    fn decide(
        &mut self,
        direction: Direction,
        flow: u32,
        index: u64,
        payload: &[u8],
    ) -> Option<Verdict>;
}

/// A function that decides about the datagrams of one direction.
pub type Decider = Option<Box<dyn Decide>>;

/// The options of a relay.
pub struct RelayOptions {
    /// Where clients send to; with port 0, the kernel chooses one.
    pub listen: SocketAddr,
    /// The server.
    pub upstream: SocketAddr,
    /// The two directions.
    pub paths: [LinkPath; 2],
    /// Whether datagrams are captured on both sides.
    pub captures: bool,
}

impl RelayOptions {
    /// Options without impairments. Fates are drawn from `seed`; each direction's log holds
    /// `log_size` records.
    pub fn new(listen: SocketAddr, upstream: SocketAddr, seed: u64, log_size: usize) -> Self {
        let path = |direction| {
            LinkPath::new(seed.wrapping_mul(2).wrapping_add(direction as u64), log_size)
        };
        Self { listen, upstream, paths: Direction::BOTH.map(path), captures: false }
    }
}

/// The addresses of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkAddresses {
    /// Its number, in the order in which the clients appeared.
    pub flow: u32,
    /// Its own address.
    pub client: SocketAddr,
    /// The address that the server sees.
    pub outside: SocketAddr,
}

/// A datagram on one side of a link.
#[derive(Clone, Debug)]
pub struct Captured {
    /// In nanoseconds since 1970 UTC.
    pub time_ns: u64,
    /// Its source.
    pub from: SocketAddr,
    /// Its destination.
    pub to: SocketAddr,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// At most this many bytes of captured datagrams wait to be taken.
const MOST_CAPTURED: usize = 1 << 26;

/// The state that a relay's thread shares with others.
struct Shared {
    state: ForkMutex<RelayState>,
    wake: OwnedFd,
    is_stopping: AtomicBool,
    /// How often the ports towards the server have changed.
    rebinds: AtomicU64,
    front: Socket,
}

#[derive(Default)]
struct RelayState {
    paths: [LinkPath; 2],
    /// The socket that the server sees for each client, with the client's address.
    backs: HashMap<u32, (SocketAddr, Arc<Socket>)>,
    /// Datagrams that the kernel dropped at sockets that are closed by now.
    closed_drops: u64,
    /// ICMP errors that the kernel reported: from the server's side, from the clients'.
    icmp_errors: [u64; 2],
    captured: Option<VecDeque<Captured>>,
    captured_bytes: usize,
    uncaptured: u64,
    /// Why the thread has ended by itself.
    failure: Option<io::Error>,
}

/// The relay runs in the parent. A child has none.
impl Inherit for RelayState {
    fn inherit(&mut self) {
        leave_to_parent(self);
    }
}

impl RelayState {
    /// Keeps a copy of a datagram, if datagrams are captured and there is room.
    fn capture(&mut self, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
        let Some(captured) = &mut self.captured else { return };
        if self.captured_bytes + payload.len() > MOST_CAPTURED {
            self.uncaptured += 1;
            return;
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let time_ns = now.map_or(0, super::fates::nanoseconds);
        self.captured_bytes += payload.len();
        captured.push_back(Captured { time_ns, from, to, payload: payload.to_vec() });
    }
}

/// A link that runs. Dropping it stops it.
pub struct Relay {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Mutex<Option<JoinHandle<()>>>,
    generation: u32,
}

impl Relay {
    /// Starts a relay. `deciders` are called in its thread, without a lock.
    pub fn start(options: RelayOptions, deciders: [Decider; 2]) -> io::Result<Self> {
        let front = clients::open(options.listen)?;
        front.bind(&options.listen.into())?;
        if options.listen.ip().is_unspecified() {
            front.request_destination()?;
        }
        let address = front.local_address()?.ip().ok_or(io::ErrorKind::InvalidInput)?;
        let RelayOptions { upstream, paths, captures, .. } = options;
        let captured = captures.then(VecDeque::new);
        let shared = Arc::new(Shared {
            state: ForkMutex::new(RelayState { paths, captured, ..RelayState::default() }),
            wake: sys::eventfd()?,
            is_stopping: AtomicBool::new(false),
            rebinds: AtomicU64::new(0),
            front,
        });
        let mut thread = RelayThread::new(Arc::clone(&shared), address, upstream, deciders)?;
        let run = move || {
            let result = sys::hang_if_ended(|| thread.run());
            thread.shared.state.lock().failure = result.err();
        };
        let thread = thread::Builder::new().name("tomada-link".into()).spawn(run)?;
        let generation = sys::fork_generation();
        Ok(Self { shared, address, thread: Mutex::new(Some(thread)), generation })
    }

    /// The address that clients send to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops the thread, waits for it, and closes the sockets. Datagrams under way are dropped
    /// and count as cut. Returns why the thread had ended by itself, if it had.
    ///
    /// A decider's call does not wait for its own thread: the next call does.
    pub fn stop(&self) -> io::Result<()> {
        self.signal();
        let own = thread::current().id();
        let thread = {
            let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
            if self.is_own() && thread.as_ref().is_some_and(|it| it.thread().id() == own) {
                return Ok(());
            }
            thread.take()
        };
        // A child of a fork has no such thread.
        if let Some(thread) = thread.filter(|_| self.is_own()) {
            // A panic would be a fault here, which its message has reported.
            let _ = thread.join();
        }
        self.shared.front.close()?;
        let mut state = self.shared.state.lock();
        state.paths.iter_mut().for_each(LinkPath::cut);
        for (_, back) in state.backs.values() {
            // Closing a datagram socket does not fail.
            let _ = back.close();
        }
        state.failure.take().map_or(Ok(()), Err)
    }

    fn is_own(&self) -> bool {
        self.generation == sys::fork_generation()
    }

    fn signal(&self) {
        self.shared.is_stopping.store(true, Ordering::Release);
        if self.is_own() {
            // If the counter is full, the eventfd is readable anyway.
            let _ = sys::signal_event(self.shared.wake.as_fd());
        }
    }

    fn state(&self) -> ForkMutexGuard<'_, RelayState> {
        self.shared.state.lock()
    }

    /// Calls a function with one direction.
    pub fn with_path<T>(&self, direction: Direction, call: impl FnOnce(&mut LinkPath) -> T) -> T {
        call(&mut self.state().paths[direction as usize])
    }

    /// Gives each client another port towards the server, from its next datagram on.
    /// Datagrams for the old ports are dropped and counted.
    pub fn rebind(&self) {
        self.shared.rebinds.fetch_add(1, Ordering::Release);
    }

    /// The clients, in the order in which they appeared.
    pub fn clients(&self) -> Vec<LinkAddresses> {
        let state = self.state();
        let outside = |back: &Socket| back.local_address().ok()?.ip();
        let clients = state.backs.iter().filter_map(|(&flow, (client, back))| {
            Some(LinkAddresses { flow, client: *client, outside: outside(back)? })
        });
        let mut clients: Vec<_> = clients.collect();
        clients.sort_by_key(|client| client.flow);
        clients
    }

    /// How many datagrams the kernel dropped before the link could receive them.
    pub fn kernel_drops(&self) -> u64 {
        let state = self.state();
        let backs: u64 = state.backs.values().map(|(_, back)| back.drops().unwanted).sum();
        self.shared.front.drops().unwanted + backs + state.closed_drops
    }

    /// How many ICMP errors the kernel reported about datagrams to the server, and to clients.
    pub fn icmp_errors(&self) -> [u64; 2] {
        self.state().icmp_errors
    }

    /// Takes the captured datagrams, and how many were not captured for lack of room.
    pub fn take_captured(&self) -> (VecDeque<Captured>, u64) {
        let mut state = self.state();
        state.captured_bytes = 0;
        let captured = state.captured.as_mut().map(std::mem::take).unwrap_or_default();
        (captured, std::mem::take(&mut state.uncaptured))
    }
}

/// The thread ends soon; its memory is freed when it does. Waiting for it here could wait for the
/// interpreter, which a decider needs.
impl Drop for Relay {
    fn drop(&mut self) {
        self.signal();
    }
}

#[cfg(test)]
mod tests;
