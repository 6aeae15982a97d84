//! One call that sends many datagrams: portions, waits, and what failed.

use std::ffi::c_int;
use std::io;

use pyo3::exceptions::{PyOSError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};

use super::{Patience, Socket};
use crate::net::{Address, Interest, SendQueue, with_room};
use crate::python::audit;
use crate::python::buffer::{Readable, push, text_of};
use crate::python::error::{Error, Result};

/// A call takes its datagrams in portions of so many, and between them signal handlers run.
const PORTION: usize = 4096;
/// A portion ends with the datagram that reaches so many bytes, which bounds the memory that the
/// items of a generator take.
const PORTION_BYTES: usize = 1 << 22;
/// Up to so many datagrams pass attached to the interpreter. They take about a millisecond, less
/// than the interpreter lets a thread run before it looks for another one.
pub(super) const ATTACHED: usize = 1024;

/// Up to so many bytes are sent attached to the interpreter, for the reason of [`ATTACHED`].
const ATTACHED_BYTES: usize = 1 << 20;

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
        socket.get().socket()?.descriptor().enter()?;
        let patience = socket.get().patience();
        Ok(Self { socket, flags, patience, done: 0, sent: 0, failures, is_full: false })
    }

    /// Reads the one address of all datagrams, and raises its audit event.
    pub(super) fn address(&self, address: &Bound<'py, PyAny>, caller: &str) -> Result<Address> {
        let to = self.parse(address, caller)?;
        self.audit(address)?;
        Ok(to)
    }

    /// Raises the audit event of an address.
    pub(super) fn audit(&self, address: &Bound<'py, PyAny>) -> Result<()> {
        audit::event(c"socket.sendto", self.socket.as_any(), address)
    }

    fn parse(&self, address: &Bound<'py, PyAny>, caller: &str) -> Result<Address> {
        self.socket.get().parse_any_address(address, caller)
    }

    /// Sends the items of an iterable, portion by portion. `expected` is their number, as far as it
    /// is known.
    pub(super) fn all(
        &mut self,
        mut items: impl Iterator<Item = PyResult<Bound<'py, PyAny>>>,
        mut expected: usize,
        to: Option<Address>,
    ) -> Result<()> {
        loop {
            let mut portion = Portion::with_room(expected.min(PORTION))?;
            let end = portion.fill(self, &mut items, to.as_ref());
            expected = expected.saturating_sub(portion.payloads.len());
            let is_large = portion.payloads.len() > ATTACHED || portion.bytes > ATTACHED_BYTES;
            let queue = portion.queue().map_err(Error::from);
            let result = queue.and_then(|mut queue| self.queue(&mut queue, is_large));
            // What is wrong behind the portion is told once its datagrams have left.
            match end {
                // Not mine to keep to myself, whatever became of the datagrams.
                End::Raised(error) => return Err(after(result, error).into()),
                _ if result.is_err() || self.is_full => return result,
                End::NoDatagram(error) => return Err(self.about(error, None, 0)?.into()),
                End::OfIterable => return Ok(()),
                End::OfPortion => self.socket.py().check_signals()?,
            }
        }
    }

    /// Sends a queue to its end, or to an error that is to be raised.
    pub(super) fn queue(&mut self, queue: &mut SendQueue<'_>, detached: bool) -> Result<()> {
        let len = queue.len();
        let before = self.sent;
        let mut skipped = 0;
        let mut is_first = true;
        while !queue.is_empty() {
            if !std::mem::take(&mut is_first) {
                self.socket.py().check_signals()?; // however short each step was
            }
            let result =
                if detached { self.send_detached(queue) } else { self.send_attached(queue) };
            self.sent = before + queue.position() - skipped;
            let error = match result {
                Ok(()) => continue,
                // A handler's exception is none of a datagram's, and a closed socket takes no more.
                Err(error @ (Error::Python(_) | Error::Closed)) => return Err(error),
                Err(Error::Os(error)) if error.raw_os_error() == Some(libc::EBADF) => {
                    return Err(error.into());
                }
                Err(error) => error,
            };
            let would_block =
                matches!(&error, Error::Os(error) if error.kind() == io::ErrorKind::WouldBlock);
            if self.failures.is_none() {
                if would_block && self.sent > 0 {
                    self.is_full = true;
                    return Ok(());
                }
                return Err(self.about(error.into(), Some(queue), 0)?.into());
            }
            skipped += self.give_up(queue, error)?;
        }
        self.done += len;
        Ok(())
    }

    /// Gives up the datagrams that an error is about, notes a failure for each, and says how many.
    fn give_up(&self, queue: &mut SendQueue<'_>, error: Error) -> Result<usize> {
        let Some(failures) = &self.failures else { return Err(error) };
        let index = self.done + queue.position();
        let errno = match &error {
            Error::Os(error) => error.raw_os_error().unwrap_or(libc::EIO),
            _ => libc::EIO,
        };
        let mut error = Some(error);
        for behind in 0..queue.failed() {
            // Each has an exception of its own, which knows its index.
            let error = error.take().unwrap_or_else(|| io::Error::from_raw_os_error(errno).into());
            let failure = self.about(error.into(), Some(queue), behind)?;
            failures.append((index + behind, failure))?;
        }
        Ok(queue.skip())
    }

    /// Sends as much of a queue as one call takes, and waits as the socket's timeout says.
    fn send_attached(&mut self, queue: &mut SendQueue<'_>) -> Result<()> {
        let (py, this) = (self.socket.py(), self.socket.get());
        this.transfer(py, &mut self.patience, Interest::Write, self.flags, |socket, fd, flags| {
            socket.send_queue(fd, queue, flags).map(drop)
        })
    }

    /// Sends as much of a queue as goes without waiting, a portion at the most, detached from the
    /// interpreter all the while; waits only where nothing goes.
    fn send_detached(&mut self, queue: &mut SendQueue<'_>) -> Result<()> {
        let py = self.socket.py();
        let (socket, flags) = (self.socket.get().socket()?, self.flags | libc::MSG_DONTWAIT);
        let end = queue.position() + PORTION;
        let result = py.detach(|| {
            socket.with(|fd| {
                while !queue.is_empty() && queue.position() < end {
                    socket.send_queue(fd, queue, flags)?;
                }
                Ok(())
            })
        });
        match result {
            // Asked once more, attached, it waits.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.send_attached(queue),
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error.into()),
            _ => Ok(py.check_signals()?),
        }
    }

    /// Says in an exception which datagram it is about, and how many left before it. An error is
    /// another one that came meanwhile, such as a signal handler's.
    fn about(&self, error: PyErr, queue: Option<&SendQueue<'_>>, behind: usize) -> PyResult<PyErr> {
        let py = self.socket.py();
        let index = self.done + queue.map_or(0, SendQueue::position) + behind;
        let this = self.socket.get();
        let to = match queue.and_then(SendQueue::next_address) {
            Some(to) => format!(" to {}", text_of(&this.addresses.object(py, to.as_bytes())?)?),
            None => String::new(),
        };
        let value = error.value(py);
        let advice = advice(value.as_any()).unwrap_or_default();
        let context = format!("(datagram {index}{to}; {} sent before it){advice}", self.sent);
        // An exception that takes no changes loses no more than these.
        let _ = append(value.as_any(), &context);
        let _ = value.setattr("index", index);
        let _ = value.setattr("sent", self.sent);
        Ok(error)
    }

    /// What the call returns.
    pub(super) fn finish(self) -> Result<Bound<'py, PyAny>> {
        match self.failures {
            Some(failures) => Ok(failures.into_any()),
            None => Ok(self.sent.into_pyobject(self.socket.py()).map_err(PyErr::from)?.into_any()),
        }
    }
}

