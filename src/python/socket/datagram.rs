//! A datagram with its metadata: as the kernel reports it, or as it is to be sent.

use std::ffi::c_int;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
#[cfg(feature = "dtls")]
use std::sync::Arc;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt, PyString, PyTuple};

use super::Socket;
use super::interface::{index_of, parse_ip};
use super::options::Given;
#[cfg(feature = "dtls")]
use crate::net::dtls::{SessionError, SharedSession};
use crate::net::{Address, AddressKind, Meta, Received, SendMeta, Source};
use crate::python::audit;
use crate::python::buffer::{Readable, text_of};
#[cfg(feature = "dtls")]
use crate::python::dtls::DtlsSession;
use crate::python::error::Result;
#[cfg(feature = "dtls")]
use crate::python::error::failure;

/// A datagram, received or to be sent.
#[pyclass(frozen, module = "tomada")]
pub(crate) struct Datagram {
    /// The payload.
    #[pyo3(get)]
    data: Py<PyBytes>,
    /// The peer's address: as `recvfrom` returns it, or as it was given.
    #[pyo3(get)]
    address: Py<PyAny>,
    /// Whether the payload was truncated.
    #[pyo3(get)]
    truncated: bool,
    /// When to transmit it, in nanoseconds.
    #[pyo3(get)]
    transmit_time_ns: Option<u64>,
    /// The kernel's form of `address`; `None` if the user gave it.
    from: Option<Address>,
    proxy: Option<Address>,
    meta: Meta,
    /// The socket that received it.
    socket: Option<Py<Socket>>,
    /// The DTLS session that it came through.
    #[cfg(feature = "dtls")]
    session: Option<Arc<SharedSession>>,
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
            transmit_time_ns: None,
            from: Some(Address::from_bytes(received.from)),
            proxy: received.proxy.map(Address::from_bytes),
            meta: Meta::decode(received.control),
            socket: Some(socket.clone().unbind()),
            #[cfg(feature = "dtls")]
            session: received.session.cloned(),
        }
    }

    pub(super) fn data<'py>(&self, py: Python<'py>) -> &Bound<'py, PyBytes> {
        self.data.bind(py)
    }

    pub(super) fn address<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.address.bind(py)
    }

    /// Where a socket of a family sends it, if `address` does not have to be parsed for that.
    pub(super) fn known_address(&self, family: c_int) -> Option<Address> {
        self.from.filter(|from| match from.kind() {
            AddressKind::V4(_) => family == libc::AF_INET,
            AddressKind::V6(_) => family == libc::AF_INET6,
            _ => family == libc::AF_UNIX,
        })
    }

    /// The proxy that the peer is reached through.
    pub(super) fn proxy(&self) -> Option<&Address> {
        self.proxy.as_ref()
    }

    /// Whether it is sent with metadata.
    pub(super) fn has_send_meta(&self) -> bool {
        let Meta { local, interface, ttl, tos, .. } = self.meta;
        local.is_some()
            || interface.is_some_and(|index| index != 0)
            || ttl.is_some()
            || tos.is_some()
            || self.transmit_time_ns.is_some()
    }

    /// The metadata that it is sent with.
    pub(super) fn send_meta(&self, is_ipv4: bool) -> PyResult<SendMeta> {
        let Meta { local, interface, ttl, tos, .. } = self.meta;
        let interface = interface.unwrap_or(0);
        let any = if is_ipv4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let source = match local {
            Some(address) if address.is_ipv4() != is_ipv4 => {
                let text = format!(
                    "the source {address} and the destination belong to different families"
                );
                return Err(PyValueError::new_err(text));
            }
            None if interface == 0 => None,
            local => Some(Source { address: local.unwrap_or(any), interface }),
        };
        Ok(SendMeta { is_ipv4, source, ttl, tos, transmit_time_ns: self.transmit_time_ns })
    }
}

