//! A socket's options: those that the user has set, and those that the library holds meanwhile.

use std::ffi::c_int;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::Socket;
use super::transmit::is_timestamping;
use crate::net::meta;
use crate::net::shared_options::{self, Hold};
use crate::net::sys;

impl Socket {
    /// Records that the user has set an option: from now on the library must not change it.
    pub fn option_was_set(&self, level: c_int, name: c_int) {
        self.holders.option_was_set(level, name);
        if (level, name) != (libc::SOL_UDP, libc::UDP_CORK) {
            self.gso.forget();
        }
        if level == libc::SOL_SOCKET && matches!(name, libc::SO_ATTACH_FILTER | libc::SO_ATTACH_BPF)
        {
            self.filter_was_set();
        }
        if level == libc::SOL_SOCKET && is_timestamping(name) {
            // The kernel may now choose ids itself, or report about all datagrams.
            self.stop_stamping();
        }
        {
            let mut set = self.set_by_user.lock().unwrap_or_else(PoisonError::into_inner);
            if !set.contains(&(level, name)) {
                set.push((level, name));
            }
        }
        // If the socket is closed by now, there is nothing to leave alone.
        let _ = self.with(|fd| {
            shared_options::leave_to_user(fd, (level, name));
            Ok(())
        });
    }

    /// Whether the user has set an option.
    pub fn is_set_by_user(&self, level: c_int, name: c_int) -> bool {
        let set = self.set_by_user.lock().unwrap_or_else(PoisonError::into_inner);
        set.contains(&(level, name))
    }

    /// Makes the kernel report the metadata in [`super::Meta`] with each datagram. An option that
    /// the user has set, on or off, stays as it is.
    pub fn request_metadata(&self) -> io::Result<()> {
        if self.tells_metadata.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        self.switch_on(meta::options(self.family))
    }

    /// Makes the kernel report when it received each datagram; otherwise as
    /// [`request_metadata`](Self::request_metadata).
    pub fn request_timestamp(&self) -> io::Result<()> {
        self.switch_on(&[(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS)])
    }

    /// Makes the kernel report the destination with each datagram; otherwise as
    /// [`request_metadata`](Self::request_metadata).
    pub fn request_destination(&self) -> io::Result<()> {
        self.switch_on(meta::destination_options(self.family))
    }

    fn switch_on(&self, options: &[(c_int, c_int)]) -> io::Result<()> {
        for &(level, name) in options {
            let rivals: &[c_int] = match (level, name) {
                (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS) => &meta::TIMESTAMPS,
                _ => &[name],
            };
            let is_users = |&rival: &c_int| self.is_set_by_user(level, rival);
            if self.holds((level, name)) || rivals.iter().any(is_users) {
                continue;
            }
            let switch_on = |fd: BorrowedFd<'_>| {
                let is_on =
                    |&rival| sys::int_option(fd, level, rival).is_ok_and(|value| value != 0);
                let is_others = || rivals.iter().any(is_on);
                let Some(hold) = Hold::take(fd, (level, name), 1, is_others)? else {
                    return Ok(());
                };
                sys::set_int_option(fd, level, name, 1)?;
                self.keep_hold(hold)
            };
            match self.with(switch_on) {
                // An IPv6 socket that refuses IPv4 does not have to know IPv4's options.
                Err(error) if error.raw_os_error() != Some(libc::ENOPROTOOPT) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn holds(&self, (level, name): (c_int, c_int)) -> bool {
        self.holds.lock().iter().any(|hold| (hold.level, hold.name) == (level, name))
    }

    /// Keeps a hold until [`restore_options`](Self::restore_options) or the end of the socket.
    pub(super) fn keep_hold(&self, hold: Hold) -> io::Result<()> {
        let mut holds = self.holds.lock();
        sys::make_room(&mut holds, 1, "the options of a socket")?;
        holds.push(hold);
        Ok(())
    }

    /// The number of options that this socket holds without the user having set them.
    pub fn held_options(&self) -> usize {
        self.holds.lock().len()
    }

    /// Releases all held options except the first `before`. An option that no other socket of this
    /// process holds is restored to its value before the first of them changed it, unless the user
    /// has set it since.
    pub fn restore_options(&self, before: usize) -> io::Result<()> {
        let later = {
            let mut holds = self.holds.lock();
            let before = before.min(holds.len());
            holds.split_off(before)
        };
        let mut result = Ok(());
        for hold in later {
            let is_gro = (hold.level, hold.name) == (libc::SOL_UDP, libc::UDP_GRO);
            match self.with(|fd| hold.restore(fd)) {
                Ok(Some(value)) if is_gro => self.gro.was_set(value != 0),
                Ok(_) => {}
                Err(error) => result = Err(error),
            }
        }
        result
    }

    pub(super) fn drop_holds(&self) {
        let holds = std::mem::take(&mut *self.holds.lock());
        drop(holds); // this may wait for a fork, so release the lock first
    }
}
