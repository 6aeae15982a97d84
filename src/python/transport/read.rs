//! Datagrams to the protocol.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyException;
use pyo3::intern;
use pyo3::prelude::*;

use super::{TransportCore, Turn};
use crate::net::{Datagrams, Filled, ThreadRing};
use crate::python::asked::Notes;
use crate::python::buffer::{new_bytes, push};
use crate::python::datagram::Datagram;
use crate::python::error::{Error, Result, is_shortage};
use crate::python::socket::{Senders, Socket, pair};

/// How long one drain may take on a loop that cannot say. Its other callbacks wait meanwhile.
const BUDGET: Duration = Duration::from_micros(100);
/// How long one drain may take on any loop.
const LONGEST_DRAIN: Duration = Duration::from_secs(1);
/// How long one drain may take while other callbacks wait.
const BESIDE_OTHERS: Duration = Duration::from_micros(20);
/// After so many callbacks a drain looks at the clock, and sooner at its beginning.
const LOOK: usize = 16;
/// So many errors in a row end a drain.
const ERRORS: usize = 16;
/// After this many receives the kernel's error queue is emptied, although there are datagrams: it
/// takes the receive buffer's room.
const RECEIVES: u32 = 16;
/// The standard loop delivers one datagram in each turn. A transport that delivers at least this many
/// and then leaves out a turn is never slower.
const AT_LEAST: usize = 2;
/// A protocol that takes longer than this for one datagram gets no second one in the same turn, and no
/// turn is left out.
const BRIEF: Duration = Duration::from_micros(200);
/// The most messages that one receive takes.
const MESSAGES: u64 = 64;

/// Whether a drain goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    GoOn,
    /// The time is up, or the protocol has paused or closed the transport.
    Stop,
}

/// How a drain ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// There was nothing more.
    Done,
    /// There may be more, and the time is up.
    CutShort,
    /// There may be more, and the protocol is so slow that others have their turn anyway.
    Slow,
}

#[pymethods]
impl TransportCore {
    /// Deliver the datagrams that are there, for a while, and send what the protocol answers.
    fn read_ready(slf: &Bound<'_, Self>) -> Result<()> {
        if slf.get().resume_scheduled.load(Ordering::Relaxed) {
            return Ok(()); // that call comes in this turn too
        }
        Self::deliver(slf)
    }

    /// Go on where the last drain stopped for lack of time.
    fn resume(slf: &Bound<'_, Self>) -> Result<()> {
        slf.get().resume_scheduled.store(false, Ordering::Relaxed);
        Self::deliver(slf)
    }
}

impl TransportCore {
    fn deliver(slf: &Bound<'_, Self>) -> Result<()> {
        let (py, this) = (slf.py(), slf.get());
        if !this.is_delivering() {
            return Ok(());
        }
        let spare_time = this.spare_time(py)?;
        let turn = this.turn_count(py);
        let cut_short = this.cut_short.swap(0, Ordering::Relaxed);
        if spare_time.is_zero() && cut_short != 0 && turn.saturating_sub(cut_short) <= 1 {
            // There was more than the last turn had time for: others first, but not twice in a row.
            // A datagram that arrives alone is delivered immediately.
            return Self::resume_if_pending(slf);
        }
        this.draining.fetch_add(1, Ordering::Relaxed);
        let drained = Self::drain(slf, spare_time.max(BESIDE_OTHERS)).map(|end| {
            if end == End::CutShort {
                this.note_cut_short(py, turn);
            }
        });
        let delivered = this.current().take();
        drop(delivered);
        let is_outermost = this.draining.fetch_sub(1, Ordering::Relaxed) == 1;
        let flushed = if is_outermost { Self::flush(slf) } else { Ok(()) };
        Self::resume_if_pending(slf)?;
        drained.and(flushed)
    }

