//! Many datagrams a call, as Python objects.

use std::ffi::c_int;
use std::io;

use pyo3::exceptions::{PyOSError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyList, PyMemoryView, PyString, PyTuple};

use super::{Patience, Socket};
use crate::net::{Address, Datagrams, Filled, Interest, Received, SendQueue, ThreadRing};
use crate::python::address::AddressCache;
use crate::python::audit;
use crate::python::buffer::{Readable, new_bytes};
use crate::python::error::{Error, Result};

/// Up to so many datagrams pass attached to the interpreter. They take about a millisecond, less
/// than the interpreter lets a thread run before it looks for another one.
const ATTACHED: usize = 1024;

/// A call takes its datagrams in portions of so many, which bounds the memory that it needs.
const PORTION: usize = 4096;

#[pymethods]
impl Socket {
    /// Wait for one datagram, then take all that are there, up to a maximum.
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
        Ok(PyList::new(py, datagrams)?)
    }

    /// Send many datagrams, and return how many, or, going on after errors, what failed.
    #[pyo3(signature = (datagrams, address=None, flags=0, *, errors="raise"))]
    fn send_many<'py>(
        slf: &Bound<'py, Self>,
        datagrams: &Bound<'py, PyAny>,
        address: Option<&Bound<'py, PyAny>>,
        flags: c_int,
        errors: &str,
    ) -> Result<Bound<'py, PyAny>> {
        let mut sending = Sending::new(slf, flags, errors)?;
        let to = address.map(|address| sending.resolve(address)).transpose()?;
        let is_one = datagrams.is_instance_of::<PyBytes>()
            || datagrams.is_instance_of::<PyByteArray>()
            || datagrams.is_instance_of::<PyMemoryView>()
            || datagrams.is_instance_of::<PyString>();
        if is_one {
            let message = "send_many() takes an iterable of datagrams; for one there is send() \
                           or sendto()";
            return Err(PyTypeError::new_err(message).into());
        }
        match datagrams.cast_exact::<PyList>() {
            Ok(list) => sending.all(list.iter().map(Ok), to)?,
            Err(_) => sending.all(datagrams.try_iter()?, to)?,
        }
        sending.finish()
    }
}

impl Socket {
    /// Waits for a datagram, and converts it and what else is there, up to a maximum.
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
        while converted.len() < max
            && let Some(mut held) = socket.take_kept()
        {
            let result = convert_up_to(max, &mut held, &mut converted, &mut convert);
            socket.put_back(held);
            if let Err(error) = result {
                return unless_some(converted, error.into());
            }
        }
        let mut ring = ThreadRing::take(socket.slot_kind())?;
        let mut patience = self.patience();
        while converted.len() < max {
            let wanted = max - converted.len();
            let received = if converted.is_empty() {
                self.transfer(py, &mut patience, Interest::Read, flags, |socket, fd, flags| {
                    socket.receive_ring(fd, &mut ring, wanted, flags)
                })
            } else {
                self.receive_rest(py, &mut ring, wanted, converted.len() > ATTACHED, flags)
            };
            let filled = match received {
                Ok(filled) => filled,
                Err(Error::Os(error)) if !converted.is_empty() => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        socket.defer(&error);
                    }
                    break;
                }
                Err(error) => return unless_some(converted, error),
            };
            let result = convert_up_to(max, &mut *ring, &mut converted, &mut convert);
            socket.keep(&ring);
            if let Err(error) = result {
                return unless_some(converted, error.into());
            }
            if !filled.is_full {
                break;
            }
        }
        Ok(converted)
    }

    /// Receives without waiting.
    fn receive_rest(
        &self,
        py: Python<'_>,
        ring: &mut ThreadRing,
        wanted: usize,
        detached: bool,
        flags: c_int,
    ) -> Result<Filled> {
        let socket = self.socket()?;
        let mut receive = || socket.with(|fd| socket.receive_ring(fd, ring, wanted, flags));
        Ok(if detached { py.detach(receive) } else { receive() }?)
    }
}

/// A tuple of a payload and an address.
pub(crate) fn pair<'py>(
    data: Bound<'py, PyBytes>,
    address: Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyTuple>> {
    let pair = PyTuple::new(data.py(), [data.into_any(), address])?;
    // SAFETY: attached. The tuple was made tracked a moment ago, and nobody else knows it. It holds
    // bytes and an address, neither of which can refer back to it, so that the garbage collector
    // has no business with it: with thousands of them in a list, its visits would cost a third.
    unsafe { ffi::PyObject_GC_UnTrack(pair.as_ptr().cast()) };
    Ok(pair)
}

