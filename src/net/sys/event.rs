//! Sleeping and waking.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

/// Waits for one of `fds` for at most `timeout`: `ppoll(2)`, which counts in nanoseconds where
/// `poll` rounds up to a millisecond.
pub(in crate::net) fn poll(
    fds: &mut [libc::pollfd],
    timeout: Option<Duration>,
) -> io::Result<usize> {
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    let count = fds.len() as libc::nfds_t;
    // The pointers: `fds` is a slice of pollfd, the timeout lives on this stack, no signal mask.
    let ready = syscall!(ppoll(fds.as_mut_ptr(), count, timeout, ptr::null()))?;
    Ok(ready as usize)
}

/// Creates a counter to wake a thread with: `eventfd(2)`, close-on-exec and non-blocking.
pub(in crate::net) fn eventfd() -> io::Result<OwnedFd> {
    // No pointers.
    let fd = syscall!(eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds one to an eventfd.
pub(in crate::net) fn signal_event(fd: BorrowedFd<'_>) -> io::Result<()> {
    let one = 1_u64.to_ne_bytes();
    // The pointers: eight readable bytes.
    syscall!(write(fd.as_raw_fd(), one.as_ptr().cast(), one.len())).map(drop)
}

/// Sets an eventfd back to zero.
pub(in crate::net) fn clear_event(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut count = [0_u8; 8];
    // The pointers: eight writable bytes.
    syscall!(read(fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len())).map(drop)
}

/// Reads the available bytes and discards them.
pub(in crate::net) fn discard(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut bytes = [0_u8; 64];
    // The pointers: as many writable bytes.
    syscall!(read(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len())).map(drop)
}
