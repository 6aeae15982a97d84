//! A thread that moves datagrams between clients and a server, through the two directions of a
//! link.

mod clients;
mod control;
mod run;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};

pub use self::control::Pending;
use self::control::{Command, Control};
use self::run::RelayThread;
use super::impairments::Impairments;
use super::path::LinkPath;
use super::scripts::{Direction, Scope, Script, Scripts};
use crate::net::fork_mutex::{ForkMutex, ForkMutexGuard, Inherit, leave_to_parent};
use crate::net::socket::Socket;
use crate::net::sys;

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
    control: Control,
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
    /// Why a client has not got a socket.
    shortage: Option<io::Error>,
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
        let bytes = payload.len() + size_of::<Captured>();
        if self.captured_bytes + bytes > MOST_CAPTURED {
            self.uncaptured += 1;
            return;
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let time_ns = now.map_or(0, super::fates::nanoseconds);
        self.captured_bytes += bytes;
        captured.push_back(Captured { time_ns, from, to, payload: payload.to_vec() });
    }
}

/// A link that runs. Dropping it stops it.
pub struct Relay {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Mutex<Option<JoinHandle<()>>>,
    thread_id: ThreadId,
    generation: u32,
}

impl Relay {
    /// Starts a relay. The scripts are asked in its thread, without a lock.
    pub fn start(options: RelayOptions, scripts: Scripts) -> io::Result<Self> {
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
            control: Control::new()?,
            front,
        });
        let mut thread = RelayThread::new(Arc::clone(&shared), address, upstream, scripts)?;
        let ending = Ending(Arc::clone(&shared));
        let run = move || {
            let _ending = ending;
            let result = sys::hang_if_ended(|| thread.run());
            thread.shared.state.lock().failure = result.err();
            drop(thread); // the scripts go first
        };
        let thread = thread::Builder::new().name("tomada-link".into()).spawn(run)?;
        let (thread_id, generation) = (thread.thread().id(), sys::fork_generation());
        Ok(Self { shared, address, thread: Mutex::new(Some(thread)), thread_id, generation })
    }

    /// The address that clients send to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Asks the thread to end after a [cut](Self::cut) of both directions; once it has,
    /// [`Self::close`] closes the sockets. A script's function does not wait for its own thread.
    pub fn stop(&self) -> Pending {
        if !self.is_own() {
            return Pending::DONE; // a child of a fork has no such thread
        }
        if self.is_in_function() {
            self.shared.control.request_in_function(Command::End);
            return Pending::DONE;
        }
        self.shared.control.request_end()
    }

    /// Closes the sockets, after [`Self::stop`]. Datagrams under way are dropped and count as cut.
    /// Returns why the thread had ended by itself, if it had, or why a client got no socket.
    pub fn close(&self) -> io::Result<()> {
        if self.is_own() {
            if self.is_in_function() {
                return Ok(());
            }
            let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
            // It is about to end. A panic would be a fault here, which its message has reported.
            let _ = thread.map(JoinHandle::join);
        }
        self.shared.front.close()?;
        let mut state = self.shared.state.lock();
        state.paths.iter_mut().for_each(LinkPath::cut);
        for (_, back) in state.backs.values() {
            // Closing a datagram socket does not fail.
            let _ = back.close();
        }
        let error = state.failure.take().or(state.shortage.take());
        error.map_or(Ok(()), Err)
    }

    /// Whether this process started it: not if a fork has copied it.
    pub fn is_own(&self) -> bool {
        self.generation == sys::fork_generation()
    }

    /// Whether a script's function calls this.
    fn is_in_function(&self) -> bool {
        thread::current().id() == self.thread_id
    }

    /// Has the thread carry out a command. A command of a script's function is carried out before
    /// the datagram that it decides about.
    fn command(&self, command: Command) -> Pending {
        if !self.is_own() {
            return Pending::DONE;
        }
        if self.is_in_function() {
            self.shared.control.request_in_function(command);
            return Pending::DONE;
        }
        self.shared.control.request(command)
    }

    /// Cuts directions. Datagrams that have arrived before and are due leave first; the others
    /// under way are dropped.
    pub fn cut(&self, directions: [bool; 2]) -> Pending {
        self.command(Command::Cut(directions))
    }

    /// Ends the cut of directions.
    pub fn heal(&self, directions: [bool; 2]) -> Pending {
        self.command(Command::Heal(directions))
    }

    /// Gives each client another port towards the server. Datagrams that are for an old port and
    /// arrive later are dropped and counted.
    pub fn rebind(&self) -> Pending {
        self.command(Command::Rebind)
    }

    /// Sets the impairments of both directions, and replaces scripts.
    pub fn change(&self, impaired: [Impairments; 2], scripts: Vec<(Scope, Script)>) -> Pending {
        self.command(Command::Change(Box::new(impaired), scripts))
    }

    fn state(&self) -> ForkMutexGuard<'_, RelayState> {
        self.shared.state.lock()
    }

    /// Calls a function with one direction.
    pub fn with_path<T>(&self, direction: Direction, call: impl FnOnce(&mut LinkPath) -> T) -> T {
        call(&mut self.state().paths[direction as usize])
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
        if self.is_own() {
            self.shared.control.end_soon();
        } else {
            // Detaching a thread of the parent could detach one of the child, on the same stack.
            let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner);
            leave_to_parent(thread);
        }
    }
}

/// Tells threads that wait that the relay's thread has ended, however it has.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.control.end();
    }
}

#[cfg(test)]
mod tests;