/// Converts datagrams until there are `max`, or no more.
fn convert_up_to<T>(
    max: usize,
    datagrams: &mut impl Datagrams,
    converted: &mut Vec<T>,
    convert: &mut impl FnMut(&Received<'_>) -> PyResult<T>,
) -> PyResult<()> {
    while converted.len() < max
        && let Some(datagram) = datagrams.current()
    {
        converted.push(convert(&datagram)?);
        datagrams.advance();
    }
    Ok(())
}

/// Returns what was converted before an error, which is lost then: it was of the interpreter's (no
/// memory) or will come again (a closed socket). Datagrams do not come again.
fn unless_some<T>(converted: Vec<T>, error: Error) -> Result<Vec<T>> {
    if converted.is_empty() { Err(error) } else { Ok(converted) }
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

/// The addresses of one call's senders. Datagrams often come several from one sender.
pub(crate) struct Senders<'a, 'py> {
    addresses: &'a AddressCache,
    last: Option<(Address, Bound<'py, PyAny>)>,
}

impl<'a, 'py> Senders<'a, 'py> {
    pub(crate) fn new(addresses: &'a AddressCache) -> Self {
        Self { addresses, last: None }
    }

    pub(crate) fn object(&mut self, py: Python<'py>, from: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        if let Some((address, object)) = &self.last
            && address.as_bytes() == from
        {
            return Ok(object.clone());
        }
        let object = self.addresses.object(py, from)?;
        self.last = Some((Address::from_bytes(from), object.clone()));
        Ok(object)
    }
}

/// One call of `send_many` or `send_batch`: what left, what failed, and how to go on.
pub(super) struct Sending<'s, 'py> {
    socket: &'s Bound<'py, Socket>,
    flags: c_int,
    patience: Patience,
    /// Datagrams of portions that are done with.
    done: usize,
    sent: usize,
    /// Failures to return; `None` where the first is raised.
    failures: Option<Bound<'py, PyList>>,
    /// Whether a socket that does not wait had no more room.
    is_full: bool,
}

impl<'s, 'py> Sending<'s, 'py> {
    pub(super) fn new(socket: &'s Bound<'py, Socket>, flags: c_int, errors: &str) -> Result<Self> {
        let failures = match errors {
            "raise" => None,
            "continue" => Some(PyList::empty(socket.py())),
            _ => {
                let message = format!("errors must be 'raise' or 'continue', not {errors:?}");
                return Err(PyValueError::new_err(message).into());
            }
        };
        socket.get().socket()?;
        let patience = socket.get().patience();
        Ok(Self { socket, flags, patience, done: 0, sent: 0, failures, is_full: false })
    }

    /// Reads an address, which may be IPv4 on a socket of IPv6, and raises its audit event.
    pub(super) fn resolve(&self, address: &Bound<'py, PyAny>) -> Result<Address> {
        let to = self.socket.get().parse_any_address(address, "send_many")?;
        audit::event(c"socket.sendto", self.socket.as_any(), address)?;
        Ok(to)
    }

    /// Sends the items of an iterable, portion by portion.
    fn all(
        &mut self,
        mut items: impl Iterator<Item = PyResult<Bound<'py, PyAny>>>,
        to: Option<Address>,
    ) -> Result<()> {
        loop {
            let mut portion = Portion::default();
            let end = portion.fill(self, items.by_ref().take(PORTION), to.as_ref());
            let is_last = portion.payloads.len() < PORTION;
            let mut queue = portion.queue();
            self.portion(&mut queue, portion.payloads.len() > ATTACHED)?;
            // An item that is no datagram is told once those before it have left.
            end.map_err(|error| self.about(error, None))?;
            if is_last || self.is_full {
                return Ok(());
            }
        }
    }

    /// Sends a queue to its end, or to an error that is to be raised.
    pub(super) fn portion(&mut self, queue: &mut SendQueue<'_>, detached: bool) -> Result<()> {
        let py = self.socket.py();
        let this = self.socket.get();
        let len = queue.len();
        let before = self.sent;
        let mut skipped = 0;
        while !queue.is_empty() {
            let result = if detached {
                self.send_detached(queue)
            } else {
                this.transfer(
                    py,
                    &mut self.patience,
                    Interest::Write,
                    self.flags,
                    |socket, fd, flags| socket.send_queue(fd, queue, flags).map(drop),
                )
            };
            self.sent = before + queue.position() - skipped;
            let Err(error) = result else { continue };
            if self.failures.is_none() {
                if matches!(&error, Error::Os(error) if error.kind() == io::ErrorKind::WouldBlock)
                    && self.sent > 0
                {
                    self.is_full = true;
                    return Ok(());
                }
                return Err(self.about(error.into(), Some(queue)).into());
            }
            let index = self.done + queue.position();
            let error = self.about(error.into(), Some(queue));
            if !error.is_instance_of::<PyOSError>(py) {
                return Err(error.into()); // a signal handler's
            }
            if let Some(failures) = &self.failures {
                failures.append((index, error))?;
            }
            queue.skip();
            skipped += 1;
        }
        self.done += len;
        Ok(())
    }

    /// Sends as much of a queue as goes without waiting, detached from the interpreter all the
    /// while; waits only where nothing goes.
    fn send_detached(&mut self, queue: &mut SendQueue<'_>) -> Result<()> {
        let (py, this) = (self.socket.py(), self.socket.get());
        let (socket, flags) = (this.socket()?, self.flags);
        let result = py.detach(|| {
            socket.with(|fd| {
                while !queue.is_empty() {
                    socket.send_queue(fd, queue, flags)?;
                }
                Ok(())
            })
        });
        match result {
            // Asked once more, attached, it waits as the socket's timeout says.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => this.transfer(
                py,
                &mut self.patience,
                Interest::Write,
                flags,
                |socket, fd, flags| socket.send_queue(fd, queue, flags).map(drop),
            ),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(py.check_signals()?),
            result => Ok(result?),
        }
    }

    /// Says in an exception which datagram it is about, and how many left before it.
    fn about(&self, error: PyErr, queue: Option<&SendQueue<'_>>) -> PyErr {
        let py = self.socket.py();
        let index = self.done + queue.map_or(0, SendQueue::position);
        let this = self.socket.get();
        let to = queue
            .and_then(SendQueue::next_address)
            .and_then(|to| this.addresses.object(py, to.as_bytes()).ok())
            .map_or_else(String::new, |to| format!(" to {to}"));
        let context = format!("datagram {index}{to}; {} sent before it", self.sent);
        let value = error.value(py);
        let errno = value.getattr("errno").and_then(|errno| errno.extract::<c_int>());
        let error = match errno {
            Ok(errno) => {
                let text = value
                    .getattr("strerror")
                    .map_or_else(|_| String::new(), |text| text.to_string());
                PyOSError::new_err((errno, format!("{text} ({context})")))
            }
            Err(_) => {
                PyErr::from_type(error.get_type(py), format!("{} ({context})", error.value(py)))
            }
        };
        // Any exception takes attributes; were this one not to, it would still say it in words.
        let _ = error.value(py).setattr("index", index);
        let _ = error.value(py).setattr("sent", self.sent);
        error
    }

    /// What the call returns.
    pub(super) fn finish(self) -> Result<Bound<'py, PyAny>> {
        match self.failures {
            Some(failures) => Ok(failures.into_any()),
            None => Ok(self.sent.into_pyobject(self.socket.py()).map_err(PyErr::from)?.into_any()),
        }
    }
}

/// Some of the datagrams of a call, held in place while they leave.
#[derive(Default)]
struct Portion<'py> {
    payloads: Vec<Readable<'py>>,
    /// Of each datagram, its address's place in `addresses`, which has no repetitions in a row.
    targets: Vec<Option<usize>>,
    addresses: Vec<Address>,
}

