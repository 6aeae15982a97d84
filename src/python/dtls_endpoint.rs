//! The sessions of a socket.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};

use crate::net::dtls::{Endpoint, EndpointOptions, OnEnd, Role, SessionEvent, Status};
use crate::net::{self, Address, Deadline, Interest, RecvCursor, Stop, Waiting};
use crate::python::dtls::{DtlsContext, DtlsSession};
use crate::python::error::{self, Error, Result};
use crate::python::socket::Socket;

/// The number of datagrams that a handshake receives at once.
const MESSAGES: usize = 16;

/// Gives a socket sessions.
#[pyclass(frozen, module = "tomada._core")]
pub(crate) struct DtlsEndpoint {
    socket: Py<Socket>,
    inner: Arc<Endpoint>,
}

#[pymethods]
impl DtlsEndpoint {
    #[new]
    #[pyo3(signature = (
        context, socket, *, server_hostname=None, on_end="wait", keeps_events=false
    ))]
    fn new(
        context: &Bound<'_, DtlsContext>,
        socket: &Bound<'_, Socket>,
        server_hostname: Option<String>,
        on_end: &str,
        keeps_events: bool,
    ) -> Result<Self> {
        let on_end = match on_end {
            "wait" => OnEnd::Wait,
            "empty" => OnEnd::Empty,
            "fail" => OnEnd::Fail,
            _ => return Err(PyValueError::new_err("on_end must be wait, empty or fail").into()),
        };
        let inner = socket.get().socket()?;
        let peer = inner.peer_address().ok();
        let context = Arc::clone(context.get().inner());
        if context.role() == Role::Client && peer.is_none() {
            let message = "a DTLS client needs a connected socket: call connect() first";
            return Err(PyValueError::new_err(message).into());
        }
        let options = EndpointOptions { peer, server_name: server_hostname, on_end };
        let endpoint = Arc::new(Endpoint::new(context, options)?);
        if keeps_events {
            endpoint.keep_events();
        }
        inner.set_dtls(Some(Arc::clone(&endpoint)))?;
        Ok(Self { socket: socket.clone().unbind(), inner: endpoint })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        // A socket of a subclass may refer to this object. Clearing its attributes breaks the cycle.
        visit.call(&self.socket)
    }

    /// Begin the session with the server.
    fn begin(&self, py: Python<'_>) -> Result<()> {
        let socket = self.socket.bind(py).get().socket()?;
        match py.detach(|| socket.with_dtls(Endpoint::begin)) {
            Some(Err(error)) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Wait until the handshake with the only peer is complete. With a timeout of 0, do not wait.
    #[pyo3(signature = (timeout=None))]
    fn handshake(&self, py: Python<'_>, timeout: Option<f64>) -> Result<()> {
        let socket = self.socket.bind(py).get().socket()?;
        let end = match timeout {
            None => None,
            Some(timeout) => Instant::now().checked_add(seconds(timeout)),
        };
        let waiting = Waiting::new(socket);
        loop {
            py.check_signals()?;
            let stepped = py.detach(|| self.step(socket, &waiting, end));
            match self.inner.status() {
                Status::Established => return Ok(()),
                Status::Ended(failure) => return Err(error::failure(&failure).into()),
                Status::Handshaking => {}
            }
            match stepped {
                Err(Stop::Failed(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(Stop::TimedOut) | Ok(()) => {
                    if end.is_some_and(|end| end <= Instant::now()) {
                        return Err(match timeout {
                            Some(0.0) => want_read(py).into(),
                            _ => Error::TimedOut,
                        });
                    }
                }
                Err(stop) => return Err(stop.into()),
            }
        }
    }

    /// Let another socket have the sessions of this one, and what they have received; return an
    /// object for it.
    fn r#move(&self, socket: &Bound<'_, Socket>) -> Result<Self> {
        let former = self.socket.bind(socket.py()).get();
        socket.get().socket()?.take_dtls_of(former.socket()?)?;
        Ok(Self { socket: socket.clone().unbind(), inner: Arc::clone(&self.inner) })
    }

    /// Retransmit what is due; return the time in seconds until this must be called again, or None.
    fn tick(&self, py: Python<'_>) -> Result<Option<f64>> {
        let socket = self.socket.bind(py).get().socket()?;
        Ok(py.detach(|| socket.tick_dtls()).map(|due| due.as_secs_f64()))
    }

    /// Return what has happened to sessions since the last call: each with the address of the peer,
    /// and the session that has begun or the exception for its end.
    fn events<'py>(&self, py: Python<'py>) -> Result<Vec<Bound<'py, PyTuple>>> {
        let addresses = self.socket.bind(py).get().addresses();
        let mut events = Vec::new();
        while let Some(event) = self.inner.take_event() {
            let ended = |failure| error::failure(failure).into_value(py).into_any();
            let (name, peer, about) = match &event {
                SessionEvent::Established(session) => {
                    let Some(session) = session.upgrade() else { continue };
                    let about = DtlsSession::from(Arc::clone(&session));
                    ("established", *session.peer(), Py::new(py, about)?.into_any())
                }
                SessionEvent::Lost(peer, failure) => ("lost", *peer, ended(failure)),
                SessionEvent::Failed(peer, failure) => ("failed", *peer, ended(failure)),
            };
            let address = addresses.object(py, peer.as_bytes())?;
            events.push((name, address, about).into_pyobject(py)?);
        }
        Ok(events)
    }

    /// Return True once the handshake with the only peer is complete, None until then; raise
    /// the reason if the session has ended.
    fn status(&self) -> Result<Option<bool>> {
        match self.inner.status() {
            Status::Handshaking => Ok(None),
            Status::Established => Ok(Some(true)),
            Status::Ended(failure) => Err(error::failure(&failure).into()),
        }
    }

    /// End the session with a peer, or with the only one; return whether there was one.
    #[pyo3(signature = (address=None))]
    fn close(&self, py: Python<'_>, address: Option<&Bound<'_, PyAny>>) -> Result<bool> {
        let peer = self.parse(py, address)?;
        let socket = self.socket.bind(py).get().socket()?;
        let closed = py
            .detach(|| socket.with_dtls(|endpoint, outbox| endpoint.close(peer.as_ref(), outbox)));
        Ok(closed.unwrap_or(false))
    }

    /// End all sessions.
    fn close_all(&self, py: Python<'_>) -> Result<()> {
        let socket = self.socket.bind(py).get().socket()?;
        py.detach(|| socket.with_dtls(Endpoint::close_all));
        Ok(())
    }

    /// Return the session with a peer, or with the only one, or None.
    #[pyo3(signature = (address=None))]
    fn session(
        &self,
        py: Python<'_>,
        address: Option<&Bound<'_, PyAny>>,
    ) -> Result<Option<DtlsSession>> {
        let peer = self.parse(py, address)?;
        Ok(self.inner.live(peer.as_ref()).map(DtlsSession::from))
    }

    /// Return the counters.
    fn stats<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyDict>> {
        let stats = PyDict::new(py);
        let (sessions, handshakes) = self.inner.sessions();
        stats.set_item("sessions", sessions)?;
        stats.set_item("handshakes", handshakes)?;
        for (name, count) in self.inner.counts().named() {
            stats.set_item(name, count)?;
        }
        Ok(stats)
    }
}

