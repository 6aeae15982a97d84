//! Sending many datagrams with one system call.

mod call;
#[cfg(test)]
mod progress;
#[cfg(test)]
mod tests;

use std::ffi::c_int;
use std::io;
use std::iter;
use std::num::NonZero;
use std::os::fd::BorrowedFd;

use self::call::{Allowance, Call};
use super::address::Address;
use super::gso::{Gso, Limits, is_about_run, is_about_whole_run};
use super::meta::{SendMeta, Source};
use super::sys::{self, Outgoing, SendSlice, make_room, with_room};

/// A queue of datagrams to send, in order.
///
/// Consecutive datagrams of equal size to one peer (the last may be shorter) are sent as a run,
/// which the kernel splits. If a run is refused, its datagrams are sent one by one.
#[derive(Default)]
pub struct SendQueue<'a> {
    datagrams: QueuedDatagrams<'a>,
    /// The index of the first datagram that was not sent.
    next: usize,
    /// Datagrams before this index are sent alone: they belong to a run that was refused.
    alone_until: usize,
    /// The number of datagrams that the last error is about, if more than one.
    failed: usize,
    /// Reused to avoid allocations.
    slices: Vec<SendSlice<'a>>,
}

/// Datagrams, each with the indexes of its address and its metadata.
#[derive(Default)]
struct QueuedDatagrams<'a> {
    list: Vec<QueuedDatagram<'a>>,
    addresses: Vec<Address>,
    metas: Vec<SendMeta>,
}

#[derive(Clone, Copy)]
struct QueuedDatagram<'a> {
    payload: SendSlice<'a>,
    to: u32,
    meta: u32,
}

/// The index used for a missing address or missing metadata.
const NONE: u32 = u32::MAX;

/// The amount that one successful call has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The number of datagrams.
    pub datagrams: NonZero<usize>,
    /// The number of payload bytes.
    pub bytes: usize,
}

/// How the kernel may join datagrams into one.
#[derive(Clone, Copy)]
pub(super) struct Joining {
    /// Whether it joins the first datagram to one that an earlier call left open (`MSG_MORE`).
    pub(super) to_open: bool,
    /// Whether it may join all, so that the option must be queried (`UDP_CORK`).
    pub(super) may_be_corked: bool,
}

/// Limits how much may be sent to an address.
pub(super) trait Budget {
    /// Deducts a datagram from the budget of its address; returns false if the budget is too small.
    fn take(&self, to: Option<&Address>, bytes: usize) -> bool;
    /// Refunds a datagram that was not sent.
    fn give_back(&self, to: Option<&Address>, bytes: usize);
    /// The error for a datagram that exceeds its budget.
    fn refusal(&self) -> io::Error;
}

/// Sends the messages: the kernel, or a stand-in for tests.
trait Kernel {
    /// Sends some of the first messages without waiting; returns how many were sent. An error is
    /// about the first message.
    fn send(&mut self, messages: &mut dyn Iterator<Item = Outgoing<'_>>) -> io::Result<usize>;
    /// Whether the kernel currently joins datagrams until the user uncorks the socket.
    fn is_corked(&mut self) -> bool;
}

struct SocketKernel<'a> {
    fd: BorrowedFd<'a>,
    flags: c_int,
    may_be_corked: bool,
}

impl Kernel for SocketKernel<'_> {
    fn send(&mut self, messages: &mut dyn Iterator<Item = Outgoing<'_>>) -> io::Result<usize> {
        sys::send_messages(self.fd, messages, self.flags)
    }

    fn is_corked(&mut self) -> bool {
        let asks = || sys::int_option(self.fd, libc::SOL_UDP, libc::UDP_CORK);
        self.may_be_corked && asks().is_ok_and(|corked| corked != 0)
    }
}

