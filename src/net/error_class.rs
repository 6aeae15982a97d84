//! What an error of a socket is about: a peer, a shortage of the machine's, or the socket itself.
//!
//! The kernel reports what became of an earlier datagram on the next call, whatever that call is
//! for: an ICMP message sets the socket's error, and a receive returns it although nothing is wrong
//! with receiving (`icmp_err_convert` in the kernel's `net/ipv4/icmp.c`, `tab_unreach` in
//! `net/ipv6/icmp.c`). ICMP messages come from outside, and anybody can send them, so no number of
//! such errors may end a receiver. This table says which errors may.

use std::io;
use std::time::Duration;

/// What an error of a send or a receive on a datagram socket is about.
///
/// `EAGAIN` and `EINTR` are not errors; callers handle them first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// A peer, the way to it, or one datagram: count it, log it once in a while, and go on.
    Peer,
    /// Memory or descriptors that the machine lacks for the moment: go on after a pause.
    Shortage,
    /// The socket itself. The next call fails in the same way.
    Own,
}

impl ErrorClass {
    /// The class of an error.
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self::of_errno(errno),
            None if error.kind() == io::ErrorKind::OutOfMemory => Self::Shortage,
            // A guard's refusal of a datagram.
            None => Self::Peer,
        }
    }

    /// The class of an errno.
    ///
    /// Whatever is not known to be about the socket or the machine counts as about a peer:
    ///
    /// * ICMP: `ENETUNREACH`, `EHOSTUNREACH`, `ENOPROTOOPT`, `ECONNREFUSED`, `EMSGSIZE`,
    ///   `EOPNOTSUPP`, `EHOSTDOWN`, `ENONET`, `EPROTO`; `ICMPv6` also `EACCES`.
    /// * An address that cannot be sent to: `EINVAL` (port 0), `EACCES` (broadcast, or a route that
    ///   prohibits it), `EPERM` (a packet filter), `ENETUNREACH`, `EADDRNOTAVAIL`, `EAFNOSUPPORT`,
    ///   `EDESTADDRREQ`, `EISCONN`.
    /// * A device that is down or gone: `ENETDOWN`, `ENODEV`, `ENXIO`, `EIO`.
    /// * `AF_UNIX`: `ECONNREFUSED`, `ENOENT`, `EPIPE`, `ECONNRESET`, `EPROTOTYPE`, `ENOTCONN`.
    /// * `ss --kill`: `ECONNABORTED`, after which the socket goes on.
    pub fn of_errno(errno: i32) -> Self {
        match errno {
            libc::ENOMEM | libc::ENOBUFS | libc::EMFILE | libc::ENFILE => Self::Shortage,
            libc::EBADF | libc::ENOTSOCK | libc::EFAULT | libc::ENOSYS => Self::Own,
            _ => Self::Peer,
        }
    }
}

/// Whether a send may have reported an ICMP message about an earlier datagram, on a socket that hears
/// of those (it is connected, or has `IP_RECVERR`). Then it has sent nothing, and the same send again
/// tells the truth.
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

/// Errors in a row, with no datagram between them: how long to pause before the next attempt.
///
/// An error about a peer is over once it was returned, so that the next attempt needs no pause. But
/// where something else makes every call fail (a security module, say), a loop without pauses
/// would burn a core.
#[derive(Clone, Copy, Debug, Default)]
pub struct ErrorStreak {
    errors: u32,
}

impl ErrorStreak {
    /// As many errors about peers in a row cost no pause.
    const FREE: u32 = 64;
    /// The first pause, which doubles with each error, up to the longest.
    const FIRST: Duration = Duration::from_micros(50);
    const LONGEST: Duration = Duration::from_millis(10);

    /// Begins anew: there was a datagram, or nothing to receive.
    pub fn end(&mut self) {
        self.errors = 0;
    }

    /// Counts an error, and says how long to pause, if at all.
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
    fn what_icmp_and_addresses_say_is_about_a_peer() {
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
    fn what_is_short_or_wrong_here_is_not() {
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
    fn what_no_icmp_message_says_is_not_of_an_earlier_datagram() {
        for errno in [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::EMSGSIZE, libc::EACCES] {
            assert!(may_be_of_earlier(&io::Error::from_raw_os_error(errno)));
        }
        for errno in [libc::EINVAL, libc::EPERM, libc::ENOBUFS, libc::EADDRNOTAVAIL, libc::EBADF] {
            assert!(!may_be_of_earlier(&io::Error::from_raw_os_error(errno)));
        }
    }

    #[test]
    fn a_streak_pauses_only_where_it_is_long_and_never_for_long() {
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
