//! What the kernel dropped, and why: for want of room, or because the socket's filter refused it.
//!
//! The kernel has one counter for both (`sk_drops`, in `SO_MEMINFO`, `SO_RXQ_OVFL` and
//! `/proc/net/udp`). But it has others beside it, one set for each network namespace, in which the
//! two differ (`net/ipv4/udp.c`): a datagram that finds no room raises `InErrors` and `RcvbufErrors`
//! (or `MemErrors`), one with a wrong checksum `InErrors` and `InCsumErrors`, and one that a filter
//! refuses `InErrors` alone. So between two looks at all of them
//!
//! * no more datagrams of this socket were dropped for want of room than `RcvbufErrors`,
//!   `MemErrors` and `InCsumErrors` rose by: the rest of its drops are the filter's;
//! * no more were refused by its filter than `InErrors` rose by without those.
//!
//! Both bounds are exact where no other socket of the namespace drops datagrams at the same time.
//! Where one does, some that the filter refused may count as dropped for want of room, and never
//! the other way round.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use super::forked::{ForkMutex, Inherit};
use super::socket::Socket;
use super::sys;

/// What a socket's drops were, since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// Dropped for want of room in the socket's buffer or of memory, or with a wrong checksum.
    pub unwanted: u64,
    /// Refused by the socket's filter.
    pub filtered: u64,
}

/// What a socket knows about its drops.
#[derive(Default)]
pub(super) struct DropCounter {
    /// Whether the socket has, or had, a filter. Without one there is nothing to tell apart.
    has_filter: AtomicBool,
    seen: ForkMutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// The kernel's counter, beyond its 32 bits, when it was last asked.
    total: u64,
    /// How many of those the filter refused.
    filtered: u64,
    /// The namespace's counters, read before the socket's was.
    errors: Option<Errors>,
}

/// A child knows what its parent knew. The counters are numbers in places of their own; in the
/// middle of a change, the next look tells a few drops apart wrongly.
impl Inherit for Seen {
    fn inherit(&mut self) {}
}

impl Socket {
    /// Takes note that the socket may have a filter from now on.
    pub(super) fn filter_was_set(&self) {
        self.drops.has_filter.store(true, Ordering::Relaxed);
        self.dropped_by_kernel(); // what was dropped until now was not the filter's
    }

    /// Looks whether a socket that is taken over has a filter, which somebody else attached.
    pub(super) fn find_filter(&self) {
        let has_filter = self.is_ip()
            && self.is_datagram()
            && self.with(|fd| Ok(sys::has_filter(fd))).unwrap_or(false);
        if has_filter {
            self.filter_was_set();
        }
    }

    /// What the kernel has dropped. Of a socket that is closed, what it had dropped by then.
    ///
    /// The kernel's counter has 32 bits. Who asks before it has gone all the way round misses none.
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

/// What a counter of 32 bits has counted that was at `known` before, and has gone round once since
/// then at the most.
fn beyond_32_bits(known: u64, counter: u32) -> u64 {
    known + u64::from(counter.wrapping_sub(known as u32))
}

/// A network namespace's counters of UDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Errors {
    /// Found no room or had a wrong checksum.
    unwanted: u64,
    /// Were dropped for another reason, of which a filter is the usual one.
    other: u64,
}

/// The files of the calling thread's namespace (`proc_pid_net(5)`).
const SNMP: &str = "/proc/thread-self/net/snmp";
const SNMP6: &str = "/proc/thread-self/net/snmp6";

impl Errors {
    /// Reads the counters of the namespace that a socket is in; `None` where that is not the calling
    /// thread's, or where they cannot be read.
    fn of(socket: &Socket) -> Option<Self> {
        let is_here = socket.with(|fd| Ok(namespace(fd)? == own_namespace()?)).ok()?;
        if !is_here {
            return None;
        }
        let mut errors = Self::parse(&fs::read_to_string(SNMP).ok()?)?;
        // A socket of IPv6 may get datagrams of both.
        if socket.family() == libc::AF_INET6 {
            let v6 = Self::parse_v6(&fs::read_to_string(SNMP6).ok()?)?;
            errors.unwanted = errors.unwanted.wrapping_add(v6.unwanted);
            errors.other = errors.other.wrapping_add(v6.other);
        }
        Some(errors)
    }

