//! A server on an event loop: the loop says when to receive, and coroutines of the handler are tasks.
//! `tomada/_server/event_loop.py` connects the two.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyRuntimeError;
use pyo3::exceptions::asyncio::CancelledError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PySet};

use super::deliver::{HandlerSink, this_thread};
use super::replies::ReplyTo;
use super::{RETIRING, RUNNING, ServerCore};
use crate::net::{
    Costs, Count, ErrorClass, ErrorStreak, OwnAddress, Pace, RecvCursor, hang_if_ended,
};
use crate::python::error::Result;

/// A receive takes only as many datagrams as can probably be handled in this time, because the other
/// callbacks of the loop wait meanwhile.
const TURN: Duration = Duration::from_micros(500);

/// The loop's next step after a receive.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Next {
    /// There is nothing to receive now.
    Wait = 0,
    /// The kernel may have more.
    Poll = 1,
    /// Receive again: there are datagrams that the kernel does not know of.
    Again = 2,
    /// As many calls as are allowed are under way.
    Full = 3,
    /// Errors follow each other: receive again after a pause.
    Pause = 4,
    /// A server that is retiring has received everything.
    End = 5,
}

/// The tasks of a server on an event loop.
pub(super) struct Tasks {
    event_loop: Py<PyAny>,
    /// `asyncio.Task`, its methods that make a task, and the keyword arguments: an eager start, if
    /// Python has it.
    task_type: Py<PyAny>,
    new_task: Py<PyAny>,
    init_task: Py<PyAny>,
    task_options: Py<PyDict>,
    /// Whether the loop has a task factory, which makes the tasks instead.
    has_factory: AtomicBool,
    coroutine_type: Py<PyAny>,
    is_coroutine: Py<PyAny>,
    /// How many calls of the handler may be under way.
    most: usize,
    /// Called when the first reply of a loop's turn is queued outside of a receive.
    on_reply: Py<PyAny>,
    is_reply_told: AtomicBool,
    /// Called in the loop after `stop`.
    on_stop: Py<PyAny>,
    /// The tasks under way: the loop only has weak references to them.
    pending: Py<PySet>,
    under_way: AtomicUsize,
    is_cancelling: AtomicBool,
    is_detached: AtomicBool,
    /// The number of datagrams of tasks that are under way.
    unhandled: AtomicUsize,
    /// The number of datagrams of tasks that were cancelled.
    cancelled: AtomicUsize,
    streak: Mutex<ErrorStreak>,
    costs: Costs,
    pub(super) own: OwnAddress,
}

impl Tasks {
    fn room(&self) -> usize {
        self.most.saturating_sub(self.under_way.load(Ordering::Relaxed))
    }

    /// Whether another call of the handler may begin.
    pub(super) fn has_room(&self) -> bool {
        self.room() > 0
    }

    /// Queues the replies in a result of the handler or, if it is a coroutine, runs it in a task,
    /// whose result they are in.
    pub(super) fn answer(
        &self,
        core: &Bound<'_, ServerCore>,
        to: ReplyTo,
        result: Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = core.py();
        if !self.is_coroutine(&result)? {
            return core.get().queue_result(&to, &result);
        }
        let task = if self.has_factory.load(Ordering::Relaxed) {
            self.event_loop.bind(py).call_method1(intern!(py, "create_task"), (result,))?
        } else {
            self.start_task(py, result)?
        };
        if task.call_method0(intern!(py, "done"))?.is_truthy()? {
            return self.finish(core.get(), &task, &to); // it was started eagerly
        }
        let (core, datagrams) = (core.clone().unbind(), to.datagrams());
        let completion = Bound::new(py, Completion { core, to, since: Instant::now() })?;
        self.pending.bind(py).add(&task)?;
        self.under_way.fetch_add(1, Ordering::Relaxed);
        self.unhandled.fetch_add(datagrams, Ordering::Relaxed);
        task.call_method1(intern!(py, "add_done_callback"), (completion,))?;
        Ok(())
    }

