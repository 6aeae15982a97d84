//! Delivers datagrams to the handler, and queues its replies.

use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::replies::{ReplyTo, Route};
use super::tasks::Tasks;
use super::{ServerCore, Takes};
use crate::net::{
    self, Address, Count, Datagrams, Filled, Flow, Meta, OwnAddress, Pace, Received, RecvCursor,
    ReplySourceReader, Sink, Source, deliver, session_number,
};
use crate::python::buffer::{new_bytes, new_list, push};
use crate::python::datagram::Datagram;
use crate::python::error::Result;
use crate::python::socket::{Senders, Socket, pair, triple};

/// A receive takes only as many datagrams as can probably be handled in this time: a worker that
/// crashes loses them, and one that is stopping handles them first.
pub(super) const FORESEEN: Duration = Duration::from_millis(10);
/// A reply is sent after this time, even if others of its batch are not ready.
const LATEST: Duration = Duration::from_micros(500);
/// The handler, as seen by one thread that delivers to it.
pub(super) struct HandlerSink<'a, 'py> {
    py: Python<'py>,
    this: &'a Bound<'py, ServerCore>,
    core: &'a ServerCore,
    owner: &'a Bound<'py, Socket>,
    pub(super) socket: &'a net::Socket,
    handler: &'a Bound<'py, PyAny>,
    senders: Senders<'a, 'py>,
    /// How results become replies on an event loop.
    tasks: Option<&'a Tasks>,
    /// The datagrams, and their bytes, that were taken off the cursor.
    taken: (usize, usize),
    flushed_at: Instant,
    /// The time since when this thread is attached to the interpreter.
    attached_at: Cell<Instant>,
    source_reader: ReplySourceReader<'a>,
    own: OwnAddress,
}

