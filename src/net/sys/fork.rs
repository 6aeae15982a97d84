//! Distinguishes a child from its parent, and keeps forks out of critical sections.

use std::cell::{Cell, UnsafeCell};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

static GENERATION: AtomicU32 = AtomicU32::new(0);

/// The number of forks between this process and the one that loaded the library.
///
/// State that a fork copies but that is only true in the parent (such as waiting threads, or
/// threads inside a system call) stores this number, and is void if it differs.
#[cfg(not(loom))]
pub(in crate::net) fn fork_generation() -> u32 {
    watch_forks();
    GENERATION.load(Ordering::Relaxed)
}

/// How often this process and its ancestors have forked. A descriptor that was opened before the last
/// fork may have another holder, in the parent or in a child.
pub(in crate::net) fn forks() -> u32 {
    watch_forks();
    FORKS_BEGUN.load(Ordering::Relaxed)
}

static FORKS_BEGUN: AtomicU32 = AtomicU32::new(0);

/// The number of the calling thread, counted from 1. In a child, the thread that forked keeps its
/// number, and no other thread has a number of one of the parent's threads.
pub(in crate::net) fn thread_number() -> u32 {
    static LAST: AtomicU32 = AtomicU32::new(0);
    thread_local! {
        static NUMBER: Cell<u32> = const { Cell::new(0) };
    }
    if NUMBER.get() == 0 {
        NUMBER.set(LAST.fetch_add(1, Ordering::Relaxed) + 1);
    }
    NUMBER.get()
}

/// Whether a thread of the parent continues in this process, because it is the one that forked.
pub(in crate::net) fn has_forked(thread: u32) -> bool {
    FORKED_BY.load(Ordering::Relaxed) == thread
}

static FORKED_BY: AtomicU32 = AtomicU32::new(0);

/// Runs `act` while no thread of this process forks: a child is a copy of the process before or
/// after it, never in its middle. It must be short, because `os.fork` waits for it, and must not
/// fork.
pub(in crate::net) fn without_fork<T>(act: impl FnOnce() -> T) -> T {
    struct Reading;
    impl Drop for Reading {
        fn drop(&mut self) {
            // SAFETY: this thread has locked it for reading.
            unsafe { libc::pthread_rwlock_unlock(FORKS.0.get()) };
        }
    }
    watch_forks();
    // SAFETY: the lock is static and initialised, and this thread does not have it: neither
    // `act` nor a handler of `fork` calls this.
    unsafe { libc::pthread_rwlock_rdlock(FORKS.0.get()) };
    let _reading = Reading;
    act()
}

/// Locked for reading by code that a fork must not interrupt, for writing by a fork.
static FORKS: ForkLock = ForkLock(UnsafeCell::new(libc::PTHREAD_RWLOCK_INITIALIZER));

struct ForkLock(UnsafeCell<libc::pthread_rwlock_t>);

// SAFETY: it is only reached through pthread's functions, which threads may call at the same time.
unsafe impl Sync for ForkLock {}

fn watch_forks() {
    static REGISTERED: Once = Once::new();
    extern "C" fn before_fork() {
        FORKS_BEGUN.fetch_add(1, Ordering::Relaxed); // for both processes
        // SAFETY: the lock is static and initialised; the thread that forks does not have it.
        unsafe { libc::pthread_rwlock_wrlock(FORKS.0.get()) };
    }
    extern "C" fn after_fork() {
        // SAFETY: `before_fork` has locked it in this thread.
        unsafe { libc::pthread_rwlock_unlock(FORKS.0.get()) };
    }
    extern "C" fn in_child() {
        GENERATION.fetch_add(1, Ordering::Relaxed);
        FORKED_BY.store(thread_number(), Ordering::Relaxed);
        // A reader or writer that waited for the lock in the parent does not exist here.
        // SAFETY: this is the child's only thread, and a rwlock may be overwritten by a new one.
        unsafe { FORKS.0.get().write(libc::PTHREAD_RWLOCK_INITIALIZER) };
    }
    REGISTERED.call_once(|| {
        // SAFETY: the handlers are static functions, and what they call is safe around any fork.
        // Registering fails only if memory is exhausted; then the child of a fork with threads
        // inside system calls mistakes their state for its own.
        unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(in_child)) };
    });
}

/// Runs `child` in a child process, and returns what it returned.
#[cfg(test)]
pub(in crate::net) fn in_child(child: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child only calls fork-safe functions, and ends without unwinding.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: the alarm ends a child that is stuck, `_exit` one that is not.
        unsafe {
            libc::alarm(10);
            libc::_exit(i32::from(child()));
        }
    }
    let mut status = -1;
    // SAFETY: the child is ours, and the pointer is to a local variable.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status), "{status}");
    libc::WEXITSTATUS(status) != 0
}

#[cfg(loom)]
pub(in crate::net) use model::{fork_generation, model_fork, model_process};

/// A fork, for loom: its threads are those of the child, which begin after it. All of a model's
/// threads run on one thread of the system.
#[cfg(loom)]
mod model {
    use std::cell::Cell;

    std::thread_local! {
        static GENERATION: Cell<u32> = const { Cell::new(0) };
    }

    pub(in crate::net) fn fork_generation() -> u32 {
        GENERATION.get()
    }

    /// Begins a model.
    pub(in crate::net) fn model_process() {
        GENERATION.set(0);
    }

    /// Makes the code after this call the child's.
    pub(in crate::net) fn model_fork() {
        GENERATION.set(GENERATION.get() + 1);
    }
}
