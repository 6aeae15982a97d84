//! A socket's receive backlog: datagrams received from the kernel and not yet handed out.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::io;
use std::sync::Arc;

use super::came_through::CameThrough;
use super::counted::Items;
use super::fork_mutex::{Inherit, leave_to_parent};
use super::recv_ring::{Datagrams, Filled, Part, Received, RecvRing};
use super::split::Split;
use super::sys::with_room;

/// The remaining datagrams of coalesced runs that were longer than a receive wanted. The next
/// receive returns them first, in order.
#[derive(Default)]
pub(super) struct RecvBacklog {
    messages: VecDeque<Held>,
    datagrams: usize,
}

/// A kernel message, with its datagrams that were not yet handed out.
pub struct Held {
    payload: Box<[u8]>,
    from: Box<[u8]>,
    proxy: Option<Box<[u8]>>,
    control: Box<[u8]>,
    flags: c_int,
    session: Option<Arc<CameThrough>>,
    /// `None` once all datagrams were handed out.
    split: Option<Split>,
}

/// A child does not inherit the backlog. It belongs to the process that took it from the kernel's
/// queue; a child with a copy would deliver the datagrams again.
impl Inherit for RecvBacklog {
    fn inherit(&mut self) {
        leave_to_parent(self);
    }
}

impl Items for RecvBacklog {
    fn count(&self) -> usize {
        self.datagrams
    }
}

impl RecvBacklog {
    /// Copies the rest of a ring, from its cursor on. Returns how many datagrams were lost because
    /// memory allocation failed.
    pub(super) fn keep_rest_of(&mut self, ring: &RecvRing) -> usize {
        let mut lost = 0;
        for part in ring.rest() {
            let split = part.split;
            match (self.messages.try_reserve(1), Held::copy(ring, part)) {
                (Ok(()), Ok(held)) => {
                    self.datagrams += split.remaining();
                    self.messages.push_back(held);
                }
                _ => lost += split.remaining(),
            }
        }
        lost
    }

    /// The first datagram.
    pub(super) fn current(&self) -> Option<Received<'_>> {
        self.messages.front()?.current()
    }

    /// Drops the first datagram, which was handed out.
    pub(super) fn advance(&mut self) {
        if let Some(held) = self.messages.front_mut() {
            self.datagrams -= 1;
            held.advance();
            if held.split.is_none() {
                self.messages.pop_front();
            }
        }
    }

    /// Takes the first message out.
    pub(super) fn pop_front(&mut self) -> Option<Held> {
        let held = self.messages.pop_front()?;
        self.datagrams -= held.remaining();
        Some(held)
    }

    /// Takes all messages out.
    #[cfg(feature = "dtls")]
    pub(super) fn take_all(&mut self) -> VecDeque<Held> {
        self.datagrams = 0;
        std::mem::take(&mut self.messages)
    }

    /// Appends a message. Returns how many datagrams were lost because memory allocation failed.
    #[cfg(feature = "dtls")]
    pub(super) fn push_back(&mut self, held: Held) -> usize {
        let remaining = held.remaining();
        if self.messages.try_reserve(1).is_err() {
            return remaining;
        }
        self.datagrams += remaining;
        self.messages.push_back(held);
        0
    }

    /// Drops datagrams that came through sessions which fail a test; returns their number.
    #[cfg(feature = "dtls")]
    pub(super) fn keep_sessions(&mut self, may_stay: impl Fn(&CameThrough) -> bool) -> usize {
        let before = self.datagrams;
        self.messages.retain(|held| held.session.as_ref().is_none_or(|session| may_stay(session)));
        self.datagrams = self.messages.iter().map(Held::remaining).sum();
        before - self.datagrams
    }

    /// Puts a message back at the front, unless it is empty. Returns how many datagrams were lost
    /// because memory allocation failed: another thread may have used the room.
    pub(super) fn push_front(&mut self, held: Held) -> usize {
        let remaining = held.remaining();
        if remaining > 0 {
            if self.messages.try_reserve(1).is_err() {
                return remaining;
            }
            self.datagrams += remaining;
            self.messages.push_front(held);
        }
        0
    }
}

impl Held {
    /// Copies the rest of a message, or a datagram of one, in a ring's slot.
    fn copy(ring: &RecvRing, part: &Part) -> io::Result<Self> {
        let (split, message) = (part.split, ring.received(part, b""));
        Ok(Self {
            payload: ring.messages().copy_payload(part.slot, split.start()..split.end())?,
            from: copy(message.from)?,
            proxy: message.proxy.map(copy).transpose()?,
            control: copy(message.control)?,
            flags: message.flags,
            session: message.session.cloned(),
            split: Some(split.rest()),
        })
    }

    /// Copies a datagram.
    #[cfg(feature = "dtls")]
    pub(super) fn copy_of(datagram: Received<'_>) -> io::Result<Self> {
        Ok(Self {
            payload: copy(datagram.payload)?,
            from: copy(datagram.from)?,
            proxy: datagram.proxy.map(copy).transpose()?,
            control: copy(datagram.control)?,
            flags: datagram.flags,
            session: datagram.session.cloned(),
            split: Some(Split::new(datagram.payload.len(), None)),
        })
    }

    /// Describes the rest as if it had just been received.
    pub fn filled(&self) -> Filled {
        let Some(split) = self.split else { return Filled::default() };
        let bytes = self.payload.len() - split.range().start;
        let truncated = usize::from(self.flags & libc::MSG_TRUNC != 0);
        let datagrams = split.remaining();
        Filled {
            messages: 1,
            datagrams,
            bytes,
            truncated,
            most_per_message: datagrams,
            is_full: false,
        }
    }

    pub(super) fn remaining(&self) -> usize {
        self.split.as_ref().map_or(0, Split::remaining)
    }
}

impl Datagrams for Held {
    fn current(&self) -> Option<Received<'_>> {
        let split = self.split.as_ref()?;
        Some(Received {
            payload: &self.payload[split.range()],
            from: &self.from,
            proxy: self.proxy.as_deref(),
            control: &self.control,
            flags: self.flags,
            session: self.session.as_ref(),
        })
    }

    fn advance(&mut self) {
        if let Some(split) = &mut self.split
            && !split.advance()
        {
            self.split = None;
        }
    }
}

fn copy(bytes: &[u8]) -> io::Result<Box<[u8]>> {
    let mut copy = with_room(bytes.len(), "a datagram in the backlog")?;
    copy.extend_from_slice(bytes);
    Ok(copy.into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Address;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn the_rest_of_a_ring_is_returned_in_order() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut backlog = RecvBacklog::default();
        assert!(backlog.current().is_none());
        let mut ring = RecvRing::new(4, 64).unwrap();
        for payload in [&b"taken"[..], b"", b"last"] {
            sender.send_to(payload, receiver.local_addr().unwrap()).unwrap();
        }
        ring.receive(receiver.as_fd(), 4, 0, true).unwrap();
        ring.advance();
        assert_eq!(backlog.keep_rest_of(&ring), 0);
        assert_eq!(backlog.count(), 2);
        for expected in [&b""[..], b"last"] {
            let datagram = backlog.current().unwrap();
            assert_eq!(datagram.payload, expected);
            assert_eq!(Address::from_bytes(datagram.from).ip(), Some(sender.local_addr().unwrap()));
            backlog.advance();
        }
        assert_eq!(backlog.count(), 0);
        backlog.advance();
        assert_eq!(backlog.count(), 0);
    }
}
