//! One call that sends many datagrams: portions, waits, and failures.

use std::ffi::c_int;
use std::io;
use std::iter;

use pyo3::exceptions::{PyOSError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};

use super::datagram::Datagram;
use super::datagrams::hint;
use super::{Patience, Socket};
use crate::net::{Address, Interest, SendMeta, SendQueue, with_room};
use crate::python::audit;
use crate::python::buffer::{Readable, push, text_of};
use crate::python::error::{Error, Result};

/// A call sends its datagrams in portions of at most this many; signal handlers run between them.
const PORTION: usize = 4096;
/// A portion ends with the datagram that reaches this many bytes, which limits the memory that the
/// items of a generator use.
const PORTION_BYTES: usize = 1 << 22;
/// Up to this many datagrams are sent attached to the interpreter. They take about a millisecond,
/// less than the interpreter lets a thread run before it switches to another one.
pub(super) const ATTACHED: usize = 1024;

/// Up to this many bytes are sent attached to the interpreter, for the same reason as [`ATTACHED`].
const ATTACHED_BYTES: usize = 1 << 20;

/// One call of `send_many` or `send_batch`: its progress, its failures, and how it handles errors.
pub(super) struct Sending<'s, 'py> {
    socket: &'s Bound<'py, Socket>,
    kind: ItemKind,
    flags: c_int,
    patience: Patience,
    /// The number of datagrams in completed portions.
    done: usize,
    sent: usize,
    /// Failures to return; `None` if the first one is raised.
    failures: Option<Bound<'py, PyList>>,
    /// Whether the socket does not wait and had no room left.
    is_full: bool,
}

/// The kind of a call's items.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ItemKind {
    /// Bytes-like objects, or pairs of one and an address.
    Payloads,
    /// Bytes-like objects.
    PayloadsOnly,
    /// `Datagram` objects.
    Datagrams,
}

impl<'s, 'py> Sending<'s, 'py> {
    pub(super) fn new(
        socket: &'s Bound<'py, Socket>,
        kind: ItemKind,
        flags: c_int,
        errors: &str,
    ) -> Result<Self> {
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
        Ok(Self { socket, kind, flags, patience, done: 0, sent: 0, failures, is_full: false })
    }

    /// Reads the common address of all datagrams, and raises its audit event.
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

    /// Sends the items of an iterable, portion by portion. `expected` is their number, if known.
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
            // An error after the portion is reported once the portion's datagrams are sent.
            match end {
                // This exception must propagate, whatever happened to the datagrams.
                End::Raised(error) => return Err(after(result, error).into()),
                _ if result.is_err() || self.is_full => return result,
                End::NotDatagram(error) => return Err(self.about(error, None, 0)?.into()),
                End::OfIterable => return Ok(()),
                End::OfPortion => self.socket.py().check_signals()?,
            }
        }
    }

    /// Sends a complete queue, or returns the error to raise.
    pub(super) fn queue(&mut self, queue: &mut SendQueue<'_>, detached: bool) -> Result<()> {
        let len = queue.len();
        let before = self.sent;
        let mut skipped = 0;
        let mut is_first = true;
        while !queue.is_empty() {
            if !std::mem::take(&mut is_first) {
                self.socket.py().check_signals()?; // even if each step was short
            }
            let result =
                if detached { self.send_detached(queue) } else { self.send_attached(queue) };
            self.sent = before + queue.position() - skipped;
            let error = match result {
                Ok(()) => continue,
                // A handler's exception is not about a datagram, and a closed socket accepts no
                // datagrams.
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

    /// Drops the datagrams that an error is about, records a failure for each, and returns their
    /// number.
    fn give_up(&self, queue: &mut SendQueue<'_>, error: Error) -> Result<usize> {
        let Some(failures) = &self.failures else { return Err(error) };
        let index = self.done + queue.position();
        let errno = match &error {
            Error::Os(error) => error.raw_os_error().unwrap_or(libc::EIO),
            _ => libc::EIO,
        };
        let mut error = Some(error);
        for behind in 0..queue.failed() {
            // Each one needs its own exception, which contains its index.
            let error = error.take().unwrap_or_else(|| io::Error::from_raw_os_error(errno).into());
            let failure = self.about(error.into(), Some(queue), behind)?;
            failures.append((index + behind, failure))?;
        }
        Ok(queue.skip())
    }

    /// Sends as much of a queue as one call can, and waits as long as the socket's timeout allows.
    fn send_attached(&mut self, queue: &mut SendQueue<'_>) -> Result<()> {
        let (py, this) = (self.socket.py(), self.socket.get());
        this.transfer(py, &mut self.patience, Interest::Write, self.flags, |socket, fd, flags| {
            socket.send_queue(fd, queue, flags).map(drop)
        })
    }

    /// Sends as much of a queue as possible without waiting, at most a portion, detached from the
    /// interpreter throughout; waits only if nothing can be sent.
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
            // Retry attached to the interpreter, which waits.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.send_attached(queue),
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error.into()),
            _ => Ok(py.check_signals()?),
        }
    }

    /// Adds to an exception which datagram it is about, and how many were sent before it. An
    /// exception that occurs meanwhile, such as a signal handler's, is returned as the error.
    fn about(&self, error: PyErr, queue: Option<&SendQueue<'_>>, behind: usize) -> PyResult<PyErr> {
        let py = self.socket.py();
        let index = self.done + queue.map_or(0, SendQueue::position) + behind;
        let this = self.socket.get();
        let to = match queue.and_then(SendQueue::next_address) {
            Some(to) => format!(" to {}", text_of(&this.addresses.object(py, to.as_bytes())?)?),
            None => String::new(),
        };
        let value = error.value(py);
        let advice = match queue.and_then(SendQueue::next_meta) {
            Some(meta) => advice_on(value.as_any(), &meta),
            None => advice(value.as_any()),
        };
        let advice = advice.unwrap_or_default();
        let context = format!("(datagram {index}{to}; {} sent before it){advice}", self.sent);
        // An exception that cannot be changed only lacks this context.
        let _ = append(value.as_any(), &context);
        let _ = value.setattr("index", index);
        let _ = value.setattr("sent", self.sent);
        Ok(error)
    }

    /// The call's return value.
    pub(super) fn finish(self) -> Result<Bound<'py, PyAny>> {
        match self.failures {
            Some(failures) => Ok(failures.into_any()),
            None => Ok(self.sent.into_pyobject(self.socket.py()).map_err(PyErr::from)?.into_any()),
        }
    }
}