/// An exception that comes after the end of a call, whatever that was.
fn after(result: Result<()>, error: PyErr) -> PyErr {
    if let Err(first) = result {
        Python::attach(|py| {
            let first = PyErr::from(first);
            let _ = error.value(py).setattr("__context__", first.value(py));
        });
    }
    error
}

/// What to do about a datagram that could not be sent: the advice for the error's errno.
fn advice(value: &Bound<'_, PyAny>) -> PyResult<String> {
    let advice = value.py().import("tomada._advice")?.getattr("OF_SENDING")?;
    let advice = advice.call_method1("get", (value.getattr("errno")?,))?;
    if advice.is_none() { Ok(String::new()) } else { Ok(format!(": {}", text_of(&advice)?)) }
}

/// Appends to an exception's text, where it has one: its last argument.
fn append(value: &Bound<'_, PyAny>, context: &str) -> PyResult<()> {
    let args = value.getattr("args")?.cast_into::<PyTuple>()?;
    let Some(last) = args.len().checked_sub(1) else { return Ok(()) };
    let Ok(text) = args.get_item(last)?.cast_into::<PyString>() else { return Ok(()) };
    let text = format!("{} {context}", text.to_string_lossy());
    // OSError shows what it was made with, and not its arguments.
    if value.is_instance_of::<PyOSError>() && last == 1 {
        value.setattr("strerror", &text)?;
    }
    let mut args = args.iter().collect::<Vec<_>>();
    args[last] = PyString::new(value.py(), &text).into_any();
    value.setattr("args", PyTuple::new(value.py(), args)?)
}

