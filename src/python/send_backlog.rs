//! Python's datagrams that wait to be sent together.

use std::cell::Cell;
use std::io;
use std::thread::LocalKey;

use pyo3::pybacked::PyBackedBytes;

use super::asked::Asked;
use crate::net::{
    self, Address, Flushed, Outlet, Payload, SendQueue, Sent, Spare, may_be_of_earlier,
};

/// Datagrams in the order in which they were accepted.
pub(crate) type SendBacklog = net::SendBacklog<PyBackedBytes>;

thread_local! {
    static SPARE: Cell<Spare<PyBackedBytes>> = const { Cell::new(Spare::NONE) };
}

impl Payload for PyBackedBytes {
    fn spare() -> &'static LocalKey<Cell<Spare<Self>>> {
        &SPARE
    }
}

/// Sends what goes without waiting: see [`net::SendBacklog::flush`].
pub(crate) fn flush(backlog: &mut SendBacklog, socket: &net::Socket, asked: &Asked) -> Flushed {
    flush_or(backlog, socket, asked, |_| None)
}

/// As [`flush`], but where the socket's buffer is full, `wait` may send what is next: see
/// [`Outlet::wait`].
pub(crate) fn flush_or(
    backlog: &mut SendBacklog,
    socket: &net::Socket,
    asked: &Asked,
    wait: impl FnMut(&mut SendQueue<'_>) -> Option<io::Result<Sent>>,
) -> Flushed {
    let flushed = backlog.flush(&mut SocketOutlet { socket, asked, wait });
    if !flushed.errors.is_empty() {
        let lost = flushed.errors.iter().filter(|refused| refused.is_lost).count();
        socket.counters().count_send_errors(lost);
    }
    flushed
}

struct SocketOutlet<'a, W> {
    socket: &'a net::Socket,
    asked: &'a Asked,
    wait: W,
}

impl<W> Outlet for SocketOutlet<'_, W>
where
    W: FnMut(&mut SendQueue<'_>) -> Option<io::Result<Sent>>,
{
    fn send(&mut self, queue: &mut SendQueue<'_>) -> io::Result<Sent> {
        self.socket.with(|fd| self.socket.send_queue(fd, queue, libc::MSG_DONTWAIT))
    }

    fn wait(&mut self, queue: &mut SendQueue<'_>) -> Option<io::Result<Sent>> {
        (self.wait)(queue)
    }

    fn may_be_of_earlier(&self, error: &io::Error) -> bool {
        // A socket of another family than the Internet's tells only what it is asked to do.
        self.socket.is_ip() && may_be_of_earlier(error)
    }

    fn clear_error(&mut self) {
        // Those with a peer's address are in the error queue as well (`IP_RECVERR`).
        let _ = self.socket.with(|fd| self.socket.connect_result(fd));
    }

    fn forget_source(&mut self, peer: &Address) {
        self.asked.forget(peer);
    }
}