impl<'a> SendQueue<'a> {
    /// Creates an empty queue with room for `datagrams`.
    pub fn with_room(datagrams: usize) -> io::Result<Self> {
        let list = with_room(datagrams, "datagrams to be sent")?;
        let datagrams = QueuedDatagrams { list, ..QueuedDatagrams::default() };
        Ok(Self { datagrams, ..Self::default() })
    }

    /// Appends a datagram to a peer or, without an address, to the connected peer. Fails only if
    /// memory allocation fails.
    pub fn push(
        &mut self,
        payload: SendSlice<'a>,
        to: Option<&Address>,
        source: Option<Source>,
    ) -> io::Result<()> {
        self.push_all(iter::once(payload), to, source.map(SendMeta::from))
    }

    /// Appends datagrams that have the same peer and metadata.
    pub fn push_all(
        &mut self,
        payloads: impl ExactSizeIterator<Item = SendSlice<'a>>,
        to: Option<&Address>,
        meta: Option<SendMeta>,
    ) -> io::Result<()> {
        let QueuedDatagrams { list, addresses, metas } = &mut self.datagrams;
        make_room(list, payloads.len(), "datagrams to be sent")?;
        let to = to.map_or(Ok(NONE), |to| index_of(addresses, *to))?;
        let meta = meta.map_or(Ok(NONE), |meta| index_of(metas, meta))?;
        list.extend(payloads.map(|payload| QueuedDatagram { payload, to, meta }));
        Ok(())
    }

    /// The number of datagrams that were not sent.
    pub fn len(&self) -> usize {
        self.datagrams.list.len() - self.next
    }

    /// Whether all datagrams were sent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The index of the next datagram: the number of datagrams that were sent or skipped.
    pub fn position(&self) -> usize {
        self.next
    }

    /// The next datagram's destination, if it has its own.
    pub fn next_address(&self) -> Option<&Address> {
        self.datagrams.address(self.next)
    }

    /// The number of datagrams that the last error is about: the next one alone, or all of a run of
    /// which a part may have been sent, so that none may be sent again.
    pub fn failed(&self) -> usize {
        self.failed.max(1).min(self.len())
    }

    /// Drops the datagrams that the last error is about; returns their number.
    pub fn skip(&mut self) -> usize {
        let failed = self.failed();
        (self.next, self.failed) = (self.next + failed, 0);
        failed
    }

    /// The next datagram's metadata, if it has any.
    pub fn next_meta(&self) -> Option<SendMeta> {
        self.datagrams.meta(self.next).copied()
    }

    /// Sends the next datagram, whose metadata is a source address, from the default address; returns
    /// false if it has none. The source of the following datagrams is unchanged, because nothing
    /// says that it is wrong for them.
    pub fn forget_source(&mut self) -> bool {
        let next = self.datagrams.list.get_mut(self.next);
        next.is_some_and(|datagram| std::mem::replace(&mut datagram.meta, NONE) != NONE)
    }

    /// The next datagrams, up to a number: each with its destination, if it has its own, and its
    /// metadata.
    #[cfg(feature = "dtls")]
    pub(super) fn next_datagrams(
        &self,
        most: usize,
    ) -> impl Iterator<Item = (SendSlice<'a>, Option<&Address>, Option<SendMeta>)> {
        let QueuedDatagrams { list, addresses, metas } = &self.datagrams;
        list[self.next..].iter().take(most).map(|datagram| {
            let meta = metas.get(datagram.meta as usize);
            (datagram.payload, addresses.get(datagram.to as usize), meta.copied())
        })
    }

    /// Counts as many datagrams as sent, and as failed, as another queue has that stands for the next
    /// ones of this.
    #[cfg(feature = "dtls")]
    pub(super) fn advance_as(&mut self, other: &SendQueue<'_>) {
        self.next += other.next;
        self.failed = other.failed;
    }

    /// Removes all datagrams.
    pub fn clear(&mut self) {
        self.datagrams.list.clear();
        self.datagrams.addresses.clear();
        self.datagrams.metas.clear();
        (self.next, self.alone_until, self.failed) = (0, 0, 0);
    }