    /// Goes on in the next turn, where datagrams were received that nobody has taken: the kernel's
    /// own queue may be empty, and then the loop would not call again.
    fn resume_if_pending(slf: &Bound<'_, Self>) -> Result<()> {
        let this = slf.get();
        let socket = this.socket.bind(slf.py()).get().socket();
        let is_left = socket.is_ok_and(|socket| socket.pending() > 0);
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

    /// Which turn of the loop this is; always the same where the loop does not count them.
    fn turn_count(&self, py: Python<'_>) -> u64 {
        self.turn.as_ref().map_or(1, |turn| turn.bind(py).get().count())
    }

    /// Takes note that there is more than this turn has time for.
    fn note_cut_short(&self, py: Python<'_>, turn: u64) {
        if self.cut_short.swap(turn, Ordering::Relaxed) != turn
            && let Some(turn) = &self.turn
        {
            turn.bind(py).get().note_cut_short();
        }
    }

    /// Delivers what is there.
    fn drain(slf: &Bound<'_, Self>, time: Duration) -> Result<End> {
        let (py, this) = (slf.py(), slf.get());
        let owner = this.socket.bind(py);
        let socket = owner.get().socket()?;
        let mut delivery = Delivery::new(this, owner, time);
        while let Some(mut held) = socket.take_kept() {
            let result = delivery.run(&mut held);
            socket.put_back(held);
            if result? == Flow::Stop {
                return Ok(delivery.end());
            }
        }
        let mut ring = ThreadRing::take(socket.slot_kind())?;
        let mut errors = 0;
        while errors < ERRORS {
            let Some(count) = delivery.messages() else { return Ok(delivery.end()) };
            if this.receives.fetch_add(1, Ordering::Relaxed) >= RECEIVES {
                Self::keep_errors(slf)?;
            }
            let started = Instant::now();
            let received =
                socket.with(|fd| socket.receive_messages(fd, &mut ring, count, libc::MSG_DONTWAIT));
            match received {
                Ok(filled) => {
                    let result = delivery.run_timed(&mut *ring, filled, started);
                    socket.keep(&ring);
                    if result? == Flow::Stop {
                        return Ok(delivery.end());
                    }
                    if !filled.is_full {
                        return Ok(End::Done);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Readable, and no datagram: then it is the error queue, or a datagram that
                    // was dropped for its checksum.
                    Self::tell_errors(slf)?;
                    return Ok(End::Done);
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
                        return Ok(End::Done);
                    }
                }
            }
        }
        Ok(End::Done)
    }

    /// How long this transport may deliver: not at all while callbacks of others wait. Transports
    /// that lacked time in the last turn share it equally in this one, whichever comes first.
    fn spare_time(&self, py: Python<'_>) -> Result<Duration> {
        let turn = self.turn.as_ref().map(|turn| turn.bind(py).get());
        let sharers = turn.map_or(0, Turn::sharers);
        let Some(turn) = turn.filter(|_| sharers > 1) else { return self.ask_spare_time(py, 0) };
        if let Some(share) = turn.share() {
            return Ok(share);
        }
        // Each of the others has up to two callbacks waiting, and this one has another.
        let share = self.ask_spare_time(py, 2 * sharers - 1)? / sharers;
        turn.set_share(share);
        Ok(share)
    }

    /// Asks the loop how long it can do without a turn, if so many callbacks do not count.
    fn ask_spare_time(&self, py: Python<'_>, uncounted: u32) -> Result<Duration> {
        let asked = if self.tells_spare_time { self.event_loop(py) } else { None };
        let Some(event_loop) = asked else { return Ok(BUDGET) };
        let name = intern!(py, "_spare_time");
        let answer = match uncounted {
            0 => event_loop.call_method0(name),
            _ => event_loop.call_method1(name, (uncounted,)),
        };
        match answer {
            Ok(seconds) => Ok(seconds
                .extract()
                .ok()
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
                .map_or(BUDGET, |time| time.min(LONGEST_DRAIN))),
            Err(error) if error.is_instance_of::<PyException>(py) => Ok(BUDGET),
            Err(error) => Err(error.into()), // Ctrl-C, which came just then
        }
    }
}

/// One drain's way of delivering.
struct Delivery<'a, 'py> {
    core: &'a TransportCore,
    owner: &'a Bound<'py, Socket>,
    senders: Senders<'a, 'py>,
    started: Instant,
    deadline: Instant,
    protocol: Option<(u64, Bound<'py, PyAny>)>,
    delivered: usize,
    notes: Notes<'a>,
}

impl<'a, 'py> Delivery<'a, 'py> {
    fn new(core: &'a TransportCore, owner: &'a Bound<'py, Socket>, time: Duration) -> Self {
        let senders = Senders::new(owner.get().addresses());
        let (protocol, delivered, notes) = (None, 0, core.asked.notes());
        let started = Instant::now();
        let deadline = started + time;
        Self { core, owner, senders, started, deadline, protocol, delivered, notes }
    }

    /// How a drain ends that stops before there is nothing more.
    fn end(&self) -> End {
        if self.delivered < AT_LEAST { End::Slow } else { End::CutShort }
    }

