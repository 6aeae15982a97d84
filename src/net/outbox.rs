//! A socket's sending side.

use std::ffi::c_int;
use std::io;
use std::os::fd::BorrowedFd;

use super::address::Address;
use super::queue::{SendQueue, Sent};
use super::socket::Socket;
use super::sys::{self, SendSlice};

impl Socket {
    /// Sends one datagram: `sendto(2)`.
    pub fn send(
        &self,
        fd: BorrowedFd<'_>,
        memory: SendSlice<'_>,
        to: Option<&Address>,
        flags: c_int,
    ) -> io::Result<usize> {
        self.spend(to, memory.len())?;
        let sent =
            sys::send_to(fd, memory, to, flags).inspect_err(|_| self.refund(to, memory.len()))?;
        self.counters().count_sent(1, sent);
        Ok(sent)
    }

    /// Sends one datagram gathered from several pieces, with control messages: `sendmsg(2)`.
    pub fn send_message(
        &self,
        fd: BorrowedFd<'_>,
        memory: &[SendSlice<'_>],
        to: Option<&Address>,
        control: &[u8],
        flags: c_int,
    ) -> io::Result<usize> {
        let len = memory.iter().map(SendSlice::len).sum();
        self.spend(to, len)?;
        let sent = sys::send_message(fd, memory, to, control, flags)
            .inspect_err(|_| self.refund(to, len))?;
        self.counters().count_sent(1, sent);
        Ok(sent)
    }

    /// Sends as many of a queue's datagrams as one call takes, without waiting. An error is about
    /// the next datagram of the queue; it means that nothing has left.
    pub fn send_queue(
        &self,
        fd: BorrowedFd<'_>,
        queue: &mut SendQueue<'_>,
        flags: c_int,
    ) -> io::Result<Sent> {
        let limiting = self.guard().filter(|guard| guard.limits_sending());
        if let Some(guard) = &limiting
            && queue.limit(|to, bytes| guard.spend(to, bytes)) == 0
        {
            return Err(guard.refuse_to_send());
        }
        let result = queue.send(fd, &self.offload, flags);
        if let Some(guard) = &limiting {
            queue.unlimit(|to, bytes| guard.refund(to, bytes));
        }
        let sent = result?;
        self.counters().count_sent(sent.datagrams, sent.bytes);
        Ok(sent)
    }
}
