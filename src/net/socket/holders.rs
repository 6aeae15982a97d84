//! Options that another holder of a socket may change, so that only the kernel knows them.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Socket;
use crate::net::sys;

/// Whether options that change how calls behave may have been set: by another holder of the
/// descriptor, in this process or another one, or by the user through this object. If not, no call
/// has to query the kernel.
pub(super) struct Holders {
    /// Whether the descriptor came from elsewhere, or its number was handed out.
    are_others: AtomicBool,
    /// How often the process had [forked](sys::forks) when the socket was opened.
    forks: u32,
    /// Whether the user has set `UDP_CORK`.
    was_corked: AtomicBool,
    /// Whether the user has limited how long calls wait.
    was_limited: AtomicBool,
    /// Whether the kernel let calls wait without a limit when it was last queried.
    waits_unlimited: AtomicBool,
}

/// Options that limit how long a call waits. On some machines each has two numbers, for 32-bit and
/// 64-bit times.
const TIMEOUTS: [c_int; 4] =
    [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO, SO_RCVTIMEO_NEW, SO_SNDTIMEO_NEW];
/// `asm-generic/socket.h`
const SO_RCVTIMEO_NEW: c_int = 66;
const SO_SNDTIMEO_NEW: c_int = 67;

impl Holders {
    /// The state for a socket that was opened here, or one whose descriptor came from elsewhere.
    pub(super) fn new(is_adopted: bool) -> Self {
        Self {
            are_others: AtomicBool::new(is_adopted),
            forks: sys::forks(),
            was_corked: AtomicBool::new(false),
            was_limited: AtomicBool::new(false),
            waits_unlimited: AtomicBool::new(!is_adopted),
        }
    }

    /// Records that the user has set an option.
    pub(super) fn option_was_set(&self, level: c_int, name: c_int) {
        if (level, name) == (libc::SOL_UDP, libc::UDP_CORK) {
            self.was_corked.store(true, Ordering::Relaxed);
        }
        if level == libc::SOL_SOCKET && TIMEOUTS.contains(&name) {
            self.was_limited.store(true, Ordering::Relaxed);
            self.waits_unlimited.store(false, Ordering::Relaxed);
        }
    }

    fn may_be_others(&self) -> bool {
        self.are_others.load(Ordering::Relaxed) || self.forks != sys::forks()
    }
}

impl Socket {
    /// Records that the descriptor's number was handed out, so it may be duplicated.
    pub fn number_was_given(&self) {
        self.holders.are_others.store(true, Ordering::Relaxed);
    }

    /// Whether the kernel may join datagrams (`UDP_CORK`), so that the option must be queried
    /// before each run. Always querying it would cost a short run a fifteenth of its time.
    pub(super) fn may_be_corked(&self) -> bool {
        self.holders.was_corked.load(Ordering::Relaxed) || self.holders.may_be_others()
    }

    /// Whether the kernel may limit how long a call waits (`O_NONBLOCK`, `SO_RCVTIMEO`), so that a
    /// long wait must [query](Self::kernel_wait) it.
    pub fn may_limit_waits(&self) -> bool {
        self.holders.was_limited.load(Ordering::Relaxed) || self.holders.may_be_others()
    }

    /// Whether the kernel let calls wait without a limit when it was [last
    /// queried](Self::kernel_wait), so that it probably still does.
    pub fn waits_unlimited(&self) -> bool {
        self.holders.waits_unlimited.load(Ordering::Relaxed)
    }

    pub(super) fn set_waits_unlimited(&self, is_unlimited: bool) {
        self.holders.waits_unlimited.store(is_unlimited, Ordering::Relaxed);
    }
}
