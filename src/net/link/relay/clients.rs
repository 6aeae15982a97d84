//! The clients of a relay: their addresses, and the socket that the server sees for each.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::{RelayState, Shared};
use crate::net::address::Address;
use crate::net::meta::Source;
use crate::net::socket::Socket;
use crate::net::sys;

/// A client that is silent for this long loses its port if there are many others.
const IDLE: u64 = 10_000_000_000;
/// A client that is silent for this long loses its port if there is no descriptor for another one.
const SILENT: u64 = 1_000_000_000;
/// How often silent clients are looked for.
const SWEEP: u64 = 1_000_000_000;
/// How many clients are many.
const MANY: usize = 256;
/// How many ports that were given up stay open for each client.
const MOST_STALE: usize = 16;
/// The receive buffer that each socket asks for.
pub(super) const BUFFER: i32 = 4 << 20;
/// How long a full send buffer is waited for.
pub(super) const PATIENCE: Duration = Duration::from_millis(20);

/// Marks the tokens of sockets whose port was given up.
pub(super) const STALE: u64 = 1 << 32;

/// One client.
pub(super) struct Client {
    pub(super) address: Address,
    /// The local address that it sends to, if the link listens on several.
    pub(super) source: Option<Source>,
    pub(super) back: Arc<Socket>,
    last_seen: u64,
}

/// All clients, and the set of sockets to wait for.
pub(super) struct Clients {
    upstream: SocketAddr,
    pub(super) epoll: OwnedFd,
    flows: HashMap<Address, u32>,
    pub(super) by_flow: HashMap<u32, Client>,
    /// Sockets whose port was given up.
    pub(super) stale: HashMap<u32, Vec<Arc<Socket>>>,
    next_flow: u32,
    /// When silent clients were looked for last.
    swept: u64,
}

/// Opens a socket of the family of an address, for bulk.
pub(super) fn open(address: SocketAddr) -> io::Result<Socket> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = Socket::open(family, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, 0)?;
    // The kernel gives as much as it allows.
    socket.set_int_option(libc::SOL_SOCKET, libc::SO_RCVBUF, BUFFER)?;
    // Old kernels have no GRO for sockets.
    let _ = socket.set_gro(true);
    Ok(socket)
}

impl Clients {
    pub(super) fn new(upstream: SocketAddr, epoll: OwnedFd) -> Self {
        let (flows, by_flow, stale) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { upstream, epoll, flows, by_flow, stale, next_flow: 0, swept: 0 }
    }

    /// Finds or adds the client with an address, which has sent a datagram; returns its number.
    pub(super) fn find(
        &mut self,
        shared: &Shared,
        address: Address,
        source: Option<Source>,
        now: u64,
    ) -> io::Result<u32> {
        if let Some(&flow) = self.flows.get(&address) {
            if let Some(client) = self.by_flow.get_mut(&flow) {
                (client.source, client.last_seen) = (source, now);
            }
            return Ok(flow);
        }
        self.forget_idle(shared, now);
        let flow = self.next_flow;
        let back = match self.connect(shared, flow, &address) {
            Err(error) if is_shortage(&error) && self.forget_oldest(shared, now) => {
                self.connect(shared, flow, &address)?
            }
            connected => connected?,
        };
        self.next_flow = self.next_flow.wrapping_add(1);
        self.flows.insert(address, flow);
        self.by_flow.insert(flow, Client { address, source, back, last_seen: now });
        Ok(flow)
    }

    /// Opens a client's socket towards the server.
    fn connect(&self, shared: &Shared, flow: u32, address: &Address) -> io::Result<Arc<Socket>> {
        let back = Arc::new(open(self.upstream)?);
        back.connect(&self.upstream.into())?;
        back.with(|fd| sys::epoll_add(self.epoll(), fd, u64::from(flow)))?;
        if let Some(client) = address.ip() {
            shared.state.lock().backs.insert(flow, (client, Arc::clone(&back)));
        }
        Ok(back)
    }

    /// Gives each client another port, in the order in which they appeared.
    pub(super) fn rebind(&mut self, shared: &Shared) -> io::Result<()> {
        let mut flows: Vec<_> = self.by_flow.keys().copied().collect();
        flows.sort_unstable();
        flows.into_iter().try_for_each(|flow| self.rebind_one(shared, flow))
    }

    /// Gives a client another port. The old one stays open, as a silent device does not answer,
    /// until many newer ones were given up.
    fn rebind_one(&mut self, shared: &Shared, flow: u32) -> io::Result<()> {
        let Some(address) = self.by_flow.get(&flow).map(|client| client.address) else {
            return Ok(());
        };
        let back = self.connect(shared, flow, &address)?;
        let Some(client) = self.by_flow.get_mut(&flow) else { return Ok(()) };
        let old = std::mem::replace(&mut client.back, back);
        let epoll = self.epoll.as_fd();
        old.with(|fd| {
            sys::epoll_remove(epoll, fd)?;
            sys::epoll_add(epoll, fd, STALE | u64::from(flow))
        })?;
        let stale = self.stale.entry(flow).or_default();
        stale.push(old);
        let oldest = (stale.len() > MOST_STALE).then(|| stale.remove(0));
        if let Some(oldest) = oldest {
            self.close(&mut shared.state.lock(), &oldest);
        }
        Ok(())
    }

    /// How many sockets there are, at least.
    pub(super) fn sockets(&self) -> usize {
        1 + self.by_flow.len() + self.stale.values().map(Vec::len).sum::<usize>()
    }

    pub(super) fn epoll(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// If there are many clients, forgets those that are silent.
    fn forget_idle(&mut self, shared: &Shared, now: u64) {
        if self.by_flow.len() < MANY || now < self.swept + SWEEP {
            return;
        }
        self.swept = now;
        let is_idle = |client: &Client| now.saturating_sub(client.last_seen) > IDLE;
        let idle = self.by_flow.iter().filter(|(_, client)| is_idle(client));
        for flow in idle.map(|(&flow, _)| flow).collect::<Vec<_>>() {
            self.forget(shared, flow);
        }
    }

    /// Forgets the client that has been silent for longest, unless that is not long.
    fn forget_oldest(&mut self, shared: &Shared, now: u64) -> bool {
        let oldest = self.by_flow.iter().min_by_key(|(_, client)| client.last_seen);
        match oldest.map(|(&flow, client)| (flow, client.last_seen)) {
            Some((flow, last_seen)) if now.saturating_sub(last_seen) > SILENT => {
                self.forget(shared, flow);
                true
            }
            _ => false,
        }
    }

    fn forget(&mut self, shared: &Shared, flow: u32) {
        let Some(client) = self.by_flow.remove(&flow) else { return };
        self.flows.remove(&client.address);
        let stale = self.stale.remove(&flow).unwrap_or_default();
        let mut state = shared.state.lock();
        state.backs.remove(&flow);
        state.paths.iter_mut().for_each(|path| path.forget(flow));
        for socket in stale.into_iter().chain([client.back]) {
            self.close(&mut state, &socket);
        }
    }

    /// Closes a socket, and remembers how many datagrams the kernel dropped there.
    fn close(&self, state: &mut RelayState, socket: &Socket) {
        // It is in the set, and closing a datagram socket does not fail.
        let _ = socket.with(|fd| sys::epoll_remove(self.epoll(), fd));
        let _ = socket.close();
        state.closed_drops += socket.drops().unwanted;
    }
}

/// Whether this process, or the machine, has run out of descriptors.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}
