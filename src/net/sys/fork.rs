//! Telling a child from its parent.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// Which process this is, counted in forks from the one that loaded the library.
///
/// State that a fork copies but that is only true in the parent (who waits, who is inside a system
/// call) carries this number, and is void where it differs.
pub(in crate::net) fn fork_generation() -> u32 {
    static GENERATION: AtomicU32 = AtomicU32::new(0);
    static REGISTERED: Once = Once::new();
    extern "C" fn count_fork() {
        GENERATION.fetch_add(1, Ordering::Relaxed);
    }
    REGISTERED.call_once(|| {
        // SAFETY: the handler is a static function that is safe to call after any fork. It fails
        // only for want of memory, and then only the child of a fork with threads inside system
        // calls would notice.
        unsafe { libc::pthread_atfork(None, None, Some(count_fork)) };
    });
    GENERATION.load(Ordering::Relaxed)
}
