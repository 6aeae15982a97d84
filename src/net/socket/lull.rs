//! Whether a receive should wait before it tries: a try costs a system call, and so does a wait.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Socket;

/// A sleep takes longer than this. A wait that ends sooner found a datagram in the queue.
const SHORTEST_SLEEP: Duration = Duration::from_micros(4);
/// The longest time without a try after a sleep, however long that was. A burst may have begun.
const LONGEST_LULL: Duration = Duration::from_millis(1);

/// Until when the queue is probably empty.
///
/// A thread that slept before each of its last two receives, and has since been busy for a shorter
/// time than it slept, has probably taken all datagrams. One sleep is not enough: datagrams that
/// come in bursts, and are taken one by one, follow it.
pub(super) struct Lull {
    origin: Instant,
    /// In nanoseconds after the origin.
    end: AtomicU64,
    /// Whether the thread slept before the last receive.
    has_slept: AtomicBool,
}

impl Default for Lull {
    fn default() -> Self {
        Self { origin: Instant::now(), end: AtomicU64::new(0), has_slept: AtomicBool::new(false) }
    }
}

impl Lull {
    /// When a lull ends, after a wait that ended now; 0 if the wait was not a sleep.
    fn end_after(waited: Duration, now: Duration) -> u64 {
        if waited < SHORTEST_SLEEP {
            return 0;
        }
        (now + waited.min(LONGEST_LULL)).as_nanos() as u64
    }
}

impl Socket {
    /// The time since the socket was opened, in nanoseconds.
    pub(super) fn age(&self) -> u64 {
        self.lull.origin.elapsed().as_nanos() as u64
    }

    /// Whether the queue is probably empty, so that a call that may wait should wait first.
    pub fn is_in_lull(&self) -> bool {
        let end = self.lull.end.load(Ordering::Relaxed);
        end != 0 && self.age() < end
    }

    /// Records that a receive found a datagram without waiting.
    pub fn note_try(&self) {
        if self.lull.has_slept.load(Ordering::Relaxed) {
            self.lull.has_slept.store(false, Ordering::Relaxed);
        }
    }

    /// Records that a thread has waited for a datagram since an instant.
    pub(super) fn note_wait(&self, since: Instant) {
        let now = Instant::now();
        let waited = now.saturating_duration_since(since);
        let end = Lull::end_after(waited, now.saturating_duration_since(self.lull.origin));
        let had_slept = self.lull.has_slept.swap(end != 0, Ordering::Relaxed);
        self.lull.end.store(if had_slept { end } else { 0 }, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lull_is_as_long_as_the_sleep_before_it() {
        let now = Duration::from_secs(5);
        let after = |waited| Lull::end_after(waited, now);
        assert_eq!(after(Duration::from_micros(1)), 0);
        let sleep = Duration::from_micros(100);
        assert_eq!(u128::from(after(sleep)), (now + sleep).as_nanos());
        let longest = u128::from(after(Duration::from_secs(3600)));
        assert_eq!(longest, (now + LONGEST_LULL).as_nanos());
    }

    #[test]
    fn a_lull_begins_after_two_sleeps_without_a_try_that_found_a_datagram() {
        let socket = Socket::open(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
        let has_lull = || socket.lull.end.load(Ordering::Relaxed) != 0;
        let sleep = || socket.note_wait(Instant::now().checked_sub(SHORTEST_SLEEP).unwrap());
        sleep();
        assert!(!has_lull());
        sleep();
        assert!(has_lull());
        socket.note_wait(Instant::now() + Duration::from_secs(3600)); // no time has passed
        assert!(!has_lull() && !socket.is_in_lull());
        sleep();
        socket.note_try();
        sleep();
        assert!(!has_lull());
    }
}
