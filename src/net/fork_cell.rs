//! A value that one call at a time may use, and that the child of a fork can have whatever a thread
//! of its parent was doing with it.

use std::ops::{Deref, DerefMut};

use super::forked::Inherit;
use super::sync::{AtomicU64, Ordering, UnsafeCell};
use super::sys;

/// A value that one call at a time may use: another one does not wait, but is told.
///
/// A call may have it while Python code runs, as that of a signal handler, and so while `os.fork`
/// does. In the child the call goes on if its thread is the one that forked; otherwise it does not
/// exist there. Then the first to want the value has it, [made the child's own](Inherit::inherit).
pub struct ForkCell<T> {
    /// The call that has the value: the [fork generation](sys::fork_generation) in the upper half,
    /// its [thread](sys::thread_number) in the lower one. Or [`FREE`].
    holder: AtomicU64,
    value: UnsafeCell<T>,
}

const FREE: u64 = 0; // threads count from 1
const GENERATION_SHIFT: u32 = 32;

// SAFETY: the value is only reached by the holder, as that of a `Mutex`.
unsafe impl<T: Send> Sync for ForkCell<T> {}

impl<T: Inherit> ForkCell<T> {
    /// A value that no call has.
    pub fn new(value: T) -> Self {
        Self { holder: AtomicU64::new(FREE), value: UnsafeCell::new(value) }
    }

    /// The value, unless another call has it, if only further up on this thread's stack.
    pub fn try_take(&self) -> Option<ForkCellGuard<'_, T>> {
        let generation = sys::fork_generation();
        let own = (u64::from(generation) << GENERATION_SHIFT) | u64::from(sys::thread_number());
        let seen = self.holder.load(Ordering::Relaxed);
        let is_inherited = seen != FREE && seen >> GENERATION_SHIFT != u64::from(generation);
        let is_held = seen != FREE && (!is_inherited || sys::has_forked(seen as u32));
        if is_held {
            return None;
        }
        self.holder.compare_exchange(seen, own, Ordering::Acquire, Ordering::Relaxed).ok()?;
        let mut guard = ForkCellGuard { cell: self, own };
        if is_inherited {
            guard.inherit();
        }
        Some(guard)
    }
}

/// Access to the value, as long as this exists.
pub struct ForkCellGuard<'a, T> {
    cell: &'a ForkCell<T>,
    own: u64,
}

impl<T> Deref for ForkCellGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        let value: *const T = {
            let value = self.cell.value.get();
            // SAFETY: the holder is alone with the value.
            unsafe { value.deref() }
        };
        // SAFETY: it lives as long as the cell, and nobody else reaches it before this is dropped.
        unsafe { &*value }
    }
}

impl<T> DerefMut for ForkCellGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        let value: *mut T = {
            let value = self.cell.value.get_mut();
            // SAFETY: the holder is alone with the value.
            unsafe { value.deref() }
        };
        // SAFETY: as in `deref`, and nobody else has the guard.
        unsafe { &mut *value }
    }
}

impl<T> Drop for ForkCellGuard<'_, T> {
    fn drop(&mut self) {
        // In a child where the thread goes on that has it, it is still held in its parent's name.
        let free = (Ordering::Release, Ordering::Relaxed);
        let _ = self.cell.holder.compare_exchange(self.own, FREE, free.0, free.1);
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::net::sync::Arc;
    use crate::net::sys::{model_fork, model_process};

    /// How often the value was inherited.
    #[derive(Default)]
    struct Inherited(usize);

    impl Inherit for Inherited {
        fn inherit(&mut self) {
            self.0 += 1;
        }
    }

    #[test]
    fn loom_of_the_threads_of_a_child_one_at_a_time_has_what_its_parents_thread_had() {
        loom::model(|| {
            model_process();
            let cell = Arc::new(ForkCell::new(Inherited(0)));
            std::mem::forget(cell.try_take().unwrap());
            model_fork();
            let other = Arc::clone(&cell);
            let taking = loom::thread::spawn(move || other.try_take().is_some_and(|it| it.0 == 1));
            let has_taken = cell.try_take().is_some_and(|it| it.0 == 1);
            assert!(taking.join().unwrap() || has_taken);
            assert_eq!(cell.try_take().unwrap().0, 1);
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Inherited(bool);

    impl Inherit for Inherited {
        fn inherit(&mut self) {
            self.0 = true;
        }
    }

    /// Runs `child` in a child process.
    fn in_child(child: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child calls what is safe after a fork, and ends without unwinding.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: the alarm ends a child that is stuck, `_exit` one that is not.
            unsafe {
                libc::alarm(10);
                libc::_exit(i32::from(!child()));
            }
        }
        let mut status = -1;
        // SAFETY: the child is ours, and the pointer is to a local variable.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        status == 0
    }

    #[test]
    fn one_call_at_a_time_has_the_value() {
        let cell = ForkCell::new(Inherited(false));
        let guard = cell.try_take().unwrap();
        assert!(cell.try_take().is_none());
        std::thread::scope(|scope| {
            assert!(scope.spawn(|| cell.try_take().is_none()).join().unwrap());
        });
        drop(guard);
        assert!(!cell.try_take().unwrap().0);
    }

    #[test]
    fn a_child_has_what_another_thread_of_its_parent_had() {
        let cell = ForkCell::new(Inherited(false));
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| cell.try_take().unwrap()).join().unwrap();
            assert!(in_child(|| {
                let inherits = cell.try_take().unwrap().0;
                inherits && cell.try_take().is_some()
            }));
            drop(taken);
        });
        assert!(!cell.try_take().unwrap().0);
    }

    #[test]
    fn a_call_that_goes_on_in_the_child_keeps_the_value() {
        let cell = ForkCell::new(Inherited(false));
        let guard = cell.try_take().unwrap();
        assert!(in_child(|| {
            let (before, twice) =
                (cell.try_take().is_none(), in_child(|| cell.try_take().is_none()));
            // SAFETY: the parent's guard is dropped in the parent.
            drop(unsafe { std::ptr::read(&raw const guard) });
            before && twice && cell.try_take().is_some_and(|value| !value.0)
        }));
    }
}
