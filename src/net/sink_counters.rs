//! The counters of a sink, in memory that a server's processes share.

use std::io;
use std::sync::atomic::Ordering;

use super::counters::{declare_counters, sink_counters};
use super::sys::SharedWords;

sink_counters!(declare_counters!(
    /// One of a sink's counters.
    SinkCounter,
    /// A sink's counters at one moment.
    SinkCounts
));

/// The counters of a sink, shared with all processes forked since.
pub struct SharedSinkCounters(SharedWords);

impl SharedSinkCounters {
    /// Creates counters that are all zero.
    pub fn new() -> io::Result<Self> {
        Ok(Self(SharedWords::new(SinkCounter::ALL.len())?))
    }

    /// Raises a counter.
    pub fn add(&self, counter: SinkCounter, datagrams: u64) {
        self.0[counter as usize].fetch_add(datagrams, Ordering::AcqRel);
    }

    /// Reads all counters. Received datagrams are counted first and read last, so they are never
    /// fewer than the others.
    pub fn counts(&self) -> SinkCounts {
        SinkCounts::read(|counter| self.0[counter as usize].load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_added_up() {
        let counters = SharedSinkCounters::new().unwrap();
        counters.add(SinkCounter::Received, 5);
        counters.add(SinkCounter::Published, 2);
        counters.add(SinkCounter::Received, 1);
        let expected = SinkCounts { published: 2, dropped: 0, received: 6 };
        assert_eq!(counters.counts(), expected);
    }
}
