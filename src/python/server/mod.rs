//! The core of a server: receives batches, calls the handler and sends its replies. Processes,
//! signals and the rest are in Python.

mod deliver;
mod receive;
mod replies;
mod report;
mod send;
mod signals;
mod steering;
mod tasks;

use std::ffi::c_int;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;

pub(crate) use self::signals::SignalHandlers;
pub(crate) use self::steering::{steer, steer_by_key};

use self::deliver::{FORESEEN, HandlerSink};
use self::receive::Arrivals;
use self::tasks::Tasks;
use super::counters::ServerCounters;
use super::error::Result;
use super::send_backlog::SendBacklog;
use super::socket::Socket;
use crate::net::{
    self, Costs, Count, ErrorClass, ErrorStreak, Pace, RecvCursor, ReplySources, ThreadRing,
    Waiting, hang_if_ended,
};

/// How often a server checks for kernel drops.
const TICK: Duration = Duration::from_secs(1);
/// The maximum time for counting the datagrams that draining has left in a socket's queue.
const COUNTING: Duration = Duration::from_millis(500);

/// The handler's argument.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    /// The payload and the sender's address.
    Data,
    /// A datagram with its metadata.
    Datagram,
    /// A list of pairs of payload and address.
    Batch,
    /// A list of triples of payload, address and timestamp.
    Timed,
}

/// The server runs until it is stopped.
const RUNNING: u8 = 0;
/// The server handles the datagrams that it has received. Another worker continues with the socket.
const RETIRING: u8 = 1;
/// The server also handles the datagrams that the kernel has queued.
const DRAINING: u8 = 2;

/// The part of a server that runs in one thread.
#[pyclass(frozen, module = "tomada._core")]
pub(crate) struct ServerCore {
    socket: Py<Socket>,
    handler: Py<PyAny>,
    takes: Takes,
    counters: Py<ServerCounters>,
    /// The index of the worker whose counters these are.
    worker: usize,
    /// Called with each error, to log it.
    report: Py<PyAny>,
    /// Called with each exception that ends the program, such as `SystemExit`, while this runs.
    on_exit: OnceLock<Py<PyAny>>,
    reply_sources: ReplySources,
    /// Whether replies go to a connected peer, which may not have an address.
    is_connected: bool,
    /// The longest reply.
    largest: usize,
    send_backlog: Mutex<SendBacklog>,
    /// The thread that is running the handler, or the event loop: what it sends leaves with the
    /// replies.
    delivering: AtomicUsize,
    state: AtomicU8,
    /// When retiring or draining ends, even if datagrams are left.
    deadline: Mutex<Option<Instant>>,
    /// Whether no other server receives what draining leaves in the socket's queue.
    is_last: AtomicBool,
    /// On an event loop, the tasks of the handler.
    tasks: OnceLock<Tasks>,
}

#[pymethods]
impl ServerCore {
    #[new]
    #[pyo3(signature = (socket, handler, takes, counters, worker, report))]
    fn new(
        socket: &Bound<'_, Socket>,
        handler: Py<PyAny>,
        takes: &str,
        counters: Py<ServerCounters>,
        worker: usize,
        report: Py<PyAny>,
    ) -> Result<Self> {
        let takes = match takes {
            "data" => Takes::Data,
            "datagram" => Takes::Datagram,
            "batch" => Takes::Batch,
            "timed" => Takes::Timed,
            _ => {
                let message =
                    format!("takes must be 'data', 'datagram', 'batch' or 'timed', not {takes:?}");
                return Err(PyValueError::new_err(message).into());
            }
        };
        let inner = socket.get().socket()?;
        if takes == Takes::Datagram {
            inner.request_metadata()?;
        } else if takes == Takes::Timed {
            inner.request_timestamp()?;
        }
        let is_connected = inner.peer_address().is_ok();
        Ok(Self {
            reply_sources: ReplySources::of(inner, is_connected),
            is_connected,
            largest: replies::largest(inner.family()),
            socket: socket.clone().unbind(),
            handler,
            takes,
            counters,
            worker,
            report,
            on_exit: OnceLock::new(),
            send_backlog: Mutex::default(),
            delivering: AtomicUsize::new(0),
            state: AtomicU8::new(RUNNING),
            deadline: Mutex::new(None),
            is_last: AtomicBool::new(false),
            tasks: OnceLock::new(),
        })
    }

