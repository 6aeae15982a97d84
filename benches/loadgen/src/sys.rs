//! System calls that the standard library does not offer.

use std::ffi::c_int;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The longest payload of UDP over IPv4.
pub(crate) const LONGEST_DATAGRAM: usize = 65_507;

/// The maximum number of datagrams in one send with `UDP_SEGMENT` or one receive with `UDP_GRO`.
pub(crate) const LONGEST_RUN: usize = 64;

/// How long a receive waits before it checks whether to stop.
pub(crate) const PATIENCE: Duration = Duration::from_millis(50);

/// The maximum number of datagrams of a given size in one send with `UDP_SEGMENT`.
pub(crate) fn run_len(size: usize) -> usize {
    (LONGEST_DATAGRAM / size).clamp(1, LONGEST_RUN)
}

/// Keeps the process on one core.
pub(crate) fn pin(core: usize) -> io::Result<()> {
    // SAFETY: a set of zeroes is an empty set; CPU_SET checks the bound, and the pointer is to a
    // set of the size that goes with it.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    checked(result)
}

/// The CPU time that the process has used, according to the kernel.
pub(crate) fn cpu_time() -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid for the call.
    checked(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) })?;
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// Opens a socket bound to a free port, with a receive buffer of the requested size, or of the
/// largest size that the kernel allows.
pub(crate) fn bind(host: Ipv4Addr, receive_buffer: Option<c_int>) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((host, 0))?;
    if let Some(bytes) = receive_buffer {
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes)?;
    }
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sets an option whose value is an integer.
pub(crate) fn set_option(
    socket: &UdpSocket,
    level: c_int,
    name: c_int,
    value: c_int,
) -> io::Result<()> {
    let (fd, len) = (socket.as_raw_fd(), size_of_val(&value) as u32);
    // SAFETY: the pointer is to `len` bytes that outlive the call.
    checked(unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), len) })
}

/// How many messages the kernel has dropped because the socket's buffer was full.
pub(crate) fn kernel_drops(socket: &UdpSocket) -> io::Result<u32> {
    const SO_MEMINFO: c_int = 55;
    const DROPS: usize = 8;
    let mut values = [0_u32; DROPS + 1];
    let mut len = size_of_val(&values) as u32;
    let (fd, start) = (socket.as_raw_fd(), values.as_mut_ptr().cast());
    // SAFETY: `start` has room for the `len` bytes that the kernel may write.
    checked(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_MEMINFO, start, &raw mut len) })?;
    Ok(values[DROPS])
}

/// Whether an error means that nothing arrived in time, or that the send buffer is full.
pub(crate) fn is_retry(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Whether an error is about an earlier datagram, sent to a closed port.
pub(crate) fn is_refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

fn checked(result: c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A count of datagrams that another process can read at any time.
pub(crate) struct Counter {
    shared: &'static AtomicU64,
    total: u64,
}

impl Counter {
    /// A counter at the start of an inherited file.
    pub(crate) fn map(fd: RawFd) -> io::Result<Self> {
        // SAFETY: the descriptor was inherited for this purpose, and nothing else in the process
        // uses it.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        let (fd, protection) = (file.as_raw_fd(), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: the call requests no particular address, so it replaces no mapping.
        let start = unsafe {
            libc::mmap(ptr::null_mut(), size_of::<u64>(), protection, libc::MAP_SHARED, fd, 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping is aligned to a page, never unmapped, and only accessed as a whole.
        Ok(Self { shared: unsafe { AtomicU64::from_ptr(start.cast()) }, total: 0 })
    }

    /// A counter that no other process reads.
    pub(crate) fn unshared() -> Self {
        static NOWHERE: AtomicU64 = AtomicU64::new(0);
        Self { shared: &NOWHERE, total: 0 }
    }

    pub(crate) fn add(&mut self, datagrams: usize) {
        self.total += datagrams as u64;
        self.shared.store(self.total, Ordering::Relaxed);
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }
}

/// Nanoseconds since an arbitrary moment; requests carry this time.
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}
