//! Small immutable records.

use std::ffi::c_int;
use std::io;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::buffer::text_of;
use super::error::Error;
use crate::net::error_queue::SocketError;

/// A datagram that failed on its way.
#[pyclass(frozen, get_all, module = "tomada")]
pub(crate) struct DatagramError {
    peer: Py<PyAny>,
    errno: c_int,
    offender: Option<String>,
    mtu: Option<u32>,
    origin: u8,
    r#type: u8,
    code: u8,
    data: Py<PyBytes>,
}

impl DatagramError {
    pub(crate) fn new(peer: Py<PyAny>, error: &SocketError, data: Py<PyBytes>) -> Self {
        Self {
            peer,
            errno: error.errno,
            offender: error
                .offender
                .and_then(|offender| offender.ip())
                .map(|ip| ip.ip().to_canonical().to_string()),
            mtu: error.mtu(),
            origin: error.origin,
            r#type: error.kind,
            code: error.code,
            data,
        }
    }
}

impl DatagramError {
    /// The `OSError` for its errno, with this as its `datagram_error`.
    pub(crate) fn into_exception(self, py: Python<'_>) -> PyResult<PyErr> {
        let error = PyErr::from(Error::Os(io::Error::from_raw_os_error(self.errno)));
        self.attach_to(py, &error)?;
        Ok(error)
    }

    /// Makes this the `datagram_error` of an exception.
    pub(crate) fn attach_to(self, py: Python<'_>, error: &PyErr) -> PyResult<()> {
        error.value(py).setattr("datagram_error", Py::new(py, self)?)
    }
}

#[pymethods]
impl DatagramError {
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let message = py.import("os")?.call_method1("strerror", (self.errno,))?;
        let (message, peer) = (text_of(&message)?, text_of(self.peer.bind(py))?);
        let by = self.offender.as_ref().map_or_else(String::new, |by| format!(", says {by}"));
        let mtu = self.mtu.map_or_else(String::new, |mtu| format!(", MTU {mtu}"));
        Ok(format!("<tomada.DatagramError to {peer}: {message}{by}{mtu}>"))
    }
}
