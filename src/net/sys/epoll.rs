//! Waiting for many descriptors.

use std::ffi::c_int;
use std::io;
use std::os::fd::RawFd;

/// A descriptor that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The descriptor.
    pub fd: RawFd,
    /// The kinds of readiness: `EPOLLIN`, `EPOLLOUT`, …
    pub events: u32,
}

/// The events of one wait, in memory that is used again.
#[derive(Default)]
pub struct ReadyEvents(Vec<libc::epoll_event>);

impl ReadyEvents {
    /// Waits for at most `milliseconds`, or for ever if that is negative, until descriptors are
    /// ready, and finds at most `most` of them: `epoll_wait(2)`. Each must have been added with its
    /// own number as data.
    pub fn wait(&mut self, epoll: RawFd, most: usize, milliseconds: c_int) -> io::Result<()> {
        self.0.clear();
        self.0.reserve(most);
        let most = c_int::try_from(self.0.capacity().min(most)).unwrap_or(c_int::MAX);
        // The pointers: room for as many events.
        let count = syscall!(epoll_wait(epoll, self.0.as_mut_ptr(), most, milliseconds))?;
        // SAFETY: the kernel has written that many events, at most `most`.
        unsafe { self.0.set_len(count as usize) };
        Ok(())
    }

    /// The descriptors that the last wait found.
    pub fn found(&self) -> impl Iterator<Item = Ready> {
        // Python's `select.epoll` keeps the descriptor in the lower half.
        self.0.iter().map(|event| Ready { fd: event.u64 as RawFd, events: event.events })
    }
}
