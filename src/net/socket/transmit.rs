//! Transmission: the time at which a datagram is to leave, and the kernel's reports of when datagrams
//! have left (the kernel's `networking/timestamping.rst`).

use std::collections::VecDeque;
use std::ffi::c_int;
use std::fs;
use std::io;
use std::mem::{offset_of, take};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::Socket;
use crate::net::cmsg::{self, ControlBuffer};
use crate::net::fork_mutex::{ForkMutex, Inherit, leave_to_parent};
use crate::net::meta::Meta;

/// The state of a socket for this.
#[derive(Default)]
pub(super) struct Transmit {
    /// Whether datagrams may have a transmit time.
    has_times: AtomicBool,
    /// Whether the kernel reports when datagrams have left.
    is_stamping: AtomicBool,
    last_id: AtomicU32,
    stamps: ForkMutex<VecDeque<TransmitStamp>>,
}

/// The kernel's report that a datagram has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransmitStamp {
    /// The datagram's id.
    pub id: u32,
    /// When the kernel passed it to the device, in nanoseconds since 1970.
    pub software_ns: Option<i64>,
    /// When the device sent it, in nanoseconds on the device's clock.
    pub hardware_ns: Option<i64>,
}

/// Reports belong to the process that received them.
impl Inherit for VecDeque<TransmitStamp> {
    fn inherit(&mut self) {
        leave_to_parent(self);
    }
}

/// The maximum number of stored reports; beyond it, the oldest are dropped.
const KEPT: usize = 1 << 16;
/// After this many datagrams, a sender takes their reports out of the kernel's queue, which drops
/// them when it is full: a receive buffer of the default size has room for some hundreds.
const COLLECTED: u32 = 32;

/// Which times the kernel reports: those of its own clock and of the device's. Received datagrams then
/// have their times in the same form.
const TIMES: u32 = libc::SOF_TIMESTAMPING_SOFTWARE
    | libc::SOF_TIMESTAMPING_RAW_HARDWARE
    | libc::SOF_TIMESTAMPING_RX_SOFTWARE;
/// How it reports them about sent datagrams: with ids, without the payload, and both times.
const REPORTING: u32 = libc::SOF_TIMESTAMPING_OPT_ID
    | libc::SOF_TIMESTAMPING_OPT_TSONLY
    | libc::SOF_TIMESTAMPING_OPT_TX_SWHW;
/// The reports that `send_datagram` asks for.
const REPORTED: u32 = libc::SOF_TIMESTAMPING_TX_SOFTWARE | libc::SOF_TIMESTAMPING_TX_HARDWARE;
/// The options that ask for reports about all datagrams, which the program itself may have set.
const FOR_ALL: u32 = REPORTED | libc::SOF_TIMESTAMPING_TX_SCHED | libc::SOF_TIMESTAMPING_TX_ACK;
/// `asm-generic/socket.h`
const SO_TIMESTAMPING_NEW: c_int = 65;
/// `asm-generic/socket.h`, since Linux 6.13
const SCM_TS_OPT_ID: c_int = 81;

