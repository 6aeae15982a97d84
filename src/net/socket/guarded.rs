//! The guard of a socket.

use std::ffi::c_int;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Socket;
use super::recv_cursor::RecvCursor;
use crate::net::address::Address;
use crate::net::fork_mutex::{ForkMutex, Inherit};
use crate::net::guard::{Arrival, Guard};
use crate::net::proxy_protocol::Proxies;
use crate::net::recv_ring::{Filled, RecvRing};
use crate::net::sys::{self, RecvSlice};

/// A socket's guard.
#[derive(Default)]
pub(super) struct Watch {
    /// Whether there is a guard; readable without the lock.
    is_on: AtomicBool,
    guard: ForkMutex<Option<Arc<Guard>>>,
    /// Whether the guard's filter is attached to the socket.
    has_filter: AtomicBool,
}

/// A child keeps its parent's guard. Only a thread that is attached to the interpreter replaces it,
/// and no such thread is in the middle of that while another one forks.
impl Inherit for Option<Arc<Guard>> {
    fn inherit(&mut self) {}
}

/// After this many refused messages, one attempt to receive ends as if the queue were empty: a
/// waiting caller then checks the clock, and any other caller must get on with its program.
pub(super) const REFUSALS: usize = 1024;

impl Socket {
    /// Sets or removes the socket's guard. Also attaches the guard's filter, if it has one, to the
    /// socket, unless the user has attached a filter or the kernel rejects it; then the guard
    /// itself refuses what the filter would have dropped.
    ///
    /// Guards work on IP sockets only; others return `EAFNOSUPPORT`.
    pub fn set_guard(&self, guard: Option<Arc<Guard>>) -> io::Result<()> {
        if guard.is_some() && !(self.is_ip() && self.is_datagram()) {
            return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
        }
        let mut watched = self.watch.guard.lock();
        self.watch.is_on.store(guard.is_some(), Ordering::Relaxed);
        watched.clone_from(&guard);
        if self.is_set_by_user(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER) || self.has_others_filter()
        {
            return Ok(());
        }
        // The kernel sees proxies, not their clients.
        let guard = guard.filter(|_| self.proxies.get().is_none());
        let filter = guard.as_ref().and_then(|guard| guard.kernel_filter());
        if filter.is_some() {
            self.filter_was_set();
        }
        let is_attached = filter.is_some_and(|filter| {
            self.with(|fd| sys::attach_program(fd, libc::SO_ATTACH_FILTER, filter)).is_ok()
        });
        let had_filter = self.watch.has_filter.swap(is_attached, Ordering::Relaxed);
        if had_filter && !is_attached {
            self.set_int_option(libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0)?;
        }
        Ok(())
    }

