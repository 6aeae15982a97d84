//! A descriptor that several threads use and any of them may close.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use super::fork_mutex::{ForkMutex, Inherit, leave_to_parent};
use super::sync::{Arc, AtomicI32, AtomicU64, Condvar, Ordering};
use super::sys;
use super::waker::Waker;

/// An open descriptor, the operations in flight on it, and the threads that wait for it.
///
/// [`close`](Self::close) ends the descriptor for all threads at once: no new operation starts, and
/// waiting threads are woken. The number is returned to the kernel only after the last operation
/// has ended, so no thread ever uses a descriptor whose number the kernel has reused.
///
/// A fork may copy this at any time, including the parent's operations. The counts carry the [fork
/// generation](sys::fork_generation) and are void in the child. If a thread of the parent was in
/// the middle of closing, operations see the descriptor as closed in the child too; but the child's
/// copy of it is open, and `close`, `release` or dropping this gives it up there.
pub struct Descriptor {
    /// The number, until it is taken out to close the descriptor or to give it away.
    fd: AtomicI32,
    /// Whether `close(2)` may wait until data is sent (`SO_LINGER`), which no fork should wait for.
    may_linger: bool,
    /// A descriptor that a thread is closing outside of [`sys::without_fork`], and its inode, by
    /// which a child can tell whether it has inherited the descriptor.
    lingering: AtomicI32,
    lingering_inode: AtomicU64,
    /// From the upper half down: the fork generation, [`CLOSED`], and the number of operations in
    /// flight.
    state: AtomicU64,
    waiting: ForkMutex<Waiters>,
    left: Condvar,
}

/// The wakers of the threads that wait for a descriptor.
#[derive(Default)]
struct Waiters(Vec<Arc<Waker>>);

/// A child does not have any of its parent's threads.
impl Inherit for Waiters {
    fn inherit(&mut self) {
        leave_to_parent(self);
    }
}

const CLOSED: u64 = 1 << 31;
const IN_FLIGHT: u64 = CLOSED - 1;
const GENERATION_SHIFT: u32 = 32;

impl Descriptor {
    /// Takes over an open descriptor. `may_linger`: whether `close(2)` may wait until data is sent.
    pub fn new(fd: OwnedFd, may_linger: bool) -> Self {
        Self {
            fd: AtomicI32::new(fd.into_raw_fd()),
            may_linger,
            lingering: AtomicI32::new(-1),
            lingering_inode: AtomicU64::new(0),
            state: AtomicU64::new(u64::from(sys::fork_generation()) << GENERATION_SHIFT),
            waiting: ForkMutex::default(),
            left: Condvar::new(),
        }
    }

    /// Begins an operation; `EBADF` if the descriptor is closed.
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

    /// The descriptor's number, or -1 if it is closed.
    pub fn as_raw(&self) -> RawFd {
        if self.is_closed() { -1 } else { self.fd.load(Ordering::Relaxed) }
    }

    /// Whether the descriptor was closed or released.
    pub fn is_closed(&self) -> bool {
        self.state.load(Ordering::Acquire) & CLOSED != 0
    }

    /// Closes the descriptor, wakes the threads that wait for it, and returns when the last
    /// operation has ended.
    ///
    /// Closing again does nothing.
    pub fn close(&self) -> io::Result<()> {
        if !self.begin_close() {
            return Ok(());
        }
        // A fork between the two steps would leave the child a descriptor whose number is lost.
        if !self.may_linger {
            return sys::without_fork(|| self.take().map_or(Ok(()), sys::close));
        }
        let Some(fd) = sys::without_fork(|| self.take_to_linger()) else { return Ok(()) };
        let result = sys::close(fd);
        self.lingering.store(-1, Ordering::Relaxed);
        result
    }

    /// Gives the descriptor up without closing it; otherwise like [`close`](Self::close).
    pub fn release(&self) -> Option<OwnedFd> {
        if !self.begin_close() {
            return None;
        }
        self.take().or_else(|| self.take_lingering())
    }

    /// Ends the descriptor for operations, and returns when the last one has ended; false if
    /// another thread is giving the descriptor up.
    fn begin_close(&self) -> bool {
        let state = self.state.fetch_or(CLOSED, Ordering::AcqRel);
        let is_inherited = state >> GENERATION_SHIFT != u64::from(sys::fork_generation());
        if is_inherited {
            // No operation of this process is in flight. If it was closed before the fork, by a
            // thread that does not exist here, its number may not have been taken out.
            return true;
        }
        if state & CLOSED != 0 {
            return false;
        }
        let mut waiting = self.waiting.lock();
        for waker in &waiting.0 {
            waker.wake();
        }
        while self.state.load(Ordering::Acquire) & IN_FLIGHT != 0 {
            waiting = waiting.wait(&self.left);
        }
        true
    }

