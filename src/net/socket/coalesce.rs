//! Waiting for more datagrams after the first one, so that one wake-up serves many.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Socket;
use crate::net::recv_ring::Filled;

/// A receive with at least this many datagrams predicts that the next window has some, too.
const SEVERAL: usize = 3;
/// A window ends when this many messages have probably arrived, which fill a ring: the share of a
/// wake-up in the cost of each is small by then, and the receive buffer has room for them.
const ENOUGH: u32 = 64;

/// How long a socket collects datagrams, and what its last receive has found.
#[derive(Default)]
pub(super) struct Coalescing {
    /// In nanoseconds; 0 does not collect.
    window: AtomicU64,
    next: AtomicU8,
    traffic: Mutex<Traffic>,
}

/// How the next receive of a socket that coalesces begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextReceive {
    /// With a try: the last receive took as much as it could, or the socket does not coalesce.
    Now,
    /// With the first datagram, after which others are collected.
    AfterFirst,
    /// With the window at once: the last receive found several datagrams, so the first one would
    /// arrive soon, and waiting for it would cost a wake-up.
    AfterWindow,
}

const FIRST: u8 = 0;
const WINDOW: u8 = 1;
const NOW: u8 = 2;

/// How fast messages arrive.
#[derive(Default)]
struct Traffic {
    /// When a receive has last emptied the queue.
    emptied: Option<Instant>,
    /// The number of messages received since.
    messages: u32,
    /// How long enough messages took to arrive before that.
    fills_in: Option<Duration>,
}

impl Traffic {
    /// Records a receive at `now`.
    fn note(&mut self, messages: usize, is_full: bool, now: Instant) {
        self.messages = self.messages.saturating_add(messages as u32);
        if is_full {
            return; // there may be more
        }
        let took = self.emptied.replace(now).map(|then| now.saturating_duration_since(then));
        self.fills_in = took.map(|took| took.saturating_mul(ENOUGH) / self.messages.max(1));
        self.messages = 0;
    }

    /// When enough messages have probably arrived since the queue was empty.
    fn is_enough_at(&self) -> Option<Instant> {
        self.emptied?.checked_add(self.fills_in?)
    }
}

impl Socket {
    /// How long a receive of many datagrams waits for more after the first one; zero by default.
    pub fn coalesce(&self) -> Duration {
        Duration::from_nanos(self.backlog.coalescing.window.load(Ordering::Relaxed))
    }

    /// Sets how long a receive of many datagrams waits for more, and wakes the threads that wait.
    pub fn set_coalesce(&self, window: Duration) {
        let nanoseconds = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        self.backlog.coalescing.window.store(nanoseconds, Ordering::Relaxed);
        self.descriptor().wake();
    }

    /// When a window that begins now ends. It is shorter if the traffic fills it.
    pub fn window_end(&self, now: Instant) -> Instant {
        let end = now + self.coalesce();
        let enough = self.traffic().is_enough_at();
        enough.map_or(end, |enough| enough.clamp(now, end))
    }

    /// How the next receive begins.
    pub fn next_receive(&self) -> NextReceive {
        if self.backlog.coalescing.window.load(Ordering::Relaxed) == 0 || self.backlog_len() > 0 {
            return NextReceive::Now;
        }
        match self.backlog.coalescing.next.load(Ordering::Relaxed) {
            NOW => NextReceive::Now,
            WINDOW => NextReceive::AfterWindow,
            _ => NextReceive::AfterFirst,
        }
    }

    /// Records what a receive has found, if the socket coalesces.
    pub(super) fn note_receive(&self, found: &Filled) {
        if self.backlog.coalescing.window.load(Ordering::Relaxed) == 0 {
            return;
        }
        let next = match found {
            filled if filled.is_full => NOW,
            filled if filled.datagrams >= SEVERAL => WINDOW,
            _ => FIRST,
        };
        self.backlog.coalescing.next.store(next, Ordering::Relaxed);
        self.traffic().note(found.messages, found.is_full, Instant::now());
    }

    fn traffic(&self) -> MutexGuard<'_, Traffic> {
        self.backlog.coalescing.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW_TIME: Duration = Duration::from_micros(100);

    fn filled(datagrams: usize, is_full: bool) -> Filled {
        Filled { messages: datagrams, datagrams, is_full, ..Filled::default() }
    }

    #[test]
    fn the_last_receive_says_how_the_next_one_begins() {
        let socket = Socket::open(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
        socket.note_receive(&filled(9, false));
        assert_eq!(socket.next_receive(), NextReceive::Now);
        socket.set_coalesce(WINDOW_TIME);
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
    fn a_window_ends_when_the_traffic_fills_it() {
        let start = Instant::now();
        let after = |microseconds| start + Duration::from_micros(microseconds);
        let mut traffic = Traffic::default();
        assert_eq!(traffic.is_enough_at(), None);
        traffic.note(5, false, start);
        assert_eq!(traffic.is_enough_at(), None); // it may have taken any time
        traffic.note(64, true, after(60));
        traffic.note(64, true, after(110));
        assert_eq!(traffic.is_enough_at(), None); // the queue is not empty
        traffic.note(32, false, after(160)); // one message per microsecond
        assert_eq!(traffic.is_enough_at(), Some(after(160 + 64)));
        traffic.note(0, false, after(224)); // 64 microseconds without any
        assert_eq!(traffic.is_enough_at(), Some(after(224 + 64 * 64)));
    }

    #[test]
    fn a_window_is_not_longer_than_asked_for() {
        let socket = Socket::open(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
        socket.set_coalesce(WINDOW_TIME);
        let now = Instant::now();
        assert_eq!(socket.window_end(now), now + WINDOW_TIME);
        let (emptied, fills_in) = (Some(now), Some(WINDOW_TIME / 4));
        *socket.traffic() = Traffic { emptied, fills_in, ..Traffic::default() };
        assert_eq!(socket.window_end(now), now + WINDOW_TIME / 4);
        let later = now + WINDOW_TIME; // they are there already
        assert_eq!(socket.window_end(later), later);
        socket.traffic().fills_in = Some(10 * WINDOW_TIME);
        assert_eq!(socket.window_end(now), now + WINDOW_TIME);
    }
}