    /// Trusts proxies: from now on, their PROXY headers tell the clients of received datagrams. This
    /// can be set once, before the guard. A socket with sessions returns `EOPNOTSUPP`.
    pub fn set_proxies(&self, proxies: Proxies) -> io::Result<()> {
        if !(self.is_ip() && self.is_datagram()) {
            return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
        }
        if self.has_dtls() {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        self.proxies.set(proxies).map_err(|_| io::Error::from_raw_os_error(libc::EALREADY))
    }

    /// The trusted proxies.
    pub(super) fn proxies(&self) -> Option<&Proxies> {
        self.proxies.get()
    }

    /// Deducts a reply through a proxy from the client's amplification budget. To the proxy itself,
    /// any number of bytes may be sent.
    pub fn spend_for_client(&self, client: &Address, bytes: usize) -> io::Result<()> {
        match self.guard() {
            Some(guard) if !guard.spend(Some(client), bytes) => Err(guard.refuse_to_send()),
            _ => Ok(()),
        }
    }

    /// Whether the socket has a filter that does not come from a guard, such as one from another
    /// program that shares the socket.
    fn has_others_filter(&self) -> bool {
        if self.watch.has_filter.load(Ordering::Relaxed) {
            return false;
        }
        let mut room_for_one = [0; size_of::<libc::sock_filter>()];
        match self.option(libc::SOL_SOCKET, libc::SO_GET_FILTER, &mut room_for_one) {
            Ok(len) => len > 0,
            // It is longer, or an eBPF program.
            Err(error) => matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EACCES)),
        }
    }

    /// The socket's guard.
    pub fn guard(&self) -> Option<Arc<Guard>> {
        if !self.watch.is_on.load(Ordering::Relaxed) {
            return None; // the usual case
        }
        self.watch.guard.lock().clone()
    }

    /// The guard to apply to a receive. The error queue is not guarded.
    pub(super) fn guard_of(&self, flags: c_int) -> Option<Arc<Guard>> {
        self.guard().filter(|_| flags & libc::MSG_ERRQUEUE == 0)
    }

    /// Receives single datagrams until one passes the guard.
    pub(super) fn receive_admitted<T>(
        &self,
        guard: &Guard,
        mut receive: impl FnMut() -> io::Result<(T, Arrival)>,
    ) -> io::Result<T> {
        for _ in 0..REFUSALS {
            let (received, arrival) = receive()?;
            if guard.admit(&mut [arrival]) == 0 {
                return Ok(received);
            }
            self.counters().count_refused(1);
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Fills a ring, and removes PROXY headers and refused datagrams; nothing may be left.
    pub(super) fn fill(
        &self,
        fd: BorrowedFd<'_>,
        ring: &mut RecvRing,
        count: usize,
        flags: c_int,
    ) -> io::Result<Filled> {
        let guard = self.guard();
        if guard.is_some() {
            ring.prepare_to_screen()?;
        }
        let mut filled = match ring.receive(fd, count, flags, self.is_ip()) {
            Err(error) => {
                self.raise_end_of_session()?;
                return Err(error);
            }
            Ok(filled) => filled,
        };
        if let Some(proxies) = self.proxies.get() {
            let refused = ring.remove_headers(proxies, &mut filled);
            self.counters().count_unproxied(refused.untrusted, refused.malformed);
            self.counters().count_lost(refused.lost);
        }
        if let Some(guard) = guard {
            let refused = ring.screen(&guard, &mut filled);
            if refused > 0 {
                self.counters().count_refused(refused);
            }
        }
        #[cfg(feature = "dtls")]
        self.open_records(fd, ring, &mut filled);
        Ok(filled)
    }

    /// Peeks at a single datagram with `peek`, after [`pass_over`](Self::pass_over). If another
    /// thread has taken the admitted datagram meanwhile, the first one may be refused. Then the
    /// error is `EINTR`, on which callers retry.
    pub(super) fn peek_admitted<T>(
        guard: &Guard,
        peek: impl FnOnce() -> io::Result<(T, Arrival)>,
    ) -> io::Result<T> {
        let (peeked, arrival) = peek()?;
        if guard.would_admit(&arrival) {
            Ok(peeked)
        } else {
            Err(io::ErrorKind::Interrupted.into())
        }
    }

    /// Removes refused datagrams from the kernel's queue until the first one passes, for callers
    /// that are about to read it with `MSG_PEEK`.
    pub(super) fn pass_over(&self, fd: BorrowedFd<'_>, guard: &Guard) -> io::Result<()> {
        let look = libc::MSG_PEEK | libc::MSG_TRUNC | libc::MSG_DONTWAIT;
        for _ in 0..REFUSALS {
            let mut from = Address::UNNAMED;
            if self.backlog_len() > 0 {
                return Ok(()); // it passes
            }
            let len = match sys::recv_from(fd, &mut RecvSlice::new(&mut []), Some(&mut from), look)
            {
                Ok(len) => len,
                // The caller will get the same error, or ignore it.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            if guard.would_admit(&Arrival::one(from.as_bytes(), len)) {
                return Ok(());
            }
            // If another thread has taken the first datagram meanwhile, this may receive one that
            // passes. It goes to the backlog.
            match RecvCursor::of_thread(self)?.receive_behind(fd, 1, libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::net::guard::Policy;

    #[test]
    fn a_peek_at_a_refused_datagram_must_be_repeated() {
        let guard = Guard::new(Policy { max_size: Some(5), ..Policy::default() }).unwrap();
        let from = Address::from(std::net::SocketAddr::from(([127, 0, 0, 1], 9)));
        let peek = |len| move || Ok((len, Arrival::one(from.as_bytes(), len)));
        assert_eq!(Socket::peek_admitted(&guard, peek(5)).unwrap(), 5);
        // As if another thread had taken the admitted datagram after this one looked at it.
        let error = Socket::peek_admitted(&guard, peek(6)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }
}