    /// Takes the descriptor out, unless another thread has.
    fn take(&self) -> Option<OwnedFd> {
        let fd = self.fd.swap(-1, Ordering::Relaxed);
        // SAFETY: `new` took ownership of the descriptor. The one thread that takes the number out
        // gets it. CLOSED is set, and every operation has ended.
        (fd >= 0).then(|| unsafe { sys::own_fd(fd) })
    }

    /// Takes the descriptor out, and records its identity for a child that inherits it.
    fn take_to_linger(&self) -> Option<OwnedFd> {
        let fd = self.take().or_else(|| self.take_lingering())?;
        if let Ok(inode) = sys::inode(fd.as_fd()) {
            self.lingering_inode.store(inode, Ordering::Relaxed);
            self.lingering.store(fd.as_raw_fd(), Ordering::Relaxed);
        }
        Some(fd)
    }

    /// Takes out a descriptor that a thread of the parent was closing at the moment of the fork,
    /// unless it was closed by then: its number may have been reused since.
    fn take_lingering(&self) -> Option<OwnedFd> {
        let fd = self.lingering.swap(-1, Ordering::Relaxed);
        if fd < 0 {
            return None;
        }
        // SAFETY: if it is closed or has been reused, `inode` fails or returns another number.
        let inode = sys::inode(unsafe { sys::borrow_fd(fd) }).ok()?;
        // SAFETY: no other socket has the inode as long as this one exists. The thread that was
        // closing it does not exist in this process, so this process must give it up.
        (inode == self.lingering_inode.load(Ordering::Relaxed)).then(|| unsafe { sys::own_fd(fd) })
    }

    /// Wakes the threads that wait for the descriptor, so that they make another attempt, because
    /// its state has changed.
    pub fn wake(&self) {
        for waker in &self.waiting.lock().0 {
            waker.wake();
        }
    }

    /// Adds a waker to those that a close wakes.
    pub(super) fn register(&self, waker: &Arc<Waker>) {
        self.waiting.lock().0.push(Arc::clone(waker));
    }

    /// Removes a waker.
    pub(super) fn unregister(&self, waker: &Arc<Waker>) {
        let mut waiting = self.waiting.lock();
        if let Some(index) = waiting.0.iter().position(|other| Arc::ptr_eq(other, waker)) {
            waiting.0.swap_remove(index);
        }
    }

    #[cfg(test)]
    pub(super) fn waiters(&self) -> usize {
        self.waiting.lock().0.len()
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // Nothing else refers to this, so no operation is in flight. A close that fails has closed
        // the descriptor anyway, and there is no caller to report to.
        let _ = self.close();
    }
}

/// An operation in flight: as long as it exists, the descriptor is open.
pub struct InFlight<'a> {
    descriptor: &'a Descriptor,
}

