//! Sending datagrams with their metadata.

use std::ffi::c_int;
use std::io;
use std::time::Duration;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::Socket;
use super::datagram::Datagram;
use super::sending::{ItemKind, Sending};
use crate::net::cmsg::ControlBuffer;
use crate::net::{Address, AddressKind, Deadline, Interest, SendMeta, SendSlice, Source};
use crate::python::audit;
use crate::python::buffer::Readable;
use crate::python::error::{Error, Result, strerror};

#[pymethods]
impl Socket {
    /// Send one datagram with its metadata; return its id if its transmit timestamp will follow.
    #[pyo3(signature = (datagram, flags=0))]
    fn send_datagram(
        slf: &Bound<'_, Self>,
        datagram: &Bound<'_, Datagram>,
        flags: c_int,
    ) -> Result<Option<u32>> {
        let (this, py) = (slf.get(), slf.py());
        let (to, meta) = this.route(datagram, "send_datagram")?;
        if to.is_some() {
            audit::event(c"socket.sendto", slf.as_any(), datagram.get().address(py))?;
        }
        let data = Readable::new(datagram.get().data(py).as_any())?;
        let mut control = ControlBuffer::EMPTY;
        if let Some(meta) = meta {
            meta.encode(&mut control);
        }
        let socket = this.socket()?;
        let id = socket.is_stamping().then(|| socket.ask_for_stamp(&mut control));
        match this.send_with(py, data.slice(), to.as_ref(), &control, flags) {
            Err(Error::Os(error)) => return Err(explain(error, meta)),
            result => result?,
        };
        if let Some(id) = id {
            // If the socket was closed meanwhile, the datagram was sent all the same.
            let _ = socket.with(|fd| {
                socket.collect_stamps(fd, id);
                Ok(())
            });
        }
        Ok(id)
    }

    /// Send many datagrams with their metadata.
    #[pyo3(signature = (datagrams, flags=0, *, errors="raise"))]
    fn send_datagrams<'py>(
        slf: &Bound<'py, Self>,
        datagrams: &Bound<'py, PyAny>,
        flags: c_int,
        errors: &str,
    ) -> Result<Bound<'py, PyAny>> {
        let mut sending = Sending::new(slf, ItemKind::Datagrams, flags, errors)?;
        match datagrams.cast_exact::<PyList>() {
            Ok(list) => sending.all(list.iter().map(Ok), list.len(), None)?,
            Err(_) => sending.all(datagrams.try_iter()?, 0, None)?,
        }
        sending.finish()
    }

    /// Whether `send_datagram()` makes the kernel report when the datagram leaves.
    #[getter]
    fn transmit_timestamps(&self) -> Result<bool> {
        Ok(self.socket()?.is_stamping())
    }

    #[setter]
    fn set_transmit_timestamps(&self, is_on: bool) -> Result<()> {
        let socket = self.socket()?;
        if !socket.is_ip() {
            let text = "transmit timestamps need a socket of AF_INET or AF_INET6";
            return Err(PyOSError::new_err((libc::EOPNOTSUPP, text)).into());
        }
        socket.set_stamping(is_on).map_err(|error| {
            let text = match error.raw_os_error() {
                Some(libc::EOPNOTSUPP) => "transmit timestamps need Linux 6.13 or newer",
                Some(libc::EBUSY) => {
                    "the program itself has set SO_TIMESTAMPING for all datagrams; clear it first"
                }
                _ => return error.into(),
            };
            PyOSError::new_err((error.raw_os_error(), text)).into()
        })
    }

    /// Return the transmit timestamps that have arrived.
    #[pyo3(signature = (timeout=0.0))]
    fn timestamps(&self, py: Python<'_>, timeout: f64) -> Result<Vec<Timestamp>> {
        let timeout = Duration::try_from_secs_f64(timeout).map_err(|_| {
            PyValueError::new_err(format!("timeout must be a number of seconds, not {timeout}"))
        })?;
        let socket = self.socket()?;
        let stamps = match socket.with(|fd| socket.take_stamps(fd)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if timeout.is_zero() {
                    return Ok(Vec::new());
                }
                let deadline = Deadline::after(timeout);
                match self
                    .wait(py, deadline, Interest::Stamp, |socket, fd, _| socket.take_stamps(fd))
                {
                    Err(Error::TimedOut) => return Ok(Vec::new()),
                    stamps => stamps?,
                }
            }
            stamps => stamps?,
        };
        Ok(stamps.iter().map(|stamp| (stamp.id, stamp.software_ns, stamp.hardware_ns)).collect())
    }

    /// Make the kernel report when the device received each datagram.
    fn _request_hardware_timestamps(&self) -> Result<()> {
        Ok(self.socket()?.request_hardware_timestamps()?)
    }
}

