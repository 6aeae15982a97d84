//! Options that sockets of this process change on open sockets that others may share.
//!
//! Duplicates of a descriptor share the options of one open socket. Each [`Socket`](super::Socket)
//! that changes one, or relies on the change, holds it. The last holder restores it.

use std::ffi::c_int;
use std::io;
use std::mem::{self, ManuallyDrop};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::fork_mutex::Inherit;
use super::sys;

/// The options that are changed, of all open sockets.
static CHANGES: Mutex<Vec<OptionChange>> = Mutex::new(Vec::new());
/// The number of the next change.
static NEXT: AtomicU64 = AtomicU64::new(0);

struct OptionChange {
    id: u64,
    /// The open socket: `SO_COOKIE`, the same for all its duplicates.
    socket: u64,
    level: c_int,
    name: c_int,
    /// The value before the first holder changed it.
    original: c_int,
    /// The value that the most recent holder set.
    ours: c_int,
    holders: usize,
    /// The process that made the change. A forked child leaves it to its parent.
    generation: u32,
}

/// A socket's hold on an option. Dropping it leaves the option as it is.
pub(super) struct Hold {
    /// The number of the change.
    id: u64,
    pub(super) level: c_int,
    pub(super) name: c_int,
}

impl Hold {
    /// Holds an option that the caller is about to set to `value`. It joins the sockets that
    /// already hold the option; if there are none, `is_others` says whether to leave the option
    /// alone.
    pub(super) fn take(
        fd: BorrowedFd<'_>,
        (level, name): (c_int, c_int),
        value: c_int,
        is_others: impl FnOnce() -> bool,
    ) -> io::Result<Option<Self>> {
        let socket = sys::socket_cookie(fd).ok();
        with_changes(|changes, generation| {
            let found = socket.and_then(|socket| find(changes, socket, (level, name)));
            if let Some(change) = found {
                change.holders += 1;
                change.ours = value;
                return Ok(Some(Self { id: change.id, level, name }));
            }
            if is_others() {
                return Ok(None);
            }
            let original = sys::int_option(fd, level, name)?;
            sys::make_room(changes, 1, "the options of a socket")?;
            let id = NEXT.fetch_add(1, Ordering::Relaxed);
            // Without cookies, the kernel cannot tell which sockets are the same: each one restores
            // its own.
            let socket = socket.unwrap_or(u64::MAX - id);
            let (ours, holders) = (value, 1);
            changes.push(OptionChange {
                id,
                socket,
                level,
                name,
                original,
                ours,
                holders,
                generation,
            });
            Ok(Some(Self { id, level, name }))
        })
    }

    /// Ends the hold. If it was the last, restores the option, unless its current value was not set
    /// by a holder. Returns the value that was restored.
    pub(super) fn restore(self, fd: BorrowedFd<'_>) -> io::Result<Option<c_int>> {
        let id = ManuallyDrop::new(self).id; // it ends here, exactly once
        with_changes(|changes, _| {
            let Some(OptionChange { level, name, original, ours, .. }) = leave(changes, id) else {
                return Ok(None);
            };
            if original == ours || sys::int_option(fd, level, name)? != ours {
                return Ok(None);
            }
            sys::set_int_option(fd, level, name, original)?;
            Ok(Some(original))
        })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        with_changes(|changes, _| leave(changes, self.id));
    }
}

/// A child holds nothing: restoring the options is up to its parent.
impl Inherit for Vec<Hold> {
    fn inherit(&mut self) {
        // Not dropped, because a thread of the parent may have been changing it.
        mem::forget(mem::take(self));
    }
}

/// Records that the user has set an option: it stays as it is from now on.
pub(super) fn leave_to_user(fd: BorrowedFd<'_>, option: (c_int, c_int)) {
    with_changes(|changes, _| {
        if !changes.is_empty()
            && let Ok(socket) = sys::socket_cookie(fd)
        {
            changes.retain(|change| !change.is_of(socket, option));
        }
    });
}

