//! The kernel's error queue: which datagram failed on its way, the origin of the error, and the
//! reason (`recvmsg(2)` with `MSG_ERRQUEUE`, `IP_RECVERR` in `ip(7)`).

use std::collections::VecDeque;
use std::ffi::c_int;
use std::io;
use std::mem::offset_of;
use std::os::fd::BorrowedFd;

use super::Socket;
use super::transmit::TransmitStamp;
use crate::net::address::{Address, AddressKind};
use crate::net::cmsg;
use crate::net::fork_mutex::{ForkMutex, ForkMutexGuard, Inherit, leave_to_parent};
use crate::net::sys::{self, MessageInfo, RecvSlice};

/// One entry of a socket's error queue, as the kernel gave it.
#[derive(Clone, Debug)]
pub struct ErrorMessage {
    /// The beginning of the datagram that failed.
    pub payload: Box<[u8]>,
    /// Control messages, including the extended error.
    pub control: Box<[u8]>,
    /// The destination of the datagram.
    pub peer: Address,
    /// `msg_flags`
    pub flags: c_int,
}

/// A decoded entry of the error queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketError {
    /// Why the datagram failed: `ECONNREFUSED`, `EHOSTUNREACH`, `EMSGSIZE`, …
    pub errno: c_int,
    /// The origin of the error: one of the `SO_EE_ORIGIN_…` constants.
    pub origin: u8,
    /// The ICMP type.
    pub kind: u8,
    /// The ICMP code.
    pub code: u8,
    /// Additional information; for `EMSGSIZE`, the path's MTU.
    pub info: u32,
    /// The node that sent the ICMP message.
    pub offender: Option<Address>,
}

/// The maximum number of bytes kept of a failed datagram.
pub(in crate::net) const PAYLOAD_LEN: usize = 2048;
const CONTROL_LEN: usize = 512;

/// `linux/errqueue.h`
const SO_EE_ORIGIN_ZEROCOPY: u8 = 5;

impl ErrorMessage {
    /// Takes an entry out of the queue; `EAGAIN` if it is empty.
    pub fn receive(fd: BorrowedFd<'_>) -> io::Result<Self> {
        // On the stack, then copied: most entries are much shorter than the longest.
        let (mut payload, mut control) = ([0; PAYLOAD_LEN], [0; CONTROL_LEN]);
        let mut peer = Address::UNNAMED;
        let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
        let memory = &mut [RecvSlice::new(&mut payload)];
        let info = sys::recv_message(fd, memory, &mut peer, &mut control, flags)?;
        let (payload, control) = (
            payload.get(..info.len).unwrap_or(&payload),
            control.get(..info.control_len).unwrap_or(&control),
        );
        Ok(Self { payload: payload.into(), control: control.into(), peer, flags: info.flags })
    }

