//! Whether runs of datagrams may leave as one send, cut up by the kernel or the device
//! (`UDP_SEGMENT`, "GSO").

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::sys;

/// What one socket knows of its segmentation offload: probed when first needed, and given up where
/// the kernel or the device refuses it.
#[derive(Debug)]
pub struct Offload {
    /// The longest datagram that may be part of a run; [`UNKNOWN`] until the socket was asked.
    longest: AtomicUsize,
}

const UNKNOWN: usize = usize::MAX;
const OFF: usize = 0;

impl Offload {
    /// For a socket that is UDP, or is not.
    pub fn new(is_udp: bool) -> Self {
        Self { longest: AtomicUsize::new(if is_udp { UNKNOWN } else { OFF }) }
    }

    /// The longest datagram that may be part of a run; 0 where there may be none.
    pub fn longest(&self, fd: BorrowedFd<'_>) -> usize {
        match self.longest.load(Ordering::Relaxed) {
            UNKNOWN => {
                // A kernel older than the option would ignore it in a control message, and send
                // the run as one datagram. Where the user has set a segment size for the whole
                // socket, runs of ours would contradict it.
                let own = sys::int_option(fd, libc::SOL_UDP, libc::UDP_SEGMENT);
                let longest = if own.is_ok_and(|size| size == 0) { LARGEST_RUN } else { OFF };
                self.longest.store(longest, Ordering::Relaxed);
                longest
            }
            longest => longest,
        }
    }

    #[cfg(test)]
    pub(super) fn known(&self) -> Option<usize> {
        Some(self.longest.load(Ordering::Relaxed)).filter(|&longest| longest != UNKNOWN)
    }

    /// Takes note that a run of datagrams of `len` bytes was refused with `error`, and that they
    /// left one by one.
    pub fn refuse(&self, error: &io::Error, len: usize) {
        let longest = match error.raw_os_error() {
            // Too long for the path's MTU: shorter ones may do.
            Some(libc::EINVAL | libc::EMSGSIZE) => len - 1,
            // The route or the device cannot do it.
            _ => OFF,
        };
        self.longest.fetch_min(longest, Ordering::Relaxed);
    }

    /// Forgets what is known, after the user has changed an option that matters.
    pub fn forget(&self) {
        // Only UDP sockets have options of segmentation.
        self.longest.store(UNKNOWN, Ordering::Relaxed);
    }
}

/// The most datagrams of a run: what every kernel with the option takes (`UDP_MAX_SEGMENTS`).
pub(super) const LONGEST_RUN: usize = 64;
/// The most bytes of a run: those of the largest datagram over IPv4.
pub(super) const LARGEST_RUN: usize = 65_507;

/// Whether an error may be about a run rather than about a datagram.
pub(super) fn may_refuse_run(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    matches!(errno, Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP))
}
