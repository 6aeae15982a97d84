//! Which datagrams can be sent in one call that the kernel or the device splits (`UDP_SEGMENT`,
//! "GSO").

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::address::Address;
use super::sys;

/// A socket's state of segmentation offload: whether the socket supports it, and which destinations
/// have recently refused it.
///
/// A refusal is caused by the route or the device to a destination. It says nothing about other
/// destinations, and routes and devices change. Therefore it is remembered per destination, and
/// only for [`MEMORY`].
#[derive(Debug)]
pub(super) struct Gso {
    is_udp: bool,
    support: AtomicU8,
    /// Allocated on the first refusal, which most sockets never see.
    refusals: OnceLock<Refusals>,
}

/// The socket does not support segmentation.
const NONE: u8 = 0;
/// The socket was not queried yet.
const UNKNOWN: u8 = 1;
/// All runs can be sent.
const ALL: u8 = 2;
/// Only runs of datagrams of equal size can be sent, without a shorter one at the end.
const EVEN: u8 = 3;

/// How long a refusal is remembered. After that the next run to the destination tries again, which
/// costs one system call if nothing has changed.
const MEMORY: Duration = Duration::from_secs(60);

impl Gso {
    /// The state of a new socket, which is a UDP socket or not.
    pub(super) fn new(is_udp: bool) -> Self {
        let support = AtomicU8::new(if is_udp { UNKNOWN } else { NONE });
        Self { is_udp, support, refusals: OnceLock::new() }
    }

    /// Which runs can be sent now.
    pub(super) fn limits(&self, fd: BorrowedFd<'_>) -> Limits<'_> {
        if self.support.load(Ordering::Relaxed) == UNKNOWN {
            self.support.store(Self::ask(fd), Ordering::Relaxed);
        }
        self.known_limits()
    }

    /// Which runs can be sent, as far as is known.
    pub(super) fn known_limits(&self) -> Limits<'_> {
        let support = self.support.load(Ordering::Relaxed);
        let refusals = self.refusals.get().map(|refusals| (refusals, refusals.now()));
        Limits { any: support != NONE, short_ends: support != EVEN, refusals }
    }

    fn ask(fd: BorrowedFd<'_>) -> u8 {
        // A kernel older than the option ignores it in a control message and would send the run as
        // one datagram. If the user has set a segment size for the whole socket, our runs would
        // contradict it.
        let own = sys::int_option(fd, libc::SOL_UDP, libc::UDP_SEGMENT);
        if own.is_ok_and(|size| size == 0) {
            if may_fail_in_part(fd) { EVEN } else { ALL }
        } else {
            NONE
        }
    }

    /// Remembers that a run of datagrams of `len` bytes was refused with `error`, and that its
    /// first datagram was then sent alone.
    pub(super) fn refuse(&self, to: Option<&Address>, len: usize, error: &io::Error) {
        let longest = match error.raw_os_error() {
            // Longer than the path's MTU: shorter datagrams may succeed.
            Some(libc::EINVAL | libc::EMSGSIZE) => len - 1,
            // The route or the device does not support segmentation.
            _ => 0,
        };
        let refusals = self.refusals.get_or_init(Refusals::new);
        refusals.set(to, longest, refusals.now());
    }

    /// Forgets all refusals, after the user has changed the peer or a relevant option.
    pub(super) fn forget(&self) {
        if self.is_udp {
            self.support.store(UNKNOWN, Ordering::Relaxed);
        }
        if let Some(refusals) = self.refusals.get() {
            refusals.clear();
        }
    }
}

/// Whether the kernel may send one part of a run and refuse another with `EMSGSIZE`.
///
/// The kernel checks a run against the MTU before it sends anything. If the MTU is smaller when the
/// run reaches the device (the path has changed, or a firewall has chosen another route), the
/// kernel splits the run and fragments each part. If the socket forbids fragments, it refuses parts
/// instead: over IPv4 all of them (`ip_fragment`), but over IPv6 only those that are too long
/// (`ip6_finish_output_gso_slowpath_drop`). A shorter last part is sent, and would be sent again
/// when the datagrams are retried one by one.
fn may_fail_in_part(fd: BorrowedFd<'_>) -> bool {
    let discovery = sys::int_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER);
    discovery.is_ok_and(|discovery| {
        !matches!(discovery, libc::IPV6_PMTUDISC_DONT | libc::IPV6_PMTUDISC_WANT | PMTUDISC_OMIT)
    })
}

