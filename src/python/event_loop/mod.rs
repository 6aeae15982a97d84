//! The fast part of an event loop: its turns, and callbacks that are scheduled. It works on the
//! standard loop's own queues, handles and selector, so everything else remains the standard loop's.

mod fields;
mod handle;
mod heap;
mod hub;
mod object_slot;
mod standard;
mod window;

use std::ffi::c_int;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyOSError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyInt, PyList, PyTuple};

use self::fields::Fields;
use self::handle::Handles;
pub(crate) use self::hub::ReadHub;
use self::standard::Standard;
pub(crate) use self::window::ReceiveWindow;
use super::error::Error;
use crate::net::{Ready, ReadyEvents, Turns, hang_if_ended};

/// The base class of tomada's event loop.
#[pyclass(frozen, subclass, module = "tomada._core")]
pub(crate) struct LoopCore {
    turns: Arc<Turns>,
    fields: Fields,
    polled: Mutex<Option<Polled>>,
    clock: Mutex<Option<Clock>>,
    /// Reused to avoid allocations.
    events: Mutex<ReadyEvents>,
}

/// The selector that the loop polls without calling it, unless a program replaces it.
struct Polled {
    selector: Py<PyAny>,
    /// Its attributes, among which a program may put another `select`.
    attributes: Py<PyDict>,
    epoll: Py<PyAny>,
    /// The selector's keys, by descriptor.
    keys: Py<PyDict>,
}

/// The time of the loop's clock when a turn began to run callbacks. Its clock is a method, which a
/// program may replace, and which takes longer than the machine's.
#[derive(Clone, Copy)]
struct Clock {
    turn: u64,
    time: f64,
    read_at: Instant,
}

/// From this many timers on, the standard loop checks whether to remove those that were cancelled.
const MANY_TIMERS: usize = 100;
/// At most this many seconds pass in one wait.
const LONGEST_WAIT: f64 = 24.0 * 3600.0;
/// At most this many descriptors are handled in one turn; others in the next one.
const MOST_EVENTS: usize = 1024;
/// How long transports may deliver in a turn: while no other callback is waiting, and when a timer is
/// due.
const LONGEST_DRAIN: Duration = Duration::from_micros(200);
const SOON: Duration = Duration::from_micros(1);
// As in `selectors`.
const EVENT_READ: c_int = 1;
const EVENT_WRITE: c_int = 2;

