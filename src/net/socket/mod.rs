//! A socket: its descriptor, its type, its addresses and its options.
//!
//! Its methods are grouped into files: receiving, sending and waiting.

mod backlog;
mod coalesce;
mod drops;
#[cfg(feature = "dtls")]
mod dtls;
pub mod error_queue;
mod gro;
mod guarded;
mod holders;
mod lull;
mod options;
mod recv;
mod recv_cursor;
mod send;
#[cfg(all(test, not(loom)))]
pub(in crate::net) mod testing;
mod transmit;
mod wait;
#[cfg(not(feature = "dtls"))]
mod without_dtls;

pub use coalesce::NextReceive;
pub use drops::Drops;
pub use gro::GroOnDemand;
pub use recv::{Taken, Visibility};
pub use recv_cursor::{RecvCursor, Ring};
pub use transmit::TransmitStamp;
pub use wait::{Deadline, Interest, KernelWait, Stop, Waiting};

use std::ffi::{c_int, c_short};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use self::backlog::Backlog;
use self::drops::DropCounter;
#[cfg(feature = "dtls")]
use self::dtls::Secured;
use self::error_queue::ErrorQueue;
use self::gro::Gro;
use self::guarded::Watch;
use self::holders::Holders;
use self::lull::Lull;
use self::transmit::Transmit;
use crate::net::address::Address;
use crate::net::descriptor::Descriptor;
use crate::net::fork_mutex::{ForkMutex, ForkTryMutex, Inherit};
use crate::net::gso::Gso;
use crate::net::proxy_protocol::Proxies;
use crate::net::shared_options::Hold;
use crate::net::stats::Counters;
use crate::net::sys;

/// A socket of any type, designed for datagrams.
///
/// Operations use the descriptor from [`Descriptor::enter`] or [`crate::net::Waiting::run`].
pub struct Socket {
    descriptor: Descriptor,
    family: c_int,
    kind: c_int,
    protocol: c_int,
    counters: Counters,
    backlog: Backlog,
    gro: Gro,
    gso: Gso,
    /// Whether the last sent datagram was left open for more data (`MSG_MORE`), as far as known.
    has_open_datagram: AtomicBool,
    holders: Holders,
    error_queue: ErrorQueue,
    /// Held by the thread that accepts a connection.
    accepting: ForkTryMutex<Accepting>,
    watch: Watch,
    proxies: OnceLock<Proxies>,
    #[cfg(feature = "dtls")]
    secured: Secured,
    /// Options that the user has set, so the library must not change them.
    set_by_user: Mutex<Vec<(c_int, c_int)>>,
    /// Options that were changed without an explicit request by the user.
    holds: ForkMutex<Vec<Hold>>,
    tells_metadata: AtomicBool,
    transmit: Transmit,
    drops: DropCounter,
    lull: Lull,
}

/// The right to accept a connection.
struct Accepting;

/// A child accepts connections independently.
impl Inherit for Accepting {
    fn inherit(&mut self) {}
}

/// A datagram is never longer than this on `AF_INET` and `AF_INET6`, whose length fields have 16
/// bits.
const LARGEST_IP_DATAGRAM: usize = 65_535;

impl Socket {
    /// Opens a socket that is closed on exec: `socket(2)`. The kind may carry `SOCK_NONBLOCK`.
    pub fn open(family: c_int, kind: c_int, protocol: c_int) -> io::Result<Self> {
        let kind = kind | libc::SOCK_CLOEXEC;
        let socket = socket2::Socket::new_raw(family.into(), kind.into(), Some(protocol.into()))?;
        Ok(Self::new(socket.into(), family, kind, protocol, false))
    }

    /// Takes over an open socket, and queries the properties that are not given.
    ///
    /// If this fails, the caller still owns the descriptor.
    ///
    /// # Safety
    /// No other code may close the descriptor.
    pub unsafe fn adopt(
        fd: RawFd,
        family: Option<c_int>,
        kind: Option<c_int>,
        protocol: Option<c_int>,
    ) -> io::Result<Self> {
        // SAFETY: if the descriptor is closed or not a socket, the calls below fail with EBADF or
        // ENOTSOCK.
        let borrowed = unsafe { sys::borrow_fd(fd) };
        sys::local_address(borrowed)?;
        let ask = |given: Option<c_int>, option| {
            given.map_or_else(|| sys::int_option(borrowed, libc::SOL_SOCKET, option), Ok)
        };
        let family = ask(family, libc::SO_DOMAIN)?;
        let kind = ask(kind, libc::SO_TYPE)?;
        let protocol = ask(protocol, libc::SO_PROTOCOL)?;
        // SAFETY: it is open, as the calls above have shown, and the caller gives it up.
        let socket = Self::new(unsafe { sys::own_fd(fd) }, family, kind, protocol, true);
        socket.find_filter();
        Ok(socket)
    }

