//! The common path of every call that receives many datagrams.

use std::ffi::c_int;
use std::io;
use std::os::fd::BorrowedFd;

use super::Socket;
use crate::net::recv_backlog::{Held, RecvBacklog};
use crate::net::recv_ring::{Datagrams, ExportedRing, Filled, Received, RecvRing, Run, ThreadRing};

/// A ring to receive into.
pub trait Ring {
    /// The underlying ring.
    #[doc(hidden)]
    fn ring(&mut self) -> &mut RecvRing;
}

impl Ring for ThreadRing {
    #[inline]
    fn ring(&mut self) -> &mut RecvRing {
        self
    }
}

impl Ring for &mut ExportedRing {
    #[inline]
    fn ring(&mut self) -> &mut RecvRing {
        ExportedRing::ring(self)
    }
}

/// The result of one receive, handed out one datagram at a time.
///
/// Datagrams that are not taken go to the socket's backlog when the next receive begins or the
/// cursor is dropped, for any reason, and the threads that wait for the socket are woken to take
/// them. Every receive returns the backlog first.
pub struct RecvCursor<'a, R: Ring = ThreadRing> {
    socket: &'a Socket,
    ring: R,
    /// A message from the backlog. If there is one, the ring is empty.
    held: Option<Held>,
}

impl<'a> RecvCursor<'a> {
    /// Creates a cursor over the calling thread's ring.
    pub fn of_thread(socket: &'a Socket) -> io::Result<Self> {
        Ok(Self::new(socket, ThreadRing::take(socket.slot_kind())?))
    }
}

impl<'a, R: Ring> RecvCursor<'a, R> {
    /// Creates a cursor over a ring, and discards the ring's content.
    pub fn new(socket: &'a Socket, mut ring: R) -> Self {
        ring.ring().clear();
        Self { socket, ring, held: None }
    }

    /// The maximum number of messages of one receive.
    pub fn slots(&mut self) -> usize {
        self.ring.ring().slots()
    }

    /// Receives without waiting. Aims at `wanted` datagrams, but may receive more.
    pub fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        wanted: usize,
        flags: c_int,
    ) -> io::Result<Filled> {
        self.receive_messages(fd, self.socket.messages_for(wanted), flags)
    }

    /// Receives without waiting: the first message of the backlog or, if the backlog is empty, up
    /// to `count` messages from the kernel.
    ///
    /// Without `MSG_DONTWAIT` in the flags, the error is `ESHUTDOWN` if the socket can never
    /// receive another datagram. This is for callers that would otherwise wait.
    pub fn receive_messages(
        &mut self,
        fd: BorrowedFd<'_>,
        count: usize,
        flags: c_int,
    ) -> io::Result<Filled> {
        if let Some(filled) = self.take_from_backlog() {
            return Ok(filled);
        }
        match self.socket.receive_new(fd, self.ring.ring(), count, flags) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.take_from_backlog().ok_or(error)
            }
            received => received,
        }
    }

    /// Receives up to `count` messages from the kernel, even if the backlog is not empty. Datagrams
    /// that are not taken are appended to the backlog.
    pub(super) fn receive_behind(
        &mut self,
        fd: BorrowedFd<'_>,
        count: usize,
        flags: c_int,
    ) -> io::Result<Filled> {
        self.give_back();
        let filled = self.socket.fill(fd, self.ring.ring(), count, flags)?;
        if filled.datagrams > 0 {
            self.socket.count(&filled);
        }
        Ok(filled)
    }

    /// Takes the first message of the backlog, unless it is empty or the socket is closed.
    pub fn take_from_backlog(&mut self) -> Option<Filled> {
        self.give_back();
        if self.socket.backlog_len() > 0 && !self.socket.descriptor().is_closed() {
            self.held = self.socket.with_backlog(RecvBacklog::pop_front);
        }
        // The backlog or the kernel may have more.
        self.held.as_ref().map(|held| Filled { is_full: true, ..held.filled() })
    }

    /// The message from the backlog, if the last receive took one.
    pub fn held(&mut self) -> Option<&mut Held> {
        self.held.as_mut()
    }

    /// Whether all datagrams are taken.
    #[inline]
    pub(in crate::net) fn is_empty(&mut self) -> bool {
        match &self.held {
            None => self.ring.ring().is_empty(),
            Some(held) => held.remaining() == 0,
        }
    }

    #[inline]
    fn give_back(&mut self) {
        if !self.is_empty() {
            self.keep_rest();
            self.socket.share_backlog();
        }
        self.held = None;
    }

    /// Moves the remaining datagrams into the backlog without waking any thread: an attempt of a
    /// waiting call would wake itself. When that call ends, it [shares](Socket::share_backlog) the
    /// backlog.
    pub(super) fn keep_rest(&mut self) {
        if !self.is_empty() {
            let (held, ring) = (self.held.take(), self.ring.ring());
            let lost = self.socket.with_backlog(|backlog| match held {
                Some(held) => backlog.push_front(held),
                None => backlog.keep_rest_of(ring),
            });
            self.socket.counters().count_dropped(lost);
            ring.clear();
        }
    }
}