    /// Makes a task in two steps. If it starts eagerly and its first step ends the program, there is
    /// still the task: unless somebody retrieves its exception, asyncio logs that nobody did.
    fn start_task<'py>(
        &self,
        py: Python<'py>,
        coroutine: Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let task = self.new_task.bind(py).call1((&self.task_type,))?;
        let options = Some(self.task_options.bind(py));
        if let Err(error) = self.init_task.bind(py).call((&task, coroutine), options) {
            let _ = task.call_method0(intern!(py, "exception"));
            return Err(error);
        }
        Ok(task)
    }

    fn is_coroutine(&self, result: &Bound<'_, PyAny>) -> PyResult<bool> {
        if result.is_none() || result.is_exact_instance_of::<PyBytes>() {
            return Ok(false);
        }
        Ok(result.get_type().is(&self.coroutine_type)
            || self.is_coroutine.bind(result.py()).call1((result,))?.is_truthy()?)
    }

    /// Queues the replies of a task that has ended.
    fn finish(&self, core: &ServerCore, task: &Bound<'_, PyAny>, to: &ReplyTo) -> PyResult<()> {
        let py = task.py();
        let queued = task.call_method0("result").and_then(|result| core.queue_result(to, &result));
        queued.or_else(|error| {
            let is_cancelled = error.is_instance_of::<CancelledError>(py);
            if is_cancelled && self.is_detached.load(Ordering::Relaxed) {
                return Ok(()); // it has been counted
            }
            if is_cancelled && self.is_cancelling.load(Ordering::Relaxed) {
                core.count(Count::Cancelled, to.datagrams());
                self.cancelled.fetch_add(to.datagrams(), Ordering::Relaxed);
                return Ok(());
            }
            core.fail(py, error, to.sender())
        })
    }

    /// Has the loop send what is queued at the end of this turn.
    pub(super) fn tell_reply(&self, py: Python<'_>) -> PyResult<()> {
        if self.is_reply_told.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let told = self.on_reply.call0(py);
        if told.is_err() {
            self.is_reply_told.store(false, Ordering::Relaxed);
        }
        told.map(drop)
    }

    /// Has the loop notice that the server is to stop, from any thread.
    pub(super) fn tell_stop(&self, py: Python<'_>) {
        // If the loop is closed, the server has stopped.
        let _ = self.event_loop.call_method1(py, "call_soon_threadsafe", (&self.on_stop,));
    }

    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        for object in [&self.event_loop, &self.on_reply, &self.on_stop] {
            visit.call(object)?;
        }
        visit.call(&self.task_options)?;
        visit.call(&self.pending)
    }
}

/// Called when a task has ended.
#[pyclass(frozen, module = "tomada._core")]
struct Completion {
    core: Py<ServerCore>,
    to: ReplyTo,
    since: Instant,
}

#[pymethods]
impl Completion {
    fn __call__(&self, task: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = task.py();
        let core = self.core.bind(py).get();
        let Some(tasks) = core.tasks.get() else { return Ok(()) };
        tasks.pending.bind(py).discard(task)?;
        tasks.under_way.fetch_sub(1, Ordering::Relaxed);
        tasks.unhandled.fetch_sub(self.to.datagrams(), Ordering::Relaxed);
        core.count(Count::HandlerTime, self.since.elapsed().as_nanos() as usize);
        let finished = tasks.finish(core, task, &self.to);
        tasks.tell_reply(py)?;
        finished
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        visit.call(&self.core)
    }
}

#[pymethods]
impl ServerCore {
    /// Run on an event loop, in the thread of the loop.
    #[pyo3(signature = (event_loop, task_options, most, on_reply, on_stop, on_exit))]
    #[allow(clippy::too_many_arguments)] // what it needs of the loop
    fn attach(
        &self,
        py: Python<'_>,
        event_loop: Py<PyAny>,
        task_options: Py<PyDict>,
        most: usize,
        on_reply: Py<PyAny>,
        on_stop: Py<PyAny>,
        on_exit: Py<PyAny>,
    ) -> Result<()> {
        let asyncio = py.import("asyncio")?;
        let task_type = asyncio.getattr("Task")?;
        let tasks = Tasks {
            event_loop,
            new_task: task_type.getattr("__new__")?.unbind(),
            init_task: task_type.getattr("__init__")?.unbind(),
            task_type: task_type.unbind(),
            task_options,
            has_factory: AtomicBool::new(false),
            coroutine_type: py.import("types")?.getattr("CoroutineType")?.unbind(),
            is_coroutine: asyncio.getattr("iscoroutine")?.unbind(),
            most,
            on_reply,
            is_reply_told: AtomicBool::new(false),
            on_stop,
            pending: PySet::empty(py)?.unbind(),
            under_way: AtomicUsize::new(0),
            is_cancelling: AtomicBool::new(false),
            is_detached: AtomicBool::new(false),
            unhandled: AtomicUsize::new(0),
            cancelled: AtomicUsize::new(0),
            streak: Mutex::default(),
            costs: Costs::default(),
            own: OwnAddress::of(self.socket.bind(py).get().socket()?),
        };
        if self.tasks.set(tasks).is_err() {
            return Err(PyRuntimeError::new_err("a server runs on one event loop").into());
        }
        self.set_on_exit(on_exit);
        self.delivering.store(this_thread(), Ordering::Relaxed);
        Ok(())
    }

    /// Receive once, call the handler, and send the replies that it has returned.
    fn receive_once(slf: &Bound<'_, Self>) -> Result<u8> {
        let next = hang_if_ended(|| Self::receive_in_turn(slf))?;
        Ok(next as u8)
    }

    /// Send what is queued; return whether datagrams wait for room.
    fn end_turn(&self, py: Python<'_>) -> Result<bool> {
        if let Some(tasks) = self.tasks.get() {
            tasks.is_reply_told.store(false, Ordering::Relaxed);
        }
        self.flush(py, self.socket.bind(py).get().socket()?)?;
        Ok(self.has_waiting())
    }

