//! How many datagrams the kernel dropped, and why: no room, or refused by the socket's filter.
//!
//! The kernel has one counter for both (`sk_drops`, in `SO_MEMINFO`, `SO_RXQ_OVFL` and
//! `/proc/net/udp`). But each network namespace has a set of counters in which they differ
//! (`net/ipv4/udp.c`). A datagram that finds no room increments `InErrors` and `RcvbufErrors` (or
//! `MemErrors`); one with a wrong checksum, `InErrors` and `InCsumErrors`; one that a filter
//! refuses, `InErrors` alone. So between two readings of all these counters:
//!
//! * At most as many datagrams of this socket were dropped because there was no room as the
//!   increase of `RcvbufErrors`, `MemErrors` and `InCsumErrors`. Its filter refused the rest.
//! * Its filter refused at most as many as the increase of `InErrors` without those.
//!
//! Both bounds are exact if no other socket of the namespace drops datagrams at the same time.
//! Otherwise some that the filter refused may count as dropped because there was no room, but never
//! the other way round.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use super::Socket;
use crate::net::fork_mutex::{ForkMutex, Inherit};
use crate::net::sys;

/// The drops of a socket since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// Dropped because the socket's buffer was full or memory was short, or for a wrong checksum.
    pub unwanted: u64,
    /// Refused by the socket's filter.
    pub filtered: u64,
}

/// A socket's record of its drops.
#[derive(Default)]
pub(super) struct DropCounter {
    /// Whether the socket has, or had, a filter. Without one, all drops have the same cause.
    has_filter: AtomicBool,
    seen: ForkMutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// The kernel's 32-bit counter at the last reading, extended to 64 bits.
    total: u64,
    /// How many of those the filter refused.
    filtered: u64,
    /// The namespace's counters, read just before the socket's.
    errors: Option<Errors>,
}

/// A child starts with its parent's record. Every value is a single word; after a fork in the
/// middle of a change, the next reading attributes a few drops to the wrong cause.
impl Inherit for Seen {
    fn inherit(&mut self) {}
}

impl Socket {
    /// Records that the socket may have a filter from now on.
    pub(super) fn filter_was_set(&self) {
        self.drops.has_filter.store(true, Ordering::Relaxed);
        self.dropped_by_kernel(); // earlier drops were not caused by the filter
    }

    /// Checks whether an adopted socket already has a filter.
    pub(super) fn find_filter(&self) {
        let has_filter = self.is_ip()
            && self.is_datagram()
            && self.with(|fd| Ok(sys::has_filter(fd))).unwrap_or(false);
        if has_filter {
            self.filter_was_set();
        }
    }

    /// The drops so far or, for a closed socket, until it was closed.
    ///
    /// The kernel's counter has 32 bits. No drops are missed if this is called before it wraps
    /// around.
    pub(super) fn dropped_by_kernel(&self) -> Drops {
        let mut seen = self.drops.seen.lock();
        let tells_apart = self.drops.has_filter.load(Ordering::Relaxed);
        let look = || if tells_apart { Errors::of(self) } else { None };
        let before = look();
        if let Some(counter) = self.drop_counter() {
            let total = beyond_32_bits(seen.total, counter);
            let drops = total - seen.total;
            if drops > 0
                && let (Some(last), Some(after)) = (seen.errors, look())
            {
                seen.filtered += last.filtered_until(after, drops);
            }
            (seen.total, seen.errors) = (total, before);
        }
        Drops { unwanted: seen.total - seen.filtered, filtered: seen.filtered }
    }

    fn drop_counter(&self) -> Option<u32> {
        // linux/sock_diag.h numbers the fields; SK_MEMINFO_DROPS is the ninth.
        const DROPS: usize = size_of::<[u32; 8]>();
        let mut fields = [0; DROPS + size_of::<u32>()];
        let len = self.option(libc::SOL_SOCKET, libc::SO_MEMINFO, &mut fields).ok()?;
        fields[..len].get(DROPS..)?.first_chunk().map(|drops| u32::from_ne_bytes(*drops))
    }
}

/// Extends a 32-bit counter to 64 bits, given its extended value at the last reading. It may have
/// wrapped around once since then, at most.
fn beyond_32_bits(known: u64, counter: u32) -> u64 {
    known + u64::from(counter.wrapping_sub(known as u32))
}

/// The UDP counters of a network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Errors {
    /// Dropped because there was no room, or because of a wrong checksum.
    unwanted: u64,
    /// Dropped for another reason, usually a filter.
    other: u64,
}

/// The files of the calling thread's namespace (`proc_pid_net(5)`).
const SNMP: &str = "/proc/thread-self/net/snmp";
const SNMP6: &str = "/proc/thread-self/net/snmp6";

impl Errors {
    /// Reads the counters of a socket's namespace; `None` if that is not the calling thread's, or
    /// if they cannot be read.
    fn of(socket: &Socket) -> Option<Self> {
        let is_here = socket.with(|fd| Ok(namespace(fd)? == own_namespace()?)).ok()?;
        if !is_here {
            return None;
        }
        let mut errors = Self::parse(&fs::read_to_string(SNMP).ok()?)?;
        // An IPv6 socket may receive both IPv4 and IPv6 datagrams.
        if socket.family() == libc::AF_INET6 {
            let v6 = Self::parse_v6(&fs::read_to_string(SNMP6).ok()?)?;
            errors.unwanted = errors.unwanted.wrapping_add(v6.unwanted);
            errors.other = errors.other.wrapping_add(v6.other);
        }
        Some(errors)
    }

