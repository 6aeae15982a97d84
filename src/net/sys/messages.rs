//! Many datagrams per call: `recvmmsg(2)` and `sendmmsg(2)`.

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::memory::Pinned;
use super::single::{empty_header, name_of, send_message, send_to};
use super::{Memory, SendSlice, with_room, zeroes};
use crate::net::address::Address;
use crate::net::cmsg::{ControlBuffer, space};

/// Room for a received message's control data: for all that this library requests of an IPv6 socket
/// that receives an IPv4 datagram, which are `SO_TIMESTAMPING` and `SO_TIMESTAMPNS`, both forms of
/// the destination, and four numbers. Most sockets request less, and leave room for the user's.
const CONTROL_LEN: usize = space(3 * size_of::<libc::timespec>())
    + space(size_of::<libc::timespec>())
    + space(size_of::<libc::in6_pktinfo>())
    + space(size_of::<libc::in_pktinfo>())
    + 4 * space(size_of::<c_int>());
const NAME_LEN: usize = Address::CAPACITY as usize;

/// Slots to receive into, each with room for a datagram, its sender and its control messages.
///
/// The headers point to all other parts. There are no references to these while the kernel writes,
/// and none at all to memory that is [exported](Self::export).
pub(in crate::net) struct RecvMessages {
    memory: Memory,
    slot_len: usize,
    headers: Box<[libc::mmsghdr]>,
    #[expect(dead_code, reason = "only the kernel reads it")]
    iovecs: Pinned<libc::iovec>,
    names: Pinned<[u8; NAME_LEN]>,
    controls: Pinned<[u8; CONTROL_LEN]>,
    /// How much of a control buffer the kernel may use.
    control_len: usize,
    /// Headers that the last call may have changed.
    dirty: usize,
    /// Whether others may read and write the memory.
    is_exported: bool,
}

// SAFETY: the headers point to memory that this owns and never moves.
unsafe impl Send for RecvMessages {}
// SAFETY: shared references only read.
unsafe impl Sync for RecvMessages {}

/// A received message in its slot.
#[derive(Clone, Copy)]
pub(in crate::net) struct Message<'a> {
    /// Its length in bytes.
    pub(in crate::net) len: usize,
    /// The sender, in the kernel's format.
    pub(in crate::net) name: &'a [u8],
    /// Control messages.
    pub(in crate::net) control: &'a [u8],
    /// `msg_flags`
    pub(in crate::net) flags: c_int,
}

impl RecvMessages {
    /// Reserves `slots` of at least `slot_len` bytes each.
    pub(in crate::net) fn new(slots: usize, slot_len: usize) -> io::Result<Self> {
        // Slots at page distance would compete for the same few cache sets, which are chosen by an
        // address's lower bits: shift each by a cache line.
        let stride = slot_len.next_multiple_of(64) + 64;
        let memory = Memory::new(stride * slots)?;
        let names = Pinned::new(zeroes::<[u8; NAME_LEN]>(slots, "the addresses of senders")?);
        let controls = Pinned::new(zeroes::<[u8; CONTROL_LEN]>(slots, "control messages")?);
        let (mut iovecs, mut headers) = (with_room(slots, "slots")?, with_room(slots, "slots")?);
        iovecs.extend((0..slots).map(|slot| {
            let iov_base = memory.start().wrapping_add(slot * stride).cast();
            libc::iovec { iov_base, iov_len: stride - 64 }
        }));
        let iovecs = Pinned::new(iovecs.into());
        headers.extend((0..slots).map(|slot| {
            let mut header = empty_header();
            header.msg_name = names.pointer(slot).cast();
            header.msg_iov = iovecs.pointer(slot);
            header.msg_iovlen = 1;
            header.msg_control = controls.pointer(slot).cast();
            libc::mmsghdr { msg_hdr: header, msg_len: 0 }
        }));
        let headers = headers.into();
        let (dirty, slot_len, control_len) = (slots, stride - 64, CONTROL_LEN);
        let is_exported = false;
        Ok(Self {
            memory,
            slot_len,
            headers,
            iovecs,
            names,
            controls,
            control_len,
            dirty,
            is_exported,
        })
    }

    /// Forgets the state of the last call, which may have been interrupted by a fork.
    pub(in crate::net) fn forget_last(&mut self) {
        self.dirty = self.slots();
    }

