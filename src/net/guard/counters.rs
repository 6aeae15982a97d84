//! The counters of guards, in memory that a process shares with its forks.
//!
//! Each process enforces a guard's limits on its own: a fork copies the guard's state of sources.
//! The counters are shared instead of copied, so any process (for example the parent of workers)
//! sees the counts of all.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::net::sys::{SharedCounters, fork_generation};

/// How many datagrams a guard admitted or refused, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Admitted.
    pub admitted: u64,
    /// Refused: the sender's network is denied.
    pub denied: u64,
    /// Refused: too long.
    pub oversized: u64,
    /// Refused: the source has exceeded its rate.
    pub over_rate: u64,
    /// Refused: the rate of all sources together was exceeded.
    pub over_ceiling: u64,
    /// Not sent: larger than the peer's amplification budget.
    pub over_amplification: u64,
}

impl Tally {
    /// The number of received datagrams that were refused.
    pub fn refused(&self) -> u64 {
        self.denied + self.oversized + self.over_rate + self.over_ceiling
    }

    fn counts(self) -> [u64; COUNTS] {
        let Self { admitted, denied, oversized, over_rate, over_ceiling, over_amplification } =
            self;
        [admitted, denied, oversized, over_rate, over_ceiling, over_amplification]
    }
}

const COUNTS: usize = 6;
/// The number of words in a block: a block of counters fills one cache line.
const BLOCK: usize = 8;
/// The number of blocks: they fill a page. Processes use different ones while there are enough.
const BLOCKS: usize = 64;
/// The index of the word that is not a counter: in the first block, it counts the processes.
const PROCESSES: usize = BLOCK - 1;

pub(super) struct Counters {
    shared: SharedCounters,
    /// This process's block, and the fork generation in which it was assigned. A fork copies it;
    /// the generation tells the child that the block belongs to its parent.
    block: AtomicU64,
}

impl Counters {
    /// Creates counters that are all zero.
    pub(super) fn new() -> io::Result<Self> {
        let shared = SharedCounters::new(BLOCK * BLOCKS)?;
        shared[PROCESSES].store(1, Ordering::Relaxed);
        Ok(Self { shared, block: AtomicU64::new(pack(fork_generation(), 0)) })
    }

    /// Adds to this process's counters.
    pub(super) fn count(&self, tally: Tally) {
        let block = &self.shared[self.block() * BLOCK..][..COUNTS];
        for (counter, count) in block.iter().zip(tally.counts()) {
            if count > 0 {
                counter.fetch_add(count, Ordering::Relaxed);
            }
        }
    }

    /// The sum over all processes, including those that have ended.
    pub(super) fn sum(&self) -> Tally {
        let sum = |index: usize| {
            let blocks = self.shared.chunks_exact(BLOCK);
            blocks.map(|block| block[index].load(Ordering::Relaxed)).sum()
        };
        Tally {
            admitted: sum(0),
            denied: sum(1),
            oversized: sum(2),
            over_rate: sum(3),
            over_ceiling: sum(4),
            over_amplification: sum(5),
        }
    }

    /// The index of this process's block. Several processes or threads may add to one block safely:
    /// if there are more processes than blocks, or two threads each get one, no count is lost.
    fn block(&self) -> usize {
        let generation = fork_generation();
        let packed = self.block.load(Ordering::Relaxed);
        if (packed >> 32) as u32 == generation {
            return packed as u32 as usize;
        }
        let processes = self.shared[PROCESSES].fetch_add(1, Ordering::Relaxed);
        let block = (processes % BLOCKS as u64) as u32;
        self.block.store(pack(generation, block), Ordering::Relaxed);
        block as usize
    }
}

fn pack(generation: u32, block: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_count_has_a_place_of_its_own() {
        let counters = Counters::new().unwrap();
        let tally = Tally {
            admitted: 1,
            denied: 20,
            oversized: 300,
            over_rate: 4000,
            over_ceiling: 50_000,
            over_amplification: 600_000,
        };
        counters.count(tally);
        assert_eq!(counters.sum(), tally);
        assert_eq!(counters.sum().refused(), 54_320);
        counters.count(Tally { denied: 1, ..Tally::default() });
        assert_eq!(counters.sum(), Tally { denied: 21, ..tally });
    }

    #[test]
    fn every_process_gets_a_block_and_none_is_beyond_the_last() {
        let counters = Counters::new().unwrap();
        for process in 1..=3 * BLOCKS as u32 {
            counters.count(Tally { admitted: 1, ..Tally::default() });
            // As if the process had just been forked.
            let generation = fork_generation().wrapping_add(process);
            counters.block.store(pack(generation, u32::MAX), Ordering::Relaxed);
        }
        assert_eq!(counters.sum().admitted, 3 * BLOCKS as u64);
        assert_eq!(counters.shared[PROCESSES].load(Ordering::Relaxed), 3 * BLOCKS as u64);
        let used = counters.shared.chunks_exact(BLOCK);
        assert!(used.map(|block| block[0].load(Ordering::Relaxed)).all(|count| count == 3));
    }
}