/// The exception to raise after the end of a call, whatever its result.
fn after(result: Result<()>, error: PyErr) -> PyErr {
    if let Err(first) = result {
        Python::attach(|py| {
            let first = PyErr::from(first);
            let _ = error.value(py).setattr("__context__", first.value(py));
        });
    }
    error
}

/// The advice for a datagram that could not be sent, which depends on the errno.
fn advice(value: &Bound<'_, PyAny>) -> PyResult<String> {
    let advice = value.py().import("tomada._advice")?.getattr("OF_SENDING")?;
    let advice = advice.call_method1("get", (value.getattr("errno")?,))?;
    if advice.is_none() { Ok(String::new()) } else { Ok(format!(": {}", text_of(&advice)?)) }
}

/// The advice for a datagram with metadata.
fn advice_on(value: &Bound<'_, PyAny>, meta: &SendMeta) -> PyResult<String> {
    let errno = value.getattr("errno")?.extract::<Option<c_int>>()?;
    match errno.and_then(|errno| hint(errno, meta)) {
        Some(hint) => Ok(format!(": {hint}")),
        None => advice(value),
    }
}

/// Appends to an exception's text, which is its last argument, if it has one.
fn append(value: &Bound<'_, PyAny>, context: &str) -> PyResult<()> {
    let args = value.getattr("args")?.cast_into::<PyTuple>()?;
    let Some(last) = args.len().checked_sub(1) else { return Ok(()) };
    let Ok(text) = args.get_item(last)?.cast_into::<PyString>() else { return Ok(()) };
    let text = format!("{} {context}", text.to_string_lossy());
    // OSError prints the values that it was created with, not its arguments.
    if value.is_instance_of::<PyOSError>() && last == 1 {
        value.setattr("strerror", &text)?;
    }
    let mut args = args.iter().collect::<Vec<_>>();
    args[last] = PyString::new(value.py(), &text).into_any();
    value.setattr("args", PyTuple::new(value.py(), args)?)
}

/// Some of the datagrams of a call, kept in place while they are sent.
#[derive(Default)]
struct Portion<'py> {
    payloads: Vec<Readable<'py>>,
    bytes: usize,
    /// For each datagram, the index of its address in `addresses`, which omits consecutive
    /// duplicates.
    targets: Vec<Option<usize>>,
    addresses: Vec<Address>,
    /// The metadata of each datagram, if there is any.
    metas: Vec<Option<SendMeta>>,
    /// The object that the last address was read from, if it always has the same meaning.
    last: Option<Bound<'py, PyAny>>,
}

