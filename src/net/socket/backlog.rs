//! A socket's receiving side: whole rings, and the backlog.

use std::ffi::c_int;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use super::Socket;
use super::coalesce::Coalescing;
use super::guarded::REFUSALS;
use crate::net::counted::Counted;
use crate::net::recv_backlog::RecvBacklog;
use crate::net::recv_ring::{Filled, RecvRing};
use crate::net::sys;

/// The state that a socket keeps between one receive and the next.
#[derive(Default)]
pub(super) struct Backlog {
    received: Counted<RecvBacklog>,
    /// The maximum number of datagrams in a message of the last receive.
    per_message: AtomicUsize,
    /// The errno of a receive that ended with an error after it had received datagrams.
    deferred: AtomicI32,
    pub(super) coalescing: Coalescing,
}

impl Socket {
    /// The number of messages to request for `wanted` datagrams, assuming that messages are as long
    /// as in the last receive. This is hardly ever too many.
    pub(super) fn messages_for(&self, wanted: usize) -> usize {
        wanted.div_ceil(self.backlog.per_message.load(Ordering::Relaxed).max(1))
    }

    /// Receives up to `count` kernel messages into a ring.
    pub(super) fn receive_new(
        &self,
        fd: BorrowedFd<'_>,
        ring: &mut RecvRing,
        count: usize,
        flags: c_int,
    ) -> io::Result<Filled> {
        self.raise_deferred()?;
        let mut refused = 0;
        while refused < REFUSALS {
            let filled = self.fill(fd, ring, count, flags);
            self.note_receive(filled.as_ref().unwrap_or(&Filled::default()));
            let filled = match filled {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // The caller would wait, although nothing can ever arrive: the socket is shut
                    // down.
                    let is_end = flags & libc::MSG_DONTWAIT == 0 && !sys::is_nonblocking(fd)?;
                    let end = io::Error::from_raw_os_error(libc::ESHUTDOWN);
                    return Err(if is_end { end } else { error });
                }
                filled => filled?,
            };
            if filled.datagrams > 0 {
                self.count(&filled);
                return Ok(filled);
            }
            if self.backlog_len() > 0 {
                break; // records had more in them than the slots have room for
            }
            refused += filled.messages;
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    pub(super) fn count(&self, filled: &Filled) {
        self.backlog.per_message.store(filled.most_per_message, Ordering::Relaxed);
        self.counters().count_received(filled.datagrams, filled.bytes);
        if filled.truncated > 0 {
            self.counters().count_truncated(filled.truncated);
        }
    }

    /// Stores an error for the next receive, because this one has datagrams to return.
    pub fn defer(&self, error: &io::Error) {
        self.backlog.deferred.store(error.raw_os_error().unwrap_or(0), Ordering::Relaxed);
    }

    pub(super) fn raise_deferred(&self) -> io::Result<()> {
        if self.backlog.deferred.load(Ordering::Relaxed) == 0 {
            return Ok(()); // the usual case
        }
        match self.backlog.deferred.swap(0, Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Whether a receive has a result that the kernel does not know of: a datagram of the backlog, a
    /// deferred error, or the end of the only session.
    pub(super) fn has_own_result(&self) -> bool {
        self.backlog_len() > 0
            || self.backlog.deferred.load(Ordering::Relaxed) != 0
            || self.end_of_session().is_err()
    }

    /// If a receive [has a result](Self::has_own_result), wakes the threads that sleep until the
    /// kernel has a datagram.
    pub fn share_backlog(&self) {
        if self.has_own_result() {
            self.descriptor().wake();
        }
    }

    /// The number of datagrams in the backlog.
    pub fn backlog_len(&self) -> usize {
        self.backlog.received.len()
    }

    pub(super) fn with_backlog<T>(&self, act: impl FnOnce(&mut RecvBacklog) -> T) -> T {
        self.backlog.received.with(act)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::net::cmsg::{self, ControlBuffer};
    use crate::net::socket::testing::loopback;
    use crate::net::sys::RecvSlice;
    use crate::net::{Address, Datagrams, RecvCursor, SendSlice, Taken, Visibility};
    use std::os::fd::AsFd;

    fn receive(socket: &Socket, buffer: &mut [u8], flags: c_int) -> io::Result<Taken> {
        let inside = socket.descriptor().enter()?;
        let flags = flags | libc::MSG_DONTWAIT;
        socket.receive(inside.as_fd(), &mut RecvSlice::new(buffer), None, flags)
    }

    fn send(from: &Socket, to: &Socket, payload: &[u8]) {
        let inside = from.descriptor().enter().unwrap();
        let to = to.local_address().unwrap();
        from.send(inside.as_fd(), SendSlice::new(payload), Some(&to), 0).unwrap();
    }

    #[test]
    fn a_datagram_arrives_with_its_sender() {
        let (sender, receiver) = (loopback(), loopback());
        send(&sender, &receiver, b"hello");
        let (mut buffer, mut from) = ([0; 16], Address::UNNAMED);
        let inside = receiver.descriptor().enter().unwrap();
        let mut memory = RecvSlice::new(&mut buffer);
        let received = receiver.receive(inside.as_fd(), &mut memory, Some(&mut from), 0).unwrap();
        assert_eq!(received, Taken { len: 5, full_len: 5 });
        assert_eq!(from, sender.local_address().unwrap());
        assert_eq!(&buffer[..5], b"hello");
    }

    #[test]
    fn datagrams_are_counted() {
        let (sender, receiver) = (loopback(), loopback());
        for payload in [&b"four"[..], b"", b"more than four"] {
            send(&sender, &receiver, payload);
        }
        let mut buffer = [0; 4];
        assert_eq!(receive(&receiver, &mut buffer, libc::MSG_PEEK).unwrap().len, 4);
        for full_len in [4, 0, 14] {
            assert_eq!(receive(&receiver, &mut buffer, 0).unwrap().full_len, full_len);
        }
        let (sent, received) = (sender.counters().read(), receiver.counters().read());
        assert_eq!((sent.sent, sent.sent_bytes, sent.send_calls), (3, 18, 3));
        assert_eq!((received.received, received.received_bytes), (3, 8));
        assert_eq!((received.receive_calls, received.truncated), (3, 1));
    }

    /// Sends `payloads`, all of equal size except the last, as one coalesced run.
    fn send_run(from: &Socket, to: &Socket, payloads: &[&[u8]]) {
        let mut control = ControlBuffer::EMPTY;
        let size = (payloads[0].len() as u16).to_ne_bytes();
        control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &size);
        let memory: Vec<_> = payloads.iter().map(|payload| SendSlice::new(payload)).collect();
        let to = to.local_address().unwrap();
        from.with(|fd| sys::send_message(fd, &memory, Some(&to), control.as_bytes(), 0)).unwrap();
    }

    #[test]
    fn with_gro_single_receives_split_a_run_in_order() {
        let (sender, receiver) = (loopback(), loopback());
        receiver.set_gro(true).unwrap();
        send_run(&sender, &receiver, &[b"one", b"two", b"3"]);
        send(&sender, &receiver, b"");
        let mut buffer = [0; 16];
        assert_eq!(receive(&receiver, &mut buffer, libc::MSG_PEEK).unwrap().len, 3);
        assert_eq!(receiver.backlog_len(), 3);
        for expected in [&b"one"[..], b"two", b"3", b""] {
            let taken = receive(&receiver, &mut buffer, 0).unwrap();
            assert_eq!(&buffer[..taken.len], expected);
        }
        let error = receive(&receiver, &mut buffer, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let stats = receiver.counters().read();
        assert_eq!((stats.received, stats.received_bytes, stats.receive_calls), (4, 7, 2));
    }

    #[test]
    fn a_datagram_of_a_run_is_truncated_alone() {
        let (sender, receiver) = (loopback(), loopback());
        receiver.set_gro(true).unwrap();
        send_run(&sender, &receiver, &[b"first", b"secnd"]);
        let mut buffer = [0; 2];
        for expected in [b"fi", b"se"] {
            let taken = receive(&receiver, &mut buffer, 0).unwrap();
            assert_eq!((taken.full_len, &buffer), (5, expected));
        }
        assert_eq!(receiver.counters().read().truncated, 2);
    }

    #[test]
    fn datagrams_beyond_the_maximum_are_returned_first_by_the_next_receive() {
        let (sender, receiver) = (loopback(), loopback());
        receiver.set_gro(true).unwrap();
        send_run(&sender, &receiver, &[b"1", b"2", b"3"]);
        send(&sender, &receiver, b"4");
        let mut cursor = RecvCursor::of_thread(&receiver).unwrap();
        let filled =
            receiver.with(|fd| cursor.receive_messages(fd, 1, libc::MSG_DONTWAIT)).unwrap();
        assert_eq!(filled.datagrams, 3);
        cursor.advance();
        assert!(cursor.take_from_backlog().is_some());
        assert_eq!((cursor.current().unwrap().payload, receiver.backlog_len()), (&b"2"[..], 0));
        cursor.advance();
        drop(cursor);
        let mut buffer = [0; 4];
        for expected in [b"3", b"4"] {
            assert_eq!(receive(&receiver, &mut buffer, 0).unwrap().len, 1);
            assert_eq!(&buffer[..1], expected);
        }
    }

    #[test]
    fn control_messages_survive_the_split_without_the_segment_size() {
        let (sender, receiver) = (loopback(), loopback());
        receiver.set_gro(true).unwrap();
        receiver.set_int_option(libc::IPPROTO_IP, libc::IP_RECVTTL, 1).unwrap();
        send_run(&sender, &receiver, &[b"one", b"two"]);
        for _ in 0..2 {
            let (mut buffer, mut control) = ([0; 2], [0; 128]);
            let mut from = Address::UNNAMED;
            let inside = receiver.descriptor().enter().unwrap();
            let memory = &mut [RecvSlice::new(&mut buffer)];
            let info = receiver
                .receive_message(
                    inside.as_fd(),
                    memory,
                    Visibility::Private,
                    &mut from,
                    &mut control,
                    0,
                )
                .unwrap();
            assert_eq!((info.len, info.flags), (2, libc::MSG_TRUNC));
            let kinds: Vec<_> = cmsg::decode(&control[..info.control_len])
                .map(|message| (message.level, message.kind))
                .collect();
            assert_eq!(kinds, [(libc::IPPROTO_IP, libc::IP_TTL)]);
            assert_eq!(from, sender.local_address().unwrap());
        }
    }

    #[test]
    fn a_deferred_error_ends_the_next_receive_once() {
        let receiver = loopback();
        receiver.defer(&io::Error::from_raw_os_error(libc::ECONNREFUSED));
        let mut cursor = RecvCursor::of_thread(&receiver).unwrap();
        let mut next = || receiver.with(|fd| cursor.receive_messages(fd, 1, libc::MSG_DONTWAIT));
        assert_eq!(next().unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
        assert_eq!(next().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