    /// The maximum number of messages that one call receives.
    pub(in crate::net) fn slots(&self) -> usize {
        self.headers.len()
    }

    /// Allows others to read and write the slots' memory through pointers while this lives; returns
    /// its location.
    pub(in crate::net) fn export(&mut self) -> (*mut u8, usize) {
        self.is_exported = true;
        (self.memory.start(), self.memory.size())
    }

    /// The offset of a slot's payload in the memory.
    #[inline]
    pub(in crate::net) fn offset(&self, slot: usize) -> usize {
        slot * (self.slot_len + 64)
    }

    /// Bytes of a slot's payload. Not available if the memory was exported.
    #[inline]
    pub(in crate::net) fn payload(&self, slot: usize, range: Range<usize>) -> &[u8] {
        debug_assert!(!self.is_exported);
        if self.is_exported {
            return &[];
        }
        let start = self.address_of(slot, &range);
        // SAFETY: they are within the slot; nobody else has a pointer to them but the kernel,
        // which writes while `self` is borrowed for writing.
        unsafe { std::slice::from_raw_parts(start, range.len()) }
    }

    /// A copy of bytes of a slot's payload. If the memory was exported, others may change it
    /// meanwhile, which garbles the copy.
    pub(in crate::net) fn copy_payload(
        &self,
        slot: usize,
        range: Range<usize>,
    ) -> io::Result<Box<[u8]>> {
        let start = self.address_of(slot, &range);
        let mut copy = with_room(range.len(), "a datagram in the backlog")?;
        // SAFETY: they are within the slot, and the copy has room for them.
        unsafe {
            ptr::copy_nonoverlapping(start, copy.as_mut_ptr(), range.len());
            copy.set_len(range.len());
        }
        Ok(copy.into_boxed_slice())
    }

    /// Overwrites bytes of a slot's payload with zeroes, if others can see them.
    pub(in crate::net) fn hide_payload(&mut self, slot: usize, range: Range<usize>) {
        if self.is_exported {
            let start = self.address_of(slot, &range);
            // SAFETY: they are within the slot, and no reference to them exists.
            unsafe { ptr::write_bytes(start, 0, range.len()) };
        }
    }

    /// The room for a message in each slot, in bytes.
    #[cfg(feature = "dtls")]
    pub(in crate::net) fn slot_len(&self) -> usize {
        self.slot_len
    }

    /// Overwrites a slot's message with another one, which must fit into the slot.
    #[cfg(feature = "dtls")]
    pub(in crate::net) fn replace_payload(&mut self, slot: usize, payload: &[u8]) {
        let old_len = self.message(slot).len;
        let start = self.address_of(slot, &(0..payload.len()));
        // SAFETY: they are within the slot, and no reference to them exists.
        unsafe { ptr::copy_nonoverlapping(payload.as_ptr(), start, payload.len()) };
        self.headers[slot].msg_len = payload.len() as _;
        self.hide_payload(slot, payload.len()..old_len.max(payload.len()));
    }

    #[inline]
    fn address_of(&self, slot: usize, range: &Range<usize>) -> *mut u8 {
        assert!(slot < self.slots() && range.start <= range.end && range.end <= self.slot_len);
        self.memory.start().wrapping_add(self.offset(slot) + range.start)
    }

