//! System calls behind safe functions.
//!
//! All unsafe code of the engine is here. Every function takes its descriptor as a
//! [`BorrowedFd`](std::os::fd::BorrowedFd), so that it is open for the whole call, and its memory
//! as a [`SendSlice`] or a [`RecvSlice`], so that it is valid for the whole call. Errors are the
//! kernel's: [`std::io::Error`] with its errno.

/// Calls a libc function that returns -1 and sets errno when it fails.
///
/// The caller passes pointers that are valid for the function; a comment at each use says why.
macro_rules! syscall {
    ($function:ident ( $($argument:expr),* $(,)? )) => {{
        // SAFETY: the pointers are valid, as the comment at this use of the macro says.
        let result = unsafe { libc::$function($($argument),*) };
        if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }};
}

mod epoll;
mod event;
mod fork;
mod memory;
mod messages;
mod names;
#[cfg(feature = "dtls")]
pub(super) mod openssl;
mod process;
mod single;
mod slices;
mod socket;
mod thread_exit;
mod timer;

pub use epoll::{Ready, ReadyEvents};
pub(super) use event::*;
pub(super) use fork::*;
pub use memory::{Memory, Zeroes, make_room, no_memory, with_room, zeroes};
pub(super) use memory::{SharedWords, ZeroedPages, zeroed};
pub(super) use messages::*;
pub use names::*;
pub use process::*;
pub use single::MessageInfo;
pub(super) use single::*;
pub use slices::*;
pub use socket::program_option;
pub(super) use socket::*;
pub use thread_exit::hang_if_ended;
pub use timer::Timer;
pub(super) use timer::timer_slack;