    /// The family and type of an open socket; `EBADF` or `ENOTSOCK` if it is not one.
    pub fn kind_of(fd: RawFd) -> io::Result<(c_int, c_int)> {
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        // SAFETY: if it is closed, even meanwhile, the calls fail with EBADF or describe another
        // descriptor; they change none.
        let fd = unsafe { sys::borrow_fd(fd) };
        let ask = |option| sys::int_option(fd, libc::SOL_SOCKET, option);
        Ok((ask(libc::SO_DOMAIN)?, ask(libc::SO_TYPE)?))
    }

    fn new(fd: OwnedFd, family: c_int, kind: c_int, protocol: c_int, is_adopted: bool) -> Self {
        let kind = kind & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
        let is_ip = matches!(family, libc::AF_INET | libc::AF_INET6);
        let is_udp = kind == libc::SOCK_DGRAM && matches!(protocol, 0 | libc::IPPROTO_UDP);
        Self {
            descriptor: Descriptor::new(fd, kind != libc::SOCK_DGRAM),
            family,
            kind,
            protocol,
            counters: Counters::default(),
            backlog: Backlog::default(),
            gro: Gro::default(),
            gso: Gso::new(is_ip && is_udp),
            has_open_datagram: AtomicBool::new(false),
            holders: Holders::new(is_adopted),
            error_queue: ErrorQueue::default(),
            accepting: ForkTryMutex::new(Accepting),
            watch: Watch::default(),
            proxies: OnceLock::new(),
            #[cfg(feature = "dtls")]
            secured: Secured::default(),
            set_by_user: Mutex::default(),
            holds: ForkMutex::default(),
            tells_metadata: AtomicBool::new(false),
            transmit: Transmit::default(),
            drops: DropCounter::default(),
            lull: Lull::default(),
        }
    }

    /// The descriptor.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The socket's counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The address family: `AF_INET`, …
    pub fn family(&self) -> c_int {
        self.family
    }

    /// The type, without flags: `SOCK_DGRAM`, …
    pub fn kind(&self) -> c_int {
        self.kind
    }

    /// The protocol: `IPPROTO_UDP`, or 0 for the family's default.
    pub fn protocol(&self) -> c_int {
        self.protocol
    }

    /// Whether each send arrives as one piece or not at all.
    pub fn is_datagram(&self) -> bool {
        self.kind == libc::SOCK_DGRAM
    }

    /// Whether the family is `AF_INET` or `AF_INET6`.
    pub fn is_ip(&self) -> bool {
        matches!(self.family, libc::AF_INET | libc::AF_INET6)
    }

    /// The maximum number of bytes that one receive can return, if the protocol has a limit.
    pub fn largest_datagram(&self) -> Option<usize> {
        (self.is_datagram() && self.is_ip()).then_some(LARGEST_IP_DATAGRAM)
    }

    /// Closes the descriptor: see [`Descriptor::close`]. Returns `EDEADLK` to a callback of the
    /// handshake that the socket is receiving.
    pub fn close(&self) -> io::Result<()> {
        self.check_not_opening()?;
        self.dropped_by_kernel(); // reads the final count
        self.drop_holds();
        self.descriptor.close()
    }

    /// Gives the descriptor away: see [`Descriptor::release`]. Fails as [`close`](Self::close) does.
    pub fn release(&self) -> io::Result<Option<OwnedFd>> {
        self.check_not_opening()?;
        self.dropped_by_kernel(); // reads the final count
        self.drop_holds();
        Ok(self.descriptor.release())
    }

    /// The number of datagrams that the kernel dropped, and that were dropped here because memory
    /// allocation failed.
    pub fn drops(&self) -> Drops {
        let Drops { unwanted, filtered } = self.dropped_by_kernel();
        Drops { unwanted: unwanted + self.counters.dropped(), filtered }
    }

    /// Sets whether calls without `MSG_DONTWAIT` fail with `EAGAIN` instead of waiting.
    pub fn set_nonblocking(&self, is_nonblocking: bool) -> io::Result<()> {
        self.with(|fd| socket2::SockRef::from(&fd).set_nonblocking(is_nonblocking))
    }

    /// Sets the socket's local address: `bind(2)`.
    pub fn bind(&self, address: &Address) -> io::Result<()> {
        self.with(|fd| sys::bind(fd, address))
    }

    /// Starts to connect: `connect(2)`. A datagram socket is connected immediately.
    pub fn connect(&self, address: &Address) -> io::Result<()> {
        self.gso.forget();
        self.with(|fd| sys::connect(fd, address))
    }

    /// Ends the connection: `connect(2)` to `AF_UNSPEC`. The kernel chooses any part of the local
    /// address again that `bind` did not set.
    pub fn disconnect(&self) -> io::Result<()> {
        const UNSPECIFIED: [u8; size_of::<libc::sockaddr>()] = [0; _];
        self.connect(&Address::from_bytes(&UNSPECIFIED))
    }

