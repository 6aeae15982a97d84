//! A socket's receiving side: single datagrams, whole rings, and what was received but not taken.

use std::ffi::c_int;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use super::address::Address;
use super::cmsg;
use super::counted::Counted;
use super::guard::{Arrival, REFUSALS};
use super::pending::{Held, Pending};
use super::ring::{Datagrams, Filled, Received, RecvRing, ThreadRing};
use super::socket::Socket;
use super::sys::{self, MessageInfo, RecvSlice};

/// What a socket has to remember between one receive and the next.
#[derive(Default)]
pub(super) struct Inbox {
    pending: Counted<Pending>,
    /// The most datagrams that a message of the last receive had.
    per_message: AtomicUsize,
    /// The errno that ended a receive which had something to return.
    deferred: AtomicI32,
}

/// What became of one received datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Bytes that are in the buffer now.
    pub len: usize,
    /// Bytes that the datagram had.
    pub full_len: usize,
}

impl Socket {
    /// Receives one datagram, and its sender where `from` is given: `recvfrom(2)`.
    pub fn receive(
        &self,
        fd: BorrowedFd<'_>,
        memory: &mut RecvSlice<'_>,
        from: Option<&mut Address>,
        flags: c_int,
    ) -> io::Result<Taken> {
        let guard = self.guard_of(flags);
        if let Some(guard) = guard.as_deref().filter(|_| flags & libc::MSG_PEEK != 0) {
            self.pass_over(fd, guard)?;
        }
        if self.splits(flags) {
            let taken = self.receive_held(fd, flags, |datagram| {
                if let Some(from) = from {
                    *from = Address::from_bytes(datagram.from);
                }
                let len = memory.fill(datagram.payload);
                Taken { len, full_len: datagram.payload.len() }
            })?;
            self.count_cut(flags, taken.full_len > taken.len);
            return Ok(taken);
        }
        if flags & libc::MSG_ERRQUEUE == 0 {
            self.raise_deferred()?;
        }
        // On a datagram socket MSG_TRUNC makes the call return the full length, so that a datagram
        // too long for the buffer is noticed at no cost. On a stream it would discard data.
        let ask_len = if self.is_datagram() { libc::MSG_TRUNC } else { 0 };
        let full_len = match guard.filter(|_| flags & libc::MSG_PEEK == 0) {
            None => sys::recv_from(fd, memory, from, flags | ask_len)?,
            Some(guard) => {
                let mut own = Address::UNNAMED;
                let from = from.unwrap_or(&mut own);
                self.receive_admitted(&guard, || {
                    let full_len = sys::recv_from(fd, memory, Some(&mut *from), flags | ask_len)?;
                    Ok((full_len, Arrival::one(from.as_bytes(), full_len)))
                })?
            }
        };
        let taken = Taken { len: full_len.min(memory.len()), full_len };
        if flags & (libc::MSG_PEEK | libc::MSG_ERRQUEUE) == 0 {
            self.counters().count_received(1, taken.len);
        }
        self.count_cut(flags, taken.full_len > taken.len);
        Ok(taken)
    }

