//! Many datagrams a call: `recvmmsg(2)` and `sendmmsg(2)`.

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::single::{empty_header, name_of};
use super::{Memory, SendSlice, with_room, zeroes};
use crate::net::address::Address;
use crate::net::cmsg::ControlBuffer;

/// Room for one received message's control data: all that this library asks for, with as much
/// again for what a user may have asked for beside it.
const CONTROL_LEN: usize = 256;
const NAME_LEN: usize = Address::CAPACITY as usize;

/// Slots to receive into, each with room for a datagram, its sender and its control messages.
pub(in crate::net) struct RecvMessages {
    memory: Memory,
    slot_len: usize,
    headers: Box<[libc::mmsghdr]>,
    // What the headers point to. A box's content stays where it is when the box moves.
    #[expect(dead_code, reason = "only the kernel reads it")]
    iovecs: Box<[libc::iovec]>,
    names: Box<[[u8; NAME_LEN]]>,
    controls: Box<[[u8; CONTROL_LEN]]>,
    /// How much of a control buffer the kernel may fill.
    control_len: usize,
    /// Headers that the last call may have changed.
    dirty: usize,
}

// SAFETY: the headers' pointers lead to memory that this owns, and which moves with it.
unsafe impl Send for RecvMessages {}
// SAFETY: shared references only read.
unsafe impl Sync for RecvMessages {}

/// One received message, in its slot.
#[derive(Clone, Copy)]
pub(in crate::net) struct Message<'a> {
    /// Where the payload starts in the slots' memory.
    pub(in crate::net) offset: usize,
    /// How many bytes of it there are.
    pub(in crate::net) len: usize,
    /// The sender, as the kernel writes addresses.
    pub(in crate::net) name: &'a [u8],
    /// Control messages.
    pub(in crate::net) control: &'a [u8],
    /// `msg_flags`
    pub(in crate::net) flags: c_int,
}

impl RecvMessages {
    /// Reserves `slots` of at least `slot_len` bytes each.
    pub(in crate::net) fn new(slots: usize, slot_len: usize) -> io::Result<Self> {
        // Slots a page apart would meet in the same few sets of the processor's caches, which are
        // chosen by an address's lower bits: shift each by a cache line.
        let stride = slot_len.next_multiple_of(64) + 64;
        let memory = Memory::new(stride * slots)?;
        let mut names: Box<[[u8; NAME_LEN]]> = zeroes(slots, "the names of senders")?;
        let mut controls: Box<[[u8; CONTROL_LEN]]> = zeroes(slots, "control messages")?;
        let (mut iovecs, mut headers) = (with_room(slots, "slots")?, with_room(slots, "slots")?);
        iovecs.extend((0..slots).map(|slot| {
            let iov_base = memory.start().wrapping_add(slot * stride).cast();
            libc::iovec { iov_base, iov_len: stride - 64 }
        }));
        let mut iovecs: Box<[_]> = iovecs.into();
        headers.extend((0..slots).map(|slot| {
            let mut header = empty_header();
            header.msg_name = (&raw mut names[slot]).cast();
            header.msg_iov = &raw mut iovecs[slot];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut controls[slot]).cast();
            libc::mmsghdr { msg_hdr: header, msg_len: 0 }
        }));
        let headers = headers.into();
        let (dirty, slot_len, control_len) = (slots, stride - 64, CONTROL_LEN);
        Ok(Self { memory, slot_len, headers, iovecs, names, controls, control_len, dirty })
    }

    /// How many messages one call receives at the most.
    pub(in crate::net) fn slots(&self) -> usize {
        self.headers.len()
    }

    /// The slots' memory.
    pub(in crate::net) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Receives up to `count` messages that are there, without waiting, over those of the last
    /// call. An error comes only where there is no message.
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
        // The kernel writes lengths where it reads capacities.
        for header in &mut self.headers[..self.dirty] {
            header.msg_hdr.msg_namelen = Address::CAPACITY;
            header.msg_hdr.msg_controllen = self.control_len as _;
            header.msg_hdr.msg_flags = 0;
        }
        self.dirty = count;
        let flags = flags | libc::MSG_DONTWAIT;
        let headers = self.headers.as_mut_ptr();
        // The pointers: the headers lead to memory that `self` owns, as much as they say; no
        // timeout, which the kernel only looks at between messages.
        let received =
            syscall!(recvmmsg(fd.as_raw_fd(), headers, count as _, flags as _, ptr::null_mut()))?;
        // One beyond: the message whose receipt failed.
        self.dirty = count.min(received as usize + 1);
        Ok(received as usize)
    }

    /// One of the messages that the last call received.
    pub(in crate::net) fn message(&self, slot: usize) -> Message<'_> {
        let libc::mmsghdr { msg_hdr: header, msg_len } = &self.headers[slot];
        let name_len = (header.msg_namelen as usize).min(NAME_LEN);
        #[allow(clippy::unnecessary_cast)] // musl's msg_controllen is a u32
        let control_len = (header.msg_controllen as usize).min(self.control_len);
        Message {
            offset: slot * (self.slot_len + 64),
            len: (*msg_len as usize).min(self.slot_len),
            name: &self.names[slot][..name_len],
            control: &self.controls[slot][..control_len],
            flags: header.msg_flags,
        }
    }
}

/// One message to send: pieces of memory that the kernel joins, with an address and control
/// messages.
pub(in crate::net) struct Outgoing<'a> {
    /// The pieces.
    pub(in crate::net) memory: &'a [SendSlice<'a>],
    /// Where to; `None` for the connected peer.
    pub(in crate::net) to: Option<&'a Address>,
    /// Control messages.
    pub(in crate::net) control: &'a ControlBuffer,
}

/// The most messages that one call sends.
pub(in crate::net) const SEND_MESSAGES: usize = 64;

/// Sends the first of `messages`, up to [`SEND_MESSAGES`], without waiting, and says how many left.
/// An error is the first message's, and means that none has left.
pub(in crate::net) fn send_messages<'a>(
    fd: BorrowedFd<'_>,
    messages: impl Iterator<Item = Outgoing<'a>>,
    flags: c_int,
) -> io::Result<usize> {
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
    let flags = flags | libc::MSG_DONTWAIT;
    let start = headers.as_mut_ptr().cast();
    // The pointers: `count` headers are filled, and lead to memory that lives for 'a, which the
    // kernel only reads. It writes each message's length into its header.
    let sent = syscall!(sendmmsg(fd.as_raw_fd(), start, count, flags as _))?;
    Ok(sent as usize)
}
