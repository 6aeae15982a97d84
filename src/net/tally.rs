//! What the workers of a server count, in memory that they share.

use std::io;
use std::sync::atomic::Ordering;

use super::sys::SharedCounters;

/// One of a worker's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Datagrams received.
    Received,
    /// Their payload, in bytes.
    ReceivedBytes,
    /// System calls that received them.
    ReceiveCalls,
    /// Datagrams sent.
    Sent,
    /// Their payload, in bytes.
    SentBytes,
    /// System calls that sent them.
    SendCalls,
    /// Received datagrams whose end was cut off.
    Truncated,
    /// Datagrams that the guard refused.
    Refused,
    /// Calls of the handler that failed.
    HandlerErrors,
    /// Datagrams that were to be sent, and were not.
    SendErrors,
    /// Errors that receiving reported: about peers, or for want of memory.
    ReceiveErrors,
    /// Time in the handler, in nanoseconds.
    HandlerTime,
    /// Times that the worker died and was started again.
    Restarts,
    /// Not a number: whether somebody was told that the kernel drops datagrams.
    DropsTold,
}

const COUNTS: usize = Count::DropsTold as usize + 1;
/// The batch sizes are counted in so many classes: up to 1, 2, 4, … datagrams.
const SIZES: usize = 14;
/// A multiple of two cache lines, so that workers do not write to each other's.
const BLOCK: usize = (COUNTS + SIZES).next_multiple_of(16);

/// The counters of all workers. Those of one that has died are as it left them.
pub struct Tally {
    counters: SharedCounters,
}

impl Tally {
    /// Counters for some workers, at least one, all zero.
    pub fn new(workers: usize) -> io::Result<Self> {
        Ok(Self { counters: SharedCounters::new(workers.max(1) * BLOCK)? })
    }

    /// How many workers there are counters for.
    pub fn workers(&self) -> usize {
        self.counters.len() / BLOCK
    }

    /// Raises a counter. A worker that there is none for counts nothing.
    pub fn add(&self, worker: usize, count: Count, n: u64) {
        if let Some(counter) = self.counters.get(worker * BLOCK + count as usize) {
            counter.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Counts one batch of so many datagrams.
    pub fn add_batch(&self, worker: usize, datagrams: usize) {
        let class = (datagrams.next_power_of_two().ilog2() as usize).min(SIZES - 1);
        if let Some(counter) = self.counters.get(worker * BLOCK + COUNTS + class) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The sum of one counter over all workers.
    pub fn sum(&self, count: Count) -> u64 {
        self.sum_at(count as usize)
    }

    /// The batches of each class of sizes, with the largest size of the class.
    pub fn batches(&self) -> impl Iterator<Item = (u64, u64)> {
        (0..SIZES).map(|class| (1 << class, self.sum_at(COUNTS + class)))
    }

    /// Whether this is the first call, of any worker's.
    pub fn is_first_to_tell_drops(&self) -> bool {
        self.counters[Count::DropsTold as usize].swap(1, Ordering::Relaxed) == 0
    }

    fn sum_at(&self, place: usize) -> u64 {
        let blocks = self.counters.chunks_exact(BLOCK);
        blocks.map(|block| block[place].load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_count_for_themselves_and_are_added_up() {
        let tally = Tally::new(3).unwrap();
        assert_eq!(tally.workers(), 3);
        tally.add(0, Count::Received, 5);
        tally.add(2, Count::Received, 7);
        tally.add(2, Count::Restarts, 1);
        tally.add(3, Count::Received, 100);
        assert_eq!(tally.sum(Count::Received), 12);
        assert_eq!(tally.sum(Count::Restarts), 1);
        assert_eq!(tally.sum(Count::Sent), 0);
    }

    #[test]
    fn a_batch_is_of_the_class_that_it_fits_into() {
        let tally = Tally::new(1).unwrap();
        for datagrams in [1, 2, 3, 4, 5, 8, 1 << 40] {
            tally.add_batch(0, datagrams);
        }
        let filled: Vec<_> = tally.batches().filter(|&(_, batches)| batches > 0).collect();
        assert_eq!(filled, [(1, 1), (2, 1), (4, 2), (8, 2), (8192, 1)]);
    }

    #[test]
    fn one_worker_is_the_first() {
        let tally = Tally::new(2).unwrap();
        assert!(tally.is_first_to_tell_drops());
        assert!(!tally.is_first_to_tell_drops());
    }
}