    /// Receives up to `count` queued messages without waiting, replacing those of the last call.
    /// Returns an error only if there is no message.
    pub(in crate::net) fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        count: usize,
        flags: c_int,
        wants_control: bool,
    ) -> io::Result<usize> {
        let control_len = if wants_control { CONTROL_LEN } else { 0 };
        if control_len != self.control_len {
            self.control_len = control_len;
            self.dirty = self.slots();
        }
        // The kernel writes lengths into the fields that hold capacities.
        for header in &mut self.headers[..self.dirty] {
            header.msg_hdr.msg_namelen = Address::CAPACITY;
            header.msg_hdr.msg_controllen = self.control_len as _;
            header.msg_hdr.msg_flags = 0;
        }
        self.dirty = count;
        let flags = flags | libc::MSG_DONTWAIT;
        let received = match &mut self.headers[..count] {
            [header] => receive_one(fd, header, flags),
            headers => {
                // The pointers: the headers point to memory that `self` owns, of the given lengths.
                // It gets no timeout, because the kernel checks that only between messages.
                let (headers, no_time) = (headers.as_mut_ptr(), ptr::null_mut());
                syscall!(recvmmsg(fd.as_raw_fd(), headers, count as _, flags as _, no_time))
                    .map(|messages| messages as usize)
            }
        };
        let messages = received.as_ref().map_or(0, |&messages| messages);
        // One more: the message whose receive failed. Resetting all would be most of the work of a
        // receive of one message after a try.
        self.dirty = count.min(messages + 1);
        received
    }

    /// A message of the last call.
    #[inline]
    pub(in crate::net) fn message(&self, slot: usize) -> Message<'_> {
        let libc::mmsghdr { msg_hdr: header, msg_len } = &self.headers[slot];
        let name_len = (header.msg_namelen as usize).min(NAME_LEN);
        #[allow(clippy::unnecessary_cast)] // musl's msg_controllen is a u32
        let control_len = (header.msg_controllen as usize).min(self.control_len);
        // SAFETY: the items live as long as `self`, and are initialised; the kernel writes them
        // while `self` is borrowed for writing.
        let (name, control) =
            unsafe { (&*self.names.pointer(slot), &*self.controls.pointer(slot)) };
        Message {
            len: (*msg_len as usize).min(self.slot_len),
            name: &name[..name_len],
            control: &control[..control_len],
            flags: header.msg_flags,
        }
    }
}

/// Receives one message, in less time than `recvmmsg` takes for it: `recvmsg(2)`.
fn receive_one(fd: BorrowedFd<'_>, header: &mut libc::mmsghdr, flags: c_int) -> io::Result<usize> {
    // The pointers: as for recvmmsg.
    header.msg_len = syscall!(recvmsg(fd.as_raw_fd(), &raw mut header.msg_hdr, flags))? as _;
    Ok(1)
}

/// A message to send: buffers that the kernel joins, with an address and control messages.
pub(in crate::net) struct Outgoing<'a> {
    /// The buffers.
    pub(in crate::net) memory: &'a [SendSlice<'a>],
    /// The destination; `None` for the connected peer.
    pub(in crate::net) to: Option<&'a Address>,
    /// Control messages.
    pub(in crate::net) control: &'a ControlBuffer,
}

/// The maximum number of messages that one call sends.
pub(in crate::net) const SEND_MESSAGES: usize = 64;

/// Sends the first `messages`, up to [`SEND_MESSAGES`], without waiting; returns how many were
/// sent. An error is about the first message, and means that none was sent.
pub(in crate::net) fn send_messages<'a>(
    fd: BorrowedFd<'_>,
    mut messages: impl Iterator<Item = Outgoing<'a>>,
    flags: c_int,
) -> io::Result<usize> {
    let flags = flags | libc::MSG_DONTWAIT;
    let (first, second) = (messages.next(), messages.next());
    if let (Some(Outgoing { memory, to, control }), None) = (&first, &second) {
        // The calls for one message take the kernel less time.
        match memory {
            [payload] if control.as_bytes().is_empty() => send_to(fd, *payload, *to, flags)?,
            _ => send_message(fd, memory, *to, control.as_bytes(), flags)?,
        };
        return Ok(1);
    }
    let messages = first.into_iter().chain(second).chain(messages);
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; SEND_MESSAGES];
    let mut count = 0;
    for (header, message) in headers.iter_mut().zip(messages) {
        let mut filled = empty_header();
        let (name, name_len) = name_of(message.to);
        filled.msg_name = name.cast_mut().cast();
        filled.msg_namelen = name_len;
        filled.msg_iov = message.memory.as_ptr().cast_mut().cast();
        filled.msg_iovlen = message.memory.len() as _;
        let control = message.control.as_bytes();
        if !control.is_empty() {
            filled.msg_control = control.as_ptr().cast_mut().cast();
            filled.msg_controllen = control.len() as _;
        }
        header.write(libc::mmsghdr { msg_hdr: filled, msg_len: 0 });
        count += 1;
    }
    let start = headers.as_mut_ptr().cast();
    // The pointers: `count` headers are initialised, and point to memory that lives for 'a and that
    // the kernel only reads. It writes each message's length into its header.
    let sent = syscall!(sendmmsg(fd.as_raw_fd(), start, count, flags as _))?;
    Ok(sent as usize)
}
