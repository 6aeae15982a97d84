//! One system call: gathers datagrams into runs, within a budget.

use std::io;
use std::ops::Range;

use super::{Budget, Kernel, QueuedDatagrams};
use crate::net::address::Address;
use crate::net::cmsg::ControlBuffer;
use crate::net::gso::{LARGEST_RUN, LONGEST_RUN, Limits};
use crate::net::sys::{Outgoing, SEND_MESSAGES, SendSlice, make_room, with_room};

/// The part of a budget that one call has used. On drop, it refunds the datagrams that were not
/// sent, even if the call failed or the guard behind the budget has changed.
pub(super) struct Allowance<'q, 'a, B: Budget> {
    datagrams: &'q QueuedDatagrams<'a>,
    budget: Option<&'q B>,
    /// The datagrams that are paid for and not sent.
    paid: Range<usize>,
    /// Whether the budget was not enough for the next datagram.
    is_spent: bool,
}

impl<'q, 'a, B: Budget> Allowance<'q, 'a, B> {
    pub(super) fn new(
        datagrams: &'q QueuedDatagrams<'a>,
        budget: Option<&'q B>,
        next: usize,
    ) -> Self {
        Self { datagrams, budget, paid: next..next, is_spent: false }
    }

    /// Pays for the next datagram, which exists; returns false if the budget is not enough.
    #[inline]
    fn pay(&mut self) -> bool {
        let Some(budget) = self.budget else {
            self.paid.end += 1;
            return true;
        };
        self.pay_from(budget)
    }

    fn pay_from(&mut self, budget: &B) -> bool {
        if !self.is_spent {
            let bytes = self.datagrams.list[self.paid.end].payload.len();
            self.is_spent = !budget.take(self.datagrams.address(self.paid.end), bytes);
        }
        self.paid.end += usize::from(!self.is_spent);
        !self.is_spent
    }

    /// Keeps the payment for the first `left` datagrams, which were sent.
    pub(super) fn keep(mut self, left: usize) {
        self.paid.start = (self.paid.start + left).min(self.paid.end);
    }
}

impl<B: Budget> Drop for Allowance<'_, '_, B> {
    fn drop(&mut self) {
        let Some(budget) = self.budget else { return };
        for index in self.paid.clone() {
            let bytes = self.datagrams.list[index].payload.len();
            budget.give_back(self.datagrams.address(index), bytes);
        }
    }
}

/// The messages of one call.
pub(super) struct Call {
    runs: Vec<SendRun>,
}

/// Consecutive datagrams in one message.
#[derive(Clone, Copy)]
struct SendRun {
    datagrams: usize,
    bytes: usize,
    first_slice: usize,
    slices: usize,
    control: ControlBuffer,
}

impl Call {
    /// Gathers the next datagrams into as many messages as one call and the budget allow. The
    /// datagrams at the indexes `alone` do not join a run.
    pub(super) fn gather<'a>(
        allowance: &mut Allowance<'_, 'a, impl Budget>,
        slices: &mut Vec<SendSlice<'a>>,
        limits: Limits<'_>,
        alone: Range<usize>,
        kernel: &mut impl Kernel,
    ) -> io::Result<Self> {
        slices.clear();
        let datagrams = allowance.datagrams;
        let most = (datagrams.list.len() - allowance.paid.end).min(SEND_MESSAGES * LONGEST_RUN);
        make_room(slices, most, "a system call's datagrams")?;
        let mut runs = with_room(SEND_MESSAGES.min(most), "a system call's messages")?;
        let mut may_join = None;
        while runs.len() < SEND_MESSAGES && allowance.paid.end < datagrams.list.len() {
            let at = allowance.paid.end;
            if !allowance.pay() {
                break;
            }
            let limits = if alone.contains(&at) { Limits::NO_RUNS } else { limits };
            let first_slice = slices.len();
            let bytes = gather_run(allowance, slices, limits, || {
                *may_join.get_or_insert_with(|| !kernel.is_corked())
            });
            let count = allowance.paid.end - at;
            let mut control = ControlBuffer::EMPTY;
            if let Some(meta) = datagrams.meta(at) {
                meta.encode(&mut control);
            }
            if count > 1 {
                let segment = (datagrams.list[at].payload.len() as u16).to_ne_bytes();
                control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment);
            }
            let slices = slices.len() - first_slice;
            runs.push(SendRun { datagrams: count, bytes, first_slice, slices, control });
        }
        Ok(Self { runs })
    }

    /// The number of datagrams in the first message, if there is one.
    pub(super) fn first_run(&self) -> Option<usize> {
        self.runs.first().map(|run| run.datagrams)
    }

    /// The number of datagrams and of bytes in the first `messages`.
    pub(super) fn total(&self, messages: usize) -> (usize, usize) {
        let runs = self.runs.iter().take(messages);
        runs.fold((0, 0), |(datagrams, bytes), run| (datagrams + run.datagrams, bytes + run.bytes))
    }

    pub(super) fn messages<'b>(
        &'b self,
        datagrams: &'b QueuedDatagrams<'_>,
        slices: &'b [SendSlice<'_>],
        next: usize,
    ) -> impl Iterator<Item = Outgoing<'b>> {
        let mut at = next;
        self.runs.iter().map(move |run| {
            let to: Option<&Address> = datagrams.address(at);
            at += run.datagrams;
            let memory = &slices[run.first_slice..][..run.slices];
            Outgoing { memory, to, control: &run.control }
        })
    }
}

/// Gathers the payload of the last datagram that was paid for, and of as many following ones as can
/// be sent together and are paid for: of equal size (the last may be shorter), not empty, to one
/// peer and with equal metadata. Returns the number of bytes.
fn gather_run<'a>(
    allowance: &mut Allowance<'_, 'a, impl Budget>,
    slices: &mut Vec<SendSlice<'a>>,
    limits: Limits<'_>,
    mut may_join: impl FnMut() -> bool,
) -> usize {
    let datagrams = allowance.datagrams;
    let at = allowance.paid.end - 1;
    let first = &datagrams.list[at];
    let len = first.payload.len();
    let fits = len > 0 && len <= limits.longest(datagrams.address(at));
    let most = if fits { LONGEST_RUN.min(LARGEST_RUN / len) } else { 1 };
    let mut bytes = len;
    let mut joins = false; // not queried yet
    // Payloads that are adjacent in memory share one entry of the list.
    let mut adjacent = first.payload;
    for datagram in datagrams.list[at + 1..].iter().take(most - 1) {
        let next_len = datagram.payload.len();
        if (datagram.to, datagram.meta) != (first.to, first.meta)
            || next_len == 0
            || next_len > len
            || next_len < len && !limits.short_ends
            || !joins && !may_join()
            || !allowance.pay()
        {
            break;
        }
        joins = true;
        if !adjacent.extend(datagram.payload) {
            slices.push(adjacent);
            adjacent = datagram.payload;
        }
        bytes += next_len;
        if next_len < len {
            break;
        }
    }
    slices.push(adjacent);
    bytes
}
