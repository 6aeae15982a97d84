//! A socket: its descriptor, what it is, and single datagrams in and out.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use super::address::Address;
use super::descriptor::Descriptor;
use super::stats::Counters;
use super::sys::{self, MessageInfo, RecvSlice, SendSlice};

/// A socket of any type, made for datagrams.
///
/// Operations take the descriptor that [`Descriptor::enter`] or [`super::Waiting::run`] lends.
pub struct Socket {
    descriptor: Descriptor,
    family: c_int,
    kind: c_int,
    protocol: c_int,
    counters: Counters,
}

/// What became of one received datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes that are in the buffer now.
    pub len: usize,
    /// Bytes that the datagram had.
    pub full_len: usize,
}

/// A datagram is never longer than this on `AF_INET` and `AF_INET6`, whose length fields have 16
/// bits.
const LARGEST_IP_DATAGRAM: usize = 65_535;

impl Socket {
    /// Opens a socket that is closed on exec: `socket(2)`. The kind may carry `SOCK_NONBLOCK`.
    pub fn open(family: c_int, kind: c_int, protocol: c_int) -> io::Result<Self> {
        let kind = kind | libc::SOCK_CLOEXEC;
        let socket = socket2::Socket::new_raw(family.into(), kind.into(), Some(protocol.into()))?;
        Ok(Self::new(socket.into(), family, kind, protocol))
    }

    /// Takes over an open socket, and asks the kernel for what is not given.
    ///
    /// The descriptor stays the caller's where this fails.
    ///
    /// # Safety
    /// The descriptor must not be anybody else's to close.
    pub unsafe fn adopt(
        fd: RawFd,
        family: Option<c_int>,
        kind: Option<c_int>,
        protocol: Option<c_int>,
    ) -> io::Result<Self> {
        // SAFETY: the descriptor may be closed or no socket; then the calls below fail with EBADF
        // or ENOTSOCK.
        let borrowed = unsafe { sys::borrow_fd(fd) };
        sys::local_address(borrowed)?;
        let ask = |given: Option<c_int>, option| {
            given.map_or_else(|| sys::int_option(borrowed, libc::SOL_SOCKET, option), Ok)
        };
        let family = ask(family, libc::SO_DOMAIN)?;
        let kind = ask(kind, libc::SO_TYPE)?;
        let protocol = ask(protocol, libc::SO_PROTOCOL)?;
        // SAFETY: it is open, as the calls above have shown, and the caller gives it up.
        Ok(Self::new(unsafe { sys::own_fd(fd) }, family, kind, protocol))
    }

    /// The family and type of an open socket; `EBADF` or `ENOTSOCK` where there is none.
    pub fn kind_of(fd: RawFd) -> io::Result<(c_int, c_int)> {
        // SAFETY: where it is closed, or closed meanwhile, the calls fail with EBADF, or tell of
        // another descriptor; they change none.
        let fd = unsafe { sys::borrow_fd(fd) };
        let ask = |option| sys::int_option(fd, libc::SOL_SOCKET, option);
        Ok((ask(libc::SO_DOMAIN)?, ask(libc::SO_TYPE)?))
    }

    fn new(fd: OwnedFd, family: c_int, kind: c_int, protocol: c_int) -> Self {
        let kind = kind & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
        let (descriptor, counters) = (Descriptor::new(fd), Counters::default());
        Self { descriptor, family, kind, protocol, counters }
    }

    /// The descriptor.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// What passed so far.
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

    /// Whether what is sent arrives in one piece or not at all.
    pub fn is_datagram(&self) -> bool {
        self.kind == libc::SOCK_DGRAM
    }

    /// The most bytes that one receive can yield, where the protocol has a limit.
    pub fn largest_datagram(&self) -> Option<usize> {
        let is_ip = matches!(self.family, libc::AF_INET | libc::AF_INET6);
        (self.is_datagram() && is_ip).then_some(LARGEST_IP_DATAGRAM)
    }

    /// Makes the descriptor wait or fail with `EAGAIN` in calls that do not say `MSG_DONTWAIT`.
    pub fn set_nonblocking(&self, is_nonblocking: bool) -> io::Result<()> {
        self.with(|fd| socket2::SockRef::from(&fd).set_nonblocking(is_nonblocking))
    }

    /// Gives the socket its local address: `bind(2)`.
    pub fn bind(&self, address: &Address) -> io::Result<()> {
        self.with(|fd| sys::bind(fd, address))
    }

    /// Starts to connect: `connect(2)`. On a datagram socket that is all there is to it.
    pub fn connect(&self, address: &Address) -> io::Result<()> {
        self.with(|fd| sys::connect(fd, address))
    }

    /// The outcome of a connection that did not complete at once: `SO_ERROR`.
    pub fn connect_result(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        socket2::SockRef::from(&fd).take_error()?.map_or(Ok(()), Err)
    }

    /// Lets peers connect: `listen(2)`.
    pub fn listen(&self, backlog: c_int) -> io::Result<()> {
        self.with(|fd| sys::listen(fd, backlog))
    }

