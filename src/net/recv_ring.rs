//! Receiving many datagrams with one system call.

mod screening;

use std::cell::Cell;
use std::ffi::c_int;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};

use super::address::Address;
use super::came_through::CameThrough;
use super::fork_mutex::{Inherit, leave_to_parent};
use super::guard::Arrival;
use super::meta::Meta;
use super::split::Split;
use super::sys::{RecvMessages, make_room, with_room};

/// A ring of slots that `recvmmsg` fills, and a cursor that moves through the received datagrams.
/// It splits messages that the kernel coalesced (`UDP_GRO`).
pub struct RecvRing {
    messages: RecvMessages,
    /// The received messages.
    splits: Vec<Part>,
    /// The clients of datagrams that came through a proxy.
    clients: Vec<Address>,
    /// The DTLS sessions that datagrams came through.
    sessions: Vec<Arc<CameThrough>>,
    /// The index of the message under the cursor.
    next: usize,
    /// Reused to avoid allocations.
    arrivals: Vec<Arrival>,
}

/// A message, or a datagram of a message.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) slot: usize,
    pub(super) split: Split,
    /// The index of its client, if it came through a proxy.
    client: Option<usize>,
    /// The index of the DTLS session that it came through.
    session: Option<usize>,
}

/// A received datagram, in memory that the next receive overwrites.
#[derive(Clone, Copy)]
pub struct Received<'a> {
    /// Its bytes.
    pub payload: &'a [u8],
    /// The sender's address as the kernel writes it, for [`super::AddressKind::of`]. If the datagram
    /// came through a trusted proxy, the client's.
    pub from: &'a [u8],
    /// The address of the proxy that the datagram came through.
    pub proxy: Option<&'a [u8]>,
    /// The control messages that came with it, for [`Meta::decode`]. Coalesced datagrams share
    /// them.
    pub control: &'a [u8],
    /// The kernel's flags for the message: `MSG_TRUNC`, `MSG_CTRUNC`.
    pub flags: c_int,
    /// The DTLS session that it came through.
    pub session: Option<&'a Arc<CameThrough>>,
}

impl<'a> Received<'a> {
    /// The address to send a reply to.
    #[inline]
    pub fn reply_to(&self) -> &'a [u8] {
        self.proxy.unwrap_or(self.from)
    }

    /// Whether the datagram was truncated to fit the slot.
    pub fn is_truncated(&self) -> bool {
        self.flags & libc::MSG_TRUNC != 0
    }
}

/// The location of a message's datagrams in the slots' memory: one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The start of the first.
    pub start: usize,
    /// The end of the last.
    pub end: usize,
    /// The length of each except the last, which may be shorter.
    pub segment: usize,
    /// The number of datagrams, at least one.
    pub datagrams: usize,
}

/// Received datagrams, one after another.
pub trait Datagrams {
    /// The current datagram, or `None` at the end.
    fn current(&self) -> Option<Received<'_>>;

    /// Advances to the next datagram.
    fn advance(&mut self);
}

/// The result of a receive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// The number of kernel messages; each contains one datagram or several coalesced ones.
    pub messages: usize,
    /// The number of datagrams.
    pub datagrams: usize,
    /// The number of payload bytes.
    pub bytes: usize,
    /// The number of truncated datagrams.
    pub truncated: usize,
    /// The maximum number of datagrams in one message.
    pub most_per_message: usize,
    /// Whether as many messages arrived as were requested, so there may be more.
    pub is_full: bool,
}

impl RecvRing {
    /// Reserves address space for `slots` messages of up to `slot_len` bytes. Memory is used only
    /// where messages are written.
    pub fn new(slots: usize, slot_len: usize) -> io::Result<Self> {
        let messages = RecvMessages::new(slots, slot_len)?;
        let (splits, arrivals) = (with_room(slots, "slots")?, Vec::new());
        let (clients, sessions) = (Vec::new(), Vec::new());
        Ok(Self { messages, splits, clients, sessions, next: 0, arrivals })
    }

    /// The maximum number of messages of one receive.
    pub fn slots(&self) -> usize {
        self.messages.slots()
    }