    /// Count and log drops, handshakes and error-queue entries. Call this about once per second.
    fn tick(&self, py: Python<'_>) -> Result<()> {
        let socket = self.socket.bind(py).get().socket()?;
        Ok(self.report_all(py, socket)?)
    }

    /// Retransmit what handshakes wait for; return the seconds until this must be called again.
    fn tick_sessions(&self, py: Python<'_>) -> Result<Option<f64>> {
        let socket = self.socket.bind(py).get().socket()?;
        Ok(py.detach(|| socket.tick_dtls()).map(|due| due.as_secs_f64()))
    }

    /// Cancel the tasks under way.
    fn cancel_tasks(&self, py: Python<'_>) -> Result<()> {
        if let Some(tasks) = self.tasks.get() {
            tasks.is_cancelling.store(true, Ordering::Relaxed);
            let pending: Vec<_> = tasks.pending.bind(py).iter().collect();
            for task in pending {
                task.call_method0("cancel")?;
            }
        }
        Ok(())
    }

    /// Send the remaining replies, and stop running on the loop; return how many received datagrams
    /// were not handled, or whose handler has not returned. Those of tasks that have refused to be
    /// cancelled count as cancelled: if this process is killed, no later call could count them.
    fn detach(slf: &Bound<'_, Self>) -> Result<usize> {
        let (py, this) = (slf.py(), slf.get());
        let owner = this.socket.bind(py);
        let socket = owner.get().socket()?;
        let mut cursor = RecvCursor::of_thread(socket)?;
        let sink = HandlerSink::new(slf, owner, socket);
        let left = this.leave(py, &sink, &mut cursor)?;
        this.delivering.store(0, Ordering::Relaxed);
        let Some(tasks) = this.tasks.get() else { return Ok(left) };
        let under_way = tasks.unhandled.load(Ordering::Relaxed);
        if !tasks.is_detached.swap(true, Ordering::Relaxed) {
            this.count(Count::Cancelled, under_way);
        }
        Ok(left + under_way + tasks.cancelled.load(Ordering::Relaxed))
    }

    /// The index of the worker.
    #[getter]
    fn worker(&self) -> usize {
        self.worker
    }

    /// How many calls of the handler are under way.
    #[getter]
    fn under_way(&self) -> usize {
        self.tasks.get().map_or(0, |tasks| tasks.under_way.load(Ordering::Relaxed))
    }

    /// Whether `retire` or `stop` was called.
    #[getter]
    fn is_stopping(&self) -> bool {
        self.state() != RUNNING
    }

    /// The seconds until retiring or draining must end, if there is a limit.
    #[getter]
    fn time_left(&self) -> Option<f64> {
        let deadline = (*self.deadline())?;
        Some(deadline.saturating_duration_since(Instant::now()).as_secs_f64())
    }
}

impl ServerCore {
    fn receive_in_turn(slf: &Bound<'_, Self>) -> Result<Next> {
        let (py, this) = (slf.py(), slf.get());
        let owner = this.socket.bind(py);
        let socket = owner.get().socket()?;
        let Some(tasks) = this.tasks.get() else { return Ok(Next::End) };
        if !tasks.has_room() {
            return Ok(Next::Full);
        }
        let factory = tasks.event_loop.bind(py).call_method0(intern!(py, "get_task_factory"))?;
        tasks.has_factory.store(!factory.is_none(), Ordering::Relaxed);
        let mut cursor = RecvCursor::of_thread(socket)?;
        let mut pace = Pace::new(&tasks.costs);
        let mut of_peer = None;
        let received = match cursor.take_from_backlog() {
            Some(filled) => Ok(filled),
            None if this.state() == RETIRING => return Ok(Next::End),
            None => {
                let messages = pace.messages_in(TURN).clamp(1, tasks.room());
                socket.with(|fd| this.receive_now(socket, fd, &mut cursor, messages, &mut of_peer))
            }
        };
        let streak = || tasks.streak.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Next::Poll;
        match received {
            Ok(filled) => {
                streak().end();
                HandlerSink::new(slf, owner, socket).deliver(&mut cursor, &mut pace, &filled)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                streak().end();
                // The loop may have called because of the error queue.
                this.report_queued_errors(py, socket, of_peer.take())?;
                next = Next::Wait;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                let class = ErrorClass::of(&error);
                if class == ErrorClass::Own || socket.descriptor().is_closed() {
                    return Err(error.into());
                }
                of_peer = Some(error);
                if streak().pause(class).is_some() {
                    next = Next::Pause;
                }
            }
        }
        if of_peer.is_some() {
            this.report_queued_errors(py, socket, of_peer)?;
        }
        drop(cursor); // what was not delivered goes to the backlog
        Ok(match next {
            Next::Poll | Next::Wait if !tasks.has_room() => Next::Full,
            Next::Poll | Next::Wait if socket.backlog_len() > 0 => Next::Again,
            next => next,
        })
    }
}
