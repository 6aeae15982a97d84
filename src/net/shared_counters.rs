//! The counters of a server's workers, in memory that the processes share.

use std::io;
use std::sync::atomic::Ordering;

use super::counters::{declare_counters, server_counters};
use super::sys::SharedWords;

server_counters!(declare_counters!(
    /// One of a worker's counters.
    Count,
    /// The sums over all workers.
    ServerCounts
));

const COUNTS: usize = Count::ALL.len();
/// The index of the first word that is not a counter: whether a worker has logged each notice.
const NOTICES: usize = COUNTS;
/// The index of the first batch-size class.
const SIZES_START: usize = NOTICES + Notice::NotDtls as usize + 1;
/// The number of batch-size classes: up to 1, 2, 4, … datagrams.
const SIZES: usize = 14;
/// A multiple of two cache lines, so that workers do not write to each other's cache lines.
const BLOCK: usize = (SIZES_START + SIZES).next_multiple_of(16);

/// A message that the first worker with a reason for it logs, once for all workers.
#[derive(Clone, Copy, Debug)]
pub enum Notice {
    /// The kernel drops datagrams.
    Drops,
    /// An address that is not a trusted proxy has sent a PROXY header.
    Untrusted,
    /// A trusted proxy has sent a datagram without a valid PROXY header.
    Malformed,
    /// A datagram to a DTLS server was not DTLS.
    NotDtls,
}

/// The counters of all workers. Those of a worker that has exited keep their values.
pub struct SharedCounters {
    words: SharedWords,
}

impl SharedCounters {
    /// Creates counters for a number of workers, at least one, all zero.
    pub fn new(workers: usize) -> io::Result<Self> {
        Ok(Self { words: SharedWords::new(workers.max(1) * BLOCK)? })
    }

    /// The number of workers that have counters.
    pub fn workers(&self) -> usize {
        self.words.len() / BLOCK
    }

    /// Raises a counter. Does nothing for a worker that does not have counters.
    pub fn add(&self, worker: usize, count: Count, n: u64) {
        if let Some(counter) = self.words.get(worker * BLOCK + count as usize) {
            counter.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Counts one batch of a number of datagrams.
    pub fn add_batch(&self, worker: usize, datagrams: usize) {
        let class = (datagrams.next_power_of_two().ilog2() as usize).min(SIZES - 1);
        if let Some(counter) = self.words.get(worker * BLOCK + SIZES_START + class) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One of a worker's counters.
    pub fn of(&self, worker: usize, count: Count) -> u64 {
        let counter = self.words.get(worker * BLOCK + count as usize);
        counter.map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// The sums of all counters over all workers. The counters that the kernel keeps are zero.
    pub fn sums(&self) -> ServerCounts {
        ServerCounts::read(|count| self.sum_at(count as usize))
    }

    /// The number of batches in each class of sizes, with the largest size of the class.
    pub fn batches(&self) -> impl Iterator<Item = (u64, u64)> {
        (0..SIZES).map(|class| (1 << class, self.sum_at(SIZES_START + class)))
    }

    /// Whether this is the first call about a notice, by any worker.
    pub fn is_first_to_log(&self, notice: Notice) -> bool {
        self.words[NOTICES + notice as usize].swap(1, Ordering::Relaxed) == 0
    }

    /// A number that grows as a worker receives, whatever happens to the datagrams: with each receive
    /// or, if they only belong to handshakes, within about a second.
    pub fn progress(&self, worker: usize) -> u64 {
        let counts = [
            Count::ReceiveCalls,
            Count::Refused,
            Count::ProxyUntrusted,
            Count::ProxyMalformed,
            Count::ReceiveErrors,
            Count::DtlsEstablished,
            Count::DtlsFailed,
            Count::DtlsCookiesSent,
            Count::DtlsInvalid,
        ];
        counts.iter().map(|&count| self.of(worker, count)).sum()
    }

    fn sum_at(&self, index: usize) -> u64 {
        let blocks = self.words.chunks_exact(BLOCK);
        blocks.map(|block| block[index].load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_count_separately_and_are_added_up() {
        let counters = SharedCounters::new(3).unwrap();
        assert_eq!(counters.workers(), 3);
        counters.add(0, Count::Received, 5);
        counters.add(2, Count::Received, 7);
        counters.add(2, Count::Restarts, 1);
        counters.add(3, Count::Received, 100);
        assert_eq!(counters.sums().received, 12);
        assert_eq!([0, 1, 2, 3].map(|worker| counters.of(worker, Count::Received)), [5, 0, 7, 0]);
        assert_eq!(counters.sums().restarts, 1);
        assert_eq!(counters.sums().sent, 0);
    }

    #[test]
    fn a_batch_counts_in_the_first_class_that_it_fits_into() {
        let counters = SharedCounters::new(1).unwrap();
        for datagrams in [1, 2, 3, 4, 5, 8, 1 << 40] {
            counters.add_batch(0, datagrams);
        }
        let filled: Vec<_> = counters.batches().filter(|&(_, batches)| batches > 0).collect();
        assert_eq!(filled, [(1, 1), (2, 1), (4, 2), (8, 2), (8192, 1)]);
    }

    #[test]
    fn one_worker_is_the_first() {
        let counters = SharedCounters::new(2).unwrap();
        for notice in [Notice::Drops, Notice::Untrusted, Notice::Malformed, Notice::NotDtls] {
            assert!(counters.is_first_to_log(notice));
            assert!(!counters.is_first_to_log(notice));
        }
        assert_eq!(counters.sums(), ServerCounts::default());
        assert!(counters.batches().all(|(_, batches)| batches == 0));
    }
}