impl<'py> Portion<'py> {
    /// Takes datagrams until one is none.
    fn fill(
        &mut self,
        sending: &Sending<'_, 'py>,
        items: impl Iterator<Item = PyResult<Bound<'py, PyAny>>>,
        to: Option<&Address>,
    ) -> PyResult<()> {
        self.addresses.extend(to);
        let mut last: Option<Bound<'py, PyAny>> = None;
        for item in items {
            let item = item?;
            if to.is_some() {
                self.payloads.push(Readable::new(&item)?);
                self.targets.push(Some(0));
                continue;
            }
            let Ok(pair) = item.cast::<PyTuple>() else {
                self.payloads.push(Readable::new(&item)?);
                self.targets.push(None);
                continue;
            };
            if pair.len() != 2 {
                let message = format!(
                    "a datagram is a bytes-like object or a pair (bytes-like object, address), \
                     not a tuple of {}",
                    pair.len()
                );
                return Err(PyTypeError::new_err(message));
            }
            let payload = Readable::new(&pair.get_item(0)?)?;
            let address = pair.get_item(1)?;
            if !last.as_ref().is_some_and(|last| last.is(&address)) {
                self.addresses.push(sending.resolve(&address)?);
                last = Some(address);
            }
            self.payloads.push(payload);
            self.targets.push(Some(self.addresses.len() - 1));
        }
        Ok(())
    }

    fn queue(&self) -> SendQueue<'_> {
        let mut queue = SendQueue::with_capacity(self.payloads.len());
        for (payload, target) in self.payloads.iter().zip(&self.targets) {
            let to = target.and_then(|target| self.addresses.get(target));
            queue.push(payload.slice(), to, None);
        }
        queue
    }
}
