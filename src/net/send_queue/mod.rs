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
use super::meta::Source;
use super::sys::{self, Outgoing, SendSlice, make_room, with_room};

/// Datagrams on their way out, in order.
///
/// Consecutive datagrams of one size to one peer (the last may be shorter) leave as one send that
/// the kernel splits. A run that is refused is sent again, datagram by datagram.
#[derive(Default)]
pub struct SendQueue<'a> {
    datagrams: Datagrams<'a>,
    /// The first datagram that has not left.
    next: usize,
    /// Datagrams before this one leave alone: they belong to a run that was refused.
    alone_until: usize,
    /// How many datagrams the last error is about, if that is more than one.
    failed: usize,
    /// Kept for its memory.
    slices: Vec<SendSlice<'a>>,
}

/// Datagrams, each with the indexes of its address and its source.
#[derive(Default)]
struct Datagrams<'a> {
    list: Vec<Datagram<'a>>,
    addresses: Vec<Address>,
    sources: Vec<Source>,
}

#[derive(Clone, Copy)]
struct Datagram<'a> {
    payload: SendSlice<'a>,
    to: u32,
    source: u32,
}

/// The index of an address or a source that a datagram does not have.
const NONE: u32 = u32::MAX;

/// What one call has sent: something, or the call has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Datagrams.
    pub datagrams: NonZero<usize>,
    /// Bytes of payload.
    pub bytes: usize,
}

/// What the kernel may join to one datagram.
#[derive(Clone, Copy)]
pub(super) struct Joining {
    /// Whether the first datagram is joined to one that an earlier call has left open (`MSG_MORE`).
    pub(super) to_open: bool,
    /// Whether all may be, so that the kernel has to be asked (`UDP_CORK`).
    pub(super) may_be_corked: bool,
}

/// What limits how much may be sent to an address.
pub(super) trait Budget {
    /// Takes a datagram off what may be sent to its address; false if that is less.
    fn take(&self, to: Option<&Address>, bytes: usize) -> bool;
    /// Gives back what was taken for a datagram that has not left.
    fn give_back(&self, to: Option<&Address>, bytes: usize);
    /// The error of a datagram that may not be sent.
    fn refusal(&self) -> io::Error;
}

