//! A guard on its socket.

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
use crate::net::recv_ring::{Filled, RecvRing};
use crate::net::sys::{self, RecvSlice};

/// Which guard a socket has.
#[derive(Default)]
pub(super) struct Watch {
    /// Whether there is one, to be read without the lock.
    is_on: AtomicBool,
    guard: ForkMutex<Option<Arc<Guard>>>,
    /// Whether the kernel has a filter of ours.
    has_filter: AtomicBool,
}

/// A child keeps its parent's guard. Only a thread that is attached to the interpreter exchanges it,
/// and none of those is in the middle of it while another forks.
impl Inherit for Option<Arc<Guard>> {
    fn inherit(&mut self) {}
}

/// So many messages are refused in one attempt to receive, until it ends as if there was none: who
/// waits looks at the clock then, and who does not has the rest of his program to run.
pub(super) const REFUSALS: usize = 1024;

impl Socket {
    /// Gives the socket a guard, or takes it away. The guard's filter, if it has one, is attached
    /// to the socket, unless the user has attached one, or the kernel will not have it; then the
    /// guard refuses by itself what the filter would have dropped.
    ///
    /// It is for datagrams of IP; other sockets say `EAFNOSUPPORT`.
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

    /// Whether the socket has a filter that is not a guard's, such as one of another program that
    /// shares it.
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

    /// The guard of a receive. There is none for the error queue.
    pub(super) fn guard_of(&self, flags: c_int) -> Option<Arc<Guard>> {
        self.guard().filter(|_| flags & libc::MSG_ERRQUEUE == 0)
    }

    /// Receives single datagrams until one passes.
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

    /// Fills a ring, and throws out what does not pass; nothing may be left.
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
        let mut filled = ring.receive(fd, count, flags, self.is_ip())?;
        if let Some(guard) = guard {
            let refused = ring.screen(&guard, &mut filled);
            if refused > 0 {
                self.counters().count_refused(refused);
            }
        }
        Ok(filled)
    }

    /// Looks at a single datagram with `peek`, after [`pass_over`](Self::pass_over). Another thread
    /// may have taken the one that passed since, so that what is first does not. Then the error is
    /// `EINTR`, on which callers try again.
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

    /// Takes what does not pass out of the kernel's queue, until something that does is first: for
    /// who will look at that with `MSG_PEEK`.
    pub(super) fn pass_over(&self, fd: BorrowedFd<'_>, guard: &Guard) -> io::Result<()> {
        let look = libc::MSG_PEEK | libc::MSG_TRUNC | libc::MSG_DONTWAIT;
        for _ in 0..REFUSALS {
            let mut from = Address::UNNAMED;
            if self.backlog_len() > 0 {
                return Ok(()); // it has passed
            }
            let len = match sys::recv_from(fd, &mut RecvSlice::new(&mut []), Some(&mut from), look)
            {
                Ok(len) => len,
                // The caller will be told the same, or not mind.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            if guard.would_admit(&Arrival::one(from.as_bytes(), len)) {
                return Ok(());
            }
            // What passes although it was not to, because another thread was faster with the first, goes
            // to the backlog.
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
    fn a_peek_at_a_datagram_that_does_not_pass_is_to_be_repeated() {
        let guard = Guard::new(Policy { max_size: Some(5), ..Policy::default() }).unwrap();
        let from = Address::from(std::net::SocketAddr::from(([127, 0, 0, 1], 9)));
        let peek = |len| move || Ok((len, Arrival::one(from.as_bytes(), len)));
        assert_eq!(Socket::peek_admitted(&guard, peek(5)).unwrap(), 5);
        // As if another thread had taken a datagram that passes, after a look at it.
        let error = Socket::peek_admitted(&guard, peek(6)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }
}
