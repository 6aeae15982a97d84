//! Delivers datagrams to the handler, and queues its replies.

use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOSError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyList, PyMemoryView, PyString, PyTuple};

use super::{ServerCore, Takes};
use crate::net::{
    self, Address, Count, Datagrams, Filled, Flow, Meta, OwnAddress, Pace, Received, RecvCursor,
    ReplySourceReader, Sink, Source, deliver,
};
use crate::python::buffer::{Readable, TypeName, new_bytes, new_list, push};
use crate::python::datagram::Datagram;
use crate::python::error::{Error, Result};
use crate::python::socket::{Senders, Socket, pair, triple};

/// A receive takes only as many datagrams as can probably be handled in this time: a worker that
/// crashes loses them, and one that is stopping handles them first.
pub(super) const FORESEEN: Duration = Duration::from_millis(10);
/// A reply is sent after this time, even if others of its batch are not ready.
const LATEST: Duration = Duration::from_micros(500);
/// The longest payload of an IPv4 datagram: 65,535 bytes less the IP and UDP headers.
const LARGEST_V4: usize = 65_507;
/// The longest payload of an IPv6 datagram, whose length field does not count the IP header.
const LARGEST_V6: usize = 65_527;

/// Where a reply goes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Route {
    /// The sender's address. If a proxy is in between, that of the proxy's client.
    peer: Address,
    /// The address to send to, if another one.
    proxy: Option<Address>,
    source: Option<Source>,
}

/// The handler, as seen by one thread that delivers to it.
pub(super) struct HandlerSink<'a, 'py> {
    py: Python<'py>,
    core: &'a ServerCore,
    owner: &'a Bound<'py, Socket>,
    pub(super) socket: &'a net::Socket,
    handler: &'a Bound<'py, PyAny>,
    senders: Senders<'a, 'py>,
    largest: usize,
    flushed_at: Instant,
    /// The time since when this thread is attached to the interpreter.
    attached_at: Cell<Instant>,
    source_reader: ReplySourceReader<'a>,
    own: OwnAddress,
}

impl<'a, 'py> HandlerSink<'a, 'py> {
    pub(super) fn new(
        py: Python<'py>,
        core: &'a ServerCore,
        owner: &'a Bound<'py, Socket>,
        socket: &'a net::Socket,
    ) -> Self {
        let now = Instant::now();
        Self {
            py,
            core,
            owner,
            socket,
            handler: core.handler.bind(py),
            senders: Senders::new(owner.get().addresses()),
            largest: match socket.family() {
                libc::AF_INET => LARGEST_V4,
                libc::AF_INET6 => LARGEST_V6,
                _ => usize::MAX, // up to the kernel
            },
            flushed_at: now,
            attached_at: Cell::new(now),
            source_reader: core.reply_sources.reader(),
            own: OwnAddress::of(socket),
        }
    }

    /// Drops the datagrams that there is no time left for, including the backlog, and returns their
    /// number.
    pub(super) fn discard(&self, cursor: &mut RecvCursor<'_>) -> usize {
        let mut discarded = 0;
        loop {
            while cursor.current().is_some() {
                cursor.advance();
                discarded += 1;
            }
            let Some(filled) = cursor.take_from_backlog() else { return discarded };
            self.count(&filled);
        }
    }

    /// How long other threads have waited for the interpreter, unless the handler has released it.
    pub(super) fn attached(&self) -> Duration {
        self.attached_at.get().elapsed()
    }

    /// Calls a function detached from the interpreter.
    pub(super) fn detach<T: Send>(&self, call: impl FnOnce() -> T + Send) -> T {
        let result = self.py.detach(call);
        self.attached_at.set(Instant::now());
        result
    }

    /// Counts and delivers the datagrams of one receive, and sends the replies.
    pub(super) fn deliver(
        &mut self,
        cursor: &mut RecvCursor<'_>,
        pace: &mut Pace<'_>,
        filled: &Filled,
    ) -> Result<()> {
        self.count(filled);
        self.core.counters.get().shared_counters().add_batch(self.core.worker, filled.datagrams);
        self.core.delivering.store(this_thread(), Ordering::Relaxed);
        let started = Instant::now();
        self.flushed_at = started;
        self.own.forget();
        let result = deliver(cursor, self, pace);
        let took = started.elapsed().as_nanos() as usize;
        self.core.delivering.store(0, Ordering::Relaxed);
        let flushed = self.core.flush(self.py, self.socket);
        self.core.count(Count::HandlerTime, took);
        // The handler may have sent replies with Datagram.reply().
        self.core.count_delta(self.socket);
        pace.note(filled, Duration::ZERO, started.elapsed());
        result?;
        Ok(flushed?)
    }

