//! One direction of a link, without sockets and without a clock: datagrams and the time go in,
//! datagrams come out when they are due.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use super::counts::{DropReason, FateLog, FateRecord, LinkCounts};
use super::fates::{Fate, FlowFates};
use super::impairments::Impairments;
use super::verdict::Verdict;
use crate::net::fork_mutex::{Inherit, leave_to_parent};

/// How long a datagram waits for another one to overtake it, in nanoseconds.
const LONGEST_HOLD: u64 = 50_000_000;
/// How many datagrams wait for the rate if nothing else was said, as in netem.
const QUEUE: usize = 1000;
/// Datagrams under way take at most this many bytes of memory, about.
const MOST_BYTES: usize = 1 << 28;

/// One direction. Times are in nanoseconds, on a clock that the caller chooses.
///
/// A datagram first meets the cut, the MTU, its fate, then the bottleneck with its queue, and then
/// takes its delay.
#[derive(Default)]
pub struct LinkPath {
    seed: u64,
    impairments: Impairments,
    is_cut: bool,
    flows: HashMap<u32, FlowFates>,
    bottleneck: Bottleneck,
    schedule: BinaryHeap<Reverse<Scheduled>>,
    /// Datagrams that wait for another one of their flow, each with the end of its wait.
    held: VecDeque<(u64, Scheduled)>,
    order: u64,
    bytes: usize,
    counts: LinkCounts,
    log: FateLog,
}

/// A datagram that is due.
#[derive(Debug, PartialEq, Eq)]
pub struct Departure {
    /// Its flow.
    pub flow: u32,
    /// Its payload, as it arrives.
    pub payload: Vec<u8>,
    /// The number of its record in the log.
    record: u64,
}

impl Departure {
    /// The memory that it takes, about.
    fn bytes(&self) -> usize {
        size_of::<Scheduled>() + self.payload.len()
    }
}

/// A datagram under way. Those that are due at the same time leave in the order of their arrival.
#[derive(PartialEq, Eq)]
struct Scheduled {
    due: u64,
    order: u64,
    departure: Departure,
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A thread of the parent may have been changing it.
impl Inherit for LinkPath {
    fn inherit(&mut self) {
        leave_to_parent(self);
    }
}

impl LinkPath {
    /// A direction that draws from `seed`, and remembers the fates of the latest `log_size`
    /// datagrams.
    pub fn new(seed: u64, log_size: usize) -> Self {
        Self { seed, log: FateLog::new(log_size), ..Self::default() }
    }

    /// Sets the impairments of datagrams that arrive from now on.
    pub fn set(&mut self, impairments: Impairments) {
        self.impairments = impairments;
    }

    /// Drops datagrams under way, and those that arrive until the direction is healed.
    pub fn cut(&mut self) {
        self.is_cut = true;
        let held = self.held.drain(..).map(|(_, scheduled)| scheduled);
        for scheduled in self.schedule.drain().map(|Reverse(scheduled)| scheduled).chain(held) {
            self.counts.drop(DropReason::Cut);
            self.log.drop_copy(scheduled.departure.record, DropReason::Cut);
        }
        self.bytes = 0;
        self.bottleneck.passing.clear();
    }

    /// Ends a cut.
    pub fn heal(&mut self) {
        self.is_cut = false;
    }

    /// Whether the direction is cut.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// The counters.
    pub fn counts(&self) -> &LinkCounts {
        &self.counts
    }

    /// The fates of the latest datagrams, in the order in which they arrived.
    pub fn records(&self) -> impl ExactSizeIterator<Item = &FateRecord> {
        self.log.records()
    }

    /// Forgets a flow. If its number is used again, it starts afresh.
    pub fn forget(&mut self, flow: u32) {
        self.flows.remove(&flow);
    }

    /// Takes in a datagram. `headers`: the bytes of its IP and UDP headers. `verdict`: the decision
    /// of a script, if there is one.
    pub fn accept(
        &mut self,
        now: u64,
        flow: u32,
        mut payload: Vec<u8>,
        headers: usize,
        verdict: Option<Verdict>,
    ) {
        let (seed, size) = (self.seed, payload.len());
        let fates = self.flows.entry(flow).or_default();
        let index = fates.index;
        let mut fate = fates.next(seed, flow, &self.impairments, verdict.as_ref(), size);
        if self.is_cut {
            fate.drop = Some(DropReason::Cut);
        } else if self.impairments.mtu.is_some_and(|mtu| size.saturating_add(headers) > mtu) {
            fate.drop = Some(DropReason::TooLong);
        }
        self.counts.received += 1;
        self.counts.received_bytes += size as u64;
        let mut record = FateRecord {
            at: now,
            flow,
            index,
            size,
            dropped: fate.drop,
            copies: 0,
            delay: 0,
            corrupted: None,
            truncated: None,
            is_reordered: false,
        };
        if let Some(reason) = fate.drop {
            self.counts.drop(reason);
            self.log.push(record);
            return;
        }
        fate.alter(&mut payload);
        record.copies = fate.duplicates + 1;
        record.delay = fate.delay();
        (record.corrupted, record.truncated) = (fate.corrupted, fate.truncated);
        record.is_reordered = fate.is_reordered;
        let delay = record.delay;
        self.count(&fate, delay);
        let record = self.log.push(record);
        let mut due = None;
        for _ in 0..fate.duplicates {
            let (delay, copy) = (fate.delay(), payload.clone());
            due =
                due.max(self.depart(now, &fate, delay, Departure { flow, payload: copy, record }));
        }
        due = due.max(self.depart(now, &fate, delay, Departure { flow, payload, record }));
        if let Some(due) = due.filter(|_| !fate.is_reordered && !self.held.is_empty()) {
            self.release(flow, due);
        }
    }