impl<R: Ring> Drop for RecvCursor<'_, R> {
    fn drop(&mut self) {
        self.give_back();
        self.ring.ring().forget_sessions();
    }
}

impl Datagrams for RecvCursor<'_> {
    #[inline]
    fn current(&self) -> Option<Received<'_>> {
        match &self.held {
            None => self.ring.current(),
            Some(held) => held.current(),
        }
    }

    #[inline]
    fn advance(&mut self) {
        match &mut self.held {
            None => self.ring.advance(),
            Some(held) => held.advance(),
        }
    }
}

impl RecvCursor<'_, &mut ExportedRing> {
    /// Reports each message of the ring, and where its datagrams are in the ring's memory: see
    /// [`RecvRing::drain_layout`].
    pub fn drain_layout(&mut self, take: impl FnMut(&Received<'_>, Run) -> usize) {
        self.ring.ring().drain_layout(take);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::net::socket::testing::holding;

    fn payloads(socket: &Socket, count: usize) -> Vec<Vec<u8>> {
        let mut cursor = RecvCursor::of_thread(socket).unwrap();
        let mut payloads = Vec::new();
        while payloads.len() < count {
            let received = socket.with(|fd| cursor.receive(fd, count, libc::MSG_DONTWAIT));
            if received.is_err() {
                break;
            }
            while let Some(datagram) = cursor.current() {
                payloads.push(datagram.payload.to_vec());
                cursor.advance();
            }
        }
        payloads
    }

    #[test]
    fn datagrams_that_are_not_taken_are_returned_first_and_in_order() {
        let socket = holding(&[b"1", b"2", b"3", b"4"]);
        let mut cursor = RecvCursor::of_thread(&socket).unwrap();
        socket.with(|fd| cursor.receive_messages(fd, 3, libc::MSG_DONTWAIT)).unwrap();
        cursor.advance();
        assert_eq!(socket.backlog_len(), 0);
        drop(cursor);
        assert_eq!(socket.backlog_len(), 2);
        assert_eq!(payloads(&socket, 4), [b"2", b"3", b"4"]);
        assert_eq!(socket.backlog_len(), 0);
    }

    #[test]
    fn a_receive_returns_the_rest_of_the_last_one_to_the_backlog() {
        let socket = holding(&[b"1", b"2"]);
        let mut cursor = RecvCursor::of_thread(&socket).unwrap();
        for _ in 0..3 {
            socket.with(|fd| cursor.receive_messages(fd, 2, libc::MSG_DONTWAIT)).unwrap();
            assert_eq!(cursor.current().unwrap().payload, b"1");
        }
        cursor.advance();
        socket.with(|fd| cursor.receive_messages(fd, 2, libc::MSG_DONTWAIT)).unwrap();
        assert_eq!(cursor.current().unwrap().payload, b"2");
    }

    #[test]
    fn a_panic_loses_no_datagram() {
        let socket = holding(&[b"1", b"2"]);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut cursor = RecvCursor::of_thread(&socket).unwrap();
            socket.with(|fd| cursor.receive_messages(fd, 2, libc::MSG_DONTWAIT)).unwrap();
            std::panic::resume_unwind(Box::new("in the middle"));
        }));
        assert!(result.is_err());
        assert_eq!(payloads(&socket, 2), [b"1", b"2"]);
    }

    #[test]
    fn an_exported_ring_keeps_datagrams_that_do_not_fit() {
        let socket = holding(&[b"1", b"two", b"3"]);
        let mut ring = ExportedRing::new(4, 64).unwrap();
        let mut cursor = RecvCursor::new(&socket, &mut ring);
        socket.with(|fd| cursor.receive_messages(fd, 4, libc::MSG_DONTWAIT)).unwrap();
        let mut places = 0;
        cursor.drain_layout(|_, run| {
            places += 1;
            if places == 1 { run.datagrams } else { 0 }
        });
        drop(cursor);
        assert_eq!(payloads(&socket, 2), [&b"two"[..], b"3"]);
    }
}
