//! Descriptors that are watched together.

use std::os::fd::RawFd;
use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::{PyFileExistsError, PyOSError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::net::{ReadyEvents, hang_if_ended};
use crate::python::error::Error;

/// Watches many descriptors for a loop, which watches only the hub.
#[pyclass(frozen, weakref, module = "tomada._core")]
pub(crate) struct ReadHub {
    epoll: Py<PyAny>,
    /// By descriptor, each with its arguments.
    callbacks: Py<PyDict>,
    /// Reused to avoid allocations.
    events: Mutex<ReadyEvents>,
}

/// At most this many descriptors are handled at a time.
const MOST_EVENTS: usize = 64;

#[pymethods]
impl ReadHub {
    #[new]
    fn new(py: Python<'_>) -> PyResult<Self> {
        Ok(Self {
            epoll: py.import("select")?.getattr("epoll")?.call0()?.unbind(),
            callbacks: PyDict::new(py).unbind(),
            events: Mutex::default(),
        })
    }

    /// Return the descriptor for the loop to watch.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        self.epoll.call_method0(py, intern!(py, "fileno"))?.extract(py)
    }

    /// Call a function whenever a descriptor is readable or has an error.
    #[pyo3(signature = (fd, callback, *args))]
    fn add(
        &self,
        fd: RawFd,
        callback: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
    ) -> PyResult<()> {
        let py = callback.py();
        // A descriptor that was closed has left the epoll, and may be another file's by now.
        match self.epoll.call_method1(py, intern!(py, "register"), (fd, libc::EPOLLIN)) {
            Err(error) if error.is_instance_of::<PyFileExistsError>(py) => {}
            result => drop(result?),
        }
        self.callbacks.bind(py).set_item(fd, (callback, args))
    }

    /// Stop watching a descriptor; return whether it was watched.
    fn remove(&self, py: Python<'_>, fd: RawFd) -> PyResult<bool> {
        let callbacks = self.callbacks.bind(py);
        let was_watched = callbacks.contains(fd)?;
        if was_watched {
            callbacks.del_item(fd)?;
            // A descriptor that was closed has left the epoll, and may be another file's by now.
            match self.epoll.call_method1(py, intern!(py, "unregister"), (fd,)) {
                Err(error) if error.is_instance_of::<PyOSError>(py) => {}
                result => drop(result?),
            }
        }
        Ok(was_watched)
    }

    /// Call the functions of the descriptors that are ready.
    fn ready(&self, py: Python<'_>) -> PyResult<()> {
        hang_if_ended(|| self.call(py))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.epoll)?;
        visit.call(&self.callbacks)
    }
}

impl ReadHub {
    fn call(&self, py: Python<'_>) -> PyResult<()> {
        let lock = || self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let epoll = self.fileno(py)?;
        // Taken out, because a callback may run the loop.
        let mut events = std::mem::take(&mut *lock());
        let result = events.wait(epoll, MOST_EVENTS, 0).map_err(|error| Error::Os(error).into());
        let result = result.and_then(|()| {
            events.found().try_for_each(|ready| {
                let Some(call) = self.callbacks.bind(py).get_item(ready.fd)? else { return Ok(()) };
                let (callback, args): (Bound<'_, PyAny>, Bound<'_, PyTuple>) = call.extract()?;
                callback.call1(args).map(drop)
            })
        });
        *lock() = events;
        result
    }
}
