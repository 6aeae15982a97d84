//! Many datagrams per call, as Python objects.

use std::ffi::c_int;
use std::io;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOSError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

use super::Socket;
use super::sending::{ATTACHED, ItemKind, Sending};
use crate::net::{Address, Datagrams, Filled, Interest, Received, RecvCursor};
use crate::python::address::{AddressCache, AddressKey, to_python};
use crate::python::buffer::{is_one_datagram, new_bytes, new_list, push};
use crate::python::error::{Error, Result};

/// A receive that keeps up with its senders finds more datagrams each time it checks. After this
/// time it returns, so that signal handlers run and a large maximum does not fill the memory.
const LONGEST_DRAIN: Duration = Duration::from_millis(50);

#[pymethods]
impl Socket {
    /// Wait for one datagram, then take all that are queued, up to a maximum.
    #[pyo3(signature = (max_datagrams=64, flags=0))]
    fn recv_many<'py>(
        &self,
        py: Python<'py>,
        max_datagrams: isize,
        flags: c_int,
    ) -> Result<Bound<'py, PyList>> {
        let mut senders = Senders::new(&self.addresses);
        let datagrams = self.receive_many(py, max_datagrams, flags, |datagram| {
            let data = new_bytes(py, datagram.payload)?;
            pair(data, senders.object(py, datagram.from)?)
        })?;
        self.to_list(py, datagrams)
    }

    /// Send many datagrams; return how many were sent or, if continuing after errors, the failures.
    #[pyo3(signature = (datagrams, address=None, flags=0, *, errors="raise"))]
    fn send_many<'py>(
        slf: &Bound<'py, Self>,
        datagrams: &Bound<'py, PyAny>,
        address: Option<&Bound<'py, PyAny>>,
        flags: c_int,
        errors: &str,
    ) -> Result<Bound<'py, PyAny>> {
        let mut sending = Sending::new(slf, ItemKind::Payloads, flags, errors)?;
        let to = address.map(|address| sending.address(address, "send_many")).transpose()?;
        if is_one_datagram(datagrams) {
            let message = "send_many() takes an iterable of datagrams; for one there is send() \
                           or sendto()";
            return Err(PyTypeError::new_err(message).into());
        }
        match datagrams.cast_exact::<PyList>() {
            Ok(list) => sending.all(list.iter().map(Ok), list.len(), to)?,
            Err(_) => sending.all(datagrams.try_iter()?, 0, to)?,
        }
        sending.finish()
    }

    /// Send payloads to the peer without waiting, and return the failures.
    #[pyo3(signature = (payloads, /))]
    fn _send_payloads<'py>(
        slf: &Bound<'py, Self>,
        payloads: &Bound<'py, PyList>,
    ) -> Result<Bound<'py, PyAny>> {
        let kind = ItemKind::PayloadsOnly;
        let mut sending = Sending::new(slf, kind, libc::MSG_DONTWAIT, "continue")?;
        sending.all(payloads.iter().map(Ok), payloads.len(), None)?;
        sending.finish()
    }
}

impl Socket {
    /// Waits for a datagram, and converts it and the others that are queued, up to a maximum.
    pub(crate) fn receive_many<T>(
        &self,
        py: Python<'_>,
        max_datagrams: isize,
        flags: c_int,
        mut convert: impl FnMut(&Received<'_>) -> PyResult<T>,
    ) -> Result<Vec<T>> {
        let socket = self.socket()?;
        let max = checked_max(max_datagrams)?;
        refuse_peeking(flags)?;
        let mut converted = Vec::with_capacity(max.min(64));
        let mut cursor = RecvCursor::of_thread(socket)?;
        let mut patience = if max > 1 { self.patience_for_many() } else { self.patience() };
        let mut end = None;
        loop {
            let wanted = max - converted.len();
            let received = if converted.is_empty() {
                self.transfer(py, &mut patience, Interest::Read, flags, |_, fd, flags| {
                    cursor.receive(fd, wanted, flags)
                })
            } else {
                self.receive_rest(py, &mut cursor, wanted, converted.len() > ATTACHED, flags)
            };
            let filled = match received {
                Ok(filled) => filled,
                Err(Error::Os(error)) if !converted.is_empty() => {
                    if !matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) {
                        socket.defer(&error);
                    }
                    break;
                }
                Err(error) => return unless_some(converted, of_receiving(error)),
            };
            if let Err(error) = convert_up_to(max, &mut cursor, &mut converted, &mut convert) {
                return unless_some(converted, error.into());
            }
            if converted.len() == max || !filled.is_full || is_over(converted.len(), &mut end) {
                break;
            }
        }
        Ok(converted)
    }

    /// Makes a list of received datagrams. If allocation fails, the datagrams are dropped and
    /// counted.
    pub(crate) fn to_list<'py, T>(
        &self,
        py: Python<'py>,
        datagrams: Vec<Bound<'py, T>>,
    ) -> Result<Bound<'py, PyList>> {
        let (socket, count) = (self.socket()?, datagrams.len());
        Ok(new_list(py, datagrams).inspect_err(|_| socket.counters().count_dropped(count))?)
    }

    /// Receives without waiting.
    fn receive_rest(
        &self,
        py: Python<'_>,
        cursor: &mut RecvCursor<'_>,
        wanted: usize,
        detached: bool,
        flags: c_int,
    ) -> Result<Filled> {
        let socket = self.socket()?;
        let flags = flags | libc::MSG_DONTWAIT;
        let mut receive = || socket.with(|fd| cursor.receive(fd, wanted, flags));
        Ok(if detached { py.detach(receive) } else { receive() }?)
    }
}

