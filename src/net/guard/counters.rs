//! The counters of guards, in memory that a process shares with its forks.
//!
//! Each process enforces a guard's limits on its own: a fork copies the guard's state of sources.
//! The counters are shared instead of copied, so any process (for example the parent of workers)
//! sees the counts of all.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::net::counters::{declare_counters, guard_counters};
use crate::net::sys::{SharedWords, fork_generation};

guard_counters!(declare_counters!(
    /// One of a guard's counters.
    GuardCounter,
    /// The number of datagrams that a guard admitted or refused, by reason.
    GuardCounts
));

/// The number of words in a block: a block of counters fills one cache line.
const BLOCK: usize = 8;
/// The number of blocks: they fill a page. Processes use different ones while there are enough.
const BLOCKS: usize = 64;
/// The index of the word that is not a counter: in the first block, it counts the processes.
const PROCESSES: usize = BLOCK - 1;
const _: () = assert!(GuardCounter::ALL.len() <= PROCESSES);

pub(super) struct GuardCounters {
    shared: SharedWords,
    /// This process's block, and the fork generation in which it was assigned. A fork copies it;
    /// the generation tells the child that the block belongs to its parent.
    block: AtomicU64,
}

impl GuardCounters {
    /// Creates counters that are all zero.
    pub(super) fn new() -> io::Result<Self> {
        let shared = SharedWords::new(BLOCK * BLOCKS)?;
        shared[PROCESSES].store(1, Ordering::Relaxed);
        Ok(Self { shared, block: AtomicU64::new(pack(fork_generation(), 0)) })
    }

    /// Adds to this process's counters.
    pub(super) fn count(&self, counts: GuardCounts) {
        let block = &self.shared[self.block() * BLOCK..][..PROCESSES];
        for &counter in GuardCounter::ALL {
            let count = counts.get(counter);
            if count > 0 {
                block[counter as usize].fetch_add(count, Ordering::Relaxed);
            }
        }
    }

    /// The sum over all processes, including those that have ended.
    pub(super) fn sum(&self) -> GuardCounts {
        let counts = GuardCounts::read(|counter| {
            let blocks = self.shared.chunks_exact(BLOCK);
            blocks.map(|block| block[counter as usize].load(Ordering::Relaxed)).sum()
        });
        let GuardCounts { denied, oversized, over_rate, over_ceiling, .. } = counts;
        GuardCounts { refused: denied + oversized + over_rate + over_ceiling, ..counts }
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
    fn every_counter_is_separate() {
        let counters = GuardCounters::new().unwrap();
        let counts = GuardCounts {
            admitted: 1,
            denied: 20,
            oversized: 300,
            over_rate: 4000,
            over_ceiling: 50_000,
            over_amplification: 600_000,
            refused: 0,
        };
        counters.count(counts);
        assert_eq!(counters.sum(), GuardCounts { refused: 54_320, ..counts });
        counters.count(GuardCounts { denied: 1, ..GuardCounts::default() });
        assert_eq!(counters.sum(), GuardCounts { denied: 21, refused: 54_321, ..counts });
    }

    #[test]
    fn every_process_gets_a_block_and_none_is_beyond_the_last() {
        let counters = GuardCounters::new().unwrap();
        for process in 1..=3 * BLOCKS as u32 {
            counters.count(GuardCounts { admitted: 1, ..GuardCounts::default() });
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