    /// Receives up to `count` queued messages without waiting, and puts the cursor on the first
    /// datagram. This discards the ring's previous content. Control messages are received only if
    /// requested; otherwise the kernel discards them, and with them any descriptors that a peer
    /// passes.
    pub fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        count: usize,
        flags: c_int,
        wants_control: bool,
    ) -> io::Result<Filled> {
        self.clear();
        let count = count.min(self.slots());
        make_room(&mut self.splits, count, "slots")?; // an inherited ring has none
        let messages = self.messages.receive(fd, count, flags, wants_control)?;
        let mut filled = Filled { messages, is_full: messages == count, ..Filled::default() };
        for slot in 0..messages {
            let message = self.messages.message(slot);
            let split = Split::new(message.len, Meta::segment(message.control));
            let is_truncated = message.flags & libc::MSG_TRUNC != 0;
            filled.count(split, is_truncated);
            self.splits.push(Part { slot, split, client: None, session: None });
        }
        Ok(filled)
    }

    /// Discards the received datagrams.
    pub fn clear(&mut self) {
        self.splits.clear();
        self.clients.clear();
        self.sessions.clear();
        self.next = 0;
    }

    /// Holds sessions until the next receive.
    #[cfg(feature = "dtls")]
    pub(super) fn hold_sessions(&mut self, sessions: Vec<Arc<CameThrough>>) {
        self.sessions.extend(sessions);
    }

    /// Lets go of the sessions of the last receive, whose keys must not outlive them for long.
    pub(super) fn forget_sessions(&mut self) {
        self.sessions.clear();
    }

    /// The number of datagrams from the cursor on.
    pub fn remaining(&self) -> usize {
        self.splits.iter().skip(self.next).map(|part| part.split.remaining()).sum()
    }

    /// Whether there are no datagrams from the cursor on.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.next >= self.splits.len()
    }

    /// The rest, from the cursor on.
    pub(super) fn rest(&self) -> &[Part] {
        &self.splits[self.next..]
    }

    /// A datagram of a part that is at a range of its message.
    #[inline]
    pub(super) fn received<'a>(&'a self, part: &Part, payload: &'a [u8]) -> Received<'a> {
        let message = self.messages.message(part.slot);
        let from = part.from(message.name, &self.clients);
        let proxy = part.client.map(|_| message.name);
        let session = part.session.and_then(|index| self.sessions.get(index));
        Received { payload, from, proxy, control: message.control, flags: message.flags, session }
    }

    /// The content of the slots.
    pub(super) fn messages(&self) -> &RecvMessages {
        &self.messages
    }

    /// Reports each message from the cursor on, without its payload, and where its datagrams are.
    /// `take` returns how many of them it has taken; if not all, the cursor stops after them.
    pub fn drain_layout(&mut self, mut take: impl FnMut(&Received<'_>, Run) -> usize) {
        while let Some(&part) = self.splits.get(self.next) {
            let (offset, split) = (self.messages.offset(part.slot), part.split);
            let run = Run {
                start: offset + split.start(),
                end: offset + split.end(),
                segment: split.segment(),
                datagrams: split.remaining(),
            };
            let taken = take(&self.received(&part, b""), run);
            if taken < run.datagrams {
                self.splits[self.next].split.skip(taken);
                return;
            }
            self.next += 1;
        }
    }

    /// Whether the message in a slot was truncated.
    fn is_truncated(&self, slot: usize) -> bool {
        self.messages.message(slot).flags & libc::MSG_TRUNC != 0
    }
}

impl Datagrams for RecvRing {
    #[inline]
    fn current(&self) -> Option<Received<'_>> {
        let part = self.splits.get(self.next)?;
        Some(self.received(part, self.messages.payload(part.slot, part.split.range())))
    }

    #[inline]
    fn advance(&mut self) {
        if let Some(Part { split, .. }) = self.splits.get_mut(self.next)
            && !split.advance()
        {
            self.next += 1;
        }
    }
}

impl Part {
    /// Its sender, or the client if the sender is a proxy.
    #[inline]
    fn from<'a>(&self, sender: &'a [u8], clients: &'a [Address]) -> &'a [u8] {
        match self.client {
            None => sender,
            Some(client) => clients[client].as_bytes(),
        }
    }
}

impl Filled {
    fn count(&mut self, split: Split, is_truncated: bool) {
        self.datagrams += split.remaining();
        self.most_per_message = self.most_per_message.max(split.remaining());
        self.bytes += split.end() - split.start();
        self.truncated += usize::from(is_truncated);
    }
}

/// A ring whose memory others also read and write. Its datagrams are therefore available only as
/// [offsets](RecvRing::drain_layout), not as references.
pub struct ExportedRing {
    ring: RecvRing,
    memory: *mut u8,
    memory_len: usize,
}

// SAFETY: the pointer refers to memory that the ring owns, and is not dereferenced here.
unsafe impl Send for ExportedRing {}
// SAFETY: as above.
unsafe impl Sync for ExportedRing {}