    /// Receives one datagram into several pieces of memory, with control messages: `recvmsg(2)`.
    pub fn receive_message(
        &self,
        fd: BorrowedFd<'_>,
        memory: &mut [RecvSlice<'_>],
        from: &mut Address,
        control: &mut [u8],
        flags: c_int,
    ) -> io::Result<MessageInfo> {
        if flags & libc::MSG_ERRQUEUE != 0 {
            return self.receive_error_message(fd, memory, from, control, flags);
        }
        let guard = self.guard_of(flags);
        if let Some(guard) = guard.as_deref().filter(|_| flags & libc::MSG_PEEK != 0) {
            self.pass_over(fd, guard)?;
        }
        if self.splits(flags) {
            let info = self.receive_held(fd, flags, |datagram| {
                *from = Address::from_bytes(datagram.from);
                copy_message(&datagram, memory, control, flags)
            })?;
            self.count_cut(flags, info.flags & libc::MSG_TRUNC != 0);
            return Ok(info);
        }
        self.raise_deferred()?;
        let room: usize = memory.iter().map(RecvSlice::len).sum();
        let info = match guard.filter(|_| flags & libc::MSG_PEEK == 0) {
            None => sys::recv_message(fd, memory, from, control, flags)?,
            Some(guard) => self.receive_admitted(&guard, || {
                let ask_len = flags | libc::MSG_TRUNC;
                let mut info = sys::recv_message(fd, memory, from, control, ask_len)?;
                let arrival = Arrival::one(from.as_bytes(), info.len);
                if flags & libc::MSG_TRUNC == 0 {
                    info.len = info.len.min(room);
                }
                Ok((info, arrival))
            })?,
        };
        if flags & libc::MSG_PEEK == 0 {
            self.counters().count_received(1, info.len.min(room));
        }
        self.count_cut(flags, info.flags & libc::MSG_TRUNC != 0);
        Ok(info)
    }

    /// Receives into a ring what is there, in search of `wanted` datagrams, and puts its cursor on
    /// the first. There may be more than wanted: [`keep`](Self::keep) what is not taken. There is
    /// none where another thread has kept some: [`take_kept`](Self::take_kept) those.
    pub fn receive_ring(
        &self,
        fd: BorrowedFd<'_>,
        ring: &mut RecvRing,
        wanted: usize,
        flags: c_int,
    ) -> io::Result<Filled> {
        // As many messages as held so many datagrams the last time: hardly ever too many.
        let per_message = self.inbox.per_message.load(Ordering::Relaxed).max(1);
        self.receive_messages(fd, ring, wanted.div_ceil(per_message), flags)
    }

    /// Receives up to `count` of the kernel's messages into a ring; otherwise as
    /// [`receive_ring`](Self::receive_ring).
    pub fn receive_messages(
        &self,
        fd: BorrowedFd<'_>,
        ring: &mut RecvRing,
        count: usize,
        flags: c_int,
    ) -> io::Result<Filled> {
        self.raise_deferred()?;
        if self.pending() > 0 {
            // Kept by another thread since the caller looked: they come first.
            ring.clear();
            return Ok(Filled::default());
        }
        let mut refused = 0;
        while refused < REFUSALS {
            let filled = self.fill(fd, ring, count, flags).map_err(|error| {
                // Told not to mind waiting, because nothing will ever come: it is shut down.
                let is_end = error.kind() == io::ErrorKind::WouldBlock;
                if is_end && flags & libc::MSG_DONTWAIT == 0 {
                    return io::Error::from_raw_os_error(libc::ESHUTDOWN);
                }
                error
            })?;
            if filled.datagrams > 0 {
                self.count(&filled);
                return Ok(filled);
            }
            refused += filled.messages;
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    pub(super) fn count(&self, filled: &Filled) {
        self.inbox.per_message.store(filled.most_per_message, Ordering::Relaxed);
        self.counters().count_received(filled.datagrams, filled.bytes);
        if filled.truncated > 0 {
            self.counters().count_truncated(filled.truncated);
        }
    }

    /// Keeps the datagrams that a ring has from its cursor on for the next receive.
    pub fn keep(&self, ring: &RecvRing) {
        if ring.current().is_some() {
            let lost = self.with_pending(|pending| pending.keep_rest_of(ring));
            self.counters().count_dropped(lost);
        }
    }

    /// Takes the first kept message out; none where the socket is closed. Who does not take all its
    /// datagrams [gives it back](Self::put_back).
    pub fn take_kept(&self) -> Option<Held> {
        if self.pending() == 0 || self.descriptor().is_closed() {
            return None;
        }
        self.with_pending(Pending::pop_front)
    }

    /// Puts a kept message, if something of it is left, back in its place.
    pub fn put_back(&self, held: Held) {
        let lost = self.with_pending(|pending| pending.push_front(held));
        self.counters().count_dropped(lost);
    }

    /// Keeps an error for the next receive, because this one has datagrams to return.
    pub fn defer(&self, error: &io::Error) {
        self.inbox.deferred.store(error.raw_os_error().unwrap_or(0), Ordering::Relaxed);
    }

    fn raise_deferred(&self) -> io::Result<()> {
        if self.inbox.deferred.load(Ordering::Relaxed) == 0 {
            return Ok(()); // the usual case
        }
        match self.inbox.deferred.swap(0, Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Wakes the threads that sleep until the kernel has a datagram, where there are kept ones: the
    /// kernel does not know of those. The caller is attached to the interpreter, as
    /// [`Descriptor`](super::Descriptor) demands.
    pub fn share_kept(&self) {
        if self.pending() > 0 {
            self.descriptor().wake();
        }
    }

    /// How many datagrams were received from the kernel and wait to be taken.
    pub fn pending(&self) -> usize {
        self.inbox.pending.len()
    }

    /// Receives one datagram by way of the kept ones, so that order holds and nothing is lost.
    fn receive_held<T>(
        &self,
        fd: BorrowedFd<'_>,
        flags: c_int,
        take: impl FnOnce(Received<'_>) -> T,
    ) -> io::Result<T> {
        if self.pending() == 0 {
            let mut ring = ThreadRing::take(self.slot_kind())?;
            self.receive_ring(fd, &mut ring, 1, flags & !libc::MSG_PEEK)?;
            self.keep(&ring);
        }
        self.with_pending(|pending| {
            let datagram = pending.current().ok_or(io::ErrorKind::WouldBlock)?;
            let taken = take(datagram);
            if flags & libc::MSG_PEEK == 0 {
                pending.advance();
            }
            Ok(taken)
        })
    }

    fn with_pending<T>(&self, act: impl FnOnce(&mut Pending) -> T) -> T {
        self.inbox.pending.with(act)
    }

    fn count_cut(&self, flags: c_int, is_cut: bool) {
        if is_cut && flags & (libc::MSG_PEEK | libc::MSG_ERRQUEUE) == 0 {
            self.counters().count_truncated(1);
        }
    }
}

/// Fills in what `recvmsg` returns for a datagram that came out of a glued message.
fn copy_message(
    datagram: &Received<'_>,
    memory: &mut [RecvSlice<'_>],
    control: &mut [u8],
    flags: c_int,
) -> MessageInfo {
    let mut rest = datagram.payload;
    for slice in memory {
        rest = &rest[slice.fill(rest)..];
    }
    let mut info_flags = datagram.flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC);
    if !rest.is_empty() {
        info_flags |= libc::MSG_TRUNC;
    }
    let mut messages = Vec::new();
    for message in cmsg::decode(datagram.control) {
        // The segment size: this datagram is but one of them.
        if (message.level, message.kind) != (libc::SOL_UDP, libc::UDP_GRO) {
            cmsg::encode(&mut messages, message.level, message.kind, message.data);
        }
    }
    let control_len = messages.len().min(control.len());
    control[..control_len].copy_from_slice(&messages[..control_len]);
    if control_len < messages.len() {
        info_flags |= libc::MSG_CTRUNC;
    }
    let full_len = datagram.payload.len();
    let len = if flags & libc::MSG_TRUNC == 0 { full_len - rest.len() } else { full_len };
    MessageInfo { len, control_len, flags: info_flags }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::cmsg::ControlBuffer;
    use crate::net::{SendSlice, SlotKind};
    use std::os::fd::AsFd;

    fn bound(family: c_int, address: &Address) -> Socket {
        let socket = Socket::open(family, libc::SOCK_DGRAM, 0).unwrap();
        socket.bind(address).unwrap();
        socket
    }

    fn loopback() -> Socket {
        bound(libc::AF_INET, &"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into())
    }

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
    fn what_passes_is_counted() {
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

    /// Sends `payloads`, all of one size but the last, as one run of the kernel's.
    fn send_run(from: &Socket, to: &Socket, payloads: &[&[u8]]) {
        let mut control = ControlBuffer::EMPTY;
        let size = (payloads[0].len() as u16).to_ne_bytes();
        control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &size);
        let memory: Vec<_> = payloads.iter().map(|payload| SendSlice::new(payload)).collect();
        let to = to.local_address().unwrap();
        from.with(|fd| sys::send_message(fd, &memory, Some(&to), control.as_bytes(), 0)).unwrap();
    }

    #[test]
    fn with_gro_single_receives_take_a_run_apart_in_order() {
        let (sender, receiver) = (loopback(), loopback());
        receiver.set_gro(true).unwrap();
        send_run(&sender, &receiver, &[b"one", b"two", b"3"]);
        send(&sender, &receiver, b"");
        let mut buffer = [0; 16];
        assert_eq!(receive(&receiver, &mut buffer, libc::MSG_PEEK).unwrap().len, 3);
        assert_eq!(receiver.pending(), 3);
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
    fn a_datagram_of_a_run_is_cut_alone() {
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
    fn what_a_ring_has_too_much_of_comes_first_the_next_time() {
        let (sender, receiver) = (loopback(), loopback());
        receiver.set_gro(true).unwrap();
        send_run(&sender, &receiver, &[b"1", b"2", b"3"]);
        send(&sender, &receiver, b"4");
        let inside = receiver.descriptor().enter().unwrap();
        let mut ring = ThreadRing::take(SlotKind::Ip).unwrap();
        let filled =
            receiver.receive_ring(inside.as_fd(), &mut ring, 1, libc::MSG_DONTWAIT).unwrap();
        assert_eq!(filled.datagrams, 3);
        ring.advance();
        receiver.keep(&ring);
        assert_eq!(receiver.pending(), 2);
        let mut held = receiver.take_kept().unwrap();
        assert_eq!((held.current().unwrap().payload, receiver.pending()), (&b"2"[..], 0));
        held.advance();
        receiver.put_back(held);
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
                .receive_message(inside.as_fd(), memory, &mut from, &mut control, 0)
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
        let mut ring = ThreadRing::take(SlotKind::Ip).unwrap();
        let mut next =
            || receiver.with(|fd| receiver.receive_ring(fd, &mut ring, 1, libc::MSG_DONTWAIT));
        assert_eq!(next().unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
        assert_eq!(next().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