    /// The result of a connection attempt that did not complete immediately, or the error that the
    /// next call would report: reads and clears `SO_ERROR`.
    pub fn connect_result(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        socket2::SockRef::from(&fd).take_error()?.map_or(Ok(()), Err)
    }

    /// Lets peers connect: `listen(2)`.
    pub fn listen(&self, backlog: c_int) -> io::Result<()> {
        self.with(|fd| sys::listen(fd, backlog))
    }

    /// Whether peers can connect: `SO_ACCEPTCONN`.
    pub fn is_listening(&self, fd: BorrowedFd<'_>) -> io::Result<bool> {
        Ok(sys::int_option(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN)? != 0)
    }

    /// Accepts a connection: `accept4(2)`, close-on-exec.
    pub fn accept(&self, fd: BorrowedFd<'_>) -> io::Result<(OwnedFd, Address)> {
        sys::accept(fd)
    }

    /// Accepts a queued connection; `EAGAIN` if there is none. Poll reports a connection to all
    /// threads that wait for it, and all but the first would block in `accept4`, which a close does
    /// not end.
    pub fn accept_now(&self, fd: BorrowedFd<'_>) -> io::Result<(OwnedFd, Address)> {
        let none = || io::Error::from(io::ErrorKind::WouldBlock);
        let _alone = self.accepting.try_lock().ok_or_else(none)?;
        if self.readiness(fd)? != 0 { sys::accept(fd) } else { Err(none()) }
    }

    /// The events of `poll(2)`: `POLLIN` if a receive would return a datagram without waiting,
    /// `POLLERR` if it would return an error, 0 if it would wait.
    pub fn readiness(&self, fd: BorrowedFd<'_>) -> io::Result<c_short> {
        let mut fds = [libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        sys::poll(&mut fds, Some(Duration::ZERO))?;
        Ok(fds[0].revents)
    }

    /// Ends receiving, sending or both: `shutdown(2)`.
    pub fn shutdown(&self, how: c_int) -> io::Result<()> {
        self.with(|fd| sys::shutdown(fd, how))
    }

    /// The socket's own address: `getsockname(2)`.
    pub fn local_address(&self) -> io::Result<Address> {
        self.with(sys::local_address)
    }

    /// The connected peer's address: `getpeername(2)`.
    pub fn peer_address(&self) -> io::Result<Address> {
        self.with(sys::peer_address)
    }

    /// Reads an option into `value`; returns the option's length in bytes: `getsockopt(2)`.
    pub fn option(&self, level: c_int, name: c_int, value: &mut [u8]) -> io::Result<usize> {
        self.with(|fd| sys::option(fd, level, name, value))
    }

    /// Reads an option that is an `int`.
    pub fn int_option(&self, level: c_int, name: c_int) -> io::Result<c_int> {
        self.with(|fd| sys::int_option(fd, level, name))
    }

    /// Sets an option: `setsockopt(2)`.
    pub fn set_option(&self, level: c_int, name: c_int, value: &[u8]) -> io::Result<()> {
        self.with(|fd| sys::set_option(fd, level, name, value))
    }

    /// Sets an option that is an `int`.
    pub fn set_int_option(&self, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
        self.with(|fd| sys::set_int_option(fd, level, name, value))
    }

    /// Sets an option to a null value with a length.
    pub fn set_option_len(&self, level: c_int, name: c_int, len: u32) -> io::Result<()> {
        self.with(|fd| sys::set_option_len(fd, level, name, len))
    }

    /// Runs one operation on the descriptor.
    pub fn with<T>(
        &self,
        operation: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        let in_flight = self.descriptor.enter()?;
        operation(in_flight.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    #[test]
    fn an_adopted_socket_knows_its_type() {
        let fd = OwnedFd::from(std::net::UdpSocket::bind("[::1]:0").unwrap());
        // SAFETY: the descriptor was just given up.
        let socket = unsafe { Socket::adopt(fd.into_raw_fd(), None, None, None) }.unwrap();
        assert_eq!(socket.family(), libc::AF_INET6);
        assert_eq!(socket.kind(), libc::SOCK_DGRAM);
        assert_eq!(socket.protocol(), libc::IPPROTO_UDP);
    }

    #[test]
    fn accept_now_does_not_wait_for_a_connection() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // SAFETY: the descriptor was just given up.
        let socket = unsafe { Socket::adopt(listener.into_raw_fd(), None, None, None) }.unwrap();
        let error = socket.with(|fd| socket.accept_now(fd)).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let peer = std::net::TcpStream::connect(address).unwrap();
        let (_, name) = socket.with(|fd| socket.accept_now(fd)).unwrap();
        assert_eq!(name.ip(), Some(peer.local_addr().unwrap()));
    }

    #[test]
    fn a_descriptor_that_is_not_a_socket_is_not_adopted() {
        let file = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: adopting fails, and the file stays the owner.
        let result = unsafe { Socket::adopt(file.as_raw_fd(), None, None, None) };
        assert_eq!(result.err().unwrap().raw_os_error(), Some(libc::ENOTSOCK));
    }
}
