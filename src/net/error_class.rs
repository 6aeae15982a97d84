//! Classes of socket errors: about a peer, a shortage on this machine, or the socket itself.
//!
//! The kernel reports an error of an earlier datagram on the next call, whichever call that is: an
//! ICMP message sets the socket's error, and a receive returns it although receiving works
//! (`icmp_err_convert` in the kernel's `net/ipv4/icmp.c`, `tab_unreach` in `net/ipv6/icmp.c`).
//! Anyone can send ICMP messages, so such errors must never end a receiver, however many there are.
//! This table says which errors may.

use std::io;
use std::time::Duration;

/// The subject of an error of a send or a receive on a datagram socket.
///
/// `EAGAIN` and `EINTR` are not errors; callers handle them first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// A peer, the route to it, or one datagram: count it, log it at a limited rate, and continue.
    Peer,
    /// The machine is short of memory or descriptors: continue after a pause.
    Shortage,
    /// The socket itself. The next call will fail in the same way.
    Own,
}

impl ErrorClass {
    /// The class of an error.
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self::of_errno(errno),
            None if error.kind() == io::ErrorKind::OutOfMemory => Self::Shortage,
            // A guard refused a datagram.
            None => Self::Peer,
        }
    }

    /// The class of an errno.
    ///
    /// An error counts as about a peer unless it is known to concern the socket or the machine:
    ///
    /// * ICMP: `ENETUNREACH`, `EHOSTUNREACH`, `ENOPROTOOPT`, `ECONNREFUSED`, `EMSGSIZE`,
    ///   `EOPNOTSUPP`, `EHOSTDOWN`, `ENONET`, `EPROTO`; `ICMPv6` also `EACCES`.
    /// * An address that is not reachable: `EINVAL` (port 0), `EACCES` (broadcast, or a route that
    ///   prohibits it), `EPERM` (a packet filter), `ENETUNREACH`, `EADDRNOTAVAIL`, `EAFNOSUPPORT`,
    ///   `EDESTADDRREQ`, `EISCONN`.
    /// * A device that is down or gone: `ENETDOWN`, `ENODEV`, `ENXIO`, `EIO`.
    /// * `AF_UNIX`: `ECONNREFUSED`, `ENOENT`, `EPIPE`, `ECONNRESET`, `EPROTOTYPE`, `ENOTCONN`.
    /// * `ss --kill`: `ECONNABORTED`; the socket continues to work.
    pub fn of_errno(errno: i32) -> Self {
        match errno {
            libc::ENOMEM | libc::ENOBUFS | libc::EMFILE | libc::ENFILE => Self::Shortage,
            libc::EBADF | libc::ENOTSOCK | libc::EFAULT | libc::ENOSYS => Self::Own,
            _ => Self::Peer,
        }
    }
}

/// Whether a send may have reported an ICMP message about an earlier datagram, on a socket that
/// receives such errors (it is connected, or has `IP_RECVERR`). If so, nothing was sent, and
/// repeating the send gives its real result.
pub fn may_be_of_earlier(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNREFUSED
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::EMSGSIZE
                | libc::ENOPROTOOPT
                | libc::EOPNOTSUPP
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EPROTO
                | libc::EACCES
        )
    )
}

/// Counts consecutive errors without a datagram between them, and determines how long to pause.
///
/// An error about a peer is cleared when it is returned, so the next attempt needs no pause. But if
/// something else makes every call fail (a security module, for example), a loop without pauses
/// would use a whole core.
#[derive(Clone, Copy, Debug, Default)]
pub struct ErrorStreak {
    errors: u32,
}

impl ErrorStreak {
    /// This many consecutive errors about peers cause no pause.
    const FREE: u32 = 64;
    /// The first pause. It doubles with each error, up to the longest pause.
    const FIRST: Duration = Duration::from_micros(50);
    const LONGEST: Duration = Duration::from_millis(10);

    /// Resets the count: a datagram was received, or there was nothing to receive.
    pub fn end(&mut self) {
        self.errors = 0;
    }

    /// Counts an error; returns how long to pause, if at all.
    pub fn pause(&mut self, class: ErrorClass) -> Option<Duration> {
        self.errors = self.errors.saturating_add(1);
        match class {
            ErrorClass::Peer => {
                let doublings = self.errors.checked_sub(Self::FREE + 1)?.min(8);
                Some((Self::FIRST * (1 << doublings)).min(Self::LONGEST))
            }
            ErrorClass::Shortage | ErrorClass::Own => Some(Self::LONGEST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn icmp_and_address_errors_are_about_a_peer() {
        let errnos = [
            libc::ECONNREFUSED,
            libc::EHOSTUNREACH,
            libc::ENETUNREACH,
            libc::EMSGSIZE,
            libc::EINVAL,
            libc::EPERM,
            libc::EACCES,
            libc::ECONNRESET,
            libc::ECONNABORTED,
            libc::EHOSTDOWN,
            libc::ENONET,
            libc::EPROTO,
            libc::ENOPROTOOPT,
            libc::EOPNOTSUPP,
            libc::EREMOTEIO,
            libc::ENETDOWN,
            libc::EADDRNOTAVAIL,
            libc::EPIPE,
            libc::ENOENT,
            4095,
        ];
        for errno in errnos {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(ErrorClass::of(&error), ErrorClass::Peer, "{error}");
        }
        let refusal = io::Error::new(io::ErrorKind::PermissionDenied, "a guard's");
        assert_eq!(ErrorClass::of(&refusal), ErrorClass::Peer);
    }

    #[test]
    fn shortages_and_local_errors_are_not_about_a_peer() {
        for errno in [libc::ENOMEM, libc::ENOBUFS, libc::EMFILE, libc::ENFILE] {
            assert_eq!(ErrorClass::of_errno(errno), ErrorClass::Shortage);
        }
        let no_memory = io::Error::from(io::ErrorKind::OutOfMemory);
        assert_eq!(ErrorClass::of(&no_memory), ErrorClass::Shortage);
        for errno in [libc::EBADF, libc::ENOTSOCK, libc::EFAULT, libc::ENOSYS] {
            assert_eq!(ErrorClass::of_errno(errno), ErrorClass::Own);
        }
    }

    #[test]
    fn errors_without_an_icmp_message_are_not_of_an_earlier_datagram() {
        for errno in [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::EMSGSIZE, libc::EACCES] {
            assert!(may_be_of_earlier(&io::Error::from_raw_os_error(errno)));
        }
        for errno in [libc::EINVAL, libc::EPERM, libc::ENOBUFS, libc::EADDRNOTAVAIL, libc::EBADF] {
            assert!(!may_be_of_earlier(&io::Error::from_raw_os_error(errno)));
        }
    }

    #[test]
    fn only_a_long_streak_pauses_and_never_for_long() {
        let mut streak = ErrorStreak::default();
        for _ in 0..ErrorStreak::FREE {
            assert_eq!(streak.pause(ErrorClass::Peer), None);
        }
        let mut last = Duration::ZERO;
        for _ in 0..100 {
            let pause = streak.pause(ErrorClass::Peer).unwrap();
            assert!(last <= pause && pause <= ErrorStreak::LONGEST);
            last = pause;
        }
        assert_eq!(last, ErrorStreak::LONGEST);
        streak.end();
        assert_eq!(streak.pause(ErrorClass::Peer), None);
        assert_eq!(streak.pause(ErrorClass::Shortage), Some(ErrorStreak::LONGEST));
        streak.errors = u32::MAX;
        assert_eq!(streak.pause(ErrorClass::Peer), Some(ErrorStreak::LONGEST));
    }
}