impl DtlsEndpoint {
    fn parse(&self, py: Python<'_>, address: Option<&Bound<'_, PyAny>>) -> Result<Option<Address>> {
        let socket = self.socket.bind(py).get();
        address.map(|address| socket.parse_any_address(address, "session")).transpose()
    }

    /// Waits for a datagram, or for the next retransmission.
    fn step(
        &self,
        socket: &net::Socket,
        waiting: &Waiting<'_>,
        end: Option<Instant>,
    ) -> std::result::Result<(), Stop> {
        socket.tick_dtls();
        let mut cursor = RecvCursor::of_thread(socket).map_err(Stop::Failed)?;
        let mut receive = |fd: BorrowedFd<'_>| {
            // Data that the peer sends already goes to the backlog.
            match cursor.receive_messages(fd, MESSAGES, libc::MSG_DONTWAIT) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
                _ if !matches!(self.inner.status(), Status::Handshaking) => Ok(()),
                _ => Err(io::ErrorKind::WouldBlock.into()),
            }
        };
        match socket.with(&mut receive) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result.map_err(Stop::Failed),
        }
        let due = self.inner.next_timeout();
        let deadline = Deadline::at(due.into_iter().chain(end).min());
        waiting.run(Interest::Read, deadline, None, |fd, _| receive(fd))
    }
}

fn seconds(seconds: f64) -> Duration {
    // A time too long to represent means no limit: `max` has made NaN and negatives zero.
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::from_secs(1 << 40))
}

/// The exception that says that a call would have to wait.
fn want_read(py: Python<'_>) -> PyErr {
    static WANT_READ: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let text = "the handshake is not complete, and the peer's answer has not arrived";
    match WANT_READ.import(py, "tomada._dtls_errors", "DTLSWantReadError") {
        Ok(class) => PyErr::from_type(class.clone(), (libc::EAGAIN, text)),
        Err(error) => error,
    }
}