    /// Decodes the extended error (`struct sock_extended_err`); `None` if the entry is something
    /// else, such as the timestamp of a datagram that was sent.
    pub fn decode(&self) -> Option<SocketError> {
        let message = cmsg::decode(&self.control).find(|message| {
            matches!(
                (message.level, message.kind),
                (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
            )
        })?;
        let (error, offender) =
            message.data.split_at_checked(size_of::<libc::sock_extended_err>())?;
        let word = |at: usize| {
            error.get(at..).and_then(<[u8]>::first_chunk).map(|bytes| u32::from_ne_bytes(*bytes))
        };
        let origin = error[offset_of!(libc::sock_extended_err, ee_origin)];
        if matches!(origin, libc::SO_EE_ORIGIN_TIMESTAMPING | SO_EE_ORIGIN_ZEROCOPY) {
            return None;
        }
        let has_name = matches!(AddressKind::of(offender), AddressKind::V4(_) | AddressKind::V6(_));
        Some(SocketError {
            errno: word(offset_of!(libc::sock_extended_err, ee_errno))? as c_int,
            origin,
            kind: error[offset_of!(libc::sock_extended_err, ee_type)],
            code: error[offset_of!(libc::sock_extended_err, ee_code)],
            info: word(offset_of!(libc::sock_extended_err, ee_info))?,
            offender: has_name.then(|| Address::from_bytes(offender)),
        })
    }

    /// Copies the entry to a caller of `recvmsg` with `MSG_ERRQUEUE`, as the kernel would.
    pub fn copy_to(
        &self,
        memory: &mut [RecvSlice<'_>],
        peer: &mut Address,
        control: &mut [u8],
    ) -> MessageInfo {
        let mut rest = &self.payload[..];
        for slice in memory {
            rest = &rest[slice.fill(rest)..];
        }
        *peer = self.peer;
        let control_len = self.control.len().min(control.len());
        control[..control_len].copy_from_slice(&self.control[..control_len]);
        let mut flags = self.flags;
        if !rest.is_empty() {
            flags |= libc::MSG_TRUNC;
        }
        if control_len < self.control.len() {
            flags |= libc::MSG_CTRUNC;
        }
        MessageInfo { len: self.payload.len() - rest.len(), control_len, flags }
    }
}

impl SocketError {
    /// The error of a send call, which this machine detected itself.
    pub fn of_sending(error: &io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(match error.kind() {
            io::ErrorKind::OutOfMemory => libc::ENOMEM,
            _ => libc::EPERM, // a guard's refusal
        });
        let origin = libc::SO_EE_ORIGIN_LOCAL;
        Self { errno, origin, kind: 0, code: 0, info: 0, offender: None }
    }

    /// The path's MTU, if the datagram was too long for it.
    pub fn mtu(&self) -> Option<u32> {
        (self.errno == libc::EMSGSIZE && self.info != 0).then_some(self.info)
    }
}

/// Entries that were taken out of the kernel's queue before a caller requested them.
///
/// Poll reports a non-empty error queue as readiness without end, so a thread that waits for
/// datagrams must empty it before it can sleep. The lock is held from the check of this queue to
/// the end of the check of the kernel's, which never blocks, so no caller misses an entry that
/// moves from one to the other.
#[derive(Default)]
pub(super) struct ErrorQueue {
    messages: ForkMutex<VecDeque<ErrorMessage>>,
}

/// Errors belong to the process that stored them.
impl Inherit for VecDeque<ErrorMessage> {
    fn inherit(&mut self) {
        leave_to_parent(self);
    }
}

/// The maximum number of stored entries; beyond it the oldest is dropped.
const KEPT: usize = 256;
/// The maximum number of entries taken at once. A receive buffer of the default size holds fewer.
const TAKEN: usize = 1024;

impl Socket {
    /// Takes an entry out of the error queue; `EAGAIN` if it is empty.
    pub fn take_error_message(&self, fd: BorrowedFd<'_>) -> io::Result<ErrorMessage> {
        let mut kept = self.stored_errors();
        if let Some(message) = kept.pop_front() {
            return Ok(message);
        }
        for _ in 0..TAKEN {
            if let Some(message) = self.next_error_message(fd)? {
                return Ok(message);
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Takes an entry out of the kernel's queue. Returns `None` if it was the report about a
    /// datagram with an id, which is stored elsewhere. `AF_UNIX` sockets do not have a queue and
    /// ignore the flag: the kernel would return a datagram.
    fn next_error_message(&self, fd: BorrowedFd<'_>) -> io::Result<Option<ErrorMessage>> {
        if !self.is_ip() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let message = ErrorMessage::receive(fd)?;
        if self.is_stamping()
            && let Some(stamp) = TransmitStamp::decode(&message.control)
        {
            self.store_stamp(stamp);
            return Ok(None);
        }
        if message.decode().is_some() {
            self.counters().count_errors(1);
        }
        Ok(Some(message))
    }

    /// Puts entries back at the front that were taken out and turned out not to be errors. If the
    /// queue is full, the oldest of them are dropped.
    pub fn put_back_error_messages(&self, messages: Vec<ErrorMessage>) {
        let mut kept = self.stored_errors();
        let room = KEPT.saturating_sub(kept.len());
        for message in messages.into_iter().rev().take(room) {
            kept.push_front(message);
        }
        if !kept.is_empty() {
            drop(kept);
            self.descriptor().wake(); // as in store_error_messages()
        }
    }

    /// Takes out an entry that [`Self::store_error_messages`] has stored, if there is one.
    pub fn take_stored_error_message(&self) -> Option<ErrorMessage> {
        self.stored_errors().pop_front()
    }

    /// Whether entries are stored.
    pub fn has_stored_error_messages(&self) -> bool {
        !self.stored_errors().is_empty()
    }

    /// Moves the kernel's error queue into this socket's own, which keeps the latest entries.
    /// Returns how many entries there were, and how many of them are errors. Wakes the threads that
    /// wait for the socket: one of them may wait for an entry that the kernel no longer has.
    ///
    /// It terminates even if new entries arrive as fast as it takes them.
    pub fn store_error_messages(&self, fd: BorrowedFd<'_>) -> (usize, usize) {
        let (mut taken, mut errors) = (0, 0);
        {
            let mut kept = self.stored_errors();
            while taken < TAKEN
                && let Ok(message) = self.next_error_message(fd)
            {
                taken += 1;
                let Some(message) = message else { continue };
                errors += usize::from(message.decode().is_some());
                if kept.len() == KEPT {
                    kept.pop_front();
                }
                kept.push_back(message);
            }
        }
        if taken > 0 {
            self.descriptor().wake();
        }
        (taken, errors)
    }

    /// Discards all entries; returns how many of them were errors, and the last error.
    ///
    /// For a receiver whose user does not read errors. The queue shares the receive buffer's limit,
    /// so a full queue takes room from datagrams.
    pub fn discard_error_messages(
        &self,
        fd: BorrowedFd<'_>,
    ) -> (usize, Option<(Address, SocketError)>) {
        let (mut count, mut last) = (0, None);
        for _ in 0..TAKEN {
            let Ok(message) = self.take_error_message(fd) else { break };
            if let Some(error) = message.decode() {
                count += 1;
                last = Some((message.peer, error));
            }
        }
        (count, last)
    }

    pub(super) fn receive_error_message(
        &self,
        fd: BorrowedFd<'_>,
        memory: &mut [RecvSlice<'_>],
        peer: &mut Address,
        control: &mut [u8],
        flags: c_int,
    ) -> io::Result<MessageInfo> {
        self.receive_error(fd, |kept| match kept {
            Some(message) => Ok(message.copy_to(memory, peer, control)),
            None => sys::recv_message(fd, memory, peer, control, flags),
        })
    }

    /// Calls `receive` with a stored entry or, if there is none, with `None`, in which case it
    /// takes an entry out of the kernel's queue.
    pub(super) fn receive_error<T>(
        &self,
        fd: BorrowedFd<'_>,
        receive: impl FnOnce(Option<ErrorMessage>) -> io::Result<T>,
    ) -> io::Result<T> {
        if self.is_stamping() {
            return receive(Some(self.take_error_message(fd)?));
        }
        let mut kept = self.stored_errors();
        let message = kept.pop_front();
        let is_new = message.is_none();
        let received = receive(message)?;
        if is_new {
            self.counters().count_errors(1);
        }
        Ok(received)
    }

    fn stored_errors(&self) -> ForkMutexGuard<'_, VecDeque<ErrorMessage>> {
        self.error_queue.messages.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn message(level: c_int, kind: c_int, data: &[u8]) -> ErrorMessage {
        let mut control = Vec::new();
        cmsg::encode(&mut control, libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS, &[0; 16]);
        cmsg::encode(&mut control, level, kind, data);
        let peer = SocketAddr::from(([192, 0, 2, 1], 53)).into();
        let (payload, control) = (b"datagram"[..].into(), control.into());
        ErrorMessage { payload, control, peer, flags: libc::MSG_ERRQUEUE }
    }

    fn extended(errno: c_int, info: u32, offender: &[u8]) -> Vec<u8> {
        [&errno.to_ne_bytes()[..], &[2, 3, 4, 0], &info.to_ne_bytes(), &[0; 4], offender].concat()
    }

    #[test]
    fn an_icmp_error_names_its_sender_and_the_mtu() {
        let router = Address::from(SocketAddr::from(([10, 0, 0, 1], 0)));
        let data = extended(libc::EMSGSIZE, 1400, router.as_bytes());
        let error = message(libc::IPPROTO_IP, libc::IP_RECVERR, &data).decode().unwrap();
        assert_eq!((error.errno, error.origin, error.kind, error.code), (libc::EMSGSIZE, 2, 3, 4));
        assert_eq!(error.offender, Some(router));
        assert_eq!(error.mtu(), Some(1400));
    }

    #[test]
    fn a_local_error_has_no_offender_and_most_have_no_mtu() {
        let data = extended(libc::ECONNREFUSED, 1400, &[0; 16]);
        let error = message(libc::IPPROTO_IPV6, libc::IPV6_RECVERR, &data).decode().unwrap();
        assert_eq!(error.offender, None);
        assert_eq!(error.mtu(), None);
    }

    #[test]
    fn a_timestamp_or_a_zerocopy_notification_is_not_an_error() {
        for origin in [libc::SO_EE_ORIGIN_TIMESTAMPING, SO_EE_ORIGIN_ZEROCOPY] {
            let mut data = extended(libc::ENOMSG, 0, &[0; 16]);
            data[4] = origin;
            assert!(message(libc::IPPROTO_IP, libc::IP_RECVERR, &data).decode().is_none());
        }
    }

    #[test]
    fn a_truncated_entry_or_one_without_an_error_is_none() {
        assert!(message(libc::IPPROTO_IP, libc::IP_TTL, &[0; 32]).decode().is_none());
        for len in 0..16 {
            let cut = message(libc::IPPROTO_IP, libc::IP_RECVERR, &vec![0xff; len]);
            assert!(cut.decode().is_none());
        }
    }

    #[test]
    fn a_copy_reports_truncation() {
        let entry = message(libc::IPPROTO_IP, libc::IP_RECVERR, &[0; 16]);
        let (mut first, mut second, mut control) = ([0; 3], [0; 2], [0; 8]);
        let mut peer = Address::UNNAMED;
        let info = entry.copy_to(
            &mut [RecvSlice::new(&mut first), RecvSlice::new(&mut second)],
            &mut peer,
            &mut control,
        );
        assert_eq!((&first, &second), (b"dat", b"ag"));
        assert_eq!((info.len, info.control_len), (5, 8));
        assert_eq!(info.flags, libc::MSG_ERRQUEUE | libc::MSG_TRUNC | libc::MSG_CTRUNC);
        assert_eq!(peer, entry.peer);
    }
}