#[pymethods]
impl LoopCore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            turns: Arc::default(),
            fields: Fields::default(),
            polled: Mutex::default(),
            clock: Mutex::default(),
            events: Mutex::default(),
        }
    }

    /// Poll a selector of the class `selectors.EpollSelector` without calling it.
    fn _poll_directly(&self, selector: &Bound<'_, PyAny>) -> PyResult<()> {
        let polled = Polled {
            selector: selector.clone().unbind(),
            attributes: selector.getattr("__dict__")?.cast_into()?.unbind(),
            epoll: selector.getattr("_selector")?.unbind(),
            keys: selector.getattr("_fd_to_key")?.cast_into()?.unbind(),
        };
        let previous = self.polled().replace(polled);
        drop(previous);
        Ok(())
    }

    /// Run one turn of the loop.
    fn _run_once(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().turns.advance();
        hang_if_ended(|| match Self::queues(slf)? {
            Some(queues) => Self::turn(slf, &queues),
            None => Standard::get(slf.py())?.run_once.bind(slf.py()).call1((slf,)).map(drop),
        })
    }

    /// Call a function in the next turn, like `asyncio.loop.call_soon`.
    #[pyo3(signature = (callback, *args, context=None))]
    fn call_soon<'py>(
        slf: &Bound<'py, Self>,
        callback: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        context: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        if slf.get().is_checked() {
            let standard = Standard::get(py)?.call_soon.bind(py);
            return slowly(standard, &[slf, callback], args, context);
        }
        let handle = Handles::get(py)?.new_handle(slf, callback, args, context)?;
        let (ready, _) = slf.get().fields.queues(py)?;
        Standard::get(py)?.append(&ready, &handle)?;
        Ok(handle)
    }

    /// Call a function after a delay in seconds, like `asyncio.loop.call_later`.
    #[pyo3(signature = (delay, callback, *args, context=None))]
    fn call_later<'py>(
        slf: &Bound<'py, Self>,
        delay: &Bound<'py, PyAny>,
        callback: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        context: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        if delay.is_none() || slf.get().is_checked() {
            let standard = Standard::get(py)?.call_later.bind(py);
            return slowly(standard, &[slf, delay, callback], args, context);
        }
        let when = Standard::get(py)?.time(slf)?.add(delay)?;
        slowly(&slf.getattr(intern!(py, "call_at"))?, &[&when, callback], args, context)
    }

    /// Call a function at a time of the loop's clock, like `asyncio.loop.call_at`.
    #[pyo3(signature = (when, callback, *args, context=None))]
    fn call_at<'py>(
        slf: &Bound<'py, Self>,
        when: &Bound<'py, PyAny>,
        callback: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        context: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let (_, scheduled) = slf.get().fields.queues(py)?;
        let (false, Ok(seconds), Ok(scheduled)) =
            (slf.get().is_checked(), when.extract::<f64>(), scheduled.cast::<PyList>())
        else {
            let standard = Standard::get(py)?.call_at.bind(py);
            return slowly(standard, &[slf, when, callback], args, context);
        };
        let timer = Handles::get(py)?.new_timer(when, slf, callback, args, context)?;
        heap::push(scheduled, timer.clone(), seconds)?;
        Ok(timer)
    }

    /// Call a function whenever a descriptor is readable, like the standard loop's method, which takes
    /// a `context` since Python 3.15.
    #[pyo3(signature = (fd, callback, *args, context=None))]
    fn _add_reader<'py>(
        slf: &Bound<'py, Self>,
        fd: &Bound<'py, PyAny>,
        callback: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        context: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let standard = Standard::get(py)?;
        if !slf.get().is_checked()
            && fd.is_exact_instance_of::<PyInt>()
            && let Some((epoll, keys)) = slf.get().polling(py)?
            && !keys.contains(fd)?
        {
            let handle = Handles::get(py)?.new_handle(slf, callback, args, context)?;
            let key = standard.selector_key.bind(py);
            let key = key.call1((fd, fd, EVENT_READ, (&handle, py.None())))?;
            epoll.call_method1(intern!(py, "register"), (fd, libc::EPOLLIN))?;
            keys.set_item(fd, key)?;
            return Ok(handle);
        }
        let add = standard.add_reader.bind(py);
        let all = [slf, fd, callback];
        match context {
            // Before Python 3.15, the standard loop's method does not take one.
            Some(context) if py.version_info() < (3, 15) => {
                let run = context.getattr(intern!(py, "run"))?;
                let callback: Vec<_> = std::iter::once(callback).chain(args.as_slice()).collect();
                slowly(add, &[slf, fd, &run], &PyTuple::new(py, callback)?, None)
            }
            context => slowly(add, &all, args, context),
        }
    }

    /// Stop watching a descriptor for data; return whether it was watched.
    fn _remove_reader<'py>(
        slf: &Bound<'py, Self>,
        fd: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        if !slf.get().is_checked()
            && fd.is_exact_instance_of::<PyInt>()
            && let Some((epoll, keys)) = slf.get().polling(py)?
            && let Some(key) = keys.get_item(fd)?
            && let key = key.cast_into::<PyTuple>()?
            && key.get_item(2)?.eq(EVENT_READ)?
        {
            keys.del_item(fd)?;
            // A descriptor that was closed has left the epoll.
            match epoll.call_method1(intern!(py, "unregister"), (fd,)) {
                Err(error) if error.is_instance_of::<PyOSError>(py) => {}
                result => drop(result?),
            }
            key.get_item(3)?.get_item(0)?.call_method0(intern!(py, "cancel"))?;
            return Ok(PyBool::new(py, true).to_owned().into_any());
        }
        Standard::get(py)?.remove_reader.bind(py).call1((slf, fd))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.fields.traverse(&visit)?;
        let polled = match self.polled.try_lock() {
            Ok(polled) => polled,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()), // a call is using it
        };
        if let Some(polled) = polled.as_ref() {
            visit.call(&polled.selector)?;
            visit.call(&polled.attributes)?;
            visit.call(&polled.epoll)?;
            visit.call(&polled.keys)?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        let polled = self.polled().take();
        drop(polled);
        self.fields.clear();
    }
}

/// The objects that one turn works on.
struct Queues<'py> {
    epoll: Bound<'py, PyAny>,
    keys: Bound<'py, PyDict>,
    ready: Bound<'py, PyAny>,
    scheduled: Bound<'py, PyList>,
}

impl LoopCore {
    /// The counter of the loop's turns.
    pub(super) fn turns(&self) -> &Arc<Turns> {
        &self.turns
    }

