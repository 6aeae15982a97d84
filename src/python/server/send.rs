//! Sends a server's datagrams.

use std::io;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;

use super::ServerCore;
use super::deliver::this_thread;
use crate::net::{
    self, Address, Count, Deadline, Flushed, Interest, Refused, SendQueue, Sent, Stop, Waiting,
};
use crate::python::buffer::Readable;
use crate::python::error::{Error, Result};
use crate::python::send_backlog::{SendBacklog, sending};

/// How long the replies of one batch wait for room in the socket's buffer, which the device
/// empties, before they are dropped.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a call that sends one datagram, and a server that is stopping, wait for `AF_UNIX` peers
/// whose queues are full: only the peers can make room, by reading.
const UNIX_PATIENCE: Duration = Duration::from_millis(20);
/// The maximum number of replies that wait for such peers. Each batch checks all of them.
const WAITING: usize = 256;
/// How often replies to such peers are retried while nothing is received.
pub(super) const RETRY: Duration = Duration::from_millis(1);
/// When the handler has queued this many datagrams, they are sent before the rest of its batch.
const QUEUED: usize = 1024;

#[pymethods]
impl ServerCore {
    /// Whether the calling thread is running the handler.
    #[getter]
    fn is_delivering(&self) -> bool {
        self.is_in_handler()
    }

    /// Send a datagram: in the handler together with the replies, elsewhere immediately.
    #[pyo3(signature = (data, address))]
    fn sendto(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        address: &Bound<'_, PyAny>,
    ) -> Result<()> {
        let owner = self.socket.bind(py).get();
        let to = owner.parse_peer(address, self.reply_sources.has_proxies(), "sendto")?;
        let data = Readable::new(data)?.into_bytes(py)?;
        let source = self.reply_sources.source(&to);
        let to = match self.reply_sources.proxy(&to) {
            None => to,
            Some(proxy) => {
                owner.socket()?.spend_for_client(&to, data.as_bytes().len())?;
                proxy
            }
        };
        if self.is_in_handler() {
            let queued = {
                let mut backlog = self.send_backlog();
                backlog.push(data.into(), Some(to), source)?;
                backlog.len()
            };
            if queued >= QUEUED {
                self.flush(py, owner.socket()?)?;
            } else if let Some(tasks) = self.tasks.get() {
                tasks.tell_reply(py)?;
            }
            return Ok(());
        }
        let mut backlog = SendBacklog::default();
        backlog.push(data.into(), Some(to), source)?;
        let flushed = self.send(py, owner.socket()?, &mut backlog);
        match flushed.errors.into_iter().find(|refused| refused.is_lost) {
            Some(refused) => Err(refused.error.into()),
            None => Ok(()),
        }
    }
}

impl ServerCore {
    /// Whether the calling thread is running the handler.
    fn is_in_handler(&self) -> bool {
        self.delivering.load(Ordering::Relaxed) == this_thread()
    }

    /// Sends the queued datagrams, and reports those that could not be sent. Replies to peers whose
    /// own queues are full stay queued, within limits, because no peer may delay the others. On an
    /// event loop, nothing may delay it, and datagrams also stay queued while the socket is full.
    pub(super) fn flush(&self, py: Python<'_>, socket: &net::Socket) -> PyResult<()> {
        // Taken out of its lock, which must not be held while waiting.
        let mut backlog = std::mem::take(&mut *self.send_backlog());
        if backlog.is_empty() {
            return Ok(());
        }
        let has_one_queue = socket.is_ip() || self.is_connected;
        let flushed = if has_one_queue && self.tasks.get().is_none() {
            self.send(py, socket, &mut backlog)
        } else {
            let most = if has_one_queue { usize::MAX } else { WAITING };
            let send = sending(py, socket);
            let flushed = socket.flush_limited(&mut backlog, most, send, self.forget());
            *self.send_backlog() = backlog;
            self.count_sent(socket, flushed)
        };
        self.report_lost(py, flushed)
    }

