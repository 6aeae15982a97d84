//! Atomics, locks and cells: those of std, or, built with `--cfg loom`, those of loom, which runs a
//! model in every order that its threads can take (`make loom`).
//!
//! What is modelled takes these from here. The rest of the engine uses std's: built for loom, it
//! compiles, and only the models run.

// Each model uses some of them.
#[allow(unused_imports)]
pub(super) use std::sync::{Arc, PoisonError, atomic::Ordering};

#[cfg(not(loom))]
#[allow(unused_imports)]
pub(super) use std::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize},
};

#[cfg(loom)]
#[allow(unused_imports)]
pub(super) use loom::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize},
};

#[cfg(loom)]
pub(super) use loom::cell::{MutPtr, UnsafeCell};
#[cfg(loom)]
pub(super) use loom::thread::yield_now;
#[cfg(not(loom))]
pub(super) use std::thread::yield_now;

#[cfg(not(loom))]
pub(super) use cell::{MutPtr, UnsafeCell};

/// loom's interface to a cell, over std's.
#[cfg(not(loom))]
mod cell {
    /// A cell whose content several threads reach, one at a time.
    #[derive(Default)]
    pub(in crate::net) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    /// A pointer to read a cell's content through.
    pub(in crate::net) struct ConstPtr<T>(*const T);

    /// A pointer to change a cell's content through.
    pub(in crate::net) struct MutPtr<T>(*mut T);

    impl<T> UnsafeCell<T> {
        pub(in crate::net) fn new(content: T) -> Self {
            Self(std::cell::UnsafeCell::new(content))
        }

        /// A pointer for as long as others may read, and nobody may write.
        pub(in crate::net) fn get(&self) -> ConstPtr<T> {
            ConstPtr(self.0.get())
        }

        /// A pointer for as long as nobody else may read or write.
        pub(in crate::net) fn get_mut(&self) -> MutPtr<T> {
            MutPtr(self.0.get())
        }
    }

    impl<T> ConstPtr<T> {
        /// The content.
        ///
        /// # Safety
        /// The cell must live and not be written meanwhile.
        pub(in crate::net) unsafe fn deref(&self) -> &T {
            // SAFETY: the caller's promise.
            unsafe { &*self.0 }
        }
    }

    impl<T> MutPtr<T> {
        /// The content, to be changed.
        ///
        /// # Safety
        /// The cell must live, and nobody else reach its content meanwhile.
        #[expect(clippy::mut_from_ref, reason = "as loom's, which stands for a raw pointer")]
        pub(in crate::net) unsafe fn deref(&self) -> &mut T {
            // SAFETY: the caller's promise.
            unsafe { &mut *self.0 }
        }
    }
}

/// Runs a model that has too many orders to run in all of them: in those in which at most three
/// times a thread is stopped that could go on, which finds all faults but contrived ones.
#[cfg(all(test, loom))]
pub(super) fn bounded_model(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}