    /// Takes a connection: `accept4(2)`, close-on-exec.
    pub fn accept(&self, fd: BorrowedFd<'_>) -> io::Result<(OwnedFd, Address)> {
        sys::accept(fd)
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

    /// Reads an option into `value` and says how many bytes it has: `getsockopt(2)`.
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

    /// Receives one datagram, and its sender where `from` is given: `recvfrom(2)`.
    pub fn receive(
        &self,
        fd: BorrowedFd<'_>,
        memory: &mut RecvSlice<'_>,
        from: Option<&mut Address>,
        flags: c_int,
    ) -> io::Result<Received> {
        // On a datagram socket MSG_TRUNC makes the call return the full length, so that a datagram
        // too long for the buffer is noticed at no cost. On a stream it would discard data.
        let ask_len = if self.is_datagram() { libc::MSG_TRUNC } else { 0 };
        let full_len = sys::recv_from(fd, memory, from, flags | ask_len)?;
        let received = Received { len: full_len.min(memory.len()), full_len };
        self.count_received(flags, received.len, received.full_len > received.len);
        Ok(received)
    }

    /// Receives one datagram into several pieces of memory, with control messages: `recvmsg(2)`.
    pub fn receive_message(
        &self,
        fd: BorrowedFd<'_>,
        memory: &mut [RecvSlice<'_>],
        from: &mut Address,
        control: &mut [u8],
        flags: c_int,
    ) -> io::Result<MessageInfo> {
        let info = sys::recv_message(fd, memory, from, control, flags)?;
        self.count_received(flags, info.len, info.flags & libc::MSG_TRUNC != 0);
        Ok(info)
    }

    fn count_received(&self, flags: c_int, len: usize, is_truncated: bool) {
        if flags & (libc::MSG_PEEK | libc::MSG_ERRQUEUE) == 0 {
            self.counters.count_received(1, len);
            if is_truncated {
                self.counters.count_truncated(1);
            }
        }
    }

    /// Sends one datagram: `sendto(2)`.
    pub fn send(
        &self,
        fd: BorrowedFd<'_>,
        memory: SendSlice<'_>,
        to: Option<&Address>,
        flags: c_int,
    ) -> io::Result<usize> {
        let sent = sys::send_to(fd, memory, to, flags)?;
        self.counters.count_sent(1, sent);
        Ok(sent)
    }

    /// Sends one datagram gathered from several pieces, with control messages: `sendmsg(2)`.
    pub fn send_message(
        &self,
        fd: BorrowedFd<'_>,
        memory: &[SendSlice<'_>],
        to: Option<&Address>,
        control: &[u8],
        flags: c_int,
    ) -> io::Result<usize> {
        let sent = sys::send_message(fd, memory, to, control, flags)?;
        self.counters.count_sent(1, sent);
        Ok(sent)
    }

    /// Runs one operation on the descriptor.
    fn with<T>(&self, operation: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>) -> io::Result<T> {
        let in_flight = self.descriptor.enter()?;
        operation(in_flight.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, IntoRawFd};

    fn bound(family: c_int, address: &Address) -> Socket {
        let socket = Socket::open(family, libc::SOCK_DGRAM, 0).unwrap();
        socket.bind(address).unwrap();
        socket
    }

    fn loopback() -> Socket {
        bound(libc::AF_INET, &"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into())
    }

    fn receive(socket: &Socket, buffer: &mut [u8], flags: c_int) -> io::Result<Received> {
        let inside = socket.descriptor().enter()?;
        let flags = flags | libc::MSG_DONTWAIT;
        socket.receive(inside.as_fd(), &mut RecvSlice::new(buffer), None, flags)
    }

    fn send(from: &Socket, to: &Socket, payload: &[u8]) {
        let inside = from.descriptor().enter().unwrap();
        let to = to.local_address().unwrap();
        from.send(inside.as_fd(), SendSlice::new(payload), Some(&to), 0).unwrap();
    }

    #[test]
    fn a_datagram_arrives_with_its_sender() {
        let (sender, receiver) = (loopback(), loopback());
        send(&sender, &receiver, b"hello");
        let (mut buffer, mut from) = ([0; 16], Address::UNNAMED);
        let inside = receiver.descriptor().enter().unwrap();
        let mut memory = RecvSlice::new(&mut buffer);
        let received = receiver.receive(inside.as_fd(), &mut memory, Some(&mut from), 0).unwrap();
        assert_eq!(received, Received { len: 5, full_len: 5 });
        assert_eq!(from, sender.local_address().unwrap());
        assert_eq!(&buffer[..5], b"hello");
    }

    #[test]
    fn what_passes_is_counted() {
        let (sender, receiver) = (loopback(), loopback());
        for payload in [&b"four"[..], b"", b"more than four"] {
            send(&sender, &receiver, payload);
        }
        let mut buffer = [0; 4];
        assert_eq!(receive(&receiver, &mut buffer, libc::MSG_PEEK).unwrap().len, 4);
        for full_len in [4, 0, 14] {
            assert_eq!(receive(&receiver, &mut buffer, 0).unwrap().full_len, full_len);
        }
        let (sent, received) = (sender.counters().read(), receiver.counters().read());
        assert_eq!((sent.sent, sent.sent_bytes, sent.send_calls), (3, 18, 3));
        assert_eq!((received.received, received.received_bytes), (3, 8));
        assert_eq!((received.receive_calls, received.truncated), (3, 1));
    }

    #[test]
    fn an_adopted_socket_knows_what_it_is() {
        let fd = OwnedFd::from(std::net::UdpSocket::bind("[::1]:0").unwrap());
        // SAFETY: the descriptor was just given up.
        let socket = unsafe { Socket::adopt(fd.into_raw_fd(), None, None, None) }.unwrap();
        assert_eq!(socket.family(), libc::AF_INET6);
        assert_eq!(socket.kind(), libc::SOCK_DGRAM);
        assert_eq!(socket.protocol(), libc::IPPROTO_UDP);
    }

    #[test]
    fn what_is_no_socket_is_not_adopted() {
        let file = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: adopting fails, and the file stays the owner.
        let result = unsafe { Socket::adopt(file.as_raw_fd(), None, None, None) };
        assert_eq!(result.err().unwrap().raw_os_error(), Some(libc::ENOTSOCK));
    }
}