/// Why a portion ends.
enum End {
    OfPortion,
    OfIterable,
    /// An item is not a datagram.
    NotDatagram(PyErr),
    /// The iterable, an audit hook or a signal handler raised an exception, which propagates
    /// unchanged.
    Raised(PyErr),
}

impl End {
    /// An item could not be read.
    fn of_item(error: PyErr) -> Self {
        // An exception with a traceback comes from Python code: the item's, or a signal handler
        // that ran meanwhile.
        let is_raised = Python::attach(|py| error.traceback(py).is_some());
        if is_raised { Self::Raised(error) } else { Self::NotDatagram(error) }
    }
}

impl<'py> Portion<'py> {
    fn with_room(datagrams: usize) -> io::Result<Self> {
        let payloads = with_room(datagrams, "datagrams to be sent")?;
        let targets = with_room(datagrams, "datagrams to be sent")?;
        Ok(Self { payloads, targets, ..Self::default() })
    }

    /// Reads datagrams until the portion is complete.
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
        if sending.kind == ItemKind::Datagrams {
            return self.take_datagram(sending, item);
        }
        let is_alone = is_payload || sending.kind == ItemKind::PayloadsOnly;
        let pair = if is_alone { None } else { item.cast::<PyTuple>().ok() };
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

    fn take_datagram(
        &mut self,
        sending: &Sending<'_, 'py>,
        item: &Bound<'py, PyAny>,
    ) -> std::result::Result<(), End> {
        let datagram = item.cast::<Datagram>().map_err(|_| {
            End::NotDatagram(PyTypeError::new_err(match item.get_type().name() {
                Ok(name) => format!("send_datagrams() takes Datagram objects, not {name}"),
                Err(_) => "send_datagrams() takes Datagram objects".to_owned(),
            }))
        })?;
        let (to, meta) = sending
            .socket
            .get()
            .route(datagram, "send_datagrams")
            .map_err(|error| End::of_item(error.into()))?;
        let address = datagram.get().address(item.py());
        if let Some(to) = to {
            if !self.last.as_ref().is_some_and(|last| last.is(address)) {
                sending.audit(address).map_err(|error| End::Raised(error.into()))?;
                self.last = never_changes(address).then(|| address.clone());
            }
            if self.addresses.last() != Some(&to) {
                push(&mut self.addresses, to).map_err(End::Raised)?;
            }
        }
        push(&mut self.metas, meta).map_err(End::Raised)?;
        let payload =
            Readable::new(datagram.get().data(item.py()).as_any()).map_err(End::of_item)?;
        self.push(payload, to.map(|_| self.addresses.len() - 1)).map_err(End::Raised)
    }

    fn push(&mut self, payload: Readable<'py>, target: Option<usize>) -> PyResult<()> {
        push(&mut self.targets, target)?;
        self.bytes += payload.slice().len();
        push(&mut self.payloads, payload)
    }

    fn queue(&self) -> io::Result<SendQueue<'_>> {
        let mut queue = SendQueue::with_room(self.payloads.len())?;
        let mut payloads = self.payloads.iter().map(Readable::slice);
        if !self.metas.is_empty() {
            for ((payload, target), meta) in payloads.zip(&self.targets).zip(&self.metas) {
                let to = target.and_then(|target| self.addresses.get(target));
                queue.push_all(iter::once(payload), to, *meta)?;
            }
            return Ok(queue);
        }
        for group in self.targets.chunk_by(|one, other| one == other) {
            let to = group[0].and_then(|target| self.addresses.get(target));
            queue.push_all(payloads.by_ref().take(group.len()), to, None)?;
        }
        Ok(queue)
    }
}

/// Splits a pair into the payload and the address.
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

/// Whether an address object always has the same meaning. A bytearray may change, and so may a
/// tuple that contains one.
fn never_changes(address: &Bound<'_, PyAny>) -> bool {
    let is_text = |object: &Bound<'_, PyAny>| {
        object.is_exact_instance_of::<PyString>() || object.is_exact_instance_of::<PyBytes>()
    };
    match address.cast_exact::<PyTuple>() {
        Ok(tuple) => tuple.get_item(0).is_ok_and(|host| is_text(&host)),
        Err(_) => is_text(address),
    }
}
