//! Counters of what passed through a socket.

use std::sync::atomic::{AtomicU64, Ordering};

/// One socket's counters, which any thread may raise.
#[derive(Debug, Default)]
pub struct Counters {
    received: Direction,
    sent: Direction,
    truncated: AtomicU64,
    refused: AtomicU64,
    dropped: AtomicU64,
    errors: AtomicU64,
    send_errors: AtomicU64,
    told: Told,
}

#[derive(Debug, Default)]
struct Direction {
    datagrams: AtomicU64,
    bytes: AtomicU64,
    calls: AtomicU64,
}

/// As far as [`Counters::take_untold`] has told of the counters.
#[derive(Debug, Default)]
struct Told {
    refused: AtomicU64,
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    send_calls: AtomicU64,
}

/// What was counted since somebody last asked, by the names of [`Stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are those of Stats")]
pub struct Untold {
    pub refused: u64,
    pub sent: u64,
    pub sent_bytes: u64,
    pub send_calls: u64,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Datagrams received. One looked at with `MSG_PEEK` does not count until it is taken.
    pub received: u64,
    /// Their payload, in bytes, as far as it was taken.
    pub received_bytes: u64,
    /// System calls that received them.
    pub receive_calls: u64,
    /// Datagrams sent.
    pub sent: u64,
    /// Their payload, in bytes.
    pub sent_bytes: u64,
    /// System calls that sent them.
    pub send_calls: u64,
    /// Received datagrams of which a part was cut off, because the buffer was too small.
    pub truncated: u64,
    /// Datagrams that the socket's guard refused. They count as nothing else.
    pub refused: u64,
    /// Entries of the error queue: datagrams that failed on their way, as far as the socket asks
    /// to hear of them (`IP_RECVERR`).
    pub errors: u64,
    /// Datagrams that an event loop's transport or a server accepted and could not send.
    pub send_errors: u64,
}

impl Counters {
    /// Counts `datagrams` with `bytes` of payload, received by one call.
    pub fn count_received(&self, datagrams: usize, bytes: usize) {
        self.received.count(datagrams, bytes);
    }

    /// Counts `datagrams` with `bytes` of payload, sent by one call.
    pub fn count_sent(&self, datagrams: usize, bytes: usize) {
        self.sent.count(datagrams, bytes);
    }

    /// Counts datagrams that did not fit.
    pub fn count_truncated(&self, datagrams: usize) {
        self.truncated.fetch_add(datagrams as u64, Ordering::Relaxed);
    }

    /// Counts datagrams that the guard refused.
    pub fn count_refused(&self, datagrams: usize) {
        self.refused.fetch_add(datagrams as u64, Ordering::Relaxed);
    }

    /// How many datagrams the guard has refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// What was counted since this was last called, by any thread: for who adds it up elsewhere.
    pub fn take_untold(&self) -> Untold {
        let take = |counter: &AtomicU64, told: &AtomicU64| {
            let count = counter.load(Ordering::Relaxed);
            if count == told.load(Ordering::Relaxed) {
                return 0; // the usual case
            }
            count.saturating_sub(told.fetch_max(count, Ordering::Relaxed))
        };
        Untold {
            refused: take(&self.refused, &self.told.refused),
            sent: take(&self.sent.datagrams, &self.told.sent),
            sent_bytes: take(&self.sent.bytes, &self.told.sent_bytes),
            send_calls: take(&self.sent.calls, &self.told.send_calls),
        }
    }

    /// Counts received datagrams that there was no memory to keep. As the kernel's drops, they count
    /// as not received.
    pub fn count_dropped(&self, datagrams: usize) {
        if datagrams > 0 {
            self.dropped.fetch_add(datagrams as u64, Ordering::Relaxed);
            self.received.datagrams.fetch_sub(datagrams as u64, Ordering::Relaxed);
        }
    }

    /// How many datagrams there was no memory to keep.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Counts entries of the error queue.
    pub fn count_errors(&self, entries: usize) {
        self.errors.fetch_add(entries as u64, Ordering::Relaxed);
    }

    /// Counts datagrams that were accepted to be sent later, and could not be.
    pub fn count_send_errors(&self, datagrams: usize) {
        self.send_errors.fetch_add(datagrams as u64, Ordering::Relaxed);
    }

    /// Reads all counters. Each is exact, but one may be read before and another after a datagram
    /// that passes meanwhile.
    pub fn read(&self) -> Stats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            received: load(&self.received.datagrams),
            received_bytes: load(&self.received.bytes),
            receive_calls: load(&self.received.calls),
            sent: load(&self.sent.datagrams),
            sent_bytes: load(&self.sent.bytes),
            send_calls: load(&self.sent.calls),
            truncated: load(&self.truncated),
            refused: self.refused(),
            errors: load(&self.errors),
            send_errors: load(&self.send_errors),
        }
    }
}

impl Direction {
    fn count(&self, datagrams: usize, bytes: usize) {
        self.datagrams.fetch_add(datagrams as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.calls.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_told_once() {
        let counters = Counters::default();
        assert_eq!(counters.take_untold(), Untold::default());
        counters.count_refused(3);
        counters.count_sent(2, 20);
        let told = Untold { refused: 3, sent: 2, sent_bytes: 20, send_calls: 1 };
        assert_eq!(counters.take_untold(), told);
        counters.count_refused(2);
        assert_eq!(counters.take_untold(), Untold { refused: 2, ..Untold::default() });
        assert_eq!(counters.take_untold(), Untold::default());
        assert_eq!((counters.read().refused, counters.read().sent), (5, 2));
    }
}