impl ExportedRing {
    /// As [`RecvRing::new`].
    pub fn new(slots: usize, slot_len: usize) -> io::Result<Self> {
        let mut ring = RecvRing::new(slots, slot_len)?;
        let (memory, memory_len) = ring.messages.export();
        Ok(Self { ring, memory, memory_len })
    }

    /// The address of the slots' memory, which never moves, and its length. Receives write to it.
    pub fn memory(&self) -> (*mut u8, usize) {
        (self.memory, self.memory_len)
    }

    pub(super) fn ring(&mut self) -> &mut RecvRing {
        &mut self.ring
    }
}

/// A thread of the parent may have been receiving into the ring. Its content belongs to the parent;
/// the memory stays where it is.
impl Inherit for ExportedRing {
    fn inherit(&mut self) {
        self.ring.messages.forget_last();
        leave_to_parent(&mut self.ring.splits);
        leave_to_parent(&mut self.ring.clients);
        leave_to_parent(&mut self.ring.sessions);
        leave_to_parent(&mut self.ring.arrivals);
        self.ring.next = 0;
    }
}

/// The length of a slot that fits any IP datagram.
const IP_SLOT_LEN: usize = 65_536;

/// The slot length that avoids truncation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// For IP datagrams, coalesced or not: the length field has 16 bits.
    Ip,
    /// For `AF_UNIX` datagrams, which are limited by the sender's buffer.
    Unix,
}

impl SlotKind {
    const SLOTS: usize = 64;
    const UNIX_SLOTS: usize = 16;

    fn make_ring(self) -> io::Result<RecvRing> {
        match self {
            Self::Ip => RecvRing::new(Self::SLOTS, IP_SLOT_LEN),
            Self::Unix => RecvRing::new(Self::UNIX_SLOTS, largest_unix_datagram()),
        }
    }
}

/// The longest `AF_UNIX` datagram. A sender needs a send buffer of its length, which is possible
/// with `SO_SNDBUFFORCE`, or if the limit was higher before. The kernel accepts at most what fits
/// into one allocation (4 MiB) and 17 fragments, if pages have 4 KiB. With larger pages it accepts
/// more; then the largest unprivileged `SO_SNDBUF` is the limit: twice `net.core.wmem_max`.
fn largest_unix_datagram() -> usize {
    const ALLOCATION: usize = (4 << 20) + 17 * 4096;
    static LARGEST: OnceLock<usize> = OnceLock::new();
    *LARGEST.get_or_init(|| {
        let limit = std::fs::read_to_string("/proc/sys/net/core/wmem_max");
        let limit = limit.ok().and_then(|limit| limit.trim().parse().ok());
        ALLOCATION.max(2 * limit.unwrap_or(0))
    })
}

/// The calling thread's ring, until this is dropped.
///
/// A ring belongs to the draining thread, not to a socket: ten thousand sockets do not need ten
/// thousand rings. If the thread's ring is already taken, for example because a finalizer runs in
/// the middle of a receive, a new ring is created.
pub struct ThreadRing {
    ring: Option<Box<RecvRing>>,
    kind: SlotKind,
}

thread_local! {
    static IP: Cell<Option<Box<RecvRing>>> = const { Cell::new(None) };
    static UNIX: Cell<Option<Box<RecvRing>>> = const { Cell::new(None) };
}

impl ThreadRing {
    /// Takes the thread's ring of a kind. Its content is undefined.
    pub fn take(kind: SlotKind) -> io::Result<Self> {
        let kept = match kind {
            SlotKind::Ip => IP.try_with(Cell::take),
            SlotKind::Unix => UNIX.try_with(Cell::take),
        };
        let ring = kept.ok().flatten().map_or_else(|| kind.make_ring().map(Box::new), Ok)?;
        Ok(Self { ring: Some(ring), kind })
    }
}

impl Deref for ThreadRing {
    type Target = RecvRing;

    fn deref(&self) -> &RecvRing {
        self.ring.as_ref().expect("only drop takes the ring out")
    }
}

impl DerefMut for ThreadRing {
    fn deref_mut(&mut self) -> &mut RecvRing {
        self.ring.as_mut().expect("only drop takes the ring out")
    }
}

