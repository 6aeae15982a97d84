//! Generic receive offload: whether the kernel coalesces datagrams (`UDP_GRO` in `udp(7)`).

use std::ffi::c_int;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::Socket;
use super::recv_cursor::RecvCursor;
use crate::net::recv_ring::SlotKind;
use crate::net::shared_options::Hold;

/// A socket's GRO state.
#[derive(Default)]
pub(super) struct Gro {
    is_on: AtomicBool,
    /// Whether GRO was ever on: from then on, every receive splits coalesced messages.
    splits: AtomicBool,
    /// Whether anything has set the option, on or off.
    is_decided: AtomicBool,
}

/// The minimum that a message takes of a receive buffer, in addition to its bytes.
const OVERHEAD: usize = 512;

/// Switches GRO on when a socket receives in volume. The first socket of a machine with GRO, and the
/// end of the last, make the kernel patch its own code, which takes 50 µs each: more than a socket
/// for a single request costs.
pub struct GroOnDemand {
    /// How many messages were received since the queue was last found empty; [`DECIDED`] if they do
    /// not count.
    run: AtomicUsize,
}

const DECIDED: usize = usize::MAX;

/// The number of messages without a pause that is a volume.
const VOLUME: usize = 16;

impl GroOnDemand {
    /// Watches a socket, unless GRO is decided already.
    pub fn new(is_decided: bool) -> Self {
        Self { run: AtomicUsize::new(if is_decided { DECIDED } else { 0 }) }
    }

    /// Records a receive of some messages: `is_full` if as many arrived as were requested, so there
    /// may be more.
    pub fn note(&self, socket: &Socket, messages: usize, is_full: bool) {
        let run = self.run.load(Ordering::Relaxed);
        if run == DECIDED {
            return;
        }
        let run = if is_full { run + messages } else { 0 };
        if run < VOLUME {
            return self.run.store(run, Ordering::Relaxed);
        }
        self.run.store(DECIDED, Ordering::Relaxed);
        let is_decided = socket.gro.is_decided.load(Ordering::Relaxed)
            || socket.is_set_by_user(libc::SOL_UDP, libc::UDP_GRO);
        if socket.is_ip() && !is_decided {
            let _ = socket.set_gro(true); // before Linux 5.0 there is none
        }
    }
}

impl Gro {
    /// Records the current value of the kernel's option.
    pub(super) fn was_set(&self, is_on: bool) {
        self.is_on.store(is_on, Ordering::Relaxed);
        self.is_decided.store(true, Ordering::Relaxed);
    }
}

impl Socket {
    /// Whether the kernel coalesces datagrams, and every receive splits them.
    pub fn gro(&self) -> bool {
        self.gro.is_on.load(Ordering::Relaxed)
    }

    /// Lets the kernel coalesce datagrams of equal size from one peer (`UDP_GRO` in `udp(7)`), and
    /// every receive split them. Switching it off moves the kernel's queue to the backlog: the
    /// kernel would no longer report the segment sizes of messages that it has already coalesced.
    pub fn set_gro(&self, is_on: bool) -> io::Result<()> {
        // Set before the first coalesced message can arrive, and never cleared, because one may
        // arrive between the check of the queue and the switch.
        let was_splitting = self.gro.splits.fetch_or(is_on, Ordering::Relaxed);
        if !is_on && self.gro() {
            self.keep_queued()?;
        }
        self.set_int_option(libc::SOL_UDP, libc::UDP_GRO, is_on.into()).inspect_err(|_| {
            // A socket without the option keeps its state: only on such a socket can recvmsg pass
            // descriptors, for which a ring has no room.
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

    /// Moves the kernel's queue to the backlog, but at most as many datagrams as a queue can hold:
    /// new ones may arrive faster than this.
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

    /// Whether a kernel message may contain several datagrams.
    pub fn may_be_coalesced(&self) -> bool {
        self.gro.splits.load(Ordering::Relaxed)
    }

    /// Whether a receive goes through the backlog.
    pub(super) fn splits(&self, flags: c_int) -> bool {
        #[cfg(feature = "dtls")]
        if self.has_dtls() {
            return flags & libc::MSG_ERRQUEUE == 0;
        }
        let goes = self.may_be_coalesced() || self.proxies().is_some() || self.backlog_len() > 0;
        goes && flags & libc::MSG_ERRQUEUE == 0
    }
}
