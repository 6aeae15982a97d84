//! Threads that `pthread_exit` ends while Rust code runs in them.

use std::ffi::{c_int, c_void};

/// The memory of a cleanup handler. It is at least as large as that of glibc and of musl.
#[repr(C)]
#[derive(Default)]
struct Cleanup([usize; 4]);

unsafe extern "C" {
    // In glibc and in musl, with the same signatures: what `pthread_cleanup_push(3)` expands to
    // where the C library, and not the compiler, keeps the list of handlers.
    fn _pthread_cleanup_push(
        buffer: *mut Cleanup,
        routine: extern "C" fn(*mut c_void),
        argument: *mut c_void,
    );
    fn _pthread_cleanup_pop(buffer: *mut Cleanup, execute: c_int);
}

/// Runs a function whose stack frames must not be unwound by `pthread_exit`: if the thread is ended
/// in it, the thread hangs for ever instead.
///
/// Before 3.14, Python ends a thread with `pthread_exit` when the thread tries to run Python code
/// after the main thread has begun to finalize the interpreter. glibc then unwinds the stack, which
/// aborts the process at the first Rust frame that called into Python. Later versions hang such a
/// thread.
///
/// glibc runs a handler before it leaves the frame that contains its memory. This one's memory is in
/// no frame, so glibc runs it before it leaves any.
pub fn hang_if_ended<T>(call: impl FnOnce() -> T) -> T {
    struct Pushed(*mut Cleanup);

    impl Drop for Pushed {
        fn drop(&mut self) {
            // SAFETY: this is the thread's last handler, because handlers that `call` pushed were
            // popped when it ended. The memory is from `Box::into_raw`, and nothing uses it after.
            unsafe {
                _pthread_cleanup_pop(self.0, 0);
                drop(Box::from_raw(self.0));
            }
        }
    }

    let pushed = Pushed(Box::into_raw(Box::default()));
    // SAFETY: the memory is valid until `pushed` is dropped, which takes it out of the list.
    unsafe { _pthread_cleanup_push(pushed.0, hang, std::ptr::null_mut()) };
    call()
}

/// Sleeps for ever, and leaves the signals to other threads.
extern "C" fn hang(_: *mut c_void) {
    // SAFETY: the set is a plain value that sigfillset() fills, and the calls have no other pointers.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        loop {
            libc::pause();
        }
    }
}
