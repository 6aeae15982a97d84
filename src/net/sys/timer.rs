//! Timers.

use std::cell::Cell;
use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

/// A timer whose descriptor is readable from the end of a time on: `timerfd_create(2)`.
///
/// It counts in nanoseconds, where the timers of event loops count in milliseconds.
pub struct Timer(OwnedFd);

impl Timer {
    /// Creates a timer that is not running, close-on-exec.
    pub fn new() -> io::Result<Self> {
        let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
        // No pointers.
        let fd = syscall!(timerfd_create(libc::CLOCK_MONOTONIC, flags))?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Starts again, for some time. With zero, stops it. Either way, it is not readable any longer.
    pub fn set(&self, time: Duration) -> io::Result<()> {
        let value = libc::timespec {
            tv_sec: time.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: time.subsec_nanos().into(),
        };
        let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let setting = libc::itimerspec { it_interval: never, it_value: value };
        // The pointers: a setting on this stack, and no room for the previous one.
        syscall!(timerfd_settime(self.0.as_raw_fd(), 0, &raw const setting, ptr::null_mut()))
            .map(drop)
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How much later than asked the kernel may end a sleep of this thread: `PR_GET_TIMERSLACK` in
/// `prctl(2)`, usually 50 µs. A thread asks once, because programs do not change it later.
pub(in crate::net) fn timer_slack() -> Duration {
    thread_local! {
        static SLACK: Cell<Option<Duration>> = const { Cell::new(None) };
    }
    SLACK.get().unwrap_or_else(|| {
        // No pointers.
        let slack: io::Result<c_int> = syscall!(prctl(libc::PR_GET_TIMERSLACK));
        let slack = slack.map_or(0, |slack| u64::try_from(slack).unwrap_or(0));
        let slack = Duration::from_nanos(slack);
        SLACK.set(Some(slack));
        slack
    })
}