impl AsFd for InFlight<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `release` waits for this operation to end before it gives the descriptor up. In
        // the child of a fork, operations of the parent's threads do not exist.
        unsafe { sys::borrow_fd(self.descriptor.fd.load(Ordering::Relaxed)) }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let state = self.descriptor.state.fetch_sub(1, Ordering::Release);
        if state & CLOSED != 0 && state & IN_FLIGHT == 1 {
            // Under the lock, so that this happens before the closing thread checks the count or
            // after it has begun to wait.
            let _waiting = self.descriptor.waiting.lock();
            self.descriptor.left.notify_all();
        }
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::net::sync::{AtomicBool, UnsafeCell, bounded_model};
    use crate::net::sys::{model_fork, model_process};
    use loom::thread;

    fn descriptor() -> Arc<(Descriptor, UnsafeCell<()>)> {
        model_process();
        let file = std::fs::File::open("/dev/null").unwrap();
        Arc::new((Descriptor::new(file.into(), false), UnsafeCell::new(())))
    }

    /// An operation: while it lasts, the descriptor is not given up.
    fn operate(shared: &(Descriptor, UnsafeCell<()>)) -> bool {
        let Ok(_inside) = shared.0.enter() else { return false };
        shared.1.get();
        true
    }

    /// Closes; once the descriptor is taken out, no operation is inside.
    fn close(shared: &(Descriptor, UnsafeCell<()>)) -> bool {
        let fd = shared.0.release();
        if fd.is_some() {
            shared.1.get_mut();
        }
        fd.is_some()
    }

    #[test]
    fn loom_a_close_waits_for_operations_and_admits_none_afterwards() {
        loom::model(|| {
            let shared = descriptor();
            let operations: Vec<_> = (0..2)
                .map(|_| {
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || operate(&shared))
                })
                .collect();
            assert!(close(&shared));
            assert!(!operate(&shared));
            for operation in operations {
                operation.join().unwrap();
            }
        });
    }

    #[test]
    fn loom_only_one_of_two_closers_gives_the_descriptor_up() {
        loom::model(|| {
            let shared = descriptor();
            let other = Arc::clone(&shared);
            let closer = thread::spawn(move || close(&other));
            let operation = Arc::clone(&shared);
            let operation = thread::spawn(move || operate(&operation));
            assert!(close(&shared) != closer.join().unwrap());
            operation.join().unwrap();
        });
    }

    #[test]
    fn loom_a_child_gives_up_once_a_descriptor_that_its_parent_was_closing() {
        loom::model(|| {
            let shared = descriptor();
            // The parent's closer has seen an operation in flight, and waits for it.
            std::mem::forget(shared.0.enter().unwrap());
            shared.0.state.fetch_or(CLOSED, Ordering::AcqRel);
            model_fork();
            let other = Arc::clone(&shared);
            let closer = thread::spawn(move || close(&other));
            assert!(!operate(&shared));
            assert!(close(&shared) != closer.join().unwrap());
        });
    }

    #[test]
    fn loom_a_child_may_enter_and_close_a_descriptor_in_use_by_its_parent() {
        loom::model(|| {
            let shared = descriptor();
            std::mem::forget(shared.0.enter().unwrap());
            model_fork();
            let other = Arc::clone(&shared);
            let operation = thread::spawn(move || operate(&other));
            assert!(close(&shared));
            operation.join().unwrap();
        });
    }

    #[test]
    fn loom_a_waiter_sees_a_close_and_every_wake_up() {
        bounded_model(|| {
            let shared = descriptor();
            let is_kept = Arc::new(AtomicBool::new(false));
            let (closed, kept) = (Arc::clone(&shared), Arc::clone(&is_kept));
            let closer = thread::spawn(move || {
                kept.store(true, Ordering::Relaxed);
                closed.0.wake();
                assert!(closed.0.release().is_some());
            });
            // The same steps as in Waiting: register, enter, check, sleep, check.
            let waker = Arc::new(Waker::model());
            shared.0.register(&waker);
            if let Ok(_inside) = shared.0.enter() {
                while !shared.0.is_closed() {
                    waker.model_sleep();
                }
                assert!(is_kept.load(Ordering::Relaxed));
            }
            shared.0.unregister(&waker);
            waker.clear();
            closer.join().unwrap();
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    fn descriptor() -> Descriptor {
        Descriptor::new(UnixDatagram::unbound().unwrap().into(), false)
    }

    #[test]
    fn a_closed_descriptor_admits_no_operation() {
        let descriptor = descriptor();
        assert!(descriptor.as_raw() >= 0);
        descriptor.close().unwrap();
        assert_eq!(descriptor.as_raw(), -1);
        let error = descriptor.enter().err().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        descriptor.close().unwrap();
    }

    #[test]
    fn the_number_is_kept_until_the_last_operation_has_ended() {
        let descriptor = descriptor();
        let inside = descriptor.enter().unwrap();
        let number = inside.as_fd().as_raw_fd();
        std::thread::scope(|scope| {
            let closer = scope.spawn(|| descriptor.close());
            while !descriptor.is_closed() {
                std::thread::yield_now();
            }
            // If it were free, this would get the same number.
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

    /// Runs `child` in a child process, forked while a thread of this process waits in `close` for
    /// another thread's operation; returns whether the child still has the descriptor open.
    fn is_open_in_child(child: impl FnOnce(Descriptor)) -> bool {
        let descriptor = std::mem::ManuallyDrop::new(descriptor());
        let number = descriptor.as_raw();
        let inside = descriptor.enter().unwrap();
        std::thread::scope(|scope| {
            let closer = scope.spawn(|| descriptor.close());
            while !descriptor.is_closed() {
                std::thread::yield_now();
            }
            // SAFETY: the child calls what is safe after a fork, and ends without unwinding.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                // SAFETY: the child's copy of the descriptor is this function's alone; the alarm ends
                // a child that is stuck, `_exit` one that is not.
                unsafe {
                    libc::alarm(10);
                    child(std::ptr::read(&raw const *descriptor));
                    libc::_exit(i32::from(libc::fcntl(number, libc::F_GETFD) != -1));
                }
            }
            drop(inside);
            closer.join().unwrap().unwrap();
            let mut status = -1;
            // SAFETY: the child is ours, and the pointer is to a local variable.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
            assert!(libc::WIFEXITED(status), "{status}");
            libc::WEXITSTATUS(status) != 0
        })
    }

    #[test]
    fn a_child_gives_up_a_descriptor_that_its_parent_was_closing() {
        assert!(is_open_in_child(|descriptor| {
            assert_eq!(descriptor.as_raw(), -1);
            assert!(descriptor.enter().is_err());
            std::mem::forget(descriptor);
        }));
        assert!(!is_open_in_child(drop));
        assert!(!is_open_in_child(|descriptor| {
            descriptor.close().unwrap();
            descriptor.close().unwrap();
            std::mem::forget(descriptor);
        }));
        assert!(is_open_in_child(|descriptor| {
            let fd = descriptor.release().unwrap();
            assert!(descriptor.release().is_none());
            std::mem::forget(fd); // given away, and open
        }));
    }
}