    /// Sends as many datagrams as one call can, without waiting: at least one, or it fails. An
    /// error is about the next [`failed`](Self::failed) datagrams.
    ///
    /// Datagrams that are not sent are refunded to the budget.
    pub(super) fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        gso: &Gso,
        flags: c_int,
        joining: Joining,
        budget: Option<&impl Budget>,
    ) -> io::Result<Sent> {
        // With MSG_MORE the kernel joins the following datagrams to one that is still open. A socket
        // that only ever sends one at a time is not asked for its limits.
        let has_run = flags & libc::MSG_MORE == 0 && self.len() > 1;
        let limits = if has_run { gso.limits(fd) } else { Limits::NO_RUNS };
        if joining.to_open {
            // The kernel would ignore the segment size of the run.
            self.alone_until = self.alone_until.max(self.next + 1);
        }
        let mut kernel = SocketKernel { fd, flags, may_be_corked: joining.may_be_corked };
        self.send_by(&mut kernel, gso, limits, budget)
    }

    fn send_by<B: Budget>(
        &mut self,
        kernel: &mut impl Kernel,
        gso: &Gso,
        limits: Limits<'_>,
        budget: Option<&B>,
    ) -> io::Result<Sent> {
        let Self { datagrams, next, alone_until, failed, slices } = self;
        if *next == datagrams.list.len() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL)); // nothing to send
        }
        *failed = 0;
        let (mut refused, mut is_retried) = (None, false);
        // If the first run is refused, try once more with its datagrams alone.
        loop {
            let mut allowance = Allowance::new(datagrams, budget, *next);
            let alone = *next..*alone_until;
            let call = Call::gather(&mut allowance, slices, limits, alone, kernel)?;
            let Some(first) = call.first_run() else {
                // The budget is too small for the first datagram.
                return Err(budget.map_or_else(|| io::ErrorKind::WouldBlock.into(), B::refusal));
            };
            match kernel.send(&mut call.messages(datagrams, slices, *next)) {
                Ok(messages) => {
                    let (left, bytes) = call.total(messages);
                    let Some(left_some) = NonZero::new(left) else {
                        return Err(io::Error::from_raw_os_error(libc::EIO)); // no error was given
                    };
                    if let Some(error) = &refused {
                        // Send its datagrams alone, because the error is about the run.
                        let len = datagrams.list[*next].payload.len();
                        gso.refuse(datagrams.address(*next), len, error);
                    }
                    allowance.keep(left);
                    *next += left;
                    return Ok(Sent { datagrams: left_some, bytes });
                }
                // It may report an ICMP message about an earlier datagram ("fragmentation needed",
                // for any peer), in which case nothing was sent. Only a second attempt can tell.
                Err(error)
                    if first > 1 && error.raw_os_error() == Some(libc::EMSGSIZE) && !is_retried =>
                {
                    is_retried = true;
                }
                Err(error) if first > 1 && is_about_run(&error) => {
                    *alone_until = *next + first;
                    refused = Some(error);
                }
                Err(error) => {
                    if first > 1 && is_about_whole_run(&error) {
                        *failed = first;
                    }
                    return Err(error);
                }
            }
        }
    }
}

impl QueuedDatagrams<'_> {
    /// The destination of a datagram, if there is one and it has its own.
    fn address(&self, index: usize) -> Option<&Address> {
        self.addresses.get(self.list.get(index)?.to as usize)
    }

    /// The metadata of a datagram, if there is one and it has any.
    fn meta(&self, index: usize) -> Option<&SendMeta> {
        self.metas.get(self.list.get(index)?.meta as usize)
    }
}

/// The index of a value, which is usually equal to the previous one.
fn index_of<T: PartialEq>(values: &mut Vec<T>, value: T) -> io::Result<u32> {
    if values.last() != Some(&value) {
        make_room(values, 1, "addresses")?;
        values.push(value);
    }
    Ok(values.len() as u32 - 1)
}
