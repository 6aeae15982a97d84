//! Generic receive offload: whether the kernel glues datagrams together (`UDP_GRO` in `udp(7)`).

use std::ffi::c_int;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Socket;
use super::recv_cursor::RecvCursor;
use crate::net::recv_ring::SlotKind;
use crate::net::shared_options::Hold;

/// What a socket knows of it.
#[derive(Default)]
pub(super) struct Gro {
    is_on: AtomicBool,
    /// Whether it ever was on: from then on every receive takes apart what comes.
    splits: AtomicBool,
}

/// What a message takes of a receive buffer at the least, beside its bytes.
const OVERHEAD: usize = 512;

impl Gro {
    /// Takes note of what the kernel's option is now.
    pub(super) fn was_set(&self, is_on: bool) {
        self.is_on.store(is_on, Ordering::Relaxed);
    }
}

impl Socket {
    /// Whether the kernel glues datagrams together, and every receive takes them apart.
    pub fn gro(&self) -> bool {
        self.gro.is_on.load(Ordering::Relaxed)
    }

    /// Lets the kernel glue datagrams of one size from one peer together (`UDP_GRO` in `udp(7)`),
    /// and every receive take them apart. Switched off, it keeps what is queued: of a message that
    /// was glued before, the kernel would not tell the sizes any more.
    pub fn set_gro(&self, is_on: bool) -> io::Result<()> {
        // Before the first glued message can come; and for good, because one may come between the
        // look at the queue and the switch.
        let was_splitting = self.gro.splits.fetch_or(is_on, Ordering::Relaxed);
        if !is_on && self.gro() {
            self.keep_queued()?;
        }
        self.set_int_option(libc::SOL_UDP, libc::UDP_GRO, is_on.into()).inspect_err(|_| {
            // A socket that has no such option goes on as it was: only there recvmsg can pass
            // descriptors on, for which a ring has no room.
            self.gro.splits.store(was_splitting, Ordering::Relaxed);
        })?;
        self.gro.was_set(is_on);
        Ok(())
    }

    /// As [`set_gro`](Self::set_gro), on an open socket that others may share, until
    /// [`restore_options`](Self::restore_options). `None` leaves the kernel's option as it is, and
    /// splits what arrives coalesced. A socket without the option, such as one of `AF_UNIX`, stays
    /// as it is.
    pub fn set_shared_gro(&self, wanted: Option<bool>) -> io::Result<()> {
        let option = (libc::SOL_UDP, libc::UDP_GRO);
        let Ok(current) = self.int_option(option.0, option.1) else { return Ok(()) };
        let is_on = wanted.unwrap_or(current != 0);
        if wanted.is_none() && !is_on {
            return Ok(());
        }
        if let Some(hold) = self.with(|fd| Hold::take(fd, option, is_on.into(), || false))? {
            self.keep_hold(hold)?;
        }
        self.set_gro(is_on)
    }

    /// Takes what is in the kernel's queue, but no more than a queue can hold: what comes meanwhile
    /// may come faster.
    fn keep_queued(&self) -> io::Result<()> {
        let mut cursor = RecvCursor::of_thread(self)?;
        let room = self.int_option(libc::SOL_SOCKET, libc::SO_RCVBUF)? as usize;
        let slots = cursor.slots();
        let mut taken = 0;
        while taken <= room {
            match self.with(|fd| cursor.receive_behind(fd, slots, libc::MSG_DONTWAIT)) {
                Ok(filled) => taken += filled.bytes + filled.messages * OVERHEAD,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.raw_os_error() == Some(libc::EBADF) => return Err(error),
                Err(error) => {
                    taken += OVERHEAD;
                    self.defer(&error);
                }
            }
        }
        Ok(())
    }

    /// The kind of ring that holds every datagram of this socket in full.
    pub fn slot_kind(&self) -> SlotKind {
        if self.is_ip() { SlotKind::Ip } else { SlotKind::Unix }
    }

    /// Whether messages of the kernel's may be several datagrams.
    pub fn may_be_glued(&self) -> bool {
        self.gro.splits.load(Ordering::Relaxed)
    }

    /// Whether a receive goes by way of the kept ones.
    pub(super) fn splits(&self, flags: c_int) -> bool {
        (self.may_be_glued() || self.backlog_len() > 0) && flags & libc::MSG_ERRQUEUE == 0
    }
}