    pub(super) fn count(&self, filled: &Filled) {
        self.core.count(Count::Received, filled.datagrams);
        self.core.count(Count::ReceivedBytes, filled.bytes);
        self.core.count(Count::ReceiveCalls, 1);
        if filled.truncated > 0 {
            self.core.count(Count::Truncated, filled.truncated);
        }
    }

    /// Calls the handler with all datagrams, and queues the replies.
    fn handle_batch(&mut self, cursor: &mut RecvCursor<'_>) -> PyResult<usize> {
        let (mut batch, mut senders, mut taken) = (Vec::new(), Vec::new(), 0);
        while let Some(datagram) = cursor.current() {
            let added = if self.own.is_source(datagram.reply_to()) {
                self.refuse_own(datagram.from)
            } else {
                self.add(&datagram, &mut batch, &mut senders)
            };
            let added = added.or_else(|error| self.fail(error, Some(datagram.from)));
            cursor.advance();
            taken += 1;
            added?;
        }
        if batch.is_empty() {
            return Ok(taken);
        }
        new_list(self.py, batch)
            .and_then(|batch| self.handler.call1((batch,)))
            .and_then(|replies| self.queue_replies(&replies, &senders))
            .or_else(|error| self.fail(error, None))?;
        Ok(taken)
    }

    /// Adds a datagram and its sender to the lists for the handler.
    fn add(
        &mut self,
        datagram: &Received<'_>,
        batch: &mut Vec<Bound<'py, PyTuple>>,
        senders: &mut Vec<(Route, usize)>,
    ) -> PyResult<()> {
        let data = new_bytes(self.py, datagram.payload)?;
        let address = self.senders.object(self.py, datagram.from)?;
        let pair = if self.core.takes == Takes::Timed {
            triple(data, address, Meta::decode(datagram.control).timestamp_ns)?
        } else {
            pair(data, address)?
        };
        let sender = self.route(datagram);
        match senders.last_mut() {
            Some((last, count)) if *last == sender => *count += 1,
            _ => push(senders, (sender, 1))?,
        }
        push(batch, pair).inspect_err(|_| {
            if let Some((_, count)) = senders.last_mut() {
                *count -= 1;
            }
        })
    }

    /// Calls the handler with one datagram, and queues the reply.
    fn handle(&mut self, datagram: &Received<'_>) -> PyResult<()> {
        if self.own.is_source(datagram.reply_to()) {
            return self.refuse_own(datagram.from);
        }
        let data = new_bytes(self.py, datagram.payload)?;
        let address = self.senders.object(self.py, datagram.from)?;
        let route = self.route(datagram);
        let reply = if self.core.takes == Takes::Data {
            self.handler.call1((data, address))
        } else {
            let about = Datagram::new(self.owner, datagram, data, address);
            self.handler.call1((Bound::new(self.py, about)?,))
        };
        self.queue_reply(&route, &reply?)
    }

    /// The way to the sender of a datagram.
    fn route(&mut self, datagram: &Received<'_>) -> Route {
        let source = self.source_reader.take(datagram);
        let proxy = datagram.proxy.map(Address::from_bytes);
        Route { peer: Address::from_bytes(datagram.from), proxy, source }
    }

    /// Queues the replies to a batch. An invalid reply does not affect the others.
    fn queue_replies(
        &self,
        replies: &Bound<'py, PyAny>,
        senders: &[(Route, usize)],
    ) -> PyResult<()> {
        if replies.is_none() {
            return Ok(());
        }
        if !replies.is_exact_instance_of::<PyList>() {
            refuse_awaitable(replies)?;
        }
        let is_one = replies.is_instance_of::<PyBytes>()
            || replies.is_instance_of::<PyByteArray>()
            || replies.is_instance_of::<PyMemoryView>()
            || replies.is_instance_of::<PyString>();
        if is_one {
            let message = "a handler of batches returns an iterable with a reply (or None) for \
                           each datagram, or None, and not one reply";
            return Err(PyTypeError::new_err(message));
        }
        let mut each =
            senders.iter().flat_map(|(sender, count)| std::iter::repeat_n(sender, *count));
        for reply in replies.try_iter()? {
            let reply = reply?;
            let Some(route) = each.next() else {
                let message = "a handler of batches returned more replies than there were \
                               datagrams; use sendto() for others";
                return Err(PyValueError::new_err(message));
            };
            self.queue_reply(route, &reply)
                .or_else(|error| self.fail(error, Some(route.peer.as_bytes())))?;
        }
        Ok(())
    }

