//! Receiving single datagrams.

use std::ffi::c_int;
use std::io;
use std::os::fd::BorrowedFd;

use super::Socket;
use super::recv_cursor::RecvCursor;
use crate::net::address::Address;
use crate::net::cmsg;
use crate::net::guard::Arrival;
use crate::net::recv_ring::{Datagrams, Received};
use crate::net::scratch::Scratch;
use crate::net::sys::{self, MessageInfo, RecvSlice};

/// The result of receiving one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The number of bytes in the buffer.
    pub len: usize,
    /// The full length of the datagram.
    pub full_len: usize,
}

/// Which code can read the memory that a datagram is received into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Only the caller, after a successful receive.
    Private,
    /// The user, at any time. It must never contain a datagram that the guard refuses.
    Shared,
}

impl Visibility {
    /// Scratch memory for datagrams that may be refused, if the caller's memory cannot be used.
    fn scratch(self) -> io::Result<Option<Scratch>> {
        match self {
            Self::Private => Ok(None),
            Self::Shared => Scratch::take().map(Some),
        }
    }
}

impl Socket {
    /// Receives one datagram into the caller's memory, and its sender if `from` is given:
    /// `recvfrom(2)`.
    pub fn receive(
        &self,
        fd: BorrowedFd<'_>,
        memory: &mut RecvSlice<'_>,
        from: Option<&mut Address>,
        flags: c_int,
    ) -> io::Result<Taken> {
        self.receive_into(fd, memory, Visibility::Private, from, flags)
    }

    /// Receives one datagram, and its sender if `from` is given: `recvfrom(2)`.
    pub fn receive_into(
        &self,
        fd: BorrowedFd<'_>,
        memory: &mut RecvSlice<'_>,
        visibility: Visibility,
        from: Option<&mut Address>,
        flags: c_int,
    ) -> io::Result<Taken> {
        if flags & libc::MSG_ERRQUEUE != 0 {
            let len = self.receive_error(fd, |stored| {
                let Some(message) = stored else { return sys::recv_from(fd, memory, from, flags) };
                let (memory, mut own) = (std::slice::from_mut(memory), Address::UNNAMED);
                Ok(message.copy_to(memory, from.unwrap_or(&mut own), &mut []).len)
            })?;
            return Ok(Taken { len, full_len: len });
        }
        let guard = self.guard_of(flags);
        if let Some(guard) = guard.as_deref().filter(|_| flags & libc::MSG_PEEK != 0) {
            self.pass_over(fd, guard)?;
        }
        if self.splits(flags) {
            let taken = self.receive_held(fd, flags, |datagram| {
                let Some(datagram) = datagram else { return Taken { len: 0, full_len: 0 } };
                if let Some(from) = from {
                    *from = Address::from_bytes(datagram.from);
                }
                let len = memory.fill(datagram.payload);
                Taken { len, full_len: datagram.payload.len() }
            })?;
            self.count_if_truncated(flags, taken.full_len > taken.len);
            return Ok(taken);
        }
        self.raise_deferred()?;
        // On a datagram socket MSG_TRUNC makes the call return the full length, which detects a
        // truncated datagram at no cost. On a stream it would discard data.
        let ask_len = if self.is_datagram() { libc::MSG_TRUNC } else { 0 };
        let full_len = match guard {
            None => sys::recv_from(fd, memory, from, flags | ask_len)?,
            Some(guard) => {
                let mut own = Address::UNNAMED;
                let from = from.unwrap_or(&mut own);
                let mut scratch = visibility.scratch()?;
                let room = memory.len().min(Scratch::LEN);
                let receive = || {
                    let (to, flags) = (Some(&mut *from), flags | ask_len);
                    let full_len = match &mut scratch {
                        None => sys::recv_from(fd, memory, to, flags)?,
                        Some(scratch) => sys::recv_from(fd, &mut scratch.slice(room), to, flags)?,
                    };
                    Ok((full_len, Arrival::one(from.as_bytes(), full_len)))
                };
                let full_len = if flags & libc::MSG_PEEK == 0 {
                    self.receive_admitted(&guard, receive)?
                } else {
                    Self::peek_admitted(&guard, receive)?
                };
                if let Some(scratch) = scratch {
                    memory.fill(scratch.bytes(room.min(full_len)));
                }
                full_len
            }
        };
        let taken = Taken { len: full_len.min(memory.len()), full_len };
        if flags & libc::MSG_PEEK == 0 {
            self.counters().count_received(1, taken.len);
        }
        self.count_if_truncated(flags, taken.full_len > taken.len);
        Ok(taken)
    }

