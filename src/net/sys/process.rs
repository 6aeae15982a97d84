//! A process and its parent.

use std::ffi::c_int;
use std::io;

/// Makes the kernel send this process a signal when the thread that forked it exits:
/// `PR_SET_PDEATHSIG` in `prctl(2)`.
pub fn end_with_parent(signal: c_int) -> io::Result<()> {
    // No pointers.
    syscall!(prctl(libc::PR_SET_PDEATHSIG, libc::c_long::from(signal), 0, 0, 0)).map(drop)
}