impl Socket {
    /// Lets datagrams have a transmit time on `CLOCK_MONOTONIC`, which needs no privileges
    /// (`SO_TXTIME`). If the user, or another holder of the socket, has chosen a clock, that one
    /// applies.
    pub fn enable_transmit_times(&self) -> io::Result<()> {
        // struct sock_txtime: the clock, and flags.
        const CLOCK: usize = offset_of!(libc::sock_txtime, clockid);
        let (level, name) = (libc::SOL_SOCKET, libc::SO_TXTIME);
        if self.transmit.has_times.load(Ordering::Relaxed) || self.is_set_by_user(level, name) {
            return Ok(());
        }
        let mut option = [0; size_of::<libc::sock_txtime>()];
        self.option(level, name, &mut option)?;
        if option.iter().all(|&byte| byte == 0) {
            let clock: c_int = libc::CLOCK_MONOTONIC;
            option[CLOCK..CLOCK + 4].copy_from_slice(&clock.to_ne_bytes());
            self.set_option(level, name, &option)?;
        }
        self.transmit.has_times.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether datagrams get an id, and the kernel reports when they have left.
    pub fn is_stamping(&self) -> bool {
        self.transmit.is_stamping.load(Ordering::Relaxed)
    }

    /// Switches these reports on or off. Fails with `EOPNOTSUPP` if the kernel does not let the
    /// sender choose ids, and with `EBUSY` if the program itself has asked for reports about all
    /// datagrams.
    pub fn set_stamping(&self, is_on: bool) -> io::Result<()> {
        let options = self.timestamping()?;
        if !is_on {
            let was_on = self.stop_stamping();
            return if was_on { self.set_timestamping(options & !REPORTING) } else { Ok(()) };
        }
        if !chooses_ids() {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        if options & FOR_ALL != 0 {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        self.set_timestamping(options | TIMES | REPORTING)?;
        self.transmit.is_stamping.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Stores the reports that have arrived; later ones are the user's. Returns whether reports were
    /// on.
    pub(super) fn stop_stamping(&self) -> bool {
        if self.is_stamping() {
            // If the socket is closed by now, there are none.
            let _ = self.with(|fd| Ok(self.store_error_messages(fd)));
        }
        self.transmit.is_stamping.swap(false, Ordering::Relaxed)
    }

    /// Makes the kernel report when the device received each datagram, if the device does that.
    pub fn request_hardware_timestamps(&self) -> io::Result<()> {
        let options = self.timestamping()?;
        self.set_timestamping(options | TIMES | libc::SOF_TIMESTAMPING_RX_HARDWARE)
    }

    fn timestamping(&self) -> io::Result<u32> {
        Ok(self.int_option(libc::SOL_SOCKET, libc::SO_TIMESTAMPING)? as u32)
    }

    fn set_timestamping(&self, options: u32) -> io::Result<()> {
        self.set_int_option(libc::SOL_SOCKET, libc::SO_TIMESTAMPING, options as c_int)
    }

    /// Asks for the report about a datagram that is sent with these control messages; returns the
    /// datagram's id, which is never 0.
    pub fn ask_for_stamp(&self, control: &mut ControlBuffer) -> u32 {
        let id = self.transmit.next_id();
        let (level, kind) = (libc::SOL_SOCKET, libc::SO_TIMESTAMPING);
        control.push(level, kind, &REPORTED.to_ne_bytes());
        control.push(level, SCM_TS_OPT_ID, &id.to_ne_bytes());
        id
    }

    /// Makes room for further reports in the kernel's queue, after the datagram with this id was
    /// sent.
    pub fn collect_stamps(&self, fd: BorrowedFd<'_>, id: u32) {
        if id.is_multiple_of(COLLECTED) {
            self.store_error_messages(fd);
        }
    }

    /// Takes the reports that have arrived; `EAGAIN` if there are none.
    pub fn take_stamps(&self, fd: BorrowedFd<'_>) -> io::Result<VecDeque<TransmitStamp>> {
        self.store_error_messages(fd);
        let stamps = take(&mut *self.transmit.stamps.lock());
        if stamps.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(stamps) }
    }

    /// Whether reports are stored.
    pub(super) fn has_stamps(&self) -> bool {
        self.is_stamping() && !self.transmit.stamps.lock().is_empty()
    }

    /// Stores a report that was in the error queue.
    pub(super) fn store_stamp(&self, stamp: TransmitStamp) {
        self.counters().count_transmitted(1);
        let mut stamps = self.transmit.stamps.lock();
        if stamps.len() == KEPT {
            stamps.pop_front();
        }
        if stamps.try_reserve(1).is_ok() {
            stamps.push_back(stamp);
        }
    }
}

impl Transmit {
    /// The next id: after the last one, they begin again from 1.
    fn next_id(&self) -> u32 {
        let after = |id: u32| id.checked_add(1).unwrap_or(1);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        let last = self.last_id.fetch_update(set, fetch, |id| Some(after(id)));
        last.map_or_else(after, after)
    }
}

/// Whether a name of `SOL_SOCKET` is that of `SO_TIMESTAMPING`, or its form for 64-bit times.
pub(super) fn is_timestamping(name: c_int) -> bool {
    name == libc::SO_TIMESTAMPING || name == SO_TIMESTAMPING_NEW
}

impl TransmitStamp {
    /// Decodes the control messages of an entry of the error queue; `None` if it is something else.
    pub(super) fn decode(control: &[u8]) -> Option<Self> {
        let id = cmsg::decode(control).find_map(|message| {
            let is_error = matches!(
                (message.level, message.kind),
                (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
            );
            let origin = *message.data.get(offset_of!(libc::sock_extended_err, ee_origin))?;
            let id = message.data.get(offset_of!(libc::sock_extended_err, ee_data)..)?;
            (is_error && origin == libc::SO_EE_ORIGIN_TIMESTAMPING)
                .then(|| id.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)))?
        })?;
        // Each report has one of the two. Beside the device's, the kernel's may be the time of this
        // call (if SO_TIMESTAMPNS is set, too).
        let Meta { timestamp_ns, hardware_ns, .. } = Meta::decode(control);
        let software_ns = timestamp_ns.filter(|_| hardware_ns.is_none());
        Some(Self { id, software_ns, hardware_ns })
    }
}

/// Whether the kernel lets the sender choose ids: since Linux 6.13.
fn chooses_ids() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|sign: char| !sign.is_ascii_digit()).map(str::parse);
    let version = (numbers.next(), numbers.next());
    let (Some(Ok(major)), Some(Ok(minor))) = version else { return true };
    (major, minor) >= (6, 13)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(software: i64, hardware: i64, origin: u8) -> Vec<u8> {
        let time =
            |ns: i64| [(ns / 1_000_000_000).to_ne_bytes(), (ns % 1_000_000_000).to_ne_bytes()];
        let times = [time(software), time(0), time(hardware)].concat().concat();
        let error =
            [&libc::ENOMSG.to_ne_bytes()[..], &[origin, 0, 0, 0], &[0; 4], &7_u32.to_ne_bytes()];
        let mut control = Vec::new();
        cmsg::encode(&mut control, libc::SOL_SOCKET, libc::SCM_TIMESTAMPING, &times);
        cmsg::encode(&mut control, libc::IPPROTO_IP, libc::IP_RECVERR, &error.concat());
        control
    }

