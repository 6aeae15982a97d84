//! Datagrams of Python's that wait to be sent together.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::asked::Asked;
use super::error::may_be_of_source;
use crate::net::{self, Address, SendQueue, SendSlice, Sent, Source, no_memory};

/// Datagrams in the order in which they were accepted.
#[derive(Default)]
pub(crate) struct Outbox {
    datagrams: VecDeque<Queued>,
    bytes: usize,
}

struct Queued {
    data: Py<PyBytes>,
    to: Option<Address>,
    source: Option<Source>,
}

thread_local! {
    /// Memory for a queue: an outbox has some only while it has something in it, and those of a
    /// loop, which are flushed one after the other, take turns.
    static SPARE: Cell<VecDeque<Queued>> = const { Cell::new(VecDeque::new()) };
}

/// How far a flush came.
pub(crate) struct Flushed {
    /// What was wrong with datagrams that did not leave, or with earlier ones.
    pub(crate) errors: Vec<Refused>,
    /// Whether the socket's buffer is full, so that the rest waits.
    pub(crate) is_full: bool,
}

/// An error, and the datagram that it came up with.
pub(crate) struct Refused {
    pub(crate) error: io::Error,
    pub(crate) to: Option<Address>,
    pub(crate) len: usize,
    /// The datagram's payload.
    pub(crate) data: Py<PyBytes>,
    /// Whether the datagram is lost; otherwise the error was of an earlier one.
    pub(crate) is_lost: bool,
}

/// As many datagrams are handed to the kernel in one go, so that a long queue that leaves in small
/// steps is not laid out anew for each of them.
const STEP: usize = 512;

impl Outbox {
    pub(crate) fn push(
        &mut self,
        data: Py<PyBytes>,
        len: usize,
        to: Option<Address>,
        source: Option<Source>,
    ) -> io::Result<()> {
        if self.datagrams.capacity() == 0 {
            self.datagrams = SPARE.take();
        }
        let more = (self.len() + 1) * size_of::<Queued>();
        self.datagrams.try_reserve(1).map_err(|_| no_memory(more, "datagrams to be sent"))?;
        self.bytes += len;
        self.datagrams.push_back(Queued { data, to, source });
        Ok(())
    }

    /// How many datagrams there are.
    pub(crate) fn len(&self) -> usize {
        self.datagrams.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// Their payload, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Sends what goes without waiting. A datagram that is refused is given up, and the others are
    /// sent.
    ///
    /// On a connected socket, and on one with `IP_RECVERR`, an error may belong to a datagram sent
    /// earlier, whose ICMP answer has come meanwhile; the kernel reports it instead of sending. So
    /// each datagram is tried twice. Sockets of other families report only errors of the datagram
    /// at hand.
    ///
    /// One that was to leave from an address that this machine has no more leaves from where the
    /// routes say, and that is forgotten of its peer.
    pub(crate) fn flush(&mut self, py: Python<'_>, socket: &net::Socket, asked: &Asked) -> Flushed {
        self.flush_or(py, socket, asked, |_| None)
    }

    /// As [`flush`](Self::flush), but where the socket's buffer is full, `wait` may send what is
    /// next; `EAGAIN` from it gives the next datagram up, and `None` all of them their place.
    pub(crate) fn flush_or(
        &mut self,
        py: Python<'_>,
        socket: &net::Socket,
        asked: &Asked,
        mut wait: impl FnMut(&mut SendQueue<'_>) -> Option<io::Result<Sent>>,
    ) -> Flushed {
        let mut flushed = Flushed { errors: Vec::new(), is_full: false };
        while !self.is_empty() && !flushed.is_full {
            let done = self.flush_step(py, socket, asked, &mut flushed, &mut wait);
            for queued in self.datagrams.drain(..done) {
                self.bytes -= queued.data.bind(py).as_bytes().len();
            }
        }
        if self.is_empty() {
            SPARE.set(std::mem::take(&mut self.datagrams));
        }
        if !flushed.errors.is_empty() {
            let lost = flushed.errors.iter().filter(|refused| refused.is_lost).count();
            socket.counters().count_send_errors(lost);
        }
        flushed
    }

    /// Sends some of the first datagrams, and says how many are done with.
    fn flush_step(
        &self,
        py: Python<'_>,
        socket: &net::Socket,
        asked: &Asked,
        flushed: &mut Flushed,
        wait: &mut impl FnMut(&mut SendQueue<'_>) -> Option<io::Result<Sent>>,
    ) -> usize {
        let mut queue = match self.lay_out(py) {
            Ok(queue) => queue,
            Err(error) => {
                flushed.errors.extend(self.refused(py, 0, error, true));
                return 1;
            }
        };
        let (mut retried, mut moved) = (None, None);
        while !queue.is_empty() {
            let mut result =
                socket.with(|fd| socket.send_queue(fd, &mut queue, libc::MSG_DONTWAIT));
            if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                let Some(later) = wait(&mut queue) else {
                    flushed.is_full = true;
                    break;
                };
                result = later;
            }
            match result {
                Ok(_) => {
                    if let Some(peer) = moved.take() {
                        asked.forget(peer);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if may_be_of_source(&error) && queue.forget_source() => {
                    // If without it the datagram leaves. A peer that none can be sent to must not
                    // have others answered from an address that they do not expect.
                    moved =
                        self.datagrams.get(queue.position()).and_then(|queued| queued.to.as_ref());
                }
                Err(error) => {
                    moved = None;
                    let position = queue.position();
                    let first = retried.take_if(|(tried, _)| *tried == position);
                    let may_be_of_another = may_be_of_earlier(&error) && socket.is_ip();
                    let is_lost = !may_be_of_another || first.is_some();
                    if is_lost {
                        queue.skip();
                    } else {
                        retried = Some((position, error.raw_os_error()));
                    }
                    // The same twice is one error, of this datagram; but a refusal never is.
                    if first.is_some_and(|(_, errno)| errno == error.raw_os_error())
                        && error.kind() != io::ErrorKind::ConnectionRefused
                    {
                        flushed.errors.pop();
                    }
                    flushed.errors.extend(self.refused(py, position, error, is_lost));
                }
            }
        }
        queue.position()
    }

    /// The first datagrams as a queue for the kernel: as many as a step takes, or there is memory
    /// for.
    fn lay_out<'a>(&'a self, py: Python<'a>) -> io::Result<SendQueue<'a>> {
        let mut queue = SendQueue::with_room(self.len().min(STEP))?;
        for queued in self.datagrams.iter().take(STEP) {
            let payload = SendSlice::new(queued.data.bind(py).as_bytes());
            match queue.push(payload, queued.to.as_ref(), queued.source) {
                Err(error) if queue.is_empty() => return Err(error),
                Err(_) => break,
                Ok(()) => {}
            }
        }
        Ok(queue)
    }

    /// What a datagram was refused with.
    fn refused(
        &self,
        py: Python<'_>,
        index: usize,
        error: io::Error,
        is_lost: bool,
    ) -> Option<Refused> {
        let queued = self.datagrams.get(index)?;
        let data = queued.data.clone_ref(py);
        let len = data.bind(py).as_bytes().len();
        Some(Refused { error, to: queued.to, len, data, is_lost })
    }
}

/// Whether an ICMP message about an earlier datagram can be the cause of an error
/// (`icmp_err_convert` and `icmpv6_err_convert` in the kernel).
fn may_be_of_earlier(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNREFUSED
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::ENOPROTOOPT
                | libc::EOPNOTSUPP
                | libc::EPROTO
                | libc::EMSGSIZE
                | libc::EACCES
        )
    )
}
