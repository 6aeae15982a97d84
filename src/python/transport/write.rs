//! Sends the protocol's datagrams.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Instant;

use pyo3::exceptions::{PyOSError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyTuple;

use super::TransportCore;
use super::life::SendState;
use crate::net::error_queue::SocketError;
use crate::net::{Address, Phase, Refused, Shed};
use crate::python::audit;
use crate::python::buffer::{Readable, TypeName, is_datagram, new_bytes, text_of};
use crate::python::error::{Error, Result};
use crate::python::records::DatagramError;
use crate::python::send_backlog::sending;

/// When this many datagrams are queued for the end of the turn, they are sent before it.
const QUEUED: usize = 1024;

/// How long a turn lasts on a loop that does not count them, in nanoseconds. A program that takes
/// longer between two datagrams hardly gains from sending them together.
const TURN: u64 = 20_000;

/// The longest payloads: the limit of a 16-bit length field, less the headers that it includes.
const LONGEST_V4: usize = 65_535 - 20 - 8;
const LONGEST_V6: usize = 65_535 - 8;

/// As in asyncio.constants, where the loss of the connection is counted as the first.
const LOST_SENDS_BEFORE_WARNING: u32 = 4;

/// The destination of a datagram.
#[derive(Clone, Copy)]
enum Target {
    /// To the connected peer.
    Peer,
    Address(Address),
    /// None: the name does not have an address, as the protocol was told.
    Nowhere,
}

/// The state of the backlog with a new datagram.
#[derive(Clone, Copy)]
struct Enqueued {
    /// It is the only one.
    is_alone: bool,
    /// The backlog is too long.
    is_long: bool,
}

#[pymethods]
impl TransportCore {
    /// Send a datagram: immediately, or with others at the end of the turn.
    #[pyo3(signature = (data, addr=None))]
    fn sendto(
        slf: &Bound<'_, Self>,
        data: &Bound<'_, PyAny>,
        addr: Option<&Bound<'_, PyAny>>,
    ) -> Result<()> {
        check_type(data)?;
        let (py, this) = (slf.py(), slf.get());
        if this.phase.get() == Phase::Lost {
            return this.warn_lost(py);
        }
        let target = this.target(py, addr)?;
        let Some(enqueued) = Self::enqueue(slf, data, target)? else { return Ok(()) };
        let is_draining = this.draining.load(Ordering::Relaxed) > 0; // a drain sends all at its end
        if enqueued.is_alone && !is_draining && Self::is_first_of_turn(slf)? {
            return Self::send(slf, false).map(drop);
        }
        if enqueued.is_long {
            Self::send(slf, false)?;
        }
        if is_draining { Ok(()) } else { Self::schedule_flush(slf) }
    }

    /// Send many datagrams, all to one address, or each as a pair with its own.
    #[pyo3(signature = (datagrams, addr=None))]
    fn sendto_many(
        slf: &Bound<'_, Self>,
        datagrams: &Bound<'_, PyAny>,
        addr: Option<&Bound<'_, PyAny>>,
    ) -> Result<()> {
        let (py, this) = (slf.py(), slf.get());
        if this.phase.get() == Phase::Lost {
            return this.warn_lost(py);
        }
        let common = addr.map(|addr| this.target(py, Some(addr))).transpose()?;
        let enqueued = Self::enqueue_many(slf, datagrams, common);
        if this.draining.load(Ordering::Relaxed) == 0 {
            // Datagrams before one that is refused were accepted.
            Self::flush(slf)?;
        }
        enqueued
    }

    /// Send the datagrams that are queued for the end of the turn.
    pub(super) fn flush(slf: &Bound<'_, Self>) -> Result<()> {
        slf.get().flush_scheduled.store(false, Ordering::Relaxed);
        Self::send(slf, false).map(drop)
    }

    /// Send datagrams that wait for room in the socket's buffer; return whether any were sent.
    fn write_ready(slf: &Bound<'_, Self>) -> Result<bool> {
        Self::send(slf, true)
    }
}

impl TransportCore {
    /// Reads an address like `sendto` of the standard transport.
    fn target(&self, py: Python<'_>, addr: Option<&Bound<'_, PyAny>>) -> Result<Target> {
        if let Some(peer) = &self.peer {
            let peer = peer.bind(py);
            if let Some(addr) = addr
                && !addr.is(peer)
                && !addr.eq(peer)?
                && !self.is_peer(addr)
            {
                let peer = text_of(peer)?;
                let message = format!("Invalid address: must be None or {peer}");
                return Err(PyValueError::new_err(message).into());
            }
            let Some(&address) = self.default_address.as_deref() else { return Ok(Target::Peer) };
            self.audit(py, peer)?;
            return Ok(Target::Address(address));
        }
        let Some(addr) = addr else {
            let message = format!(
                "{}() needs an address: pass one, or open the endpoint with a remote_addr",
                self.method()
            );
            return Err(PyTypeError::new_err(message).into());
        };
        match self.socket.bind(py).get().parse_any_address(addr, self.method()) {
            Ok(to) => {
                self.audit(py, addr)?;
                Ok(Target::Address(to))
            }
            Err(error) => {
                let error = PyErr::from(error);
                if self.raises_mistakes.load(Ordering::Relaxed)
                    || !error.is_instance_of::<PyOSError>(py)
                {
                    return Err(error.into());
                }
                self.tell_error(py, error)?;
                Ok(Target::Nowhere)
            }
        }
    }

    /// The method that a user calls to send a datagram, for error messages.
    fn method(&self) -> &'static str {
        if self.raises_mistakes.load(Ordering::Relaxed) { "send" } else { "sendto" }
    }

    /// Whether an address is the peer's: a host may be written in several ways.
    fn is_peer(&self, addr: &Bound<'_, PyAny>) -> bool {
        let socket = self.socket.bind(addr.py()).get();
        let Ok(meant) = socket.parse_any_address(addr, "sendto") else { return false };
        match &self.default_address {
            Some(peer) => meant == **peer,
            None => socket
                .socket()
                .is_ok_and(|socket| socket.peer_address().is_ok_and(|peer| peer == meant)),
        }
    }

    /// Raises the audit event of the socket method that a standard transport calls.
    fn audit(&self, py: Python<'_>, addr: &Bound<'_, PyAny>) -> Result<()> {
        audit::event(c"socket.sendto", self.socket.bind(py).as_any(), addr)
    }

    /// Queues datagrams, all for one target, or each as a pair with its own.
    fn enqueue_many(
        slf: &Bound<'_, Self>,
        datagrams: &Bound<'_, PyAny>,
        common: Option<Target>,
    ) -> Result<()> {
        let mut mistake = None;
        for item in datagrams.try_iter()? {
            match Self::enqueue_item(slf, &item?, common) {
                Ok(Some(Enqueued { is_long: true, .. })) => drop(Self::send(slf, false)?),
                Ok(_) => {}
                // The others are sent.
                Err(Error::Os(error)) => mistake = mistake.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        mistake.map_or(Ok(()), |error| Err(error.into()))
    }

    fn enqueue_item(
        slf: &Bound<'_, Self>,
        item: &Bound<'_, PyAny>,
        common: Option<Target>,
    ) -> Result<Option<Enqueued>> {
        let (py, this) = (slf.py(), slf.get());
        match (common, item.cast::<PyTuple>()) {
            (None, Ok(pair)) if pair.len() == 2 => {
                let data = pair.get_item(0)?;
                check_type(&data)?;
                let target = this.target(py, Some(&pair.get_item(1)?))?;
                Self::enqueue(slf, &data, target)
            }
            (common, _) => {
                check_type(item)?;
                let target = common.map_or_else(|| this.target(py, None), Ok)?;
                Self::enqueue(slf, item, target)
            }
        }
    }

    /// Queues a datagram. Data that may change later is copied.
    fn enqueue(
        slf: &Bound<'_, Self>,
        data: &Bound<'_, PyAny>,
        target: Target,
    ) -> Result<Option<Enqueued>> {
        let to = match target {
            Target::Peer => None,
            Target::Address(to) => Some(to),
            Target::Nowhere => return Ok(None),
        };
        let (py, this) = (slf.py(), slf.get());
        let data = match Readable::new(data)?.into_bytes(py) {
            Ok(data) => data,
            Err(Error::Os(error)) => return this.refuse(py, error),
            Err(error) => return Err(error),
        };
        if this.raises_mistakes.load(Ordering::Relaxed)
            && data.as_bytes().len() > this.longest(py, to.as_ref())?
        {
            return this.refuse(py, io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        let source = to.and_then(|to| this.reply_sources.source(&to));
        let mut send_state = this.send_state(py);
        let SendState { backlog, flow, is_limited, .. } = &mut *send_state;
        backlog.push(data.into(), to, source)?;
        let is_limited = *is_limited && flow.is_full();
        let shed =
            if is_limited { backlog.shed(Instant::now(), usize::MAX) } else { Shed::default() };
        let is_long = backlog.len() >= QUEUED || flow.is_above(backlog.bytes());
        let enqueued = Enqueued { is_alone: backlog.len() == 1, is_long };
        drop(send_state);
        if shed.count > 0 {
            this.socket.bind(py).get().socket()?.counters().count_send_errors(shed.count);
            Self::tell_refused(slf, shed.refused)?;
        }
        Ok(Some(enqueued))
    }

    /// Raises or reports that a datagram is longer than the maximum.
    fn refuse(&self, py: Python<'_>, error: io::Error) -> Result<Option<Enqueued>> {
        if self.raises_mistakes.load(Ordering::Relaxed) {
            return Err(error.into());
        }
        self.socket.bind(py).get().socket()?.counters().count_send_errors(1);
        self.tell_error(py, Error::Os(error).into())?; // like a refusal by the kernel
        Ok(None)
    }

    /// The longest datagram that the protocol allows to an address, or to the peer.
    fn longest(&self, py: Python<'_>, to: Option<&Address>) -> Result<usize> {
        if let Some(to) = to {
            return Ok(longest(to));
        }
        if let Some(longest) = self.longest_to_peer.get() {
            return Ok(*longest);
        }
        let peer = self.socket.bind(py).get().socket()?.peer_address();
        Ok(*self.longest_to_peer.get_or_init(|| peer.map_or(usize::MAX, |peer| longest(&peer))))
    }

    /// Whether no datagram was sent immediately in this turn of the loop. On a loop that does not
    /// count its turns, a turn is taken to last for [`TURN`]: a call at its end would cost the loop
    /// another turn.
    fn is_first_of_turn(slf: &Bound<'_, Self>) -> Result<bool> {
        let this = slf.get();
        if !this.is_loop_running_here(slf.py())? {
            return Ok(true); // the end of a turn is not signalled
        }
        if let Some(turns) = &this.turns {
            let turn = turns.count();
            return Ok(this.last_turn.swap(turn, Ordering::Relaxed) != turn);
        }
        let now = TURN + this.created.elapsed().as_nanos() as u64;
        let last = this.last_turn.load(Ordering::Relaxed);
        if now.saturating_sub(last) < TURN {
            return Ok(false);
        }
        this.last_turn.store(now, Ordering::Relaxed);
        Ok(true)
    }

    fn schedule_flush(slf: &Bound<'_, Self>) -> Result<()> {
        let this = slf.get();
        if this.flush_scheduled.load(Ordering::Relaxed) || this.is_full(slf.py()) {
            return Ok(());
        }
        this.flush_scheduled.store(true, Ordering::Relaxed);
        Self::call_soon(slf, "flush").map_err(|error| {
            this.flush_scheduled.store(false, Ordering::Relaxed);
            error.into()
        })
    }

    /// Whether this is called by the loop. Programs also send while the loop is not running, or
    /// from other threads, which no loop notices before its next turn.
    fn is_loop_running_here(&self, py: Python<'_>) -> Result<bool> {
        static RUNNING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let running = RUNNING.import(py, "asyncio", "_get_running_loop")?.call0()?;
        Ok(self.event_loop(py).is_some_and(|event_loop| event_loop.is(&running)))
    }

    /// Sends as many datagrams as possible, if the socket's buffer was not full or `has_room`
    /// again, and makes the transport do the resulting steps. Returns whether any datagram left the
    /// backlog.
    fn send(slf: &Bound<'_, Self>, has_room: bool) -> Result<bool> {
        let (py, this) = (slf.py(), slf.get());
        let owner = this.socket.bind(py);
        let (has_sent, errors, is_due) = {
            // No Python code runs under the lock.
            let mut send_state = this.send_state(py);
            let SendState { backlog, flow, is_limited, .. } = &mut *send_state;
            let (before, mut errors) = (backlog.len(), Vec::new());
            if has_room || before > 0 && !flow.is_full() {
                let socket = owner.get().socket()?;
                let forget = |peer: &Address| this.reply_sources.forget(peer);
                let send = sending(py, socket);
                let flushed = if *is_limited {
                    socket.flush_limited(backlog, usize::MAX, send, forget)
                } else {
                    socket.flush(backlog, send, forget)
                };
                flow.set_full(flushed.is_full);
                errors = flushed.errors;
            }
            let has_sent = backlog.len() < before;
            (has_sent, errors, send_state.step(this.phase.get()).is_some())
        };
        if is_due {
            Self::settle(slf)?;
        }
        // This comes last: when told of an error, the protocol may send, or close the transport.
        Self::tell_refused(slf, errors)?;
        Ok(has_sent)
    }

    /// Tells the protocol of errors of datagrams that were sent, now or earlier.
    fn tell_refused(slf: &Bound<'_, Self>, errors: Vec<Refused>) -> Result<()> {
        let (py, this) = (slf.py(), slf.get());
        let owner = this.socket.bind(py);
        let mut are_described = None;
        for refused in errors {
            if !refused.is_lost {
                // An ICMP message about an earlier datagram: the error queue may have its address.
                let described = are_described.map_or_else(|| Self::tell_errors(slf), Ok)?;
                are_described = Some(described);
                if described {
                    continue;
                }
            }
            let noted = match refused.to.filter(|_| refused.is_lost) {
                Some(to) => {
                    let about = SocketError::of_sending(&refused.error);
                    let peer = owner.get().addresses().object(py, to.as_bytes())?.unbind();
                    Some(DatagramError::new(
                        peer,
                        &about,
                        new_bytes(py, &refused.payload)?.unbind(),
                    ))
                }
                None => None,
            };
            let error = PyErr::from(Error::Os(refused.error));
            if let Some(noted) = noted {
                noted.attach_to(py, &error)?;
            }
            this.tell_error(py, error)?;
        }
        Ok(())
    }

    /// Warns like the standard transports, which ignore the first few.
    fn warn_lost(&self, py: Python<'_>) -> Result<()> {
        let before = {
            let lost_sends = &mut self.send_state(py).lost_sends;
            *lost_sends = lost_sends.saturating_add(1);
            *lost_sends - 1
        };
        if before >= LOST_SENDS_BEFORE_WARNING {
            let logger = py.import("asyncio.log")?.getattr("logger")?;
            logger.call_method1("warning", ("socket.send() raised exception.",))?;
        }
        Ok(())
    }
}

/// The longest datagram to an address that the protocol allows.
fn longest(to: &Address) -> usize {
    match to.ip() {
        Some(ip) if ip.ip().to_canonical().is_ipv4() => LONGEST_V4,
        Some(_) => LONGEST_V6,
        None => usize::MAX,
    }
}

/// Checks for the types that the standard transports accept.
fn check_type(data: &Bound<'_, PyAny>) -> Result<()> {
    if is_datagram(data) {
        return Ok(());
    }
    let found = TypeName(data);
    let message = format!("data argument must be a bytes-like object, not '{found}'");
    Err(PyTypeError::new_err(message).into())
}