impl Drop for ThreadRing {
    fn drop(&mut self) {
        let ring = self.ring.take();
        // A thread that is exiting has nowhere to keep it.
        let _ = match self.kind {
            SlotKind::Ip => IP.try_with(|kept| kept.set(ring)),
            SlotKind::Unix => UNIX.try_with(|kept| kept.set(ring)),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    fn pair() -> (UdpSocket, UdpSocket) {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        (receiver, sender)
    }

    fn payloads(ring: &mut RecvRing) -> Vec<Vec<u8>> {
        let mut payloads = Vec::new();
        while let Some(datagram) = ring.current() {
            payloads.push(datagram.payload.to_vec());
            ring.advance();
        }
        payloads
    }

    #[test]
    fn one_call_receives_what_is_queued_and_the_next_starts_afresh() {
        let (receiver, sender) = pair();
        let mut ring = RecvRing::new(4, 2048).unwrap();
        for round in [&[&b"one"[..], b"", b"three"][..], &[b"x"], &[b"longer than before", b"y"]] {
            for payload in round {
                sender.send(payload).unwrap();
            }
            let filled = ring.receive(receiver.as_fd(), 4, 0, true).unwrap();
            assert_eq!((filled.messages, filled.datagrams), (round.len(), round.len()));
            assert_eq!(filled.bytes, round.iter().map(|payload| payload.len()).sum::<usize>());
            assert_eq!(ring.remaining(), round.len());
            let from = crate::net::AddressKind::of(ring.current().unwrap().from);
            let std::net::SocketAddr::V4(expected) = sender.local_addr().unwrap() else { panic!() };
            assert_eq!(from, crate::net::AddressKind::V4(expected));
            assert_eq!(payloads(&mut ring), round);
            assert_eq!(ring.remaining(), 0);
        }
        let error = ring.receive(receiver.as_fd(), 4, 0, true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(ring.current().is_none());
    }

    #[test]
    fn at_most_the_requested_number_is_received() {
        let (receiver, sender) = pair();
        let mut ring = RecvRing::new(8, 64).unwrap();
        for payload in [b"1", b"2", b"3"] {
            sender.send(payload).unwrap();
        }
        assert_eq!(ring.receive(receiver.as_fd(), 2, 0, true).unwrap().messages, 2);
        assert_eq!(ring.receive(receiver.as_fd(), 99, 0, true).unwrap().messages, 1);
        assert_eq!(payloads(&mut ring), [b"3"]);
    }

    #[test]
    fn a_truncated_datagram_is_marked() {
        let (receiver, sender) = pair();
        let mut ring = RecvRing::new(2, 64).unwrap();
        sender.send(&[7; 65]).unwrap();
        sender.send(&[8; 64]).unwrap();
        assert_eq!(ring.receive(receiver.as_fd(), 2, 0, true).unwrap().truncated, 1);
        let first = ring.current().unwrap();
        assert!(first.is_truncated());
        assert_eq!(first.payload, [7; 64]);
        ring.advance();
        assert!(!ring.current().unwrap().is_truncated());
    }

    #[test]
    fn a_coalesced_run_is_split() {
        let (receiver, sender) = pair();
        let gro = 1_i32.to_ne_bytes();
        super::super::sys::set_option(receiver.as_fd(), libc::SOL_UDP, libc::UDP_GRO, &gro)
            .unwrap();
        let size = 1000_u16.to_ne_bytes();
        let mut control = super::super::cmsg::ControlBuffer::EMPTY;
        control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &size);
        let payload: Vec<u8> = (0..4500).map(|at| (at / 1000) as u8).collect();
        super::super::sys::send_message(
            sender.as_fd(),
            &[super::super::SendSlice::new(&payload)],
            None,
            control.as_bytes(),
            0,
        )
        .unwrap();
        let mut ring = RecvRing::new(4, IP_SLOT_LEN).unwrap();
        let filled = ring.receive(receiver.as_fd(), 4, 0, true).unwrap();
        assert_eq!((filled.datagrams, filled.bytes), (5, 4500));
        let expected: Vec<Vec<u8>> = payload.chunks(1000).map(<[u8]>::to_vec).collect();
        assert_eq!(payloads(&mut ring), expected);
    }

    #[test]
    fn a_thread_keeps_its_ring() {
        let start = |ring: &ThreadRing| ring.messages().payload(0, 0..0).as_ptr();
        let first = ThreadRing::take(SlotKind::Ip).unwrap();
        let address = start(&first);
        let second = ThreadRing::take(SlotKind::Ip).unwrap();
        assert_ne!(start(&second), address);
        drop((second, first));
        assert_eq!(start(&ThreadRing::take(SlotKind::Ip).unwrap()), address);
    }
}
