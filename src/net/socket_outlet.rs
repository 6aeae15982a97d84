//! Sends a backlog to a socket.

use std::io;

use super::address::Address;
use super::error_class::may_be_of_earlier;
use super::send_backlog::{Flushed, Outlet, Payload, SendBacklog};
use super::send_queue::{SendQueue, Sent};
use super::socket::Socket;

impl Socket {
    /// Sends as many of a queue's datagrams as one call can, without waiting.
    pub fn send_now(&self, queue: &mut SendQueue<'_>) -> io::Result<Sent> {
        self.with(|fd| self.send_queue(fd, queue, libc::MSG_DONTWAIT))
    }

    /// Sends as many of a backlog's datagrams as possible without waiting, and counts those that
    /// are dropped. Calls `send` for each step, which calls [`send_now`](Self::send_now), and
    /// `forget_source` with a peer whose reply source no longer exists.
    pub fn flush<P: Payload>(
        &self,
        backlog: &mut SendBacklog<P>,
        send: impl FnMut(&mut SendQueue<'_>) -> io::Result<Sent>,
        forget_source: impl FnMut(&Address),
    ) -> Flushed {
        self.flush_or(backlog, send, forget_source, |_| None)
    }

    /// As [`flush`](Self::flush), for a backlog that is limited: see
    /// [`SendBacklog::flush_limited`].
    pub fn flush_limited<P: Payload>(
        &self,
        backlog: &mut SendBacklog<P>,
        most: usize,
        send: impl FnMut(&mut SendQueue<'_>) -> io::Result<Sent>,
        forget_source: impl FnMut(&Address),
    ) -> Flushed {
        let wait = |_: &mut SendQueue<'_>| None;
        let mut outlet = SocketOutlet { socket: self, send, forget_source, wait };
        self.count_lost(backlog.flush_limited(&mut outlet, most))
    }

    /// As [`flush`](Self::flush), but where the socket's buffer is full, `wait` may send the next
    /// datagrams: see [`Outlet::wait`].
    pub fn flush_or<P: Payload>(
        &self,
        backlog: &mut SendBacklog<P>,
        send: impl FnMut(&mut SendQueue<'_>) -> io::Result<Sent>,
        forget_source: impl FnMut(&Address),
        wait: impl FnMut(&mut SendQueue<'_>) -> Option<io::Result<Sent>>,
    ) -> Flushed {
        let mut outlet = SocketOutlet { socket: self, send, forget_source, wait };
        self.count_lost(backlog.flush(&mut outlet))
    }

    fn count_lost(&self, flushed: Flushed) -> Flushed {
        if flushed.lost > 0 {
            self.counters().count_send_errors(flushed.lost);
        }
        flushed
    }
}

struct SocketOutlet<'a, S, F, W> {
    socket: &'a Socket,
    send: S,
    forget_source: F,
    wait: W,
}

impl<S, F, W> Outlet for SocketOutlet<'_, S, F, W>
where
    S: FnMut(&mut SendQueue<'_>) -> io::Result<Sent>,
    F: FnMut(&Address),
    W: FnMut(&mut SendQueue<'_>) -> Option<io::Result<Sent>>,
{
    fn send(&mut self, queue: &mut SendQueue<'_>) -> io::Result<Sent> {
        (self.send)(queue)
    }

    fn wait(&mut self, queue: &mut SendQueue<'_>) -> Option<io::Result<Sent>> {
        (self.wait)(queue)
    }

    #[cfg(feature = "dtls")]
    fn has_later_session(&self, peer: &Address, number: u64) -> bool {
        self.socket.dtls().is_some_and(|endpoint| endpoint.has_later(peer, number))
    }

    fn may_be_of_earlier(&self, error: &io::Error) -> bool {
        // Sockets of other families only report errors of the current call.
        self.socket.is_ip() && may_be_of_earlier(error)
    }

    fn has_one_queue(&self) -> bool {
        self.socket.is_ip()
    }

    fn clear_error(&mut self) {
        // Those with a peer's address are in the error queue as well (`IP_RECVERR`).
        let _ = self.socket.with(|fd| self.socket.connect_result(fd));
    }

    fn forget_source(&mut self, peer: &Address) {
        (self.forget_source)(peer);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};

    use super::super::meta::Source;
    use super::*;

    #[test]
    fn lost_datagrams_are_counted_and_missing_sources_are_forgotten() {
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to: Address = other.local_addr().unwrap().into();
        let socket = Socket::open(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
        let gone = Some(Source { address: [192, 0, 2, 1].into(), interface: 0 });
        for is_limited in [false, true] {
            let mut backlog = SendBacklog::default();
            backlog.push(b"first".to_vec(), Some(to), None).unwrap();
            let nowhere = SocketAddr::from(([127, 0, 0, 1], 0)).into();
            backlog.push(b"refused".to_vec(), Some(nowhere), None).unwrap();
            backlog.push(b"last".to_vec(), Some(to), gone).unwrap();
            let (mut forgotten, before) = (Vec::new(), socket.counters().read().send_errors);
            let forget = |peer: &Address| forgotten.push(*peer);
            let send = |queue: &mut SendQueue<'_>| socket.send_now(queue);
            let flushed = if is_limited {
                socket.flush_limited(&mut backlog, usize::MAX, send, forget)
            } else {
                socket.flush(&mut backlog, send, forget)
            };
            assert!(!flushed.is_full && backlog.is_empty());
            assert_eq!((flushed.lost, flushed.errors.len(), forgotten), (1, 1, vec![to]));
            assert_eq!(socket.counters().read().send_errors - before, 1);
            let mut buffer = [0; 20];
            for payload in [&b"first"[..], b"last"] {
                let len = other.recv(&mut buffer).unwrap();
                assert_eq!(&buffer[..len], payload);
            }
        }
    }
}
