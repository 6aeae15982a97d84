//! Sleeping and waking.

use std::ffi::c_int;
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

/// Creates a set of descriptors to wait for: `epoll_create1(2)`, close-on-exec. It is readable
/// itself while one of them is.
pub(in crate::net) fn epoll() -> io::Result<OwnedFd> {
    // No pointers.
    let fd = syscall!(epoll_create1(libc::EPOLL_CLOEXEC))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds a descriptor to the set: reports it as `token` while it is readable.
pub(in crate::net) fn epoll_add(
    epoll: BorrowedFd<'_>,
    fd: BorrowedFd<'_>,
    token: u64,
) -> io::Result<()> {
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
    // The pointers: an event on this stack.
    syscall!(epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &raw mut event))
        .map(drop)
}

/// Removes a descriptor from the set. Closing it is not enough if a forked child has a copy.
pub(in crate::net) fn epoll_remove(epoll: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> io::Result<()> {
    // The pointers: none is needed.
    syscall!(epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_DEL, fd.as_raw_fd(), ptr::null_mut()))
        .map(drop)
}

/// Waits for descriptors of the set, for as long as it takes or not at all; returns the number of
/// events. [`poll`] waits for a time, in nanoseconds.
pub(in crate::net) fn epoll_wait(
    epoll: BorrowedFd<'_>,
    events: &mut [libc::epoll_event],
    waits: bool,
) -> io::Result<usize> {
    let (start, count) = (events.as_mut_ptr(), events.len() as c_int);
    // The pointers: `events` is writable for its length.
    let ready = syscall!(epoll_wait(epoll.as_raw_fd(), start, count, if waits { -1 } else { 0 }))?;
    Ok(ready as usize)
}
