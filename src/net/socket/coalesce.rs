//! Waiting for more datagrams after the first one, so that one wake-up serves many.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use super::Socket;
use crate::net::recv_ring::Filled;

/// A receive with at least this many datagrams predicts that the next window has some, too.
const SEVERAL: usize = 3;

/// How long a socket collects datagrams, and what its last receive has found.
#[derive(Default)]
pub(super) struct Coalescing {
    /// In nanoseconds; 0 does not collect.
    window: AtomicU64,
    next: AtomicU8,
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

impl Socket {
    /// How long a receive of many datagrams waits for more after the first one; zero by default.
    pub fn coalesce(&self) -> Duration {
        Duration::from_nanos(self.backlog.coalescing.window.load(Ordering::Relaxed))
    }

    /// Sets how long a receive of many datagrams waits for more.
    pub fn set_coalesce(&self, window: Duration) {
        let nanoseconds = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        self.backlog.coalescing.window.store(nanoseconds, Ordering::Relaxed);
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

    /// Records what a receive has found: nothing, or some datagrams.
    pub(super) fn note_receive(&self, found: Option<&Filled>) {
        if self.backlog.coalescing.window.load(Ordering::Relaxed) != 0 {
            let next = match found {
                Some(filled) if filled.is_full => NOW,
                Some(filled) if filled.datagrams >= SEVERAL => WINDOW,
                _ => FIRST,
            };
            self.backlog.coalescing.next.store(next, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_receive_says_how_the_next_one_begins() {
        let socket = Socket::open(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
        let filled = |datagrams, is_full| Filled { datagrams, is_full, ..Filled::default() };
        socket.note_receive(Some(&filled(9, false)));
        assert_eq!(socket.next_receive(), NextReceive::Now);
        socket.set_coalesce(Duration::from_micros(100));
        assert_eq!(socket.next_receive(), NextReceive::AfterFirst);
        for (found, next) in [
            (Some(filled(SEVERAL, false)), NextReceive::AfterWindow),
            (Some(filled(SEVERAL, true)), NextReceive::Now),
            (Some(filled(SEVERAL - 1, false)), NextReceive::AfterFirst),
            (Some(filled(1, true)), NextReceive::Now),
            (None, NextReceive::AfterFirst),
        ] {
            socket.note_receive(found.as_ref());
            assert_eq!(socket.next_receive(), next);
        }
    }
}