    /// Parses `/proc/net/snmp`: one line has the names of the counters, the next one their values.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
        let (names, values) = (lines.next()?, lines.next()?);
        let counters: Vec<_> = names.split(' ').zip(values.split(' ')).collect();
        Self::from_counters(&|name| {
            let (_, value) = counters.iter().find(|(found, _)| *found == name)?;
            value.parse().ok()
        })
    }

    /// Parses `/proc/net/snmp6`: one counter per line.
    fn parse_v6(text: &str) -> Option<Self> {
        Self::from_counters(&|name| {
            let mut values = text.lines().filter_map(|line| {
                line.strip_prefix("Udp6")?.strip_prefix(name)?.trim().parse().ok()
            });
            values.next()
        })
    }

    fn from_counters(counter: &impl Fn(&str) -> Option<u64>) -> Option<Self> {
        // Kernels before 5.11 do not have MemErrors, and count these datagrams in neither.
        let memory = counter("MemErrors").unwrap_or_default();
        let unwanted =
            counter("RcvbufErrors")?.wrapping_add(counter("InCsumErrors")?).wrapping_add(memory);
        Some(Self { unwanted, other: counter("InErrors")?.wrapping_sub(unwanted) })
    }

    /// The minimum number of a socket's drops since these counters that a filter caused.
    fn filtered_until(self, after: Self, drops: u64) -> u64 {
        let rise = |from: u64, to: u64| to.wrapping_sub(from);
        let filtered = drops.saturating_sub(rise(self.unwanted, after.unwanted));
        let other = rise(self.other, after.other);
        // The kernel reads its counters one after another, so the later ones may be ahead.
        if other > u64::MAX / 2 { 0 } else { filtered.min(other) }
    }
}

/// `SO_NETNS_COOKIE` in asm-generic/socket.h, since Linux 5.14.
const SO_NETNS_COOKIE: i32 = 71;

/// The cookie of a socket's network namespace.
fn namespace(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = [0; size_of::<u64>()];
    sys::option(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, &mut cookie)?;
    Ok(u64::from_ne_bytes(cookie))
}

/// The cookie of the calling thread's network namespace.
fn own_namespace() -> io::Result<u64> {
    let probe = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    namespace(probe.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_counted_beyond_32_bits() {
        const ROUND: u64 = 1 << 32;
        assert_eq!(beyond_32_bits(0, 7), 7);
        assert_eq!(beyond_32_bits(7, 7), 7);
        assert_eq!(beyond_32_bits(ROUND - 1, u32::MAX), ROUND - 1);
        assert_eq!(beyond_32_bits(ROUND - 1, 2), ROUND + 2);
        assert_eq!(beyond_32_bits(5 * ROUND + 9, 8), 6 * ROUND + 8);
    }

    #[test]
    fn the_kernels_files_are_parsed() {
        let v4 = "Tcp: A B\nTcp: 1 2\n\
                  Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors \
                  InCsumErrors IgnoredMulti MemErrors\n\
                  Udp: 9 8 100 7 50 6 20 5 10\n\
                  UdpLite: InDatagrams InErrors\nUdpLite: 1 1\n";
        assert_eq!(Errors::parse(v4), Some(Errors { unwanted: 80, other: 20 }));
        let v6 = "Ip6InReceives\t 7\nUdp6InErrors  \t 30\nUdp6RcvbufErrors\t 7\n\
                  Udp6InCsumErrors \t 2\nUdp6MemErrors\t 1\nUdpLite6InErrors\t 4\n";
        assert_eq!(Errors::parse_v6(v6), Some(Errors { unwanted: 10, other: 20 }));
        let old = "Udp: InErrors RcvbufErrors InCsumErrors\nUdp: 3 2 1\n";
        assert_eq!(Errors::parse(old), Some(Errors { unwanted: 3, other: 0 }));
        for unknown in ["", "Udp: InErrors\n", "Udp: InErrors\nUdp: 1\n", "Udp: A\nUdp: x\n"] {
            assert_eq!(Errors::parse(unknown), None);
            assert_eq!(Errors::parse_v6(unknown), None);
        }
    }

    #[test]
    fn a_drop_without_room_never_counts_as_the_filters() {
        let errors = |unwanted, other| Errors { unwanted, other };
        let filtered = |drops, after| errors(100, 1000).filtered_until(after, drops);
        assert_eq!(filtered(7, errors(100, 1007)), 7);
        assert_eq!(filtered(7, errors(107, 1000)), 0);
        assert_eq!(filtered(7, errors(103, 1004)), 4);
        // Drops of other sockets.
        assert_eq!(filtered(7, errors(200, 1007)), 0);
        assert_eq!(filtered(7, errors(100, 1500)), 7);
        // Drops that a kernel does not count.
        assert_eq!(filtered(7, errors(100, 1000)), 0);
        // Counters that were read at different times, and wrapped around.
        assert_eq!(filtered(7, errors(102, 999)), 0);
        let before = Errors { unwanted: u64::MAX, other: u64::MAX };
        assert_eq!(before.filtered_until(errors(2, 3), 7), 4);
    }

    #[test]
    fn the_kernel_reports_the_namespace() {
        let socket = Socket::open(libc::AF_INET6, libc::SOCK_DGRAM, 0).unwrap();
        let before = Errors::of(&socket).unwrap();
        let after = Errors::of(&socket).unwrap();
        assert!(after.unwanted >= before.unwanted);
    }
}
