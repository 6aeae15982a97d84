//! A received datagram with all its metadata from the kernel.

use std::ffi::c_int;

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::Socket;
use crate::net::{Address, AddressKind, Meta, Received};
use crate::python::audit;
use crate::python::buffer::{Readable, text_of};
#[cfg(feature = "dtls")]
use crate::python::dtls::DtlsSession;
use crate::python::error::Result;

/// A received datagram.
#[pyclass(frozen, module = "tomada")]
pub(crate) struct Datagram {
    /// The payload.
    #[pyo3(get)]
    data: Py<PyBytes>,
    /// The sender's address, as `recvfrom` returns it.
    #[pyo3(get)]
    address: Py<PyAny>,
    /// Whether the payload was truncated.
    #[pyo3(get)]
    truncated: bool,
    from: Address,
    proxy: Option<Address>,
    meta: Meta,
    socket: Py<Socket>,
}

impl Datagram {
    pub(crate) fn new(
        socket: &Bound<'_, Socket>,
        received: &Received<'_>,
        data: Bound<'_, PyBytes>,
        address: Bound<'_, PyAny>,
    ) -> Self {
        Self {
            data: data.unbind(),
            address: address.unbind(),
            truncated: received.is_truncated(),
            from: Address::from_bytes(received.from),
            proxy: received.proxy.map(Address::from_bytes),
            meta: Meta::decode(received.control),
            socket: socket.clone().unbind(),
        }
    }
}

#[pymethods]
impl Datagram {
    /// The sender's IP address without its port; that of an IPv4 peer as plain IPv4.
    #[getter]
    fn host(&self) -> Option<String> {
        self.from.ip().map(|from| from.ip().to_canonical().to_string())
    }

    /// The sender's port.
    #[getter]
    fn port(&self) -> Option<u16> {
        self.from.ip().map(|from| from.port())
    }

    /// The IP address that it was sent to.
    #[getter]
    fn destination(&self) -> Option<String> {
        self.meta.destination.map(|ip| ip.to_string())
    }

    /// The index of the interface that it arrived on.
    #[getter]
    fn interface(&self) -> Option<u32> {
        self.meta.interface.filter(|&index| index != 0)
    }

    /// When the kernel received it, in nanoseconds since 1970.
    #[getter]
    fn timestamp_ns(&self) -> Option<i64> {
        self.meta.timestamp_ns
    }

    /// Its time to live, or hop limit, on arrival.
    #[getter]
    fn ttl(&self) -> Option<u8> {
        self.meta.ttl
    }

    /// Its type of service, or traffic class.
    #[getter]
    fn tos(&self) -> Option<u8> {
        self.meta.tos
    }

    /// Its explicit congestion notification, the last two bits of `tos`.
    #[getter]
    fn ecn(&self) -> Option<u8> {
        self.meta.tos.map(|tos| tos & 3)
    }

    /// How many datagrams the socket's queue had dropped by then.
    #[getter]
    fn kernel_drops(&self) -> u32 {
        self.meta.drops.unwrap_or(0) // the kernel omits a zero
    }

    /// The DTLS session that it came through, or None.
    #[cfg(feature = "dtls")]
    #[getter]
    fn session(&self, py: Python<'_>) -> Result<Option<DtlsSession>> {
        let endpoint = self.socket.bind(py).get().socket()?.dtls();
        Ok(endpoint.and_then(|endpoint| DtlsSession::find(endpoint, Some(self.from))))
    }

    /// Send a reply from the address that the datagram was sent to, and return its length.
    #[pyo3(signature = (data, flags=0))]
    fn reply(&self, py: Python<'_>, data: &Bound<'_, PyAny>, flags: c_int) -> Result<usize> {
        let to = (self.from.kind() != AddressKind::Unnamed).then_some(&self.from);
        let socket = self.socket.bind(py);
        let to = match &self.proxy {
            None => to,
            Some(proxy) => {
                let len = Readable::new(data)?.len();
                socket.get().socket()?.spend_for_client(&self.from, len)?;
                Some(proxy)
            }
        };
        if to.is_some() {
            audit::event(c"socket.sendto", socket.as_any(), self.address.bind(py))?;
        }
        socket.get().reply(py, data, to, self.meta.source(), flags)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        // The socket may be of a subclass and refer to a datagram. Clearing its `dict` breaks the
        // cycle.
        visit.call(&self.socket)
    }

    fn __len__(&self, py: Python<'_>) -> usize {
        self.data.bind(py).as_bytes().len()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let (len, from) = (self.__len__(py), text_of(self.address.bind(py))?);
        let destination = self.destination().map_or_else(String::new, |ip| format!(" to {ip}"));
        let cut = if self.truncated { ", truncated" } else { "" };
        Ok(format!("<tomada.Datagram of {len} bytes from {from}{destination}{cut}>"))
    }
}