/// Missing in libc for some targets.
const PMTUDISC_OMIT: libc::c_int = 5;

/// Which runs can be sent at one moment.
#[derive(Clone, Copy)]
pub(super) struct Limits<'a> {
    any: bool,
    /// Whether the last datagram of a run may be shorter than the others.
    pub(super) short_ends: bool,
    refusals: Option<(&'a Refusals, u32)>,
}

impl Limits<'_> {
    /// No runs.
    pub(super) const NO_RUNS: Self = Self { any: false, short_ends: false, refusals: None };

    /// The longest datagram that a run to a destination may contain; 0 if no run can be sent.
    pub(super) fn longest(&self, to: Option<&Address>) -> usize {
        if !self.any {
            return 0;
        }
        self.refusals.and_then(|(refusals, now)| refusals.get(to, now)).unwrap_or(LARGEST_RUN)
    }
}

/// The destinations that have refused runs, in a table of fixed size. Each destination maps to one
/// slot, where a newer one may replace it; its next run then fails once more.
#[derive(Debug)]
struct Refusals {
    /// Each slot is 0 or, from the lowest bit: the longest datagram that a run may contain (16
    /// bits), the time of the refusal (24), and a tag that identifies the destination within the
    /// slot (24).
    slots: Box<[AtomicU64]>,
    hashes: RandomState,
    started: Instant,
}

const SLOTS: usize = 1024;
const SECONDS: u64 = (1 << 24) - 1;

impl Refusals {
    fn new() -> Self {
        let slots = (0..SLOTS).map(|_| AtomicU64::new(0)).collect();
        Self { slots, hashes: RandomState::new(), started: Instant::now() }
    }

    /// The time in seconds, never 0.
    fn now(&self) -> u32 {
        (self.started.elapsed().as_secs() & SECONDS) as u32 | 1
    }

    fn hash(&self, to: Option<&Address>) -> u64 {
        // A route does not depend on the port.
        let ip = to.and_then(Address::ip).map(|to| (to.ip(), scope(&to)));
        self.hashes.hash_one(ip)
    }

    fn get(&self, to: Option<&Address>, now: u32) -> Option<usize> {
        let hash = self.hash(to);
        let slot = self.slots[hash as usize % SLOTS].load(Ordering::Relaxed);
        let age = u64::from(now).wrapping_sub(slot >> 16) & SECONDS;
        let counts = slot != 0 && slot >> 40 == hash >> 40 && age <= MEMORY.as_secs();
        counts.then_some((slot & 0xffff) as usize)
    }

    fn set(&self, to: Option<&Address>, longest: usize, now: u32) {
        let hash = self.hash(to);
        let longest = self.get(to, now).map_or(longest, |known| known.min(longest));
        let slot = hash >> 40 << 40 | u64::from(now) << 16 | longest as u64 & 0xffff;
        self.slots[hash as usize % SLOTS].store(slot, Ordering::Relaxed);
    }

    fn clear(&self) {
        for slot in &self.slots {
            slot.store(0, Ordering::Relaxed);
        }
    }
}

fn scope(to: &std::net::SocketAddr) -> u32 {
    match to {
        std::net::SocketAddr::V6(to) => to.scope_id(),
        std::net::SocketAddr::V4(_) => 0,
    }
}

/// The maximum number of datagrams in a run that all kernels accept (`UDP_MAX_SEGMENTS`).
pub(super) const LONGEST_RUN: usize = 64;
/// The maximum size of a run in bytes: that of the largest datagram over IPv4.
pub(super) const LARGEST_RUN: usize = 65_507;

/// Whether an error may concern a run as such rather than its first datagram, so that the datagrams
/// may be sent one by one.
///
/// The error must mean that nothing was sent; otherwise datagrams would be sent twice. The kernel
/// returns these errors in `udp_send_skb` and `udp_v6_send_skb`, before it passes the run to IP:
/// `EMSGSIZE` (before 6.14 also `EINVAL`) for the MTU; `EINVAL` if checksums are off; `EIO` without
/// checksum offload, and for a route with `xfrm`. Later it returns `EMSGSIZE` for a run whose
/// datagrams are all too long (see [`may_fail_in_part`] for the exception, which
/// [`Limits::short_ends`] excludes), and `EINVAL` if its neighbour table is full, which affects the
/// whole run. (If the kernel also had to split the run, there might be room in the table for the
/// later parts only. That case cannot be detected; it takes a changed MTU, and a neighbour table
/// that is full and then no longer full within one system call.)
pub(super) fn is_about_run(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE))
}