    /// How many messages can be delivered in the time that is left, but for those that every drain
    /// delivers. The very first message shows what they cost.
    fn messages(&self) -> Option<usize> {
        let cost = self.core.message_cost.load(Ordering::Relaxed);
        if cost == 0 {
            return Some(1);
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        let count = (left.as_nanos() as u64 / cost).min(MESSAGES) as usize;
        let least = if cost < BRIEF.as_nanos() as u64 { AT_LEAST } else { 1 };
        let count = count.max(least.saturating_sub(self.delivered));
        (count > 0).then_some(count)
    }

    /// Delivers what a receive brought, and takes note of what a message costs.
    fn run_timed(
        &mut self,
        datagrams: &mut impl Datagrams,
        filled: Filled,
        started: Instant,
    ) -> Result<Flow> {
        let (received, delivered) = (started.elapsed(), self.delivered);
        let result = self.run(datagrams);
        // The protocol may have stopped early: count what all would have taken.
        let delivering = started.elapsed().saturating_sub(received);
        let each = delivering / (self.delivered - delivered).max(1) as u32;
        let cost = (received + each * filled.datagrams as u32) / filled.messages.max(1) as u32;
        let cost = (cost.as_nanos() as u64).max(1);
        let before = self.core.message_cost.load(Ordering::Relaxed);
        // Half of it at once: a protocol that turns slow must not hold the loop up for long.
        self.core.message_cost.store(before.midpoint(cost), Ordering::Relaxed);
        result
    }

    /// Delivers datagrams until there are no more, the time is up, or the protocol wants none.
    fn run(&mut self, datagrams: &mut impl Datagrams) -> Result<Flow> {
        // The ring's places have been filled anew.
        self.notes = self.core.asked.notes();
        while let Some(datagram) = datagrams.current() {
            // A callback may have set a protocol of another kind.
            if self.core.takes_batches.load(Ordering::Relaxed) {
                return self.run_batch(datagrams);
            }
            let Some(protocol) = self.protocol() else { return Ok(Flow::Stop) };
            let py = self.owner.py();
            let data = new_bytes(py, datagram.payload)?;
            let address = self.senders.object(py, datagram.from)?;
            self.notes.take(&datagram);
            if self.core.tells_metadata.load(Ordering::Relaxed) {
                let about = Datagram::new(self.owner, &datagram, data.clone(), address.clone());
                let about = Some(Py::new(py, about)?);
                let old = std::mem::replace(&mut *self.core.current(), about);
                drop(old);
            }
            // It counts as delivered, whatever the protocol makes of it.
            datagrams.advance();
            let name = intern!(py, "datagram_received");
            let result = protocol.call_method1(name, (data, address)).map(drop);
            self.core.catch(py, "datagram_received", result)?;
            self.delivered += 1;
            if self.must_stop() {
                return Ok(Flow::Stop);
            }
        }
        Ok(Flow::GoOn)
    }

    /// Delivers all datagrams as one list.
    fn run_batch(&mut self, datagrams: &mut impl Datagrams) -> Result<Flow> {
        let Some(protocol) = self.protocol() else { return Ok(Flow::Stop) };
        let py = self.owner.py();
        let mut batch = Vec::new();
        while let Some(datagram) = datagrams.current() {
            let added = new_bytes(py, datagram.payload)
                .and_then(|data| pair(data, self.senders.object(py, datagram.from)?))
                .and_then(|pair| push(&mut batch, pair));
            match added {
                Err(error) if batch.is_empty() => return Err(error.into()),
                Err(_) => break, // what is left comes later
                Ok(()) => {}
            }
            self.notes.take(&datagram);
            datagrams.advance();
        }
        let len = batch.len();
        let batch = self.owner.get().to_list(py, batch)?;
        let result = protocol.call_method1(intern!(py, "datagrams_received"), (batch,)).map(drop);
        self.core.catch(py, "datagrams_received", result)?;
        self.delivered += len.next_multiple_of(LOOK);
        Ok(if self.must_stop() { Flow::Stop } else { Flow::GoOn })
    }

    /// The protocol of the moment: a callback may set another.
    fn protocol(&mut self) -> Option<Bound<'py, PyAny>> {
        let version = self.core.protocol_version.load(Ordering::Relaxed);
        match &self.protocol {
            Some((known, protocol)) if *known == version => Some(protocol.clone()),
            _ => {
                let protocol = self.core.protocol(self.owner.py())?;
                self.protocol = Some((version, protocol.clone()));
                Some(protocol)
            }
        }
    }

    fn must_stop(&self) -> bool {
        if !self.core.is_delivering() {
            return true;
        }
        let looks = match self.delivered {
            // A slow protocol must not keep the others waiting for many datagrams.
            0..AT_LEAST => return self.started.elapsed() >= BRIEF,
            few @ AT_LEAST..LOOK => few.is_power_of_two(),
            many => many.is_multiple_of(LOOK),
        };
        looks && Instant::now() >= self.deadline
    }
}
