//! Reports a server's errors and drops: counted here, logged in Python.

use std::io;

use pyo3::exceptions::{PyKeyboardInterrupt, PySystemExit};
use pyo3::prelude::*;

use super::ServerCore;
use crate::net::{self, Address, Count, ErrorClass, Notice};
use crate::python::error::Error;

impl ServerCore {
    /// Counts and logs drops, handshakes and entries of the error queue. Call this about once per
    /// second.
    pub(super) fn report_all(&self, py: Python<'_>, socket: &net::Socket) -> PyResult<()> {
        self.report_handshakes(py, socket)?;
        self.log_losses(py, socket)?;
        // A wait may have taken error queue entries that no receive has reported.
        self.report_queued_errors(py, socket, None)
    }

    /// Counts handshakes, and logs why the last one that failed has failed.
    #[cfg(feature = "dtls")]
    pub(super) fn report_handshakes(&self, py: Python<'_>, socket: &net::Socket) -> PyResult<()> {
        let Some(report) = socket.take_handshake_report() else { return Ok(()) };
        let counts = [
            (Count::DtlsEstablished, report.established),
            (Count::DtlsFailed, report.failed),
            (Count::DtlsEvicted, report.evicted),
            (Count::DtlsCookiesSent, report.cookies_sent),
            (Count::DtlsInvalid, report.invalid),
        ];
        for (count, n) in counts {
            self.count(count, n as usize);
        }
        let Some(text) = report.last_failure else { return Ok(()) };
        self.log(py, "handshake", (text, report.failed.saturating_sub(1)))
    }

    /// Does nothing.
    #[cfg(not(feature = "dtls"))]
    #[allow(clippy::unnecessary_wraps, clippy::unused_self)] // with DTLS it may fail
    pub(super) fn report_handshakes(&self, _: Python<'_>, _: &net::Socket) -> PyResult<()> {
        Ok(())
    }

    /// Has Python log something about no peer in particular.
    fn log<'py>(
        &self,
        py: Python<'py>,
        what: &str,
        detail: impl IntoPyObject<'py>,
    ) -> PyResult<()> {
        self.survive(py, self.report.call1(py, (what, detail, py.None())))
    }

    /// Ends the program if logging has raised an exception that ends it. Another, such as a lack of
    /// memory for a log line, must not stop the server.
    fn survive(&self, py: Python<'_>, logged: PyResult<Py<PyAny>>) -> PyResult<()> {
        match logged {
            Err(error) if ends_program(py, &error) => self.end_or_exit(py, error),
            Err(error) => {
                error.write_unraisable(py, Some(self.report.bind(py)));
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    /// Counts and reports the errors in the error queue, and one that a receive has reported.
    pub(super) fn report_queued_errors(
        &self,
        py: Python<'_>,
        socket: &net::Socket,
        reported: Option<io::Error>,
    ) -> PyResult<()> {
        // The queue is emptied even if datagrams never stop: a full one takes their room.
        let queued = socket.with(|fd| Ok(socket.discard_error_messages(fd)));
        let (count, last) = queued.unwrap_or_default();
        let (error, peer) = match (last, reported) {
            (Some((peer, queued)), _) => (io::Error::from_raw_os_error(queued.errno), Some(peer)),
            (None, Some(error)) if is_of_peer(&error) => (error, socket.peer_address().ok()),
            (None, Some(error)) => (error, None),
            (None, None) => return Ok(()),
        };
        self.count(Count::ReceiveErrors, count.max(1));
        self.report_error(
            py,
            "receive",
            Error::Os(error).into(),
            peer.as_ref().map(Address::as_bytes),
        )
    }

    /// Logs, once for all workers, that datagrams do not reach the handler: that the kernel drops
    /// them, their PROXY headers are wrong, or they are not encrypted.
    fn log_losses(&self, py: Python<'_>, socket: &net::Socket) -> PyResult<()> {
        let counters = self.counters.get().shared_counters();
        let notices = [
            (Notice::Drops, "drops", socket.drops().unwanted),
            (Notice::Untrusted, "untrusted", counters.of(self.worker, Count::ProxyUntrusted)),
            (Notice::Malformed, "malformed", counters.of(self.worker, Count::ProxyMalformed)),
            (Notice::NotDtls, "not dtls", counters.of(self.worker, Count::DtlsInvalid)),
        ];
        for (notice, what, count) in notices {
            if count > 0 && counters.is_first_to_log(notice) {
                self.log(py, what, count)?;
            }
        }
        Ok(())
    }

    /// Has exceptions that end the program reported to a function, while this runs. Otherwise they
    /// propagate, and end the calls that handle the other datagrams.
    pub(super) fn set_on_exit(&self, on_exit: Py<PyAny>) {
        let _ = self.on_exit.set(on_exit); // which is the same: this runs once
    }

    /// Reports an exception that ends the program. Others propagate.
    pub(super) fn end_or_exit(&self, py: Python<'_>, error: PyErr) -> PyResult<()> {
        match self.on_exit.get() {
            Some(on_exit) if ends_program(py, &error) => on_exit.call1(py, (error,)).map(drop),
            _ => Err(error),
        }
    }

    /// Reports an error, with the peer that it is about.
    pub(super) fn report_error(
        &self,
        py: Python<'_>,
        what: &str,
        error: PyErr,
        peer: Option<&[u8]>,
    ) -> PyResult<()> {
        if ends_program(py, &error) {
            return self.end_or_exit(py, error);
        }
        let addresses = self.socket.bind(py).get().addresses();
        let address = peer.and_then(|peer| addresses.object(py, peer).ok());
        self.survive(py, self.report.call1(py, (what, error, address)))
    }
}

/// Whether an error is about a peer. Having nothing to receive is not an error.
pub(super) fn is_of_peer(error: &io::Error) -> bool {
    !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
        && ErrorClass::of(error) == ErrorClass::Peer
}

fn ends_program(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PySystemExit>(py) || error.is_instance_of::<PyKeyboardInterrupt>(py)
}