impl<'a, 'py> HandlerSink<'a, 'py> {
    pub(super) fn new(
        this: &'a Bound<'py, ServerCore>,
        owner: &'a Bound<'py, Socket>,
        socket: &'a net::Socket,
    ) -> Self {
        let (now, py, core) = (Instant::now(), this.py(), this.get());
        Self {
            py,
            this,
            core,
            owner,
            socket,
            handler: core.handler.bind(py),
            senders: Senders::new(owner.get().addresses()),
            tasks: core.tasks.get(),
            taken: (0, 0),
            flushed_at: now,
            attached_at: Cell::new(now),
            source_reader: core.reply_sources.reader(),
            own: match core.tasks.get() {
                Some(tasks) => tasks.own.clone(),
                None => OwnAddress::of(socket),
            },
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
        if self.tasks.is_none() {
            self.count(filled);
            self.count_batch(filled.datagrams);
        }
        let is_new = cursor.held().is_none();
        let before = self.core.delivering.swap(this_thread(), Ordering::Relaxed);
        let started = Instant::now();
        self.flushed_at = started;
        self.own.forget();
        let result = deliver(cursor, self, pace);
        let took = started.elapsed().as_nanos() as usize;
        self.core.delivering.store(before, Ordering::Relaxed);
        let flushed = self.core.flush(self.py, self.socket);
        self.core.count(Count::HandlerTime, took);
        // The handler may have sent replies with Datagram.reply().
        self.core.count_delta(self.socket);
        pace.note(filled, Duration::ZERO, started.elapsed());
        if self.tasks.is_some() {
            // The others go to the backlog, and are counted when they leave it.
            let (datagrams, bytes) = std::mem::take(&mut self.taken);
            let truncated = if is_new { filled.truncated } else { 0 };
            self.count(&Filled { datagrams, bytes, truncated, ..*filled });
            self.count_batch(datagrams);
        }
        result?;
        flushed?;
        match self.tasks {
            // The loop retries: the next receive may be far away.
            Some(tasks) if self.core.has_waiting() => Ok(tasks.tell_reply(self.py)?),
            _ => Ok(()),
        }
    }

    pub(super) fn count(&self, filled: &Filled) {
        self.core.count(Count::Received, filled.datagrams);
        self.core.count(Count::ReceivedBytes, filled.bytes);
        self.core.count(Count::ReceiveCalls, 1);
        if filled.truncated > 0 {
            self.core.count(Count::Truncated, filled.truncated);
        }
    }

    fn count_batch(&self, datagrams: usize) {
        self.core.counters.get().shared_counters().add_batch(self.core.worker, datagrams);
    }

    /// Calls the handler with all datagrams, and queues the replies.
    fn handle_batch(&mut self, cursor: &mut RecvCursor<'_>) -> PyResult<usize> {
        let (mut batch, mut senders, mut taken) = (Vec::new(), Vec::new(), 0);
        while let Some(datagram) = cursor.current() {
            self.taken.0 += 1;
            self.taken.1 += datagram.payload.len();
            let added = if self.own.is_source(datagram.reply_to()) {
                self.refuse_own(datagram.from)
            } else {
                self.add(&datagram, &mut batch, &mut senders)
            };
            let added = added.or_else(|error| self.core.fail(self.py, error, Some(datagram.from)));
            cursor.advance();
            taken += 1;
            added?;
        }
        if batch.is_empty() {
            return Ok(taken);
        }
        new_list(self.py, batch)
            .and_then(|batch| self.handler.call1((batch,)))
            .and_then(|result| self.answer(ReplyTo::Batch(senders), result))
            .or_else(|error| self.core.fail(self.py, error, None))?;
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
        let sender = route(datagram, self.source_reader.take(datagram));
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
        let source = self.source_reader.take(datagram);
        let reply = if self.core.takes == Takes::Data {
            self.handler.call1((data, address))
        } else {
            let about = Datagram::new(self.owner, datagram, data, address);
            self.handler.call1((Bound::new(self.py, about)?,))
        };
        let reply = reply?;
        if self.tasks.is_some() {
            return self.answer(ReplyTo::One(route(datagram, source)), reply);
        }
        if reply.is_none() {
            return Ok(());
        }
        self.core.queue_reply(&route(datagram, source), &reply)
    }

    /// Queues the replies in a result, now or, if it is a coroutine, when its task has ended.
    fn answer(&self, to: ReplyTo, result: Bound<'py, PyAny>) -> PyResult<()> {
        match self.tasks {
            Some(tasks) => tasks.answer(self.this, to, result),
            None => self.core.queue_result(&to, &result),
        }
    }

    /// Counts and reports a datagram whose source is the server's own address. A reply would arrive
    /// as the next request, without end.
    fn refuse_own(&self, from: &[u8]) -> PyResult<()> {
        self.core.count(Count::HandlerErrors, 1);
        let message = "its source is the server's own address: it is forged, or the server has sent \
                       it to itself";
        self.core.report_error(self.py, "own", PyValueError::new_err(message), Some(from))
    }
}

impl Sink for HandlerSink<'_, '_> {
    type Error = PyErr;

    fn is_open(&mut self) -> bool {
        self.tasks.is_none_or(Tasks::has_room)
    }

    fn take(&mut self, cursor: &mut RecvCursor<'_>) -> PyResult<usize> {
        if matches!(self.core.takes, Takes::Batch | Takes::Timed) {
            return self.handle_batch(cursor);
        }
        let Some(datagram) = cursor.current() else { return Ok(0) };
        self.taken.0 += 1;
        self.taken.1 += datagram.payload.len();
        let handled = self.handle(&datagram);
        let handled = handled.or_else(|error| self.core.fail(self.py, error, Some(datagram.from)));
        cursor.advance(); // it counts as handled, even if the handler failed
        handled.map(|()| 1)
    }

    fn check_time(&mut self, _: usize, now: Instant) -> PyResult<Flow> {
        if now - self.flushed_at >= LATEST {
            self.core.flush(self.py, self.socket)?;
            self.flushed_at = now;
            // On an event loop, other callbacks have their turn now.
            if self.core.is_overdue() || self.tasks.is_some() {
                return Ok(Flow::Stop);
            }
        }
        Ok(Flow::Continue)
    }
}

/// The way to the sender of a datagram.
fn route(datagram: &Received<'_>, source: Option<Source>) -> Route {
    let proxy = datagram.proxy.map(Address::from_bytes);
    let session = datagram.session.map(|session| session_number(session));
    Route { peer: Address::from_bytes(datagram.from), proxy, source, session }
}

/// A number that identifies this thread in the process, and that is not 0.
pub(super) fn this_thread() -> usize {
    thread_local! { static MARK: u8 = const { 0 } }
    MARK.with(|mark| std::ptr::from_ref(mark) as usize)
}