/// Whether an error may have occurred after some datagrams of a run were sent, so that none of them
/// may be sent again.
///
/// A queue or a driver that drops a run returns `ENOBUFS`; a lack of memory on the way is `ENOMEM`.
/// A run that the kernel had to split may have been sent in part (`ip_finish_output_gso` continues
/// after a part that fails).
pub(super) fn is_about_whole_run(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn peer(address: &str) -> Address {
        address.parse::<SocketAddr>().unwrap().into()
    }

    fn error(errno: i32) -> io::Error {
        io::Error::from_raw_os_error(errno)
    }

    #[test]
    fn a_refusal_is_about_one_destination_on_any_port() {
        let gso = Gso::new(true);
        gso.refuse(Some(&peer("192.0.2.1:5")), 1000, &error(libc::EIO));
        gso.refuse(Some(&peer("[fe80::1%1]:5")), 1000, &error(libc::EMSGSIZE));
        let limits = gso.known_limits();
        assert_eq!(limits.longest(Some(&peer("192.0.2.1:6"))), 0);
        assert_eq!(limits.longest(Some(&peer("192.0.2.2:5"))), LARGEST_RUN);
        assert_eq!(limits.longest(Some(&peer("[fe80::1%1]:6"))), 999);
        assert_eq!(limits.longest(Some(&peer("[fe80::1%2]:5"))), LARGEST_RUN);
        assert_eq!(limits.longest(None), LARGEST_RUN);
    }

    #[test]
    fn a_refusal_is_forgotten_after_a_while() {
        let refusals = Refusals::new();
        let to = peer("192.0.2.1:5");
        for now in [1, 1 << 23, (1 << 24) - 30] {
            refusals.set(Some(&to), 500, now);
            let after = |seconds| refusals.get(Some(&to), (now + seconds) & SECONDS as u32);
            assert_eq!([0, 1, 60].map(after), [Some(500); 3]);
            assert_eq!([61, 1000, 1 << 22].map(after), [None; 3]);
        }
    }

    #[test]
    fn the_shortest_of_several_refusals_counts() {
        let gso = Gso::new(true);
        for (len, error) in [(1000, libc::EINVAL), (700, libc::EINVAL), (900, libc::EINVAL)] {
            gso.refuse(None, len, &io::Error::from_raw_os_error(error));
        }
        assert_eq!(gso.known_limits().longest(None), 699);
        gso.forget();
        assert_eq!(gso.known_limits().longest(None), LARGEST_RUN);
    }

    #[test]
    fn more_destinations_than_slots_replace_each_other() {
        let gso = Gso::new(true);
        for last in 0..=u16::MAX {
            let to = SocketAddr::from(([10, 0, (last >> 8) as u8, last as u8], 5)).into();
            gso.refuse(Some(&to), 100, &error(libc::EIO));
            assert_eq!(gso.known_limits().longest(Some(&to)), 0);
        }
    }

    #[test]
    fn a_socket_that_is_not_udp_has_no_runs() {
        let gso = Gso::new(false);
        gso.forget();
        assert_eq!(gso.known_limits().longest(None), 0);
    }

    #[test]
    fn an_ipv6_socket_that_forbids_fragments_has_no_shorter_ends() {
        use std::os::fd::AsFd;
        let socket = std::net::UdpSocket::bind("[::1]:0").unwrap();
        let gso = Gso::new(true);
        assert!(gso.limits(socket.as_fd()).short_ends);
        for (discovery, short_ends) in [(0, true), (1, true), (2, false), (3, false), (5, true)] {
            let level = libc::IPPROTO_IPV6;
            sys::set_int_option(socket.as_fd(), level, libc::IPV6_MTU_DISCOVER, discovery).unwrap();
            gso.forget();
            assert_eq!(gso.limits(socket.as_fd()).short_ends, short_ends, "{discovery}");
        }
    }
}