    /// Allocate the memory that receiving needs, in the thread that is going to `run`.
    fn prepare(&self, py: Python<'_>) -> Result<()> {
        let kind = self.socket.bind(py).get().socket()?.slot_kind();
        Ok(ThreadRing::take(kind).map(drop)?)
    }

    /// Receive, call the handler and send its replies until `retire` or `stop` is called; return how
    /// many received datagrams were not handled.
    #[pyo3(signature = (wakeup_fd=None, on_exit=None))]
    fn run(
        slf: &Bound<'_, Self>,
        wakeup_fd: Option<RawFd>,
        on_exit: Option<Py<PyAny>>,
    ) -> Result<usize> {
        if let Some(on_exit) = on_exit {
            slf.get().set_on_exit(on_exit);
        }
        // A handler may still block when the interpreter is finalized.
        hang_if_ended(|| Self::receive_and_deliver(slf, wakeup_fd))
    }

    /// End `run` once the datagrams received so far are handled, or after `limit` seconds. This
    /// changes nothing if `run` has already been told to end.
    fn retire(&self, py: Python<'_>, limit: f64) {
        let begins = {
            let mut deadline = self.deadline();
            let is_running = self.state() == RUNNING;
            if is_running {
                *deadline = end_of(limit);
                self.state.fetch_max(RETIRING, Ordering::Release);
            }
            is_running
        };
        if let (true, Ok(socket)) = (begins, self.socket.bind(py).get().socket()) {
            // Their clients' next datagrams reach another worker, which cannot go on with them.
            py.detach(|| socket.close_handshakes());
        }
        self.tell_stop(py);
    }

    /// End `run` once all queued datagrams are handled, or after `drain` seconds. If `is_last`, the
    /// socket is closed afterwards, so the datagrams left in its queue are received and counted.
    #[pyo3(signature = (drain, *, is_last=false))]
    fn stop(&self, py: Python<'_>, drain: f64, is_last: bool) {
        self.is_last.fetch_or(is_last, Ordering::Relaxed);
        {
            let mut deadline = self.deadline();
            *deadline = end_of(drain);
            self.state.fetch_max(DRAINING, Ordering::Release);
        }
        self.tell_stop(py);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        visit.call(&self.socket)?;
        visit.call(&self.handler)?;
        visit.call(&self.report)?;
        if let Some(on_exit) = self.on_exit.get() {
            visit.call(on_exit)?;
        }
        self.tasks.get().map_or(Ok(()), |tasks| tasks.traverse(&visit))
    }
}

