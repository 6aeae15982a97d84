//! A request and its reply in one call: the most frequent operation of a client.

use std::ffi::c_short;
use std::io;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::{Socket, explain_deadlock};
use crate::net::Scratch;
use crate::python::buffer::Readable;
use crate::python::error::{Error, Result};

/// Longer than any datagram. Unused room costs nothing.
const LONGEST: usize = 1 << 20;

/// How many late datagrams to discard before a request. A server does not send more than that.
const MOST_LATE: usize = 64;

#[pymethods]
impl Socket {
    /// Discard the queued datagrams, send a request, and return the next datagram; None if the
    /// request could not be sent.
    #[pyo3(signature = (request, /))]
    fn _exchange<'py>(
        &self,
        py: Python<'py>,
        request: &Bound<'py, PyAny>,
    ) -> Result<Option<Bound<'py, PyBytes>>> {
        let request = Readable::new(request)?;
        if !self.empty_queue()? {
            return Ok(None);
        }
        match self.send_buffer(py, &request, None, 0) {
            Ok(_) => {}
            Err(Error::Os(_) | Error::TimedOut) => return Ok(None),
            Err(error) => return Err(error), // a signal handler's exception must propagate
        }
        self.receive_bytes(py, LONGEST, 0, None).map(Some)
    }

    /// Return whether a receive would finish without waiting: there is a datagram or an error, or
    /// the socket is closed.
    fn _is_readable(&self, py: Python<'_>) -> Result<bool> {
        Ok(self.readiness(py)?.is_none_or(|events| events != 0))
    }

    /// Return whether a datagram is queued; an error does not count.
    fn _has_datagram(&self, py: Python<'_>) -> Result<bool> {
        Ok(self.readiness(py)?.is_some_and(|events| events & libc::POLLIN != 0))
    }

    /// Close several sockets, detaching from the interpreter only once. Raises the first error when
    /// all are closed.
    #[staticmethod]
    #[pyo3(signature = (sockets, /))]
    fn _close_all(py: Python<'_>, sockets: Vec<Py<Self>>) -> Result<()> {
        let close = |socket: &Py<Self>| socket.get().close_descriptor();
        let closed = py.detach(|| sockets.iter().map(close).fold(Ok(()), io::Result::and));
        for socket in &sockets {
            socket.get().addresses.clear(py);
        }
        closed.map_err(explain_deadlock)
    }
}

impl Socket {
    /// Returns the events of `poll(2)`; `None` if the socket is closed.
    fn readiness(&self, py: Python<'_>) -> Result<Option<c_short>> {
        let socket = self.socket()?;
        loop {
            match socket.with(|fd| socket.readiness(fd)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => py.check_signals()?,
                Err(error) if error.raw_os_error() == Some(libc::EBADF) => return Ok(None),
                result => return Ok(Some(result?)),
            }
        }
    }

    /// Discards the queued datagrams; returns whether the queue is empty. Also discards an error of
    /// an earlier datagram (`ECONNREFUSED`).
    fn empty_queue(&self) -> Result<bool> {
        let socket = self.socket()?;
        let mut scratch = Scratch::take()?;
        for _ in 0..MOST_LATE {
            let mut memory = scratch.slice(Scratch::LEN);
            match socket.with(|fd| socket.receive(fd, &mut memory, None, libc::MSG_DONTWAIT)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.raw_os_error() == Some(libc::EBADF) => return Err(error.into()),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(false)
    }
}
