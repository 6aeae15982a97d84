//! The lock whose holder never forks.

use std::ptr;

use super::{ForkGuard, Inherit};
use crate::net::sync::{
    AtomicU64, Condvar, Mutex, MutexGuard, Ordering, PoisonError, UnsafeCell, yield_now,
};
use crate::net::sys;

/// A mutex for data that threads lock while detached from the Python interpreter. A thread may hold
/// it while another thread calls `os.fork`. The holder does not exist in the child, where a plain
/// mutex would stay locked for ever.
///
/// The first thread to lock it in a child creates a new lock, after it has
/// [made the value the child's own](Inherit::inherit).
pub(in crate::net) struct ForkMutex<T> {
    /// The [fork generation](sys::fork_generation) that the lock belongs to, doubled, plus one
    /// while a thread takes it over.
    owner: AtomicU64,
    lock: UnsafeCell<Mutex<()>>,
    value: UnsafeCell<T>,
}

impl<T: Inherit + Default> Default for ForkMutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

// SAFETY: the value is only accessed under the lock, like that of a `Mutex`.
unsafe impl<T: Send> Sync for ForkMutex<T> {}

impl<T: Inherit> ForkMutex<T> {
    pub(in crate::net) fn new(value: T) -> Self {
        let owner = AtomicU64::new(owned_by_this_process());
        let lock = UnsafeCell::new(Mutex::new(()));
        Self { owner, lock, value: UnsafeCell::new(value) }
    }

    /// Waits for the lock. Ignores poisoning by a panic.
    pub(in crate::net) fn lock(&self) -> ForkMutexGuard<'_, T> {
        if !self.is_own() {
            self.make_own();
        }
        let locked = self.mutex().lock().unwrap_or_else(PoisonError::into_inner);
        ForkGuard::new(&self.value, locked)
    }

    /// Whether this process has created it or has locked it before.
    pub(in crate::net) fn is_own(&self) -> bool {
        self.owner.load(Ordering::Acquire) == owned_by_this_process()
    }

    fn mutex(&self) -> &Mutex<()> {
        let lock: *const Mutex<()> = {
            let lock = self.lock.get();
            // SAFETY: only `make_own` writes there, and it has finished in this process.
            unsafe { lock.deref() }
        };
        // SAFETY: it lives as long as `self`, and nobody replaces it before the process forks.
        unsafe { &*lock }
    }

    #[cold]
    fn make_own(&self) {
        let own = owned_by_this_process();
        loop {
            let seen = self.owner.load(Ordering::Acquire);
            if seen == own {
                return;
            }
            let being_made_own = own + 1;
            let is_ours_to_make = seen != being_made_own
                && self
                    .owner
                    .compare_exchange(seen, being_made_own, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok();
            if is_ours_to_make {
                // SAFETY: one thread of this process gets here, while the others wait below; those
                // of the parent, which may have been inside, do not exist in it. The old lock is
                // not dropped, since one of those may have it.
                unsafe {
                    ptr::write(self.lock.get_mut().deref(), Mutex::new(()));
                    self.value.get_mut().deref().inherit();
                }
                self.owner.store(own, Ordering::Release);
                return;
            }
            yield_now();
        }
    }
}

fn owned_by_this_process() -> u64 {
    2 * u64::from(sys::fork_generation())
}

/// Exclusive access to the value of a [`ForkMutex`].
pub(in crate::net) type ForkMutexGuard<'a, T> = ForkGuard<'a, T, MutexGuard<'a, ()>>;

impl<T> ForkMutexGuard<'_, T> {
    /// Releases the lock, waits until another thread notifies `condition`, and locks again. It may
    /// return without a notification.
    pub(in crate::net) fn wait(self, condition: &Condvar) -> Self {
        let Self { value, cell, lock } = self;
        #[allow(clippy::drop_non_drop)] // tells loom that other threads may now change the value
        drop(value);
        Self::new(cell, condition.wait(lock).unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::net::sync::Arc;
    use crate::net::sys::{model_fork, model_process};

    /// How often the value was inherited, and how often it was changed.
    #[derive(Default)]
    struct Counts {
        inherited: usize,
        changed: usize,
    }

    impl Inherit for Counts {
        fn inherit(&mut self) {
            *self = Self { inherited: self.inherited + 1, changed: 0 };
        }
    }

    /// Changes the value in two threads of one process at the same time.
    fn change_twice(lock: &Arc<ForkMutex<Counts>>, inherited: usize) {
        let change = |lock: &ForkMutex<Counts>| lock.lock().changed += 1;
        let shared = Arc::clone(lock);
        let other = loom::thread::spawn(move || change(&shared));
        change(lock);
        other.join().unwrap();
        let counts = lock.lock();
        assert_eq!((counts.inherited, counts.changed), (inherited, 2));
    }

    #[test]
    fn loom_the_lock_lets_one_in_at_a_time() {
        loom::model(|| {
            model_process();
            change_twice(&Arc::default(), 0);
        });
    }

    #[test]
    fn loom_threads_of_a_child_inherit_once_and_then_share_the_lock() {
        loom::model(|| {
            model_process();
            let lock = Arc::<ForkMutex<Counts>>::default();
            model_fork();
            change_twice(&lock, 1);
        });
    }

    #[test]
    fn loom_a_child_inherits_from_a_parent_that_was_about_to_make_the_lock_its_own() {
        loom::model(|| {
            model_process();
            let lock = Arc::<ForkMutex<Counts>>::default();
            model_fork();
            lock.owner.store(owned_by_this_process() + 1, Ordering::Release);
            model_fork();
            change_twice(&lock, 1);
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::Inherited;
    use super::*;
    use std::sync::atomic::AtomicBool;

    /// Runs `child` in a child process, while a thread of this process holds the lock.
    fn fork_while_locked(lock: &ForkMutex<Inherited>, child: impl FnOnce() -> bool) -> bool {
        let (is_inside, may_leave) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _inside = lock.lock();
                is_inside.store(true, Ordering::Release);
                while !may_leave.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
            });
            while !is_inside.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            let result = sys::in_child(child);
            may_leave.store(true, Ordering::Release);
            result
        })
    }

    #[test]
    fn a_child_can_lock_what_its_parents_thread_had_locked() {
        let lock = ForkMutex::new(Inherited(0));
        assert!(fork_while_locked(&lock, || !lock.is_own() && lock.lock().0 == 1 && lock.is_own()));
        assert!(lock.is_own() && lock.lock().0 == 0);
    }

    #[test]
    fn the_lock_lets_one_in_at_a_time() {
        #[derive(Default)]
        struct Count(u64);
        impl Inherit for Count {
            fn inherit(&mut self) {}
        }
        let count = ForkMutex::<Count>::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| count.lock().0 += 1));
            }
        });
        assert_eq!(count.lock().0, 40_000);
    }
}
