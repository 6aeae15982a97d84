//! Counters of a socket's datagrams and calls.

use std::sync::atomic::{AtomicU64, Ordering};

use super::counters::{declare_counters, socket_counters};

socket_counters!(declare_counters!(
    /// One of a socket's counters.
    SocketCounter,
    /// A socket's counters at one moment.
    Stats
));

/// A socket's counters, which any thread may raise.
#[derive(Debug, Default)]
pub struct Counters {
    counts: [AtomicU64; SocketCounter::ALL.len()],
    /// Datagrams that were dropped because memory allocation failed, or their DTLS session was
    /// replaced.
    dropped: AtomicU64,
    /// The counters as they were when [`Counters::take_delta`] last read them.
    reported: [AtomicU64; SocketCounter::ALL.len()],
}

/// The increase of the counters since the last query, with the names of [`Stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are those of Stats")]
pub struct CounterDelta {
    pub refused: u64,
    pub proxy_untrusted: u64,
    pub proxy_malformed: u64,
    pub sent: u64,
    pub sent_bytes: u64,
    pub send_calls: u64,
}

impl Counters {
    /// Counts `datagrams` with `bytes` of payload, received by one call.
    pub fn count_received(&self, datagrams: usize, bytes: usize) {
        self.add(SocketCounter::Received, datagrams);
        self.add(SocketCounter::ReceivedBytes, bytes);
        self.add(SocketCounter::ReceiveCalls, 1);
    }

    /// Counts `datagrams` with `bytes` of payload that came out of those of a counted call.
    #[cfg(feature = "dtls")]
    pub(super) fn count_also_received(&self, datagrams: usize, bytes: usize) {
        self.add(SocketCounter::Received, datagrams);
        self.add(SocketCounter::ReceivedBytes, bytes);
    }

    /// Counts `datagrams` with `bytes` of payload, sent by one call.
    pub fn count_sent(&self, datagrams: usize, bytes: usize) {
        self.add(SocketCounter::Sent, datagrams);
        self.add(SocketCounter::SentBytes, bytes);
        self.add(SocketCounter::SendCalls, 1);
    }

    /// Counts datagrams that did not fit.
    pub fn count_truncated(&self, datagrams: usize) {
        self.add(SocketCounter::Truncated, datagrams);
    }

    /// Counts datagrams that the guard refused.
    pub fn count_refused(&self, datagrams: usize) {
        self.add(SocketCounter::Refused, datagrams);
    }

    /// Counts datagrams that were refused because of their PROXY headers, or their lack of one.
    pub fn count_unproxied(&self, untrusted: usize, malformed: usize) {
        self.add(SocketCounter::ProxyUntrusted, untrusted);
        self.add(SocketCounter::ProxyMalformed, malformed);
    }

    /// How many datagrams the guard has refused.
    pub fn refused(&self) -> u64 {
        self.get(SocketCounter::Refused)
    }

    /// The increase since the last call, by any thread. For callers that add it to their own
    /// counters.
    pub fn take_delta(&self) -> CounterDelta {
        let take = |counter: SocketCounter| {
            let (count, reported) = (self.get(counter), &self.reported[counter as usize]);
            if count == reported.load(Ordering::Relaxed) {
                return 0; // the usual case
            }
            count.saturating_sub(reported.fetch_max(count, Ordering::Relaxed))
        };
        CounterDelta {
            refused: take(SocketCounter::Refused),
            proxy_untrusted: take(SocketCounter::ProxyUntrusted),
            proxy_malformed: take(SocketCounter::ProxyMalformed),
            sent: take(SocketCounter::Sent),
            sent_bytes: take(SocketCounter::SentBytes),
            send_calls: take(SocketCounter::SendCalls),
        }
    }

    /// Counts received datagrams that were [dropped](Self::dropped) here. Like the kernel's drops, they
    /// do not count as received.
    pub fn count_dropped(&self, datagrams: usize) {
        if datagrams > 0 {
            self.dropped.fetch_add(datagrams as u64, Ordering::Relaxed);
            self.counts[SocketCounter::Received as usize]
                .fetch_sub(datagrams as u64, Ordering::Relaxed);
        }
    }

    /// Counts datagrams that were [dropped](Self::dropped) before they were counted as received.
    pub fn count_lost(&self, datagrams: usize) {
        self.dropped.fetch_add(datagrams as u64, Ordering::Relaxed);
    }

    /// The number of datagrams that were dropped because memory allocation failed, or their DTLS
    /// session was replaced.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Counts entries of the error queue.
    pub fn count_errors(&self, entries: usize) {
        self.add(SocketCounter::Errors, entries);
    }

    /// Counts reports that datagrams have left.
    pub fn count_transmitted(&self, reports: usize) {
        self.add(SocketCounter::Transmitted, reports);
    }

    /// Counts datagrams that were accepted to be sent later and then could not be sent.
    pub fn count_send_errors(&self, datagrams: usize) {
        self.add(SocketCounter::SendErrors, datagrams);
    }

    /// Reads all counters except the kernel's, which are zero. Each is exact, but a datagram that
    /// passes meanwhile may be included in one counter and not in another.
    pub fn read(&self) -> Stats {
        Stats::read(|counter| self.get(counter))
    }

    fn get(&self, counter: SocketCounter) -> u64 {
        self.counts[counter as usize].load(Ordering::Relaxed)
    }

    fn add(&self, counter: SocketCounter, count: usize) {
        self.counts[counter as usize].fetch_add(count as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_increase_is_reported_once() {
        let counters = Counters::default();
        assert_eq!(counters.take_delta(), CounterDelta::default());
        counters.count_refused(3);
        counters.count_sent(2, 20);
        let reported = CounterDelta {
            refused: 3,
            sent: 2,
            sent_bytes: 20,
            send_calls: 1,
            ..CounterDelta::default()
        };
        assert_eq!(counters.take_delta(), reported);
        counters.count_refused(2);
        assert_eq!(counters.take_delta(), CounterDelta { refused: 2, ..CounterDelta::default() });
        assert_eq!(counters.take_delta(), CounterDelta::default());
        assert_eq!((counters.read().refused, counters.read().sent), (5, 2));
    }
}
