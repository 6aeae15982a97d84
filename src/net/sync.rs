//! Atomics, locks and cells: from std or, with `--cfg loom`, from loom, which runs a model with
//! every possible interleaving of its threads' steps (`make loom`).
//!
//! Modelled code imports them from here. The rest of the engine uses std directly: under loom it
//! compiles, but only the models run.

// No model uses all of them.
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

/// loom's cell interface, implemented with std.
#[cfg(not(loom))]
mod cell {
    /// A cell whose content several threads access, one at a time.
    #[derive(Default)]
    pub(in crate::net) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    /// A pointer for reading a cell's content.
    pub(in crate::net) struct ConstPtr<T>(*const T);

    /// A pointer for changing a cell's content.
    pub(in crate::net) struct MutPtr<T>(*mut T);

    impl<T> UnsafeCell<T> {
        pub(in crate::net) fn new(content: T) -> Self {
            Self(std::cell::UnsafeCell::new(content))
        }

        /// Returns a pointer for reading; there may be other readers, but no writer.
        pub(in crate::net) fn get(&self) -> ConstPtr<T> {
            ConstPtr(self.0.get())
        }

        /// Returns a pointer for writing; there may be no other reader or writer.
        pub(in crate::net) fn get_mut(&self) -> MutPtr<T> {
            MutPtr(self.0.get())
        }
    }

    impl<T> ConstPtr<T> {
        /// The content.
        ///
        /// # Safety
        /// The cell must stay alive, and must not be written during the borrow.
        pub(in crate::net) unsafe fn deref(&self) -> &T {
            // SAFETY: the caller's promise.
            unsafe { &*self.0 }
        }
    }

    impl<T> MutPtr<T> {
        /// The content, mutably.
        ///
        /// # Safety
        /// The cell must stay alive, and its content must not be accessed otherwise.
        #[expect(clippy::mut_from_ref, reason = "as loom's, which stands for a raw pointer")]
        pub(in crate::net) unsafe fn deref(&self) -> &mut T {
            // SAFETY: the caller's promise.
            unsafe { &mut *self.0 }
        }
    }
}

/// Runs a model that has too many interleavings to explore all of them: explores those with at most
/// three preemptions, which finds all but contrived bugs.
#[cfg(all(test, loom))]
pub(super) fn bounded_model(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}