/// Some of the datagrams of a call, held in place while they leave.
#[derive(Default)]
struct Portion<'py> {
    payloads: Vec<Readable<'py>>,
    bytes: usize,
    /// Of each datagram, its address's place in `addresses`, which has no repetitions in a row.
    targets: Vec<Option<usize>>,
    addresses: Vec<Address>,
    /// The object that the last of them was read from, where it will always mean the same.
    last: Option<Bound<'py, PyAny>>,
}

/// Why a portion has no more datagrams.
enum End {
    OfPortion,
    OfIterable,
    /// An item is no datagram.
    NoDatagram(PyErr),
    /// The iterable, an audit hook or a signal handler raised an exception, which passes as it is.
    Raised(PyErr),
}

impl End {
    /// An item could not be read.
    fn of_item(error: PyErr) -> Self {
        // With a traceback it comes from Python code: an item's own, or a signal handler that ran
        // meanwhile.
        let is_raised = Python::attach(|py| error.traceback(py).is_some());
        if is_raised { Self::Raised(error) } else { Self::NoDatagram(error) }
    }
}

impl<'py> Portion<'py> {
    fn with_room(datagrams: usize) -> io::Result<Self> {
        let payloads = with_room(datagrams, "datagrams to be sent")?;
        let targets = with_room(datagrams, "datagrams to be sent")?;
        Ok(Self { payloads, targets, ..Self::default() })
    }

    /// Takes datagrams until there are enough.
    fn fill(
        &mut self,
        sending: &Sending<'_, 'py>,
        items: &mut impl Iterator<Item = PyResult<Bound<'py, PyAny>>>,
        to: Option<&Address>,
    ) -> End {
        self.addresses.extend(to);
        while self.payloads.len() < PORTION && self.bytes < PORTION_BYTES {
            match items.next() {
                None => return End::OfIterable,
                Some(Err(error)) => return End::Raised(error),
                Some(Ok(item)) => {
                    if let Err(end) = self.take(sending, &item, to.is_some()) {
                        return end;
                    }
                }
            }
        }
        End::OfPortion
    }

    fn take(
        &mut self,
        sending: &Sending<'_, 'py>,
        item: &Bound<'py, PyAny>,
        is_payload: bool,
    ) -> std::result::Result<(), End> {
        let pair = if is_payload { None } else { item.cast::<PyTuple>().ok() };
        let Some(pair) = pair else {
            let payload = Readable::new(item).map_err(End::of_item)?;
            return self.push(payload, is_payload.then_some(0)).map_err(End::Raised);
        };
        let (payload, address) = halves(pair).map_err(End::of_item)?;
        let payload = Readable::new(&payload).map_err(End::of_item)?;
        if !self.last.as_ref().is_some_and(|last| last.is(&address)) {
            let to = sending.parse(&address, "send_many");
            let to = to.map_err(|error| End::of_item(error.into()))?;
            sending.audit(&address).map_err(|error| End::Raised(error.into()))?;
            push(&mut self.addresses, to).map_err(End::Raised)?;
            self.last = never_changes(&address).then_some(address);
        }
        self.push(payload, Some(self.addresses.len() - 1)).map_err(End::Raised)
    }

    fn push(&mut self, payload: Readable<'py>, target: Option<usize>) -> PyResult<()> {
        push(&mut self.targets, target)?;
        self.bytes += payload.slice().len();
        push(&mut self.payloads, payload)
    }

    fn queue(&self) -> io::Result<SendQueue<'_>> {
        let mut queue = SendQueue::with_room(self.payloads.len())?;
        let mut payloads = self.payloads.iter().map(Readable::slice);
        for group in self.targets.chunk_by(|one, other| one == other) {
            let to = group[0].and_then(|target| self.addresses.get(target));
            queue.push_all(payloads.by_ref().take(group.len()), to, None)?;
        }
        Ok(queue)
    }
}

/// The payload and the address of a pair.
fn halves<'py>(pair: &Bound<'py, PyTuple>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    if pair.len() == 2 {
        return Ok((pair.get_item(0)?, pair.get_item(1)?));
    }
    let message = format!(
        "a datagram is a bytes-like object or a pair (bytes-like object, address), not a tuple \
         of {}",
        pair.len()
    );
    Err(PyTypeError::new_err(message))
}

/// Whether an address object will be read the same every time: not so a bytearray, or a tuple with
/// one in it.
fn never_changes(address: &Bound<'_, PyAny>) -> bool {
    let is_text = |object: &Bound<'_, PyAny>| {
        object.is_exact_instance_of::<PyString>() || object.is_exact_instance_of::<PyBytes>()
    };
    match address.cast_exact::<PyTuple>() {
        Ok(tuple) => tuple.get_item(0).is_ok_and(|host| is_text(&host)),
        Err(_) => is_text(address),
    }
}