    /// How long transports may deliver datagrams before other callbacks must run.
    ///
    /// Up to `uncounted` callbacks may be waiting: they are the transports' own.
    pub(super) fn spare_time(slf: &Bound<'_, Self>, uncounted: usize) -> PyResult<Duration> {
        let (ready, scheduled) = slf.get().fields.queues(slf.py())?;
        if ready.len()? > uncounted {
            return Ok(Duration::ZERO);
        }
        if scheduled.len()? == 0 {
            return Ok(LONGEST_DRAIN);
        }
        let when = Handles::get(slf.py())?.when(&scheduled.get_item(0)?)?;
        let this_turn = *slf.get().clock();
        let now = match this_turn.filter(|clock| clock.turn == slf.get().turns.count()) {
            Some(clock) => clock.time + clock.read_at.elapsed().as_secs_f64(),
            None => time(slf)?,
        };
        let until = when - now;
        let until = Duration::try_from_secs_f64(until.max(0.0)).unwrap_or(LONGEST_DRAIN);
        Ok(until.clamp(SOON, LONGEST_DRAIN))
    }

    fn clock(&self) -> MutexGuard<'_, Option<Clock>> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn polled(&self) -> MutexGuard<'_, Option<Polled>> {
        self.polled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the loop is in debug mode, or closed: then the standard loop's code has more to do.
    fn is_checked(&self) -> bool {
        self.fields.is_debug() || self.fields.is_closed()
    }

    /// The epoll and the keys of the loop's selector, if the selector need not be called.
    fn polling<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<Option<(Bound<'py, PyAny>, Bound<'py, PyDict>)>> {
        let (attributes, epoll, keys) = {
            let polled = self.polled();
            let polled = polled.as_ref().filter(|one| self.fields.has_selector(&one.selector));
            let Some(polled) = polled else { return Ok(None) };
            let bound = |object: &Py<PyDict>| object.bind(py).clone();
            (bound(&polled.attributes), polled.epoll.bind(py).clone(), bound(&polled.keys))
        };
        let is_replaced = attributes.contains(intern!(py, "select"))?;
        Ok((!is_replaced).then_some((epoll, keys)))
    }

    /// Returns the loop's queues; `None` if the standard loop's own code must run this turn.
    fn queues<'py>(slf: &Bound<'py, Self>) -> PyResult<Option<Queues<'py>>> {
        let (py, this) = (slf.py(), slf.get());
        let Some((epoll, keys)) = this.polling(py)? else { return Ok(None) };
        if this.is_checked() || !Handles::get(py)?.are_unchanged(py)? {
            return Ok(None);
        }
        let (ready, scheduled) = this.fields.queues(py)?;
        let Ok(scheduled) = scheduled.cast_into::<PyList>() else { return Ok(None) };
        let cancelled = intern!(py, "_timer_cancelled_count");
        if scheduled.len() > MANY_TIMERS && slf.getattr(cancelled)?.gt(scheduled.len() / 2)? {
            return Ok(None);
        }
        Ok(Some(Queues { epoll, keys, ready, scheduled }))
    }

    /// Polls, and calls what is ready, in the standard loop's order: callbacks that were waiting,
    /// those of descriptors, and those of timers.
    fn turn(slf: &Bound<'_, Self>, queues: &Queues<'_>) -> PyResult<()> {
        let Queues { ready, scheduled, .. } = queues;
        let handles = Handles::get(slf.py())?;
        Self::drop_cancelled(slf, scheduled)?;
        let milliseconds = Self::patience(slf, queues)?;
        Self::poll(slf, queues, milliseconds)?;
        Self::take_due(slf, queues)?;
        let standard = Standard::get(slf.py())?;
        for _ in 0..ready.len()? {
            let handle = standard.pop_left(ready)?;
            handles.run(&handle)?;
        }
        Ok(())
    }

    /// Removes timers that were cancelled and would be the next.
    fn drop_cancelled(slf: &Bound<'_, Self>, scheduled: &Bound<'_, PyList>) -> PyResult<()> {
        let py = slf.py();
        let (handles, mut dropped) = (Handles::get(py)?, 0);
        while !scheduled.is_empty() && handles.is_cancelled(&scheduled.get_item(0)?)? {
            handles.set_scheduled(&heap::pop(scheduled)?, false)?;
            dropped += 1;
        }
        if dropped > 0 {
            let name = intern!(py, "_timer_cancelled_count");
            slf.setattr(name, slf.getattr(name)?.sub(dropped)?)?;
        }
        Ok(())
    }

    /// How long to wait for a descriptor, in milliseconds; -1 for ever.
    fn patience(slf: &Bound<'_, Self>, queues: &Queues<'_>) -> PyResult<c_int> {
        let Queues { ready, scheduled, .. } = queues;
        if ready.len()? > 0 || slf.get().fields.is_stopping() {
            return Ok(0);
        }
        if scheduled.is_empty() {
            return Ok(-1);
        }
        let seconds = Handles::get(slf.py())?.when(&scheduled.get_item(0)?)? - time(slf)?;
        Ok((seconds.clamp(0.0, LONGEST_WAIT) * 1e3).ceil() as c_int)
    }

    /// Waits for descriptors, and queues their callbacks.
    fn poll(slf: &Bound<'_, Self>, queues: &Queues<'_>, milliseconds: c_int) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if milliseconds != 0 {
            py.check_signals()?; // one that came since Python code last ran would not end the wait
        }
        let lock = || this.events.lock().unwrap_or_else(PoisonError::into_inner);
        let epoll: RawFd = queues.epoll.call_method0(intern!(py, "fileno"))?.extract()?;
        let most = queues.keys.len().clamp(1, MOST_EVENTS);
        // Taken out, because a callback may run the loop.
        let mut events = std::mem::take(&mut *lock());
        let mut wait = || events.wait(epoll, most, milliseconds);
        let waited = if milliseconds == 0 { wait() } else { py.detach(wait) };
        let queued = match waited {
            Ok(()) => events.found().try_for_each(|ready| Self::queue(slf, queues, ready)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => py.check_signals(),
            Err(error) => Err(Error::Os(error).into()),
        };
        *lock() = events;
        queued
    }

    fn queue(slf: &Bound<'_, Self>, queues: &Queues<'_>, ready: Ready) -> PyResult<()> {
        let py = slf.py();
        let Some(key) = queues.keys.get_item(ready.fd)? else { return Ok(()) };
        let key = key.cast::<PyTuple>()?; // fileobj, fd, events, (reader, writer)
        let wanted: c_int = key.get_item(2)?.extract()?;
        let handles = key.get_item(3)?.cast_into::<PyTuple>()?;
        let queue = |handle: Bound<'_, PyAny>, remove| {
            if handle.is_none() {
                return Ok(());
            }
            if Handles::get(py)?.is_cancelled(&handle)? {
                return slf.call_method1(remove, (key.get_item(0)?,)).map(drop);
            }
            Standard::get(py)?.append(&queues.ready, &handle)
        };
        if ready.events & !(libc::EPOLLOUT as u32) != 0 && wanted & EVENT_READ != 0 {
            queue(handles.get_item(0)?, intern!(py, "_remove_reader"))?;
        }
        if ready.events & !(libc::EPOLLIN as u32) != 0 && wanted & EVENT_WRITE != 0 {
            queue(handles.get_item(1)?, intern!(py, "_remove_writer"))?;
        }
        Ok(())
    }

    /// Queues the timers that are due.
    fn take_due(slf: &Bound<'_, Self>, queues: &Queues<'_>) -> PyResult<()> {
        let Queues { ready, scheduled, .. } = queues;
        if scheduled.is_empty() {
            return Ok(());
        }
        let py = slf.py();
        let handles = Handles::get(py)?;
        let resolution: f64 = slf.getattr(intern!(py, "_clock_resolution"))?.extract()?;
        let now = time(slf)?;
        let turn = slf.get().turns.count();
        *slf.get().clock() = Some(Clock { turn, time: now, read_at: Instant::now() });
        // The clock's value may be so large that adding its resolution changes nothing.
        let end = now + resolution.max(now.next_up() - now);
        while !scheduled.is_empty() && handles.when(&scheduled.get_item(0)?)? < end {
            let timer = heap::pop(scheduled)?;
            handles.set_scheduled(&timer, false)?;
            Standard::get(py)?.append(ready, &timer)?;
        }
        Ok(())
    }
}

/// Calls a method that schedules a callback.
fn slowly<'py>(
    method: &Bound<'py, PyAny>,
    first: &[&Bound<'py, PyAny>],
    args: &Bound<'py, PyTuple>,
    context: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = method.py();
    let all: Vec<_> = first.iter().copied().chain(args.as_slice()).collect();
    let all = PyTuple::new(py, all)?;
    let Some(context) = context else { return method.call1(all) };
    let keywords = PyDict::new(py);
    keywords.set_item(intern!(py, "context"), context)?;
    method.call(all, Some(&keywords))
}

/// The time of the loop's clock, in seconds.
fn time(event_loop: &Bound<'_, LoopCore>) -> PyResult<f64> {
    Standard::get(event_loop.py())?.time(event_loop)?.extract()
}
