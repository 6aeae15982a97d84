//! Delivers datagrams to the protocol.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pyo3::call::PyCallArgs;
use pyo3::exceptions::PyException;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::TransportCore;
use crate::net::{
    Datagrams, Flow, Pace, RecvCursor, ReplySourceReader, Sink, TurnBudget, Turns, deliver,
    hang_if_ended,
};
use crate::python::buffer::{new_bytes, push};
use crate::python::datagram::Datagram;
use crate::python::error::{Error, Result, is_shortage};
use crate::python::event_loop::LoopCore;
use crate::python::socket::{Senders, Socket, pair};

/// The maximum time of a drain on a loop that cannot report its spare time. Other callbacks wait
/// meanwhile.
const BUDGET: Duration = Duration::from_micros(100);
/// A drain ends after this many consecutive errors.
const ERRORS: usize = 16;
/// After this many receives the kernel's error queue is emptied, even if there are datagrams: it
/// takes the receive buffer's room.
const RECEIVES: u32 = 16;

#[pymethods]
impl TransportCore {
    /// Deliver the queued datagrams, for a while, and send the protocol's replies.
    fn read_ready(slf: &Bound<'_, Self>) -> Result<()> {
        if slf.get().resume_scheduled.load(Ordering::Relaxed) {
            return Ok(()); // that call happens in this turn too
        }
        // A protocol may still run when the interpreter is finalized.
        hang_if_ended(|| Self::deliver(slf))
    }

    /// Continue a drain that ran out of time.
    fn resume(slf: &Bound<'_, Self>) -> Result<()> {
        slf.get().resume_scheduled.store(false, Ordering::Relaxed);
        hang_if_ended(|| Self::deliver(slf))
    }
}

impl TransportCore {
    fn deliver(slf: &Bound<'_, Self>) -> Result<()> {
        let (py, this) = (slf.py(), slf.get());
        if !this.is_delivering() {
            return Ok(());
        }
        let turns = this.turns.as_deref();
        let turn = turns.map_or(1, Turns::count);
        let time = match turns {
            Some(turns) => turns.share(|uncounted| this.ask_spare_time(py, uncounted))?,
            None => this.ask_spare_time(py, 0)?,
        };
        if this.skipping.skips(turn, time) {
            return Self::resume_if_left(slf);
        }
        this.draining.fetch_add(1, Ordering::Relaxed);
        let drained = Self::drain(slf, time).map(|cut_short_after| {
            if let Some(delivered) = cut_short_after {
                this.skipping.note_cut_short(turn, turns, delivered);
            }
        });
        let delivered = this.current().take();
        drop(delivered);
        let told = match this.socket.bind(py).get().socket() {
            Ok(socket) if socket.has_dtls() => this.act(py, "tell_ended"),
            _ => Ok(()), // or it is closed
        };
        let is_outermost = this.draining.fetch_sub(1, Ordering::Relaxed) == 1;
        let flushed = if is_outermost { Self::flush(slf) } else { Ok(()) };
        Self::resume_if_left(slf)?;
        drained.and(flushed).and(told)
    }

    /// Continues in the next turn if datagrams are left in the backlog: the kernel's own queue may
    /// be empty, and then the loop would not call again.
    fn resume_if_left(slf: &Bound<'_, Self>) -> Result<()> {
        let this = slf.get();
        let socket = this.socket.bind(slf.py()).get().socket();
        let is_left = socket.is_ok_and(|socket| socket.backlog_len() > 0);
        if is_left
            && this.is_delivering()
            && !this.resume_scheduled.swap(true, Ordering::Relaxed)
            && let Err(error) = this.act(slf.py(), "deliver")
        {
            this.resume_scheduled.store(false, Ordering::Relaxed);
            return Err(error);
        }
        Ok(())
    }