    #[test]
    fn a_report_has_the_time_of_the_kernel_or_of_the_device() {
        let of = |software, hardware| {
            let stamp = report(software, hardware, libc::SO_EE_ORIGIN_TIMESTAMPING);
            let TransmitStamp { id, software_ns, hardware_ns } =
                TransmitStamp::decode(&stamp).unwrap();
            (id, software_ns, hardware_ns)
        };
        assert_eq!(of(5_000_000_006, 0), (7, Some(5_000_000_006), None));
        assert_eq!(of(0, 9_000_000_001), (7, None, Some(9_000_000_001)));
        assert_eq!(of(1, 9_000_000_001), (7, None, Some(9_000_000_001)));
    }

    #[test]
    fn ids_begin_again_after_the_last() {
        let transmit = Transmit::default();
        assert_eq!((transmit.next_id(), transmit.next_id()), (1, 2));
        transmit.last_id.store(u32::MAX - 1, Ordering::Relaxed);
        assert_eq!((transmit.next_id(), transmit.next_id()), (u32::MAX, 1));
    }

    #[test]
    fn an_error_is_not_a_report() {
        assert_eq!(TransmitStamp::decode(&report(5, 0, libc::SO_EE_ORIGIN_ICMP)), None);
        assert_eq!(TransmitStamp::decode(&[]), None);
        for len in 0..16 {
            let mut control = Vec::new();
            cmsg::encode(&mut control, libc::IPPROTO_IP, libc::IP_RECVERR, &vec![4; len]);
            assert_eq!(TransmitStamp::decode(&control), None);
        }
    }
}
