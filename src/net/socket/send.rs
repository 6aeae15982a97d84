//! A socket's sending side.

use std::ffi::c_int;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Socket;
#[cfg(feature = "dtls")]
use super::dtls::send_record;
use crate::net::address::Address;
use crate::net::guard::Guard;
use crate::net::proxy_protocol::Proxies;
use crate::net::send_queue::{Budget, Joining, SendQueue, Sent};
use crate::net::sys::{self, SendSlice};

impl Socket {
    /// Sends one datagram: `sendto(2)`.
    pub fn send(
        &self,
        fd: BorrowedFd<'_>,
        memory: SendSlice<'_>,
        to: Option<&Address>,
        flags: c_int,
    ) -> io::Result<usize> {
        #[cfg(feature = "dtls")]
        if let Some(endpoint) = self.dtls() {
            return send_record(&endpoint, &[memory], to, |record| {
                self.send_one(to, record.len(), flags, || sys::send_to(fd, record, to, flags))
            });
        }
        self.send_one(to, memory.len(), flags, || sys::send_to(fd, memory, to, flags))
    }

    /// Sends one datagram gathered from several buffers, with control messages: `sendmsg(2)`.
    pub fn send_message(
        &self,
        fd: BorrowedFd<'_>,
        memory: &[SendSlice<'_>],
        to: Option<&Address>,
        control: &[u8],
        flags: c_int,
    ) -> io::Result<usize> {
        #[cfg(feature = "dtls")]
        if let Some(endpoint) = self.dtls() {
            return send_record(&endpoint, memory, to, |record| {
                self.send_one(to, record.len(), flags, || {
                    sys::send_message(fd, &[record], to, control, flags)
                })
            });
        }
        let len = memory.iter().map(SendSlice::len).sum();
        self.send_one(to, len, flags, || sys::send_message(fd, memory, to, control, flags))
    }

    fn send_one(
        &self,
        to: Option<&Address>,
        len: usize,
        flags: c_int,
        send: impl FnOnce() -> io::Result<usize>,
    ) -> io::Result<usize> {
        let limit = self.limit();
        if let Some(limit) = &limit
            && !limit.take(to, len)
        {
            return Err(limit.refusal());
        }
        let sent = send().inspect_err(|_| {
            if let Some(limit) = &limit {
                limit.give_back(to, len);
            }
        })?;
        self.note_more(flags);
        self.counters().count_sent(1, sent);
        Ok(sent)
    }

    /// Sends as many of a queue's datagrams as one call can, without waiting: at least one, or it
    /// fails. An error is about the next [`SendQueue::failed`] datagrams.
    pub fn send_queue(
        &self,
        fd: BorrowedFd<'_>,
        queue: &mut SendQueue<'_>,
        flags: c_int,
    ) -> io::Result<Sent> {
        #[cfg(feature = "dtls")]
        if let Some(endpoint) = self.dtls() {
            return self.send_sealed(&endpoint, fd, queue, flags);
        }
        self.send_plain(fd, queue, flags)
    }

    /// As [`send_queue`](Self::send_queue), of datagrams that are as the peers expect them.
    pub(super) fn send_plain(
        &self,
        fd: BorrowedFd<'_>,
        queue: &mut SendQueue<'_>,
        flags: c_int,
    ) -> io::Result<Sent> {
        let limit = self.limit();
        let joining = Joining {
            to_open: self.has_open_datagram.load(Ordering::Relaxed),
            may_be_corked: self.may_be_corked(),
        };
        let sent = queue.send(fd, &self.gso, flags, joining, limit.as_ref())?;
        self.note_more(flags);
        self.counters().count_sent(sent.datagrams.get(), sent.bytes);
        Ok(sent)
    }

    fn limit(&self) -> Option<Limit<'_>> {
        let guard = self.guard().filter(|guard| guard.limits_sending())?;
        Some(Limit { guard, proxies: self.proxies() })
    }

    /// Records whether the kernel keeps a sent datagram open for more data.
    fn note_more(&self, flags: c_int) {
        let more = flags & libc::MSG_MORE != 0;
        if self.has_open_datagram.load(Ordering::Relaxed) != more {
            self.has_open_datagram.store(more, Ordering::Relaxed);
        }
    }
}

/// A guard's limits. They do not apply to a datagram to a proxy, which was charged to the proxy's
/// client ([`Socket::spend_for_client`]).
struct Limit<'a> {
    guard: Arc<Guard>,
    proxies: Option<&'a Proxies>,
}

impl Limit<'_> {
    fn is_proxy(&self, to: Option<&Address>) -> bool {
        self.proxies.is_some_and(|proxies| to.is_some_and(|to| proxies.trust(to)))
    }
}

impl Budget for Limit<'_> {
    fn take(&self, to: Option<&Address>, bytes: usize) -> bool {
        self.is_proxy(to) || self.guard.spend(to, bytes)
    }

    fn give_back(&self, to: Option<&Address>, bytes: usize) {
        if !self.is_proxy(to) {
            self.guard.refund(to, bytes);
        }
    }

    fn refusal(&self) -> io::Error {
        self.guard.refuse_to_send()
    }
}