/// Reads a number in a range, or None.
fn number(
    object: &Bound<'_, PyAny>,
    name: &str,
    range: RangeInclusive<u64>,
) -> PyResult<Option<u64>> {
    if object.is_none() {
        return Ok(None);
    }
    let Ok(number) = object.cast::<PyInt>() else {
        let text = format!("{name} must be an int, not {}", object.get_type().name()?);
        return Err(PyTypeError::new_err(text));
    };
    match number.extract() {
        Ok(value) if range.contains(&value) => Ok(Some(value)),
        _ => {
            let (least, most) = range.into_inner();
            let text = format!("{name} must be {least} to {most}, not {}", text_of(object)?);
            Err(PyValueError::new_err(text))
        }
    }
}

/// Reads a source address, or None.
fn source(object: &Bound<'_, PyAny>) -> PyResult<Option<IpAddr>> {
    if object.is_none() {
        return Ok(None);
    }
    let Ok(text) = object.cast::<PyString>() else {
        let text = format!("source must be a str, not {}", object.get_type().name()?);
        return Err(PyTypeError::new_err(text));
    };
    let address = parse_ip(text.to_str()?, "source")?.to_canonical();
    if address.is_unspecified() || address.is_multicast() {
        let text = format!("source must be an address of this machine, not {address}");
        return Err(PyValueError::new_err(text));
    }
    Ok(Some(address))
}