impl OptionChange {
    fn is_of(&self, socket: u64, (level, name): (c_int, c_int)) -> bool {
        (self.socket, self.level, self.name) == (socket, level, name)
    }
}

fn find(
    changes: &mut [OptionChange],
    socket: u64,
    option: (c_int, c_int),
) -> Option<&mut OptionChange> {
    changes.iter_mut().find(|change| change.is_of(socket, option))
}

/// Removes one holder from a change; returns the change if that was the last holder. A change that
/// was left to the user or to the parent process is not found.
fn leave(changes: &mut Vec<OptionChange>, id: u64) -> Option<OptionChange> {
    let index = changes.iter().position(|change| change.id == id)?;
    changes[index].holders -= 1;
    (changes[index].holders == 0).then(|| changes.swap_remove(index))
}

/// Runs `act` on the changes of this process. No thread forks meanwhile, so a child finds the lock
/// free.
fn with_changes<T>(act: impl FnOnce(&mut Vec<OptionChange>, u32) -> T) -> T {
    sys::without_fork(|| {
        let mut changes: MutexGuard<'_, Vec<OptionChange>> =
            CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = sys::fork_generation();
        changes.retain(|change| change.generation == generation);
        act(&mut changes, generation)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    const OPTION: (c_int, c_int) = (libc::IPPROTO_IP, libc::IP_RECVTTL);

    fn value(socket: &UdpSocket) -> c_int {
        sys::int_option(socket.as_fd(), OPTION.0, OPTION.1).unwrap()
    }

    fn hold(socket: &UdpSocket, to: c_int) -> Hold {
        let hold = Hold::take(socket.as_fd(), OPTION, to, || false).unwrap().unwrap();
        sys::set_int_option(socket.as_fd(), OPTION.0, OPTION.1, to).unwrap();
        hold
    }

    fn pair() -> (UdpSocket, UdpSocket) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let twin = socket.try_clone().unwrap();
        (socket, twin)
    }

    #[test]
    fn the_last_holder_restores_the_first_value() {
        let (socket, twin) = pair();
        let (first, second) = (hold(&socket, 1), hold(&twin, 1));
        assert_eq!(first.restore(socket.as_fd()).unwrap(), None);
        assert_eq!(value(&twin), 1);
        assert_eq!(second.restore(twin.as_fd()).unwrap(), Some(0));
        assert_eq!(value(&twin), 0);
    }

    #[test]
    fn another_value_stays() {
        let (socket, twin) = pair();
        sys::set_int_option(twin.as_fd(), OPTION.0, OPTION.1, 1).unwrap();
        let first = hold(&socket, 0);
        sys::set_int_option(twin.as_fd(), OPTION.0, OPTION.1, 1).unwrap();
        assert_eq!(first.restore(socket.as_fd()).unwrap(), None);
        assert_eq!(value(&twin), 1);
    }

    #[test]
    fn an_option_that_the_user_sets_is_left_alone() {
        let (socket, twin) = pair();
        let first = hold(&socket, 1);
        leave_to_user(twin.as_fd(), OPTION);
        assert!(Hold::take(twin.as_fd(), OPTION, 1, || true).unwrap().is_none());
        assert_eq!(first.restore(socket.as_fd()).unwrap(), None);
        assert_eq!(value(&twin), 1);
    }

    #[test]
    fn a_dropped_holder_does_not_count() {
        let (socket, twin) = pair();
        let (first, second) = (hold(&socket, 1), hold(&twin, 1));
        drop(first);
        assert_eq!(second.restore(twin.as_fd()).unwrap(), Some(0));
    }

    #[test]
    fn sockets_are_told_apart() {
        let ((one, _twin), (other, _)) = (pair(), pair());
        let (first, second) = (hold(&one, 1), hold(&other, 1));
        assert_eq!(first.restore(one.as_fd()).unwrap(), Some(0));
        assert_eq!(value(&other), 1);
        assert_eq!(second.restore(other.as_fd()).unwrap(), Some(0));
    }
}
