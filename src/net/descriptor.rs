//! A descriptor that several threads use and any of them may close.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::sys;
use super::wait::Waker;

/// An open descriptor, the operations in flight on it, and the threads that wait for it.
///
/// [`close`](Self::close) ends the descriptor for everybody at once: no operation starts any more,
/// and waiting threads are woken. The number is given back to the kernel only when the last
/// operation has left, so that no thread ever touches a descriptor that another open has recycled.
///
/// A fork may copy this at any time, with the parent's operations inside. The counts carry the
/// [fork generation](sys::fork_generation) and are void in the child. The lock is only taken by
/// threads that are attached to the Python interpreter, all of which stand still during
/// `os.fork`, or on a descriptor already closed, which nobody locks any more.
pub struct Descriptor {
    fd: AtomicI32,
    /// The fork generation in the upper half, then [`CLOSED`], then the operations in flight.
    state: AtomicU64,
    waiting: Mutex<Vec<Arc<Waker>>>,
    left: Condvar,
}

const CLOSED: u64 = 1 << 31;
const IN_FLIGHT: u64 = CLOSED - 1;
const GENERATION_SHIFT: u32 = 32;

impl Descriptor {
    /// Takes over an open descriptor.
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            fd: AtomicI32::new(fd.into_raw_fd()),
            state: AtomicU64::new(u64::from(sys::fork_generation()) << GENERATION_SHIFT),
            waiting: Mutex::new(Vec::new()),
            left: Condvar::new(),
        }
    }

    /// Enters an operation; `EBADF` where the descriptor is closed.
    pub fn enter(&self) -> io::Result<InFlight<'_>> {
        let generation = u64::from(sys::fork_generation());
        let enter = |state: u64| {
            let is_ours = state >> GENERATION_SHIFT == generation;
            let in_flight = if is_ours { state & IN_FLIGHT } else { 0 };
            let entered = (generation << GENERATION_SHIFT) | (in_flight + 1);
            (state & CLOSED == 0).then_some(entered)
        };
        self.state
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, enter)
            .map(|_| InFlight { descriptor: self })
            .map_err(|_| io::Error::from_raw_os_error(libc::EBADF))
    }

    /// The descriptor's number, or -1 where it is closed.
    pub fn as_raw(&self) -> RawFd {
        if self.is_closed() { -1 } else { self.fd.load(Ordering::Relaxed) }
    }

    /// Whether the descriptor was closed or released.
    pub fn is_closed(&self) -> bool {
        self.state.load(Ordering::Acquire) & CLOSED != 0
    }

    /// Closes the descriptor, wakes who waits for it, and returns when the last operation has left.
    ///
    /// Closing again does nothing.
    pub fn close(&self) -> io::Result<()> {
        self.release().map_or(Ok(()), sys::close)
    }

    /// Gives the descriptor up without closing it; otherwise as [`close`](Self::close).
    pub fn release(&self) -> Option<OwnedFd> {
        let state = self.state.fetch_or(CLOSED, Ordering::AcqRel);
        if state & CLOSED != 0 {
            return None;
        }
        if state >> GENERATION_SHIFT == u64::from(sys::fork_generation()) {
            let mut waiting = self.lock();
            for waker in waiting.iter() {
                waker.wake();
            }
            while self.state.load(Ordering::Acquire) & IN_FLIGHT != 0 {
                waiting = self.left.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
        }
        let fd = self.fd.swap(-1, Ordering::Relaxed);
        // SAFETY: `new` took the descriptor's ownership; CLOSED was set by this call, so that this
        // is the one place to give it up, and nobody uses it any more.
        Some(unsafe { sys::own_fd(fd) })
    }

    /// Wakes who waits for the descriptor, to make another attempt: what the attempt looks at has
    /// changed.
    pub fn wake(&self) {
        for waker in self.lock().iter() {
            waker.wake();
        }
    }

    /// Adds a waker to those that a close wakes.
    pub(super) fn register(&self, waker: &Arc<Waker>) {
        self.lock().push(Arc::clone(waker));
    }

    /// Takes a waker back.
    pub(super) fn unregister(&self, waker: &Arc<Waker>) {
        let mut waiting = self.lock();
        if let Some(index) = waiting.iter().position(|other| Arc::ptr_eq(other, waker)) {
            waiting.swap_remove(index);
        }
    }

    #[cfg(test)]
    pub(super) fn waiters(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Waker>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // Nobody else has a reference, so no operation is in flight. A close that fails has closed
        // all the same, and there is nobody left to tell.
        let _ = self.close();
    }
}

/// An operation in flight: as long as it exists, the descriptor is open.
pub struct InFlight<'a> {
    descriptor: &'a Descriptor,
}

impl AsFd for InFlight<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `release` waits for this operation to leave before it gives the descriptor up. In
        // the child of a fork, operations of the parent's threads do not exist.
        unsafe { sys::borrow_fd(self.descriptor.fd.load(Ordering::Relaxed)) }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let state = self.descriptor.state.fetch_sub(1, Ordering::Release);
        if state & CLOSED != 0 && state & IN_FLIGHT == 1 {
            // With the lock, so that this comes before the closer's look at the count or after it
            // has begun to wait.
            let _waiting = self.descriptor.lock();
            self.descriptor.left.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    fn descriptor() -> Descriptor {
        Descriptor::new(UnixDatagram::unbound().unwrap().into())
    }

    #[test]
    fn a_closed_descriptor_lets_nobody_in() {
        let descriptor = descriptor();
        assert!(descriptor.as_raw() >= 0);
        descriptor.close().unwrap();
        assert_eq!(descriptor.as_raw(), -1);
        let error = descriptor.enter().err().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        descriptor.close().unwrap();
    }

    #[test]
    fn the_number_is_kept_until_the_last_operation_has_left() {
        let descriptor = descriptor();
        let inside = descriptor.enter().unwrap();
        let number = inside.as_fd().as_raw_fd();
        std::thread::scope(|scope| {
            let closer = scope.spawn(|| descriptor.close());
            while !descriptor.is_closed() {
                std::thread::yield_now();
            }
            // Were it free, this would get the same number.
            let other = UnixDatagram::unbound().unwrap();
            assert_ne!(other.as_raw_fd(), number);
            std::thread::sleep(Duration::from_millis(5));
            assert!(!closer.is_finished());
            drop(inside);
            closer.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_released_descriptor_stays_open() {
        let descriptor = descriptor();
        let number = descriptor.as_raw();
        let fd = descriptor.release().unwrap();
        assert_eq!(fd.as_raw_fd(), number);
        assert!(descriptor.release().is_none());
        assert_eq!(descriptor.as_raw(), -1);
    }
}