    /// Delivers the queued datagrams for some time. If there may be more, returns the number of
    /// datagrams that it has delivered.
    fn drain(slf: &Bound<'_, Self>, time: Duration) -> Result<Option<usize>> {
        let (py, this) = (slf.py(), slf.get());
        let owner = this.socket.bind(py);
        let socket = owner.get().socket()?;
        let mut cursor = RecvCursor::of_thread(socket)?;
        let mut pace = Pace::new(&this.costs);
        let mut sink = ProtocolSink {
            core: this,
            owner,
            senders: Senders::new(owner.get().addresses()),
            source_reader: this.reply_sources.reader(),
            budget: TurnBudget::new(Instant::now(), time),
            protocol: None,
        };
        while cursor.take_from_backlog().is_some() {
            if deliver(&mut cursor, &mut sink, &mut pace)? == Flow::Stop {
                return Ok(Some(pace.delivered()));
            }
        }
        let mut errors = 0;
        while errors < ERRORS {
            if this.receives.fetch_add(1, Ordering::Relaxed) >= RECEIVES {
                Self::keep_errors(slf)?;
            }
            let started = Instant::now();
            let Some(count) = sink.budget.messages(&pace, started) else {
                return Ok(Some(pace.delivered()));
            };
            let mut receive =
                || socket.with(|fd| cursor.receive_messages(fd, count, libc::MSG_DONTWAIT));
            // Decrypting takes longer than handing the GIL over.
            let received = if socket.has_dtls() { py.detach(receive) } else { receive() };
            match received {
                Ok(filled) => {
                    if socket.has_dtls() {
                        this.act(py, "tell_begun")?; // before their datagrams
                    }
                    this.gro.note(socket, filled.messages, filled.is_full);
                    let received = Instant::now();
                    let result = deliver(&mut cursor, &mut sink, &mut pace);
                    pace.note(&filled, received - started, received.elapsed());
                    if result? == Flow::Stop {
                        return Ok(Some(pace.delivered()));
                    }
                    if !filled.is_full {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    this.gro.note(socket, 0, false);
                    if pace.delivered() == 0 {
                        // The socket was readable, but had no datagram: it was the error queue, or a
                        // datagram that was dropped for its checksum.
                        Self::tell_errors(slf)?;
                    }
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let is_gone =
                        matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOTSOCK));
                    errors += if is_gone || is_shortage(&error) { ERRORS } else { 1 };
                    if !Self::tell_errors(slf)? {
                        this.tell_error(py, Error::Os(error).into())?;
                    }
                    if !this.is_delivering() {
                        break;
                    }
                }
            }
        }
        Ok(None)
    }

    /// Asks the loop how long it can go without a turn, if `uncounted` callbacks do not count.
    fn ask_spare_time(&self, py: Python<'_>, uncounted: u32) -> Result<Duration> {
        let Some(event_loop) = self.event_loop(py) else { return Ok(BUDGET) };
        let Ok(event_loop) = event_loop.cast::<LoopCore>() else { return Ok(BUDGET) };
        match LoopCore::spare_time(event_loop, uncounted as usize) {
            Ok(time) => Ok(time),
            Err(error) if error.is_instance_of::<PyException>(py) => Ok(BUDGET),
            Err(error) => Err(error.into()), // such as Ctrl-C
        }
    }
}

/// The protocol, as seen by one drain.
struct ProtocolSink<'a, 'py> {
    core: &'a TransportCore,
    owner: &'a Bound<'py, Socket>,
    senders: Senders<'a, 'py>,
    source_reader: ReplySourceReader<'a>,
    budget: TurnBudget,
    /// The protocol, and its version: a callback may set another protocol.
    protocol: Option<(u64, Bound<'py, PyAny>)>,
}

impl<'py> ProtocolSink<'_, 'py> {
    /// Delivers all datagrams as one list.
    fn take_batch(&mut self, cursor: &mut RecvCursor<'_>) -> Result<usize> {
        let py = self.owner.py();
        let mut batch = Vec::new();
        while let Some(datagram) = cursor.current() {
            let added = new_bytes(py, datagram.payload)
                .and_then(|data| pair(data, self.senders.object(py, datagram.from)?))
                .and_then(|pair| push(&mut batch, pair));
            match added {
                Err(error) if batch.is_empty() => return Err(error.into()),
                Err(_) => break, // the rest comes later
                Ok(()) => {}
            }
            self.source_reader.take(&datagram);
            cursor.advance();
        }
        let taken = batch.len();
        let batch = self.owner.get().to_list(py, batch)?;
        self.tell(intern!(py, "datagrams_received"), (batch,))?;
        Ok(taken)
    }

    /// Calls one of the protocol's methods.
    fn tell(&self, name: &Bound<'py, PyString>, args: impl PyCallArgs<'py>) -> Result<()> {
        let Some((_, protocol)) = &self.protocol else { return Ok(()) };
        match protocol.call_method1(name, args) {
            Ok(_) => Ok(()),
            Err(error) => Ok(self.core.catch(self.owner.py(), &name.to_cow()?, Err(error))?),
        }
    }
}

impl Sink for ProtocolSink<'_, '_> {
    type Error = Error;

    fn is_open(&mut self) -> bool {
        let version = self.core.protocol_version.load(Ordering::Relaxed);
        if self.protocol.as_ref().is_none_or(|(known, _)| *known != version) {
            let protocol = self.core.protocol(self.owner.py());
            self.protocol = protocol.map(|protocol| (version, protocol));
        }
        self.protocol.is_some() && self.core.is_delivering()
    }

    fn take(&mut self, cursor: &mut RecvCursor<'_>) -> Result<usize> {
        if self.core.takes_batches.load(Ordering::Relaxed) {
            return self.take_batch(cursor);
        }
        let Some(datagram) = cursor.current() else { return Ok(0) };
        let py = self.owner.py();
        let data = new_bytes(py, datagram.payload)?;
        let address = self.senders.object(py, datagram.from)?;
        self.source_reader.take(&datagram);
        if self.core.tells_metadata.load(Ordering::Relaxed) {
            let about = Datagram::new(self.owner, &datagram, data.clone(), address.clone());
            let about = Some(Py::new(py, about)?);
            let old = std::mem::replace(&mut *self.core.current(), about);
            drop(old);
        }
        // It counts as delivered, even if the protocol fails.
        cursor.advance();
        self.tell(intern!(py, "datagram_received"), (data, address))?;
        Ok(1)
    }

    fn check_time(&mut self, delivered: usize, now: Instant) -> Result<Flow> {
        Ok(if self.budget.is_spent(delivered, now) { Flow::Stop } else { Flow::Continue })
    }
}
