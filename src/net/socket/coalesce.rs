//! Waiting for more datagrams after the first one, so that one wake-up serves many.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::Socket;
use crate::net::recv_ring::Filled;

/// A receive with at least this many datagrams predicts that the next window has some, too.
const SEVERAL: usize = 3;
/// A window ends when this many messages have probably arrived, which fill a ring: the share of a
/// wake-up in the cost of each is small by then, and the receive buffer has room for them.
const ENOUGH: u64 = 64;

/// How long a socket collects datagrams, and what its last receives have found.
///
/// Times are in nanoseconds, and instants are ages of the socket. There is no lock: where threads
/// receive at the same time, a window may get another length, but never a longer one than is set.
pub(super) struct Coalescing {
    /// The longest window; 0 does not collect.
    longest: AtomicU64,
    /// When the current window began; 0 before it does.
    begun: AtomicU64,
    next: AtomicU8,
    /// When a receive has last emptied the queue, or the socket was opened.
    emptied: AtomicU64,
    /// The number of messages received since.
    messages: AtomicU32,
    /// When enough messages will probably have arrived, at the rate before that.
    enough_at: AtomicU64,
}

/// How the next receive of a socket that coalesces begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextReceive {
    /// With a try: there may be more, or the socket does not coalesce.
    Now,
    /// With the first datagram, after which others are collected.
    AfterFirst,
    /// With the window at once: the last receive found several datagrams, so the first one would
    /// arrive soon, and waiting for it would cost a wake-up. Or the window has begun already.
    AfterWindow,
}

const FIRST: u8 = 0;
const WINDOW: u8 = 1;
const NOW: u8 = 2;

impl Default for Coalescing {
    fn default() -> Self {
        Self {
            longest: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            next: AtomicU8::new(FIRST),
            emptied: AtomicU64::new(0),
            messages: AtomicU32::new(0),
            enough_at: AtomicU64::new(u64::MAX),
        }
    }
}

impl Coalescing {
    /// Records what a receive has found, which ends the window.
    fn note(&self, found: &Filled, now: u64) {
        self.begun.store(0, Relaxed);
        let next = match found {
            filled if filled.is_full => NOW,
            filled if filled.datagrams >= SEVERAL => WINDOW,
            _ => FIRST,
        };
        self.next.store(next, Relaxed);
        let messages = self.messages.load(Relaxed).saturating_add(found.messages as u32);
        self.messages.store(if found.is_full { messages } else { 0 }, Relaxed);
        if !found.is_full {
            let took = now.saturating_sub(self.emptied.swap(now, Relaxed));
            let fills_in = took.saturating_mul(ENOUGH) / u64::from(messages.max(1));
            self.enough_at.store(now.saturating_add(fills_in), Relaxed);
        }
    }

    /// When the window ends: sooner if the traffic fills it.
    fn end(&self) -> Option<u64> {
        let begun = self.begun.load(Relaxed);
        let end = begun.saturating_add(self.longest.load(Relaxed));
        (begun != 0).then(|| end.min(self.enough_at.load(Relaxed)))
    }
}

impl Socket {
    /// How long a receive of many datagrams waits for more after the first one; zero by default.
    pub fn coalesce(&self) -> Duration {
        Duration::from_nanos(self.backlog.coalescing.longest.load(Relaxed))
    }

    /// Sets how long a receive of many datagrams waits for more, and wakes the threads that wait:
    /// it applies to the window that has begun, too.
    pub fn set_coalesce(&self, longest: Duration) {
        let nanoseconds = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
        self.backlog.coalescing.longest.store(nanoseconds, Relaxed);
        self.descriptor().wake();
    }

    /// Begins a window, unless one has begun; returns false if the next receive needs none. That
    /// receive ends it, in whichever thread.
    pub fn begin_window(&self) -> bool {
        let (begun, waits) =
            (&self.backlog.coalescing.begun, self.next_receive() != NextReceive::Now);
        if waits && begun.load(Relaxed) == 0 {
            begun.store(self.age(), Relaxed);
        }
        waits
    }

    /// The time that is left of the window that has begun, if any.
    pub fn window_left(&self) -> Option<Duration> {
        if self.next_receive() == NextReceive::Now {
            return None;
        }
        let left = self.backlog.coalescing.end()?.saturating_sub(self.age());
        (left > 0).then(|| Duration::from_nanos(left))
    }

