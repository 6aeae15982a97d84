//! Sockets for unit tests.

use super::Socket;
use crate::net::SendSlice;

/// A socket that is bound to a free port of loopback.
pub(in crate::net) fn loopback() -> Socket {
    let address: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    let socket = Socket::open(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}

/// A socket whose receive buffer has datagrams, which it has sent to itself.
pub(in crate::net) fn holding(payloads: &[&[u8]]) -> Socket {
    let socket = loopback();
    let to = socket.local_address().unwrap();
    for payload in payloads {
        socket.with(|fd| socket.send(fd, SendSlice::new(payload), Some(&to), 0)).unwrap();
    }
    socket
}
