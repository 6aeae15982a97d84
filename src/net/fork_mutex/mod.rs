//! Locks that remain usable in the child of a fork, whatever the parent's threads were doing.
//!
//! A fork copies a locked lock, but not the thread that holds it, so in the child a plain mutex
//! stays locked for ever. There are two locks, for two kinds of holders:
//!
//! * [`ForkMutex`]: its holder is detached from the Python interpreter and never forks. A thread
//!   that wants the lock waits for it. In a child, the first to lock it makes a new lock.
//! * [`ForkTryMutex`]: its holder may run Python code, so also `os.fork`, and continues in the child.
//!   A call that wants the lock does not wait for it: the holder may be further up on its own stack.
//!
//! Both give the child a value that [is made its own](Inherit::inherit).

mod mutex;
mod try_mutex;

pub(super) use mutex::{ForkMutex, ForkMutexGuard};
pub use try_mutex::{ForkTryMutex, ForkTryMutexGuard};

use std::mem;
use std::ops::{Deref, DerefMut};

use super::sync::{MutPtr, UnsafeCell};

/// A value that a fork copies.
pub trait Inherit {
    /// Makes the value the child's own. A thread of the parent may have been changing it: only what
    /// is sound in the middle of any change may be looked at.
    fn inherit(&mut self);
}

/// Leaves a value to the parent. Its memory is not freed: it may be half changed.
pub fn leave_to_parent<T: Default>(value: &mut T) {
    mem::forget(mem::take(value));
}

/// Exclusive access to the value of a lock, which is locked while this exists.
pub struct ForkGuard<'a, T, L> {
    /// Not a reference to the value: a reference would have to be exclusive until the guard is
    /// dropped, but the lock is released a moment earlier. (Fields are dropped in this order.)
    value: MutPtr<T>,
    cell: &'a UnsafeCell<T>,
    lock: L,
}

// SAFETY: like `&mut T`, with what keeps the lock locked.
unsafe impl<T: Send, L: Send> Send for ForkGuard<'_, T, L> {}
// SAFETY: as above; shared references only give shared access to the value.
unsafe impl<T: Sync, L: Sync> Sync for ForkGuard<'_, T, L> {}

impl<'a, T, L> ForkGuard<'a, T, L> {
    /// Gives access to the value of a lock that `lock` keeps locked.
    fn new(cell: &'a UnsafeCell<T>, lock: L) -> Self {
        Self { value: cell.get_mut(), cell, lock }
    }
}

impl<T, L> Deref for ForkGuard<'_, T, L> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the lock is locked, so its holder has exclusive access to the value, which lives
        // as long as the lock.
        unsafe { self.value.deref() }
    }
}

impl<T, L> DerefMut for ForkGuard<'_, T, L> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and the guard is borrowed mutably.
        unsafe { self.value.deref() }
    }
}

/// A value that knows how often a fork made it a child's own, for tests.
#[cfg(test)]
#[derive(Default)]
struct Inherited(usize);

#[cfg(test)]
impl Inherit for Inherited {
    fn inherit(&mut self) {
        self.0 += 1;
    }
}