    /// Receives one datagram into several buffers, with control messages: `recvmsg(2)`.
    pub fn receive_message(
        &self,
        fd: BorrowedFd<'_>,
        memory: &mut [RecvSlice<'_>],
        visibility: Visibility,
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
                let Some(datagram) = datagram else {
                    return MessageInfo { len: 0, control_len: 0, flags: 0 };
                };
                *from = Address::from_bytes(datagram.from);
                copy_message(&datagram, memory, control, flags)
            })?;
            self.count_if_truncated(flags, info.flags & libc::MSG_TRUNC != 0);
            return Ok(info);
        }
        self.raise_deferred()?;
        let room: usize = memory.iter().map(RecvSlice::len).sum();
        let info = match guard {
            None => sys::recv_message(fd, memory, from, control, flags)?,
            Some(guard) => {
                let mut scratch = visibility.scratch()?;
                let receive = || {
                    let flags = flags | libc::MSG_TRUNC; // returns the full length
                    let info = match &mut scratch {
                        None => sys::recv_message(fd, memory, from, control, flags)?,
                        Some(scratch) => {
                            let memory = &mut [scratch.slice(room.min(Scratch::LEN))];
                            sys::recv_message(fd, memory, from, control, flags)?
                        }
                    };
                    Ok((info, Arrival::one(from.as_bytes(), info.len)))
                };
                let mut info = if flags & libc::MSG_PEEK == 0 {
                    self.receive_admitted(&guard, receive)?
                } else {
                    Self::peek_admitted(&guard, receive)?
                };
                if let Some(scratch) = scratch {
                    let mut rest = scratch.bytes(info.len.min(room).min(Scratch::LEN));
                    for slice in memory {
                        rest = &rest[slice.fill(rest)..];
                    }
                }
                if flags & libc::MSG_TRUNC == 0 {
                    info.len = info.len.min(room);
                }
                info
            }
        };
        if flags & libc::MSG_PEEK == 0 {
            self.counters().count_received(1, info.len.min(room));
        }
        self.count_if_truncated(flags, info.flags & libc::MSG_TRUNC != 0);
        Ok(info)
    }

    /// Receives one datagram through the backlog, so that the order is preserved and nothing is
    /// lost. Returns none if the socket was shut down and the call would wait.
    fn receive_held<T>(
        &self,
        fd: BorrowedFd<'_>,
        flags: c_int,
        take: impl FnOnce(Option<Received<'_>>) -> T,
    ) -> io::Result<T> {
        let is_peeking = flags & libc::MSG_PEEK != 0;
        if self.backlog_len() == 0 {
            let mut cursor = RecvCursor::of_thread(self)?;
            match cursor.receive(fd, 1, flags & !libc::MSG_PEEK) {
                Err(error) if error.raw_os_error() == Some(libc::ESHUTDOWN) => {
                    return Ok(take(None));
                }
                received => received?,
            };
            if !is_peeking {
                let taken = take(cursor.current());
                cursor.advance();
                cursor.keep_rest();
                return Ok(taken);
            }
            cursor.keep_rest();
        }
        self.with_backlog(|backlog| {
            let datagram = backlog.current().ok_or(io::ErrorKind::WouldBlock)?;
            let taken = take(Some(datagram));
            if !is_peeking {
                backlog.advance();
            }
            Ok(taken)
        })
    }

    fn count_if_truncated(&self, flags: c_int, is_truncated: bool) {
        if is_truncated && flags & (libc::MSG_PEEK | libc::MSG_ERRQUEUE) == 0 {
            self.counters().count_truncated(1);
        }
    }
}

/// Fills in the result of `recvmsg` for one datagram of a coalesced message.
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
        // Omit the segment size: this is a single datagram.
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