    /// How the next receive begins.
    pub fn next_receive(&self) -> NextReceive {
        let coalescing = &self.backlog.coalescing;
        if coalescing.longest.load(Relaxed) == 0 || self.has_own_result() {
            return NextReceive::Now;
        }
        match coalescing.next.load(Relaxed) {
            NOW => NextReceive::Now,
            FIRST if coalescing.begun.load(Relaxed) == 0 => NextReceive::AfterFirst,
            _ => NextReceive::AfterWindow,
        }
    }

    /// Records what a receive has found, if the socket coalesces.
    pub(super) fn note_receive(&self, found: &Filled) {
        let coalescing = &self.backlog.coalescing;
        if coalescing.longest.load(Relaxed) > 0 {
            coalescing.note(found, self.age());
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::io;

    const LONGEST: Duration = Duration::from_secs(3600);

    fn filled(datagrams: usize, is_full: bool) -> Filled {
        Filled { messages: datagrams, datagrams, is_full, ..Filled::default() }
    }

    fn coalescing_socket() -> Socket {
        let socket = Socket::open(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
        socket.set_coalesce(LONGEST);
        socket
    }

    #[test]
    fn the_last_receive_says_how_the_next_one_begins() {
        let socket = coalescing_socket();
        socket.set_coalesce(Duration::ZERO);
        socket.note_receive(&filled(9, false));
        assert_eq!(socket.next_receive(), NextReceive::Now);
        socket.set_coalesce(LONGEST);
        assert_eq!(socket.next_receive(), NextReceive::AfterFirst);
        for (found, next) in [
            (filled(SEVERAL, false), NextReceive::AfterWindow),
            (filled(SEVERAL, true), NextReceive::Now),
            (filled(SEVERAL - 1, false), NextReceive::AfterFirst),
            (filled(1, true), NextReceive::Now),
            (Filled::default(), NextReceive::AfterFirst),
        ] {
            socket.note_receive(&found);
            assert_eq!(socket.next_receive(), next);
        }
    }

    #[test]
    fn a_window_goes_on_until_a_receive() {
        let socket = coalescing_socket();
        assert_eq!(socket.window_left(), None);
        assert!(socket.begin_window());
        assert_eq!(socket.next_receive(), NextReceive::AfterWindow);
        let left = socket.window_left();
        assert!(left <= Some(LONGEST) && left > Some(LONGEST / 2));
        socket.begin_window();
        assert!(socket.window_left() <= left);
        socket.note_receive(&filled(1, false));
        assert_eq!((socket.next_receive(), socket.window_left()), (NextReceive::AfterFirst, None));
        socket.note_receive(&filled(1, true));
        assert!(!socket.begin_window());
        socket.note_receive(&Filled::default());
        assert_eq!(socket.next_receive(), NextReceive::AfterFirst);
    }

    #[test]
    fn a_window_that_has_begun_becomes_shorter() {
        let socket = coalescing_socket();
        socket.begin_window();
        socket.set_coalesce(LONGEST / 2);
        let left = socket.window_left();
        assert!(left <= Some(LONGEST / 2) && left > Some(LONGEST / 3));
        socket.set_coalesce(Duration::from_nanos(1));
        assert_eq!(socket.window_left(), None);
    }

    #[test]
    fn a_deferred_error_ends_the_window() {
        let socket = coalescing_socket();
        socket.begin_window();
        socket.defer(&io::Error::from_raw_os_error(libc::ECONNREFUSED));
        assert_eq!((socket.next_receive(), socket.window_left()), (NextReceive::Now, None));
    }

    #[test]
    fn a_window_ends_when_the_traffic_fills_it() {
        let coalescing = Coalescing::default();
        let end_from = |begun| {
            coalescing.begun.store(begun, Relaxed);
            coalescing.end()
        };
        coalescing.longest.store(100, Relaxed);
        assert_eq!((end_from(0), end_from(7)), (None, Some(107)));
        coalescing.note(&filled(5, false), 1000);
        assert_eq!((end_from(0), end_from(1000)), (None, Some(1100)));
        coalescing.note(&filled(64, true), 1060);
        coalescing.note(&filled(64, true), 1110);
        coalescing.note(&filled(32, false), 1160); // one message per nanosecond
        assert_eq!(end_from(1160), Some(1160 + 64));
        assert_eq!(end_from(1500), Some(1160 + 64)); // they are there already
        coalescing.note(&filled(0, false), 1224); // 64 nanoseconds without any
        assert_eq!(end_from(1224), Some(1224 + 100));
    }
}