/// A datagram's id, and when the kernel and the device have sent it.
type Timestamp = (u32, Option<i64>, Option<i64>);

impl Socket {
    fn send_with(
        &self,
        py: Python<'_>,
        data: SendSlice<'_>,
        to: Option<&Address>,
        control: &ControlBuffer,
        flags: c_int,
    ) -> Result<usize> {
        self.transfer(py, &mut self.patience(), Interest::Write, flags, |socket, fd, flags| {
            socket.send_message(fd, &[data], to, control.as_bytes(), flags)
        })
    }

    /// Where a datagram goes, and with which metadata.
    pub(super) fn route(
        &self,
        datagram: &Bound<'_, Datagram>,
        caller: &str,
    ) -> Result<(Option<Address>, Option<SendMeta>)> {
        let (py, datagram, socket) = (datagram.py(), datagram.get(), self.socket()?);
        let address = datagram.address(py);
        let to = match (datagram.proxy(), datagram.known_address(socket.family())) {
            (Some(proxy), from) => {
                if let Some(client) = from {
                    socket.spend_for_client(&client, datagram.data(py).as_bytes().len())?;
                }
                Some(*proxy)
            }
            (None, Some(from)) => (from.kind() != AddressKind::Unnamed).then_some(from),
            (None, None) if address.is_none() => None,
            (None, None) => Some(self.parse_any_address(address, caller)?),
        };
        if !datagram.has_send_meta() {
            return Ok((to, None));
        }
        if !socket.is_ip() {
            let text = "a datagram with metadata needs a socket of AF_INET or AF_INET6";
            return Err(PyOSError::new_err((libc::EOPNOTSUPP, text)).into());
        }
        let peer = || to.or_else(|| socket.peer_address().ok())?.ip();
        let is_ipv4 = socket.family() == libc::AF_INET
            || peer().is_some_and(|peer| peer.ip().to_canonical().is_ipv4());
        let meta = datagram.send_meta(is_ipv4)?;
        if meta.transmit_time_ns.is_some() {
            socket.enable_transmit_times()?;
        }
        Ok((to, Some(meta)))
    }
}

/// Adds the probable reason to an error of the kernel, if it is in the metadata.
fn explain(error: io::Error, meta: Option<SendMeta>) -> Error {
    let (errno, reason) = (error.raw_os_error(), strerror(&error));
    match meta.and_then(|meta| hint(errno?, &meta)) {
        Some(hint) => Error::Python(PyOSError::new_err((errno, format!("{reason}: {hint}")))),
        None => error.into(),
    }
}

/// The probable reason for an error, if it is in a datagram's metadata.
pub(super) fn hint(errno: c_int, meta: &SendMeta) -> Option<String> {
    match (errno, meta.source) {
        (libc::ENODEV, Some(Source { interface, .. })) => {
            Some(format!("this machine has no interface {interface}"))
        }
        (
            libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH,
            Some(Source { address, interface }),
        ) => {
            let over =
                if interface == 0 { String::new() } else { format!(" over interface {interface}") };
            Some(if address.is_unspecified() {
                format!("there is no route to the destination{over}")
            } else {
                format!(
                    "the source {address} must be an address of this machine, with a route to the \
                     destination{over}"
                )
            })
        }
        (libc::EINVAL, None) if meta.ttl == Some(0) => {
            Some("the ttl of a received datagram was 0; replace it".to_owned())
        }
        _ => None,
    }
}