    /// Reads `/proc/net/snmp`: a line with the names of the counters, and one with their values.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
        let (names, values) = (lines.next()?, lines.next()?);
        let counters: Vec<_> = names.split(' ').zip(values.split(' ')).collect();
        Self::from_counters(&|name| {
            let (_, value) = counters.iter().find(|(found, _)| *found == name)?;
            value.parse().ok()
        })
    }

    /// Reads `/proc/net/snmp6`: a counter a line.
    fn parse_v6(text: &str) -> Option<Self> {
        Self::from_counters(&|name| {
            let mut values = text.lines().filter_map(|line| {
                line.strip_prefix("Udp6")?.strip_prefix(name)?.trim().parse().ok()
            });
            values.next()
        })
    }

    fn from_counters(counter: &impl Fn(&str) -> Option<u64>) -> Option<Self> {
        // Without MemErrors the kernel is older than 5.11, and counts those in neither.
        let memory = counter("MemErrors").unwrap_or_default();
        let unwanted =
            counter("RcvbufErrors")?.wrapping_add(counter("InCsumErrors")?).wrapping_add(memory);
        Some(Self { unwanted, other: counter("InErrors")?.wrapping_sub(unwanted) })
    }

    /// How many of a socket's drops since these counters were read a filter refused, at the least.
    fn filtered_until(self, after: Self, drops: u64) -> u64 {
        let rise = |from: u64, to: u64| to.wrapping_sub(from);
        let filtered = drops.saturating_sub(rise(self.unwanted, after.unwanted));
        let other = rise(self.other, after.other);
        // The file's counters are read one by one: of two, the later may be ahead.
        if other > u64::MAX / 2 { 0 } else { filtered.min(other) }
    }
}

/// `SO_NETNS_COOKIE` in asm-generic/socket.h, since Linux 5.14.
const SO_NETNS_COOKIE: i32 = 71;

/// The number of the network namespace that a socket is in.
fn namespace(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = [0; size_of::<u64>()];
    sys::option(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, &mut cookie)?;
    Ok(u64::from_ne_bytes(cookie))
}

/// That of the calling thread.
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
    fn the_files_of_the_kernel_are_understood() {
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
    fn no_drop_for_want_of_room_counts_as_the_filters() {
        let errors = |unwanted, other| Errors { unwanted, other };
        let filtered = |drops, after| errors(100, 1000).filtered_until(after, drops);
        assert_eq!(filtered(7, errors(100, 1007)), 7);
        assert_eq!(filtered(7, errors(107, 1000)), 0);
        assert_eq!(filtered(7, errors(103, 1004)), 4);
        // Others' drops.
        assert_eq!(filtered(7, errors(200, 1007)), 0);
        assert_eq!(filtered(7, errors(100, 1500)), 7);
        // Drops that a kernel does not count.
        assert_eq!(filtered(7, errors(100, 1000)), 0);
        // Counters that were not read at once, and that have gone round.
        assert_eq!(filtered(7, errors(102, 999)), 0);
        let before = Errors { unwanted: u64::MAX, other: u64::MAX };
        assert_eq!(before.filtered_until(errors(2, 3), 7), 4);
    }

    #[test]
    fn the_kernel_tells_the_namespace() {
        let socket = Socket::open(libc::AF_INET6, libc::SOCK_DGRAM, 0).unwrap();
        let before = Errors::of(&socket).unwrap();
        let after = Errors::of(&socket).unwrap();
        assert!(after.unwanted >= before.unwanted);
    }
}