/// A tuple of a payload, an address and a time.
pub(crate) fn triple<'py>(
    data: Bound<'py, PyBytes>,
    address: Bound<'py, PyAny>,
    timestamp_ns: Option<i64>,
) -> PyResult<Bound<'py, PyTuple>> {
    let py = data.py();
    let time = timestamp_ns.into_pyobject(py)?;
    // SAFETY: as in `pair`; a time does not refer to anything either.
    unsafe {
        let triple = Bound::from_owned_ptr_or_err(py, ffi::PyTuple_New(3))?;
        ffi::PyTuple_SET_ITEM(triple.as_ptr(), 0, data.into_ptr());
        ffi::PyTuple_SET_ITEM(triple.as_ptr(), 1, address.into_ptr());
        ffi::PyTuple_SET_ITEM(triple.as_ptr(), 2, time.into_ptr());
        ffi::PyObject_GC_UnTrack(triple.as_ptr().cast());
        Ok(triple.cast_into_unchecked())
    }
}

/// A tuple of a payload and an address.
pub(crate) fn pair<'py>(
    data: Bound<'py, PyBytes>,
    address: Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyTuple>> {
    let py = data.py();
    // SAFETY: attached. The tuple is new, is not shared, and has a slot for each item, which takes
    // over its reference. It holds bytes and an address, neither of which can refer back to it, so
    // the garbage collector need not track it: with thousands of tuples in a list, its visits would
    // add a third to the cost.
    unsafe {
        let pair = Bound::from_owned_ptr_or_err(py, ffi::PyTuple_New(2))?;
        ffi::PyTuple_SET_ITEM(pair.as_ptr(), 0, data.into_ptr());
        ffi::PyTuple_SET_ITEM(pair.as_ptr(), 1, address.into_ptr());
        ffi::PyObject_GC_UnTrack(pair.as_ptr().cast());
        Ok(pair.cast_into_unchecked())
    }
}

/// Converts datagrams until there are `max`, or none are left.
fn convert_up_to<T>(
    max: usize,
    datagrams: &mut impl Datagrams,
    converted: &mut Vec<T>,
    convert: &mut impl FnMut(&Received<'_>) -> PyResult<T>,
) -> PyResult<()> {
    while converted.len() < max
        && let Some(datagram) = datagrams.current()
    {
        push(converted, convert(&datagram)?)?;
        datagrams.advance();
    }
    Ok(())
}

/// Returns the datagrams that were converted before an error. The error is dropped: it concerned
/// the interpreter (a lack of memory) or will occur again (a closed socket). The datagrams would be
/// lost.
fn unless_some<T>(converted: Vec<T>, error: Error) -> Result<Vec<T>> {
    if converted.is_empty() { Err(error) } else { Ok(converted) }
}

/// Whether a receive has lasted long enough. Reads the clock only after many datagrams.
fn is_over(converted: usize, end: &mut Option<Instant>) -> bool {
    converted > ATTACHED && {
        let now = Instant::now();
        *end.get_or_insert(now + LONGEST_DRAIN) < now
    }
}

pub(super) fn checked_max(max_datagrams: isize) -> Result<usize> {
    match usize::try_from(max_datagrams) {
        Ok(max) if max > 0 => Ok(max),
        _ => {
            let message = format!("max_datagrams must be at least 1, not {max_datagrams}");
            Err(PyValueError::new_err(message).into())
        }
    }
}

/// Changes an error into what a receive raises. The C library's text of `ESHUTDOWN` is about
/// sending.
pub(super) fn of_receiving(error: Error) -> Error {
    match error {
        Error::Os(error) if error.raw_os_error() == Some(libc::ESHUTDOWN) => {
            let text = "the socket is shut down for receiving";
            PyOSError::new_err((libc::ESHUTDOWN, text)).into()
        }
        error => error,
    }
}

pub(super) fn refuse_peeking(flags: c_int) -> Result<()> {
    let message = match flags {
        flags if flags & libc::MSG_PEEK != 0 => {
            "with MSG_PEEK each datagram would be the first one again: use recvfrom()"
        }
        flags if flags & libc::MSG_ERRQUEUE != 0 => "use errors() for the error queue",
        _ => return Ok(()),
    };
    Err(PyValueError::new_err(message).into())
}

/// The addresses of one call's senders. Often several datagrams come from one sender.
pub(crate) struct Senders<'a, 'py> {
    addresses: &'a AddressCache,
    last: Option<(AddressKey, Bound<'py, PyAny>)>,
    /// The last one that has no key.
    last_other: Option<(Address, Bound<'py, PyAny>)>,
}

impl<'a, 'py> Senders<'a, 'py> {
    pub(crate) fn new(addresses: &'a AddressCache) -> Self {
        Self { addresses, last: None, last_other: None }
    }

    pub(crate) fn object(&mut self, py: Python<'py>, from: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        let Some(key) = AddressKey::of(from) else { return self.other(py, from) };
        if let Some((last, object)) = &self.last
            && *last == key
        {
            return Ok(object.clone());
        }
        let object = self.addresses.object_of(py, &key)?;
        self.last = Some((key, object.clone()));
        Ok(object)
    }

    fn other(&mut self, py: Python<'py>, from: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        if let Some((address, object)) = &self.last_other
            && address.as_bytes() == from
        {
            return Ok(object.clone());
        }
        let object = to_python(py, from)?;
        self.last_other = Some((Address::from_bytes(from), object.clone()));
        Ok(object)
    }
}