/// What takes the messages.
trait Kernel {
    /// Sends some of the first messages, without waiting, and says how many have left. An error is
    /// the first message's.
    fn send(&mut self, messages: &mut dyn Iterator<Item = Outgoing<'_>>) -> io::Result<usize>;
    /// Whether datagrams that are sent now become one, until the user says otherwise.
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
    /// An empty queue with room for `datagrams`.
    pub fn with_room(datagrams: usize) -> io::Result<Self> {
        let list = with_room(datagrams, "datagrams to be sent")?;
        let datagrams = Datagrams { list, ..Datagrams::default() };
        Ok(Self { datagrams, ..Self::default() })
    }

    /// Appends a datagram to a peer, or, without an address, to the connected one. Fails only if
    /// there is no memory.
    pub fn push(
        &mut self,
        payload: SendSlice<'a>,
        to: Option<&Address>,
        source: Option<Source>,
    ) -> io::Result<()> {
        self.push_all(iter::once(payload), to, source)
    }

    /// Appends datagrams that have one peer and one source.
    pub fn push_all(
        &mut self,
        payloads: impl ExactSizeIterator<Item = SendSlice<'a>>,
        to: Option<&Address>,
        source: Option<Source>,
    ) -> io::Result<()> {
        let Datagrams { list, addresses, sources } = &mut self.datagrams;
        make_room(list, payloads.len(), "datagrams to be sent")?;
        let to = to.map_or(Ok(NONE), |to| index_of(addresses, *to))?;
        let source = source.map_or(Ok(NONE), |source| index_of(sources, source))?;
        list.extend(payloads.map(|payload| Datagram { payload, to, source }));
        Ok(())
    }

    /// How many datagrams have not left.
    pub fn len(&self) -> usize {
        self.datagrams.list.len() - self.next
    }

    /// Whether all have left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many datagrams have left or were skipped: the index of the one that is next.
    pub fn position(&self) -> usize {
        self.next
    }

    /// Where the next datagram goes, if it has an address of its own.
    pub fn next_address(&self) -> Option<&Address> {
        self.datagrams.address(self.next)
    }

    /// How many datagrams the last error is about: the next one alone, or all of a run that may have
    /// left in part, none of which may be sent again.
    pub fn failed(&self) -> usize {
        self.failed.max(1).min(self.len())
    }

    /// Gives up the datagrams that the last error is about, and says how many.
    pub fn skip(&mut self) -> usize {
        let failed = self.failed();
        (self.next, self.failed) = (self.next + failed, 0);
        failed
    }

    /// Lets the next datagram leave from where the routes say; false if it was to do so already.
    /// Those behind it may have had the same address, and nothing says that it is wrong for them.
    pub fn forget_source(&mut self) -> bool {
        let next = self.datagrams.list.get_mut(self.next);
        next.is_some_and(|datagram| std::mem::replace(&mut datagram.source, NONE) != NONE)
    }

    /// Takes all datagrams out, for new ones.
    pub fn clear(&mut self) {
        self.datagrams.list.clear();
        self.datagrams.addresses.clear();
        self.datagrams.sources.clear();
        (self.next, self.alone_until, self.failed) = (0, 0, 0);
    }

    /// Sends as many datagrams as one call takes, without waiting: at least one, or this fails. An
    /// error is about the next datagrams, as many as [`failed`](Self::failed) says.
    ///
    /// A datagram that does not leave is given back to the budget.
    pub(super) fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        gso: &Gso,
        flags: c_int,
        joining: Joining,
        budget: Option<&impl Budget>,
    ) -> io::Result<Sent> {
        // With MSG_MORE the kernel joins what follows to a datagram that is still open.
        let limits = if flags & libc::MSG_MORE == 0 { gso.limits(fd) } else { Limits::NO_RUNS };
        if joining.to_open {
            // The kernel would take no notice of where the run is to be split.
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
        // Again, if the first run is refused: its datagrams then leave alone.
        loop {
            let mut allowance = Allowance::new(datagrams, budget, *next);
            let alone = *next..*alone_until;
            let call = Call::gather(&mut allowance, slices, limits, alone, kernel)?;
            let Some(first) = call.first_run() else {
                // What the call has gathered ends where the budget does.
                return Err(budget.map_or_else(|| io::ErrorKind::WouldBlock.into(), B::refusal));
            };
            match kernel.send(&mut call.messages(datagrams, slices, *next)) {
                Ok(messages) => {
                    let (left, bytes) = call.total(messages);
                    let Some(left_some) = NonZero::new(left) else {
                        return Err(io::Error::from_raw_os_error(libc::EIO)); // and no reason given
                    };
                    if let Some(error) = &refused {
                        // Its datagrams leave alone: the run was the reason.
                        let len = datagrams.list[*next].payload.len();
                        gso.refuse(datagrams.address(*next), len, error);
                    }
                    allowance.keep(left);
                    *next += left;
                    return Ok(Sent { datagrams: left_some, bytes });
                }
                // It may report an ICMP message about an earlier datagram ("fragmentation needed", to
                // whatever peer), and has sent nothing then: only the same once more tells.
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

impl Datagrams<'_> {
    /// Where a datagram goes, if it is there and has an address of its own.
    fn address(&self, index: usize) -> Option<&Address> {
        self.addresses.get(self.list.get(index)?.to as usize)
    }
}

/// The index of a value that is most often the last one again.
fn index_of<T: PartialEq>(values: &mut Vec<T>, value: T) -> io::Result<u32> {
    if values.last() != Some(&value) {
        make_room(values, 1, "addresses")?;
        values.push(value);
    }
    Ok(values.len() as u32 - 1)
}
