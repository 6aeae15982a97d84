//! The lock whose holder may fork.

use super::{ForkGuard, Inherit};
use crate::net::sync::{AtomicU64, Ordering, UnsafeCell};
use crate::net::sys;

/// A mutex for data that a call may hold while Python code runs, such as that of a signal handler,
/// and so while `os.fork` does. Another call does not wait for it.
///
/// In a child the call continues if its thread is the one that forked; otherwise it does not exist
/// there, and the first to lock the mutex [makes the value the child's own](Inherit::inherit).
pub struct ForkTryMutex<T> {
    /// The call that holds the lock: the [fork generation](sys::fork_generation) in the upper half,
    /// its [thread](sys::thread_number) in the lower one. Or [`FREE`].
    holder: AtomicU64,
    value: UnsafeCell<T>,
}

const FREE: u64 = 0; // threads count from 1
const GENERATION_SHIFT: u32 = 32;

// SAFETY: only the holder accesses the value, like that of a `Mutex`.
unsafe impl<T: Send> Sync for ForkTryMutex<T> {}

impl<T: Inherit> ForkTryMutex<T> {
    /// Creates a mutex that is not locked.
    pub fn new(value: T) -> Self {
        Self { holder: AtomicU64::new(FREE), value: UnsafeCell::new(value) }
    }

    /// Locks the mutex, unless another call holds it, even if that is further up on this thread's
    /// stack.
    pub fn try_lock(&self) -> Option<ForkTryMutexGuard<'_, T>> {
        let generation = sys::fork_generation();
        let own = (u64::from(generation) << GENERATION_SHIFT) | u64::from(sys::thread_number());
        let seen = self.holder.load(Ordering::Relaxed);
        let is_inherited = seen != FREE && seen >> GENERATION_SHIFT != u64::from(generation);
        let is_held = seen != FREE && (!is_inherited || sys::has_forked(seen as u32));
        if is_held {
            return None;
        }
        self.holder.compare_exchange(seen, own, Ordering::Acquire, Ordering::Relaxed).ok()?;
        let mut guard = ForkGuard::new(&self.value, Holding { holder: &self.holder, own });
        if is_inherited {
            guard.inherit();
        }
        Some(guard)
    }
}

/// Exclusive access to the value of a [`ForkTryMutex`].
pub type ForkTryMutexGuard<'a, T> = ForkGuard<'a, T, Holding<'a>>;

/// Holds the lock while this exists.
pub struct Holding<'a> {
    holder: &'a AtomicU64,
    own: u64,
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        // If the call that holds the lock continues in a child, it holds it in the parent's name.
        let free = (Ordering::Release, Ordering::Relaxed);
        let _ = self.holder.compare_exchange(self.own, FREE, free.0, free.1);
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::super::Inherited;
    use super::*;
    use crate::net::sync::Arc;
    use crate::net::sys::{model_fork, model_process};

    #[test]
    fn loom_one_thread_of_a_child_at_a_time_has_the_value_of_its_parents_thread() {
        loom::model(|| {
            model_process();
            let mutex = Arc::new(ForkTryMutex::new(Inherited(0)));
            // In the child, the holder does not exist, nor does its access to the value: only the lock.
            std::mem::forget(mutex.try_lock().unwrap().lock);
            model_fork();
            let other = Arc::clone(&mutex);
            let taking = loom::thread::spawn(move || other.try_lock().is_some_and(|it| it.0 == 1));
            let has_taken = mutex.try_lock().is_some_and(|it| it.0 == 1);
            assert!(taking.join().unwrap() || has_taken);
            assert_eq!(mutex.try_lock().unwrap().0, 1);
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::Inherited;
    use super::*;

    #[test]
    fn one_call_at_a_time_has_the_value() {
        let mutex = ForkTryMutex::new(Inherited(0));
        let guard = mutex.try_lock().unwrap();
        assert!(mutex.try_lock().is_none());
        std::thread::scope(|scope| {
            assert!(scope.spawn(|| mutex.try_lock().is_none()).join().unwrap());
        });
        drop(guard);
        assert!(mutex.try_lock().unwrap().0 == 0);
    }

    #[test]
    fn a_child_has_the_value_of_another_thread_of_its_parent() {
        let mutex = ForkTryMutex::new(Inherited(0));
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| mutex.try_lock().unwrap()).join().unwrap();
            assert!(sys::in_child(|| {
                let inherits = mutex.try_lock().unwrap().0 == 1;
                inherits && mutex.try_lock().is_some()
            }));
            drop(taken);
        });
        assert!(mutex.try_lock().unwrap().0 == 0);
    }

    #[test]
    fn a_call_that_continues_in_the_child_keeps_the_value() {
        let mutex = ForkTryMutex::new(Inherited(0));
        let guard = mutex.try_lock().unwrap();
        assert!(sys::in_child(|| {
            let (before, twice) =
                (mutex.try_lock().is_none(), sys::in_child(|| mutex.try_lock().is_none()));
            // SAFETY: the parent's guard is dropped in the parent.
            drop(unsafe { std::ptr::read(&raw const guard) });
            before && twice && mutex.try_lock().is_some_and(|value| value.0 == 0)
        }));
    }
}