    /// Queues a reply.
    fn queue_reply(&self, route: &Route, reply: &Bound<'py, PyAny>) -> PyResult<()> {
        if reply.is_none() {
            return Ok(());
        }
        let data = match reply.cast_exact::<PyBytes>() {
            Ok(data) => data.clone(),
            Err(_) => to_bytes(reply)?,
        };
        let len = data.as_bytes().len();
        if len > self.largest {
            let message = format!(
                "a reply of {len} bytes is too long: a datagram takes at most {}; split it",
                self.largest
            );
            return Err(PyOSError::new_err((libc::EMSGSIZE, message)));
        }
        let is_unnamed = route.peer.as_bytes().is_empty();
        if is_unnamed && !self.core.is_connected {
            let message = "cannot reply: the sender has no address";
            return Err(PyOSError::new_err((libc::EDESTADDRREQ, message)));
        }
        if route.proxy.is_some() {
            self.socket.spend_for_client(&route.peer, len).map_err(Error::from)?;
        }
        let to = (!is_unnamed).then(|| route.proxy.unwrap_or(route.peer));
        let pushed = self.core.send_backlog().push(data.into(), to, route.source);
        Ok(pushed.map_err(Error::from)?)
    }

    /// Counts and reports a datagram whose source is the server's own address. A reply would arrive
    /// as the next request, without end.
    fn refuse_own(&self, from: &[u8]) -> PyResult<()> {
        self.core.count(Count::HandlerErrors, 1);
        let message = "its source is the server's own address: it is forged, or the server has sent \
                       it to itself";
        self.core.report_error(self.py, "own", PyValueError::new_err(message), Some(from))
    }

    /// Counts and reports an error of one call, or of the datagrams for it.
    fn fail(&self, error: PyErr, from: Option<&[u8]>) -> PyResult<()> {
        self.core.count(Count::HandlerErrors, 1);
        self.core.report_error(self.py, "handler", error, from)
    }
}

impl Sink for HandlerSink<'_, '_> {
    type Error = PyErr;

    fn take(&mut self, cursor: &mut RecvCursor<'_>) -> PyResult<usize> {
        if matches!(self.core.takes, Takes::Batch | Takes::Timed) {
            return self.handle_batch(cursor);
        }
        let Some(datagram) = cursor.current() else { return Ok(0) };
        let handled = self.handle(&datagram);
        let handled = handled.or_else(|error| self.fail(error, Some(datagram.from)));
        cursor.advance(); // it counts as handled, even if the handler failed
        handled.map(|()| 1)
    }

    fn check_time(&mut self, _: usize, now: Instant) -> PyResult<Flow> {
        if now - self.flushed_at >= LATEST {
            self.core.flush(self.py, self.socket)?;
            self.flushed_at = now;
            if self.core.is_overdue() {
                return Ok(Flow::Stop);
            }
        }
        Ok(Flow::Continue)
    }
}

/// Converts a reply that is not `bytes` to bytes that cannot change.
fn to_bytes<'py>(reply: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    if let Ok(data) = Readable::new(reply) {
        return Ok(data.into_bytes(reply.py())?);
    }
    refuse_awaitable(reply)?;
    let found = TypeName(reply);
    let hint = if reply.is_instance_of::<PyString>() { "; encode() it" } else { "" };
    let message =
        format!("a handler returns a bytes-like object, or None for no reply, not {found}{hint}");
    Err(PyTypeError::new_err(message))
}

/// Rejects the result of an `async def` handler, which would never be awaited.
///
/// A coroutine is closed, because Python warns about each one that is dropped without having run.
fn refuse_awaitable(reply: &Bound<'_, PyAny>) -> PyResult<()> {
    let kind = reply.get_type();
    let what = if kind.hasattr("__await__")? {
        "an awaitable"
    } else if kind.hasattr("__anext__")? {
        "an asynchronous iterator"
    } else {
        return Ok(());
    };
    let abc = reply.py().import("collections.abc")?;
    let what = if reply.is_instance(&abc.getattr("Coroutine")?)? {
        reply.call_method0("close")?;
        "a coroutine"
    } else {
        what
    };
    let message = format!(
        "the handler returned {what}: async handlers are not supported; return the reply itself"
    );
    Err(PyTypeError::new_err(message))
}

/// A number that identifies this thread in the process, and that is not 0.
pub(super) fn this_thread() -> usize {
    thread_local! { static MARK: u8 = const { 0 } }
    MARK.with(|mark| std::ptr::from_ref(mark) as usize)
}