impl ServerCore {
    /// Implements `run`.
    fn receive_and_deliver(slf: &Bound<'_, Self>, wakeup_fd: Option<RawFd>) -> Result<usize> {
        let (py, this) = (slf.py(), slf.get());
        let owner = this.socket.bind(py);
        let socket = owner.get().socket()?;
        let mut waiting = Waiting::new(socket).collecting();
        if let Some(fd) = wakeup_fd {
            // SAFETY: the stub requires that it is open while this runs.
            waiting = unsafe { waiting.signalled_by(fd) };
        }
        let mut cursor = RecvCursor::of_thread(socket)?;
        let costs = Costs::default();
        let mut pace = Pace::new(&costs);
        let mut sink = HandlerSink::new(slf, owner, socket);
        let (mut streak, mut told_at) = (ErrorStreak::default(), Instant::now());
        loop {
            py.check_signals().or_else(|error| this.end_or_exit(py, error))?;
            let mut of_peer = None;
            let messages = pace.messages_in(FORESEEN).max(1);
            match this.receive(py, &waiting, &mut cursor, messages, &sink, &mut of_peer) {
                Ok(Arrivals::Messages(filled)) => {
                    streak.end();
                    sink.deliver(&mut cursor, &mut pace, &filled)?;
                    if this.is_overdue() {
                        break;
                    }
                }
                Ok(Arrivals::Nothing) => {
                    streak.end();
                    this.flush(py, socket)?; // replies to peers whose queues were full
                }
                Ok(Arrivals::End) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let class = ErrorClass::of(&error);
                    if class == ErrorClass::Own || socket.descriptor().is_closed() {
                        return Err(error.into());
                    }
                    of_peer = Some(error);
                    if let Some(pause) = streak.pause(class) {
                        sink.detach(|| thread::sleep(pause));
                    }
                }
            }
            if let Some(error) = of_peer {
                this.report_queued_errors(py, socket, Some(error))?;
                if this.is_overdue() {
                    break;
                }
            }
            if told_at.elapsed() >= TICK {
                told_at = Instant::now();
                this.report_all(py, socket)?;
            }
        }
        this.leave(py, &sink, &mut cursor)
    }

    /// Sends the remaining replies, and counts the datagrams that are not handled; returns their
    /// number.
    fn leave(
        &self,
        py: Python<'_>,
        sink: &HandlerSink<'_, '_>,
        cursor: &mut RecvCursor<'_>,
    ) -> Result<usize> {
        let (socket, slots) = (sink.socket, cursor.slots());
        self.flush_last(py, socket)?;
        py.detach(|| socket.close_dtls());
        let mut left = sink.discard(cursor);
        let until = Instant::now() + COUNTING;
        while self.is_overdue() && self.is_last.load(Ordering::Relaxed) && Instant::now() < until {
            let received = socket.with(|fd| self.receive_now(socket, fd, cursor, slots, &mut None));
            let Ok(filled) = received else { break }; // the queue is empty
            sink.count(&filled);
            left += sink.discard(cursor);
        }
        self.report_handshakes(py, socket)?;
        Ok(left)
    }

    /// Counts the datagrams that the guard has refused and that were sent, by any method.
    fn count_delta(&self, socket: &net::Socket) {
        let delta = socket.counters().take_delta();
        let counts = [
            (Count::Refused, delta.refused),
            (Count::ProxyUntrusted, delta.proxy_untrusted),
            (Count::ProxyMalformed, delta.proxy_malformed),
            (Count::Sent, delta.sent),
            (Count::SentBytes, delta.sent_bytes),
            (Count::SendCalls, delta.send_calls),
        ];
        for (count, n) in counts {
            if n > 0 {
                self.count(count, n as usize);
            }
        }
    }

    fn state(&self) -> u8 {
        self.state.load(Ordering::Acquire)
    }

    /// Wakes the thread or the event loop that runs this, to end.
    fn tell_stop(&self, py: Python<'_>) {
        if let Ok(socket) = self.socket.bind(py).get().socket() {
            socket.set_coalesce(Duration::ZERO); // wakes it, and the rest is received at once
        }
        if let Some(tasks) = self.tasks.get() {
            tasks.tell_stop(py);
        }
    }

    /// Whether retiring or draining has taken too long.
    fn is_overdue(&self) -> bool {
        self.state() != RUNNING && self.deadline().is_some_and(|end| end <= Instant::now())
    }

    fn deadline(&self) -> MutexGuard<'_, Option<Instant>> {
        self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send_backlog(&self) -> MutexGuard<'_, SendBacklog> {
        self.send_backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, count: Count, n: usize) {
        self.counters.get().shared_counters().add(self.worker, count, n as u64);
    }
}

/// When a limit in seconds ends; `None` for one that never does.
fn end_of(seconds: f64) -> Option<Instant> {
    // A time too long to represent means no limit: `max` makes NaN and negatives zero.
    let limit = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX);
    Instant::now().checked_add(limit)
}

/// Make the kernel send this process a signal when its parent exits.
#[pyfunction]
#[pyo3(signature = (signal, /))]
pub(crate) fn end_with_parent(signal: c_int) -> Result<()> {
    Ok(net::end_with_parent(signal)?)
}