    /// Whether replies wait for peers whose queues are full.
    pub(super) fn has_waiting(&self) -> bool {
        !self.send_backlog().is_empty()
    }

    /// Tries once more to send replies that wait, and drops the others.
    pub(super) fn flush_last(&self, py: Python<'_>, socket: &net::Socket) -> PyResult<()> {
        let patience = if socket.is_ip() { PATIENCE } else { UNIX_PATIENCE };
        let end = Instant::now() + patience;
        while self.has_waiting() && Instant::now() < end {
            py.detach(|| thread::sleep(RETRY));
            self.flush(py, socket)?;
        }
        let mut backlog = std::mem::take(&mut *self.send_backlog());
        let full = |_: &mut SendQueue<'_>| Some(Err(io::ErrorKind::WouldBlock.into()));
        let flushed = socket.flush_or(&mut backlog, sending(py, socket), self.forget(), full);
        let flushed = self.count_sent(socket, flushed);
        self.report_lost(py, flushed)
    }

    /// Sends all of a send backlog, waiting for room if necessary.
    fn send(&self, py: Python<'_>, socket: &net::Socket, backlog: &mut SendBacklog) -> Flushed {
        let patience = if socket.is_ip() { PATIENCE } else { UNIX_PATIENCE };
        let mut deadline = None;
        let flushed = socket.flush_or(backlog, sending(py, socket), self.forget(), |queue| {
            let deadline = *deadline.get_or_insert_with(|| Deadline::after(patience));
            Some(wait_for_room(py, socket, deadline, queue))
        });
        self.count_sent(socket, flushed)
    }

    /// Forgets the reply sources that a flush has found to be gone.
    fn forget(&self) -> impl FnMut(&Address) {
        |peer| self.reply_sources.forget(peer)
    }

    /// Counts the datagrams that a flush has sent and dropped.
    fn count_sent(&self, socket: &net::Socket, flushed: Flushed) -> Flushed {
        self.count_delta(socket);
        if flushed.lost > 0 {
            self.count(Count::SendErrors, flushed.lost);
        }
        flushed
    }

    fn report_lost(&self, py: Python<'_>, flushed: Flushed) -> PyResult<()> {
        let lost = flushed.errors.into_iter().filter(|refused| refused.is_lost);
        lost.into_iter().try_for_each(|refused| self.report_refused(py, refused))
    }

    fn report_refused(&self, py: Python<'_>, refused: Refused) -> PyResult<()> {
        let to = refused.to.as_ref().map_or(&[][..], |to| to.as_bytes());
        let error = match refused.error.raw_os_error() {
            Some(libc::EMSGSIZE) => {
                let len = refused.len;
                let message =
                    format!("{len} bytes are too long for one datagram to this peer; split them");
                PyOSError::new_err((libc::EMSGSIZE, message))
            }
            _ => Error::Os(refused.error).into(),
        };
        self.report_error(py, "send", error, Some(to))
    }
}

/// Sends the next datagrams of a queue as soon as there is room, detached from the interpreter.
/// Fails with `EAGAIN` if there is no room in time.
fn wait_for_room(
    py: Python<'_>,
    socket: &net::Socket,
    deadline: Deadline,
    queue: &mut SendQueue<'_>,
) -> io::Result<Sent> {
    let waiting = Waiting::new(socket);
    loop {
        let waited = py.detach(|| {
            waiting.run(Interest::Write, deadline, None, |fd, _| {
                socket.send_queue(fd, queue, libc::MSG_DONTWAIT)
            })
        });
        return match waited {
            Ok(sent) => Ok(sent),
            // Signal handlers run after the batch.
            Err(Stop::Failed(error))
                if error.kind() == io::ErrorKind::Interrupted
                    && deadline.remaining() != Some(Duration::ZERO) =>
            {
                continue;
            }
            Err(Stop::Failed(error)) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            Err(Stop::TimedOut | Stop::Failed(_)) => Err(io::ErrorKind::WouldBlock.into()),
            Err(Stop::Closed) => Err(io::Error::from_raw_os_error(libc::EBADF)),
        };
    }
}
