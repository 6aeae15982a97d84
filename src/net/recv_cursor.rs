//! One way in for everything that receives many datagrams.

use std::ffi::c_int;
use std::io;
use std::os::fd::BorrowedFd;

use super::pending::Held;
use super::ring::{Datagrams, ExportedRing, Filled, Received, RecvRing, Run, ThreadRing};
use super::socket::Socket;

/// A ring to receive into.
pub trait Ring {
    /// The ring itself.
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

/// What one receive brought, handed out datagram by datagram.
///
/// What is not taken goes to the socket's backlog when the next receive begins or the cursor is
/// dropped, whatever ended its use, and the threads that wait for the socket are woken to take it.
/// The backlog comes first in every receive.
pub struct RecvCursor<'a, R: Ring = ThreadRing> {
    socket: &'a Socket,
    ring: R,
    /// A message that comes from the backlog; then there is nothing in the ring.
    held: Option<Held>,
}

impl<'a> RecvCursor<'a> {
    /// A cursor over the calling thread's ring.
    pub fn of_thread(socket: &'a Socket) -> io::Result<Self> {
        Ok(Self::new(socket, ThreadRing::take(socket.slot_kind())?))
    }
}

impl<'a, R: Ring> RecvCursor<'a, R> {
    /// A cursor over a ring, whose content is gone.
    pub fn new(socket: &'a Socket, mut ring: R) -> Self {
        ring.ring().clear();
        Self { socket, ring, held: None }
    }

    /// How many messages one receive takes at the most.
    pub fn slots(&mut self) -> usize {
        self.ring.ring().slots()
    }

    /// Receives without waiting, in search of `wanted` datagrams. There may be more.
    pub fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        wanted: usize,
        flags: c_int,
    ) -> io::Result<Filled> {
        self.receive_messages(fd, self.socket.messages_for(wanted), flags)
    }

    /// Receives without waiting: the first message of the backlog or, where there is none, up to
    /// `count` of the kernel's.
    ///
    /// Without `MSG_DONTWAIT` among the flags, the error is `ESHUTDOWN` where no datagram can come
    /// any more. It is for callers that would wait otherwise.
    pub fn receive_messages(
        &mut self,
        fd: BorrowedFd<'_>,
        count: usize,
        flags: c_int,
    ) -> io::Result<Filled> {
        if let Some(filled) = self.take_kept() {
            return Ok(filled);
        }
        self.socket.receive_new(fd, self.ring.ring(), count, flags)
    }

    /// Receives up to `count` of the kernel's messages, whatever the backlog has; what is not taken
    /// goes behind that.
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

    /// Takes the first message of the backlog, if there is one and the socket is not closed.
    pub fn take_kept(&mut self) -> Option<Filled> {
        self.give_back();
        self.held = self.socket.take_kept();
        // There may be more, in the backlog or in the kernel.
        self.held.as_ref().map(|held| Filled { is_full: true, ..held.filled() })
    }

    /// The message of the backlog, if that is where the last receive found one.
    pub fn held(&mut self) -> Option<&mut Held> {
        self.held.as_mut()
    }

    #[inline]
    fn give_back(&mut self) {
        let is_left = self.held.as_ref().is_some_and(|held| held.remaining() > 0)
            || !self.ring.ring().is_empty();
        if is_left {
            self.keep_rest();
            self.socket.share_kept();
        }
        self.held = None;
    }

    /// Puts what is not taken into the backlog, and wakes nobody: for an attempt of a call that waits,
    /// which would wake itself. At its end it [shares](Socket::share_kept) what is kept.
    #[cold]
    pub(super) fn keep_rest(&mut self) {
        if let Some(held) = self.held.take() {
            self.socket.put_back(held);
        }
        let ring = self.ring.ring();
        self.socket.keep(ring);
        ring.clear();
    }
}

impl<R: Ring> Drop for RecvCursor<'_, R> {
    fn drop(&mut self) {
        self.give_back();
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
    /// Says of each message in the ring, by its slot, where its datagrams lie in its memory: see
    /// [`RecvRing::drain_layout`].
    pub fn drain_layout(&mut self, place: impl FnMut(usize, Run) -> usize) {
        self.ring.ring().drain_layout(place);
    }

    /// The sender of the message in a slot.
    pub fn sender(&mut self, slot: usize) -> &[u8] {
        self.ring.ring().sender(slot)
    }

    /// Whether the end of the message in a slot was cut off.
    pub fn is_truncated(&mut self, slot: usize) -> bool {
        self.ring.ring().is_truncated(slot)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::net::SendSlice;

    fn pair(payloads: &[&[u8]]) -> Socket {
        let socket = Socket::open(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
        let address: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&address.into()).unwrap();
        let to = socket.local_address().unwrap();
        for payload in payloads {
            socket.with(|fd| socket.send(fd, SendSlice::new(payload), Some(&to), 0)).unwrap();
        }
        socket
    }

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
    fn what_is_not_taken_comes_first_in_order_the_next_time() {
        let socket = pair(&[b"1", b"2", b"3", b"4"]);
        let mut cursor = RecvCursor::of_thread(&socket).unwrap();
        socket.with(|fd| cursor.receive_messages(fd, 3, libc::MSG_DONTWAIT)).unwrap();
        cursor.advance();
        assert_eq!(socket.pending(), 0);
        drop(cursor);
        assert_eq!(socket.pending(), 2);
        assert_eq!(payloads(&socket, 4), [b"2", b"3", b"4"]);
        assert_eq!(socket.pending(), 0);
    }

    #[test]
    fn a_receive_gives_back_what_the_last_one_left() {
        let socket = pair(&[b"1", b"2"]);
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
        let socket = pair(&[b"1", b"2"]);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut cursor = RecvCursor::of_thread(&socket).unwrap();
            socket.with(|fd| cursor.receive_messages(fd, 2, libc::MSG_DONTWAIT)).unwrap();
            std::panic::resume_unwind(Box::new("in the middle"));
        }));
        assert!(result.is_err());
        assert_eq!(payloads(&socket, 2), [b"1", b"2"]);
    }

    #[test]
    fn an_exported_ring_keeps_what_found_no_place() {
        let socket = pair(&[b"1", b"two", b"3"]);
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
