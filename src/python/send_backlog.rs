//! Python's datagrams that wait to be sent together.

use std::cell::Cell;
use std::io;
use std::thread::LocalKey;
use std::time::Instant;

use pyo3::pybacked::PyBackedBytes;

use crate::net::ReplySources;
use crate::net::{
    self, Address, Flushed, Outlet, Payload, SendQueue, Sent, Shed, Spare, may_be_of_earlier,
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
pub(crate) fn flush(
    backlog: &mut SendBacklog,
    socket: &net::Socket,
    asked: &ReplySources,
) -> Flushed {
    flush_or(backlog, socket, asked, |_| None)
}

/// As [`flush`], for a backlog that is limited: datagrams that waited for too long are dropped, and of
/// those that still find no room, all but the latest `most`. Where each peer has a queue of its own, one
/// that is full does not block the others.
pub(crate) fn flush_limited(
    backlog: &mut SendBacklog,
    socket: &net::Socket,
    asked: &ReplySources,
    most: usize,
) -> Flushed {
    let mut outlet = SocketOutlet { socket, asked, wait: never };
    let mut shed = if backlog.is_waiting() {
        backlog.shed(Instant::now(), usize::MAX)
    } else {
        Shed::default()
    };
    let mut flushed =
        if socket.is_ip() { backlog.flush(&mut outlet) } else { backlog.flush_around(&mut outlet) };
    count_lost(&flushed, socket);
    if flushed.is_full {
        let more = backlog.shed(Instant::now(), most);
        shed.count += more.count;
        shed.refused.extend(more.refused);
        flushed.is_full = !backlog.is_empty();
    }
    socket.counters().count_send_errors(shed.count);
    flushed.undescribed = shed.count - shed.refused.len();
    flushed.errors.extend(shed.refused);
    flushed
}

/// As [`flush`], but where the socket's buffer is full, `wait` may send what is next: see
/// [`Outlet::wait`].
pub(crate) fn flush_or(
    backlog: &mut SendBacklog,
    socket: &net::Socket,
    asked: &ReplySources,
    wait: impl FnMut(&mut SendQueue<'_>) -> Option<io::Result<Sent>>,
) -> Flushed {
    let flushed = backlog.flush(&mut SocketOutlet { socket, asked, wait });
    count_lost(&flushed, socket);
    flushed
}

/// Waits for no room.
fn never(_: &mut SendQueue<'_>) -> Option<io::Result<Sent>> {
    None
}

fn count_lost(flushed: &Flushed, socket: &net::Socket) {
    if !flushed.errors.is_empty() {
        let lost = flushed.errors.iter().filter(|refused| refused.is_lost).count();
        socket.counters().count_send_errors(lost);
    }
}

struct SocketOutlet<'a, W> {
    socket: &'a net::Socket,
    asked: &'a ReplySources,
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