#[pymethods]
impl Datagram {
    /// Create a datagram to send.
    #[new]
    #[pyo3(signature = (
        data, address=None, *, ttl=None, tos=None, ecn=None, source=None, interface=None,
        transmit_time_ns=None
    ))]
    #[allow(clippy::too_many_arguments)] // each is a field
    fn create<'py>(
        py: Python<'py>,
        data: Bound<'py, PyAny>,
        address: Option<Bound<'py, PyAny>>,
        ttl: Option<Bound<'py, PyAny>>,
        tos: Option<Bound<'py, PyAny>>,
        ecn: Option<Bound<'py, PyAny>>,
        source: Option<Bound<'py, PyAny>>,
        interface: Option<Bound<'py, PyAny>>,
        transmit_time_ns: Option<Bound<'py, PyAny>>,
    ) -> Result<Self> {
        let empty = Self {
            data: PyBytes::new(py, b"").unbind(),
            address: py.None(),
            truncated: false,
            transmit_time_ns: None,
            from: None,
            proxy: None,
            meta: Meta::default(),
            socket: None,
            #[cfg(feature = "dtls")]
            session: None,
        };
        empty.replace(
            py,
            Given(Some(data)),
            Given(address),
            Given(ttl),
            Given(tos),
            Given(ecn),
            Given(source),
            Given(interface),
            Given(transmit_time_ns),
        )
    }

    /// Return a datagram to send with other values of some fields.
    #[pyo3(signature = (
        *, data=Given(None), address=Given(None), ttl=Given(None), tos=Given(None), ecn=Given(None),
        source=Given(None), interface=Given(None), transmit_time_ns=Given(None)
    ))]
    #[allow(clippy::too_many_arguments)] // each is a field
    fn replace(
        &self,
        py: Python<'_>,
        data: Given<'_>,
        address: Given<'_>,
        ttl: Given<'_>,
        tos: Given<'_>,
        ecn: Given<'_>,
        source: Given<'_>,
        interface: Given<'_>,
        transmit_time_ns: Given<'_>,
    ) -> Result<Self> {
        let mut new = Self {
            data: self.data.clone_ref(py),
            address: self.address.clone_ref(py),
            socket: None,
            #[cfg(feature = "dtls")]
            session: None,
            ..*self
        };
        if let Given(Some(data)) = data {
            new.data = Readable::new(&data)?.into_bytes(py)?.unbind();
            new.truncated = false;
        }
        if let Given(Some(address)) = address {
            new.address = address.unbind();
            (new.from, new.proxy) = (None, None);
        }
        if let Given(Some(ttl)) = ttl {
            new.meta.ttl = number(&ttl, "ttl", 1..=255)?.map(|ttl| ttl as u8);
        }
        if let Given(Some(tos)) = tos {
            new.meta.tos = number(&tos, "tos", 0..=255)?.map(|tos| tos as u8);
        }
        if let Given(Some(ecn)) = ecn
            && let Some(ecn) = number(&ecn, "ecn", 0..=3)?
        {
            new.meta.tos = Some(new.meta.tos.unwrap_or(0) & !3 | ecn as u8);
        }
        if let Given(Some(source)) = source {
            new.meta.local = self::source(&source)?;
        }
        if let Given(Some(interface)) = interface {
            new.meta.interface = Some(index_of((!interface.is_none()).then_some(&interface))?);
        }
        if let Given(Some(time)) = transmit_time_ns {
            new.transmit_time_ns = number(&time, "transmit_time_ns", 0..=u64::MAX)?;
        }
        Ok(new)
    }

    /// The peer's IP address without its port; that of an IPv4 peer as plain IPv4.
    #[getter]
    fn host(&self, py: Python<'_>) -> Option<String> {
        match &self.from {
            Some(from) => from.ip().map(|from| from.ip().to_canonical().to_string()),
            None => self.address.bind(py).cast::<PyTuple>().ok()?.get_item(0).ok()?.extract().ok(),
        }
    }

    /// The peer's port.
    #[getter]
    fn port(&self, py: Python<'_>) -> Option<u16> {
        match &self.from {
            Some(from) => from.ip().map(|from| from.port()),
            None => self.address.bind(py).cast::<PyTuple>().ok()?.get_item(1).ok()?.extract().ok(),
        }
    }

    /// The local IP address to send it from; of a received datagram, the one to reply from.
    #[getter]
    fn source(&self) -> Option<String> {
        self.meta.local.map(|ip| ip.to_string())
    }

    /// The IP address that it was sent to.
    #[getter]
    fn destination(&self) -> Option<String> {
        self.meta.destination.map(|ip| ip.to_string())
    }

    /// The index of the interface that it arrived on, or is sent on.
    #[getter]
    fn interface(&self) -> Option<u32> {
        self.meta.interface.filter(|&index| index != 0)
    }

    /// When the kernel received it, in nanoseconds since 1970.
    #[getter]
    fn timestamp_ns(&self) -> Option<i64> {
        self.meta.timestamp_ns
    }

    /// When the device received it, in nanoseconds on the device's clock.
    #[getter]
    fn hardware_timestamp_ns(&self) -> Option<i64> {
        self.meta.hardware_ns
    }

    /// Its time to live, or hop limit.
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
    fn session(&self) -> Option<DtlsSession> {
        self.session.clone().map(DtlsSession::from)
    }

    /// Send a reply from the address that the datagram was sent to, and return its length.
    #[pyo3(signature = (data, flags=0))]
    fn reply(&self, py: Python<'_>, data: &Bound<'_, PyAny>, flags: c_int) -> Result<usize> {
        let (Some(from), Some(socket)) = (&self.from, &self.socket) else {
            let text = "cannot reply: this datagram was not received; send it with send_datagram()";
            return Err(PyValueError::new_err(text).into());
        };
        let to = (from.kind() != AddressKind::Unnamed).then_some(from);
        let socket = socket.bind(py);
        #[cfg(feature = "dtls")]
        if let (Some(session), Some(endpoint)) = (&self.session, socket.get().socket()?.dtls())
            && endpoint.has_later_than(session)
        {
            return Err(failure(&SessionError::no_session()).into());
        }
        let to = match &self.proxy {
            None => to,
            Some(proxy) => {
                let len = Readable::new(data)?.len();
                socket.get().socket()?.spend_for_client(from, len)?;
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
        if self.socket.is_none() {
            return Ok(format!("<tomada.Datagram of {len} bytes to {from}>"));
        }
        let destination = self.destination().map_or_else(String::new, |ip| format!(" to {ip}"));
        let cut = if self.truncated { ", truncated" } else { "" };
        Ok(format!("<tomada.Datagram of {len} bytes from {from}{destination}{cut}>"))
    }
}