    fn count(&mut self, fate: &Fate, delay: u64) {
        self.counts.duplicated += u64::from(fate.duplicates);
        self.counts.corrupted += u64::from(fate.corrupted.is_some());
        self.counts.truncated += u64::from(fate.truncated.is_some());
        self.counts.reordered += u64::from(fate.is_reordered);
        self.counts.delayed += u64::from(delay > 0);
    }

    /// Schedules a copy, and returns when it is due, unless there is no room for it.
    fn depart(&mut self, now: u64, fate: &Fate, delay: u64, departure: Departure) -> Option<u64> {
        let (len, bytes) = (departure.payload.len(), departure.bytes());
        let left = self.bottleneck.pass(now, len, &self.impairments);
        let Some(left) = left.filter(|_| self.bytes + bytes <= MOST_BYTES) else {
            self.counts.drop(DropReason::QueueFull);
            self.log.drop_copy(departure.record, DropReason::QueueFull);
            return None;
        };
        self.bytes += bytes;
        self.order += 1;
        let due = left.saturating_add(delay);
        let scheduled = Scheduled { due, order: self.order, departure };
        if fate.is_reordered {
            self.held.push_back((now.saturating_add(LONGEST_HOLD), scheduled));
        } else {
            self.schedule.push(Reverse(scheduled));
        }
        Some(due)
    }

    /// Lets the reordered datagrams of a flow follow one that is due at `due`.
    fn release(&mut self, flow: u32, due: u64) {
        for (until, mut held) in std::mem::take(&mut self.held) {
            if held.departure.flow == flow {
                self.order += 1;
                held.due = held.due.max(due);
                held.order = self.order;
                self.schedule.push(Reverse(held));
            } else {
                self.held.push_back((until, held));
            }
        }
    }

    /// When the next datagram is due.
    pub fn next_due(&self) -> Option<u64> {
        let scheduled = self.schedule.peek().map(|Reverse(scheduled)| scheduled.due);
        let held = self.held.front().map(|(until, _)| *until);
        scheduled.into_iter().chain(held).min()
    }

    /// Returns the next datagram that is due, if there is one. It counts as sent.
    pub fn pop_due(&mut self, now: u64) -> Option<Departure> {
        while self.held.front().is_some_and(|(until, _)| *until <= now) {
            let (until, mut held) = self.held.pop_front()?;
            held.due = held.due.max(until);
            self.schedule.push(Reverse(held));
        }
        if self.schedule.peek()?.0.due > now {
            return None;
        }
        let departure = self.schedule.pop()?.0.departure;
        self.bytes -= departure.bytes();
        self.counts.sent += 1;
        self.counts.sent_bytes += departure.payload.len() as u64;
        Some(departure)
    }

    /// Corrects the counters and the log: a datagram that was due could not be sent.
    pub fn was_not_sent(&mut self, departure: &Departure) {
        self.counts.sent -= 1;
        self.counts.sent_bytes -= departure.payload.len() as u64;
        self.counts.drop(DropReason::Unsendable);
        self.log.drop_copy(departure.record, DropReason::Unsendable);
    }
}

/// Where the rate of a direction is limited: datagrams pass one after another, and wait in a queue.
#[derive(Default)]
struct Bottleneck {
    /// When each datagram that waits has passed.
    passing: VecDeque<u64>,
}

impl Bottleneck {
    /// When a datagram that arrives now has passed; `None` if the queue is full.
    fn pass(&mut self, now: u64, len: usize, impairments: &Impairments) -> Option<u64> {
        let Some(rate) = impairments.rate else {
            self.passing.clear();
            return Some(now);
        };
        while self.passing.front().is_some_and(|&passed| passed <= now) {
            self.passing.pop_front();
        }
        // The first one does not wait: it is passing.
        if self.passing.len() > impairments.queue.unwrap_or(QUEUE) {
            return None;
        }
        #[allow(clippy::cast_precision_loss)] // the length of a datagram
        let takes = (len as f64 * 8e9 / rate).round() as u64;
        let passed = self.passing.back().copied().unwrap_or(now).saturating_add(takes);
        self.passing.push_back(passed);
        Some(passed)
    }
}

#[cfg(test)]
mod tests;
