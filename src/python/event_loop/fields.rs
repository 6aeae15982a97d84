//! The attributes of the standard loop that every turn reads. As properties, they are found without a
//! search in the loop's dictionary.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use pyo3::exceptions::PyAttributeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;

use super::LoopCore;

/// The values of the attributes.
#[derive(Default)]
pub(super) struct Fields {
    is_debug: AtomicBool,
    is_closed: AtomicBool,
    is_stopping: AtomicBool,
    objects: Mutex<Objects>,
}

#[derive(Default)]
struct Objects {
    ready: Option<Py<PyAny>>,
    scheduled: Option<Py<PyAny>>,
    selector: Option<Py<PyAny>>,
}

type Object = fn(&mut Objects) -> &mut Option<Py<PyAny>>;

impl Fields {
    /// Whether the loop is in debug mode.
    pub(super) fn is_debug(&self) -> bool {
        self.is_debug.load(Ordering::Relaxed)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    /// Whether the loop ends after this turn.
    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    /// The handles that run next, and the heap of timers.
    pub(super) fn queues<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let objects = self.objects();
        match (&objects.ready, &objects.scheduled) {
            (Some(ready), Some(scheduled)) => {
                Ok((ready.bind(py).clone(), scheduled.bind(py).clone()))
            }
            _ => Err(missing("_ready")),
        }
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, py: Python<'_>, object: Object, name: &str) -> PyResult<Py<PyAny>> {
        let mut objects = self.objects();
        object(&mut objects).as_ref().map(|found| found.clone_ref(py)).ok_or_else(|| missing(name))
    }

    fn set(&self, object: Object, value: Option<Py<PyAny>>) {
        let previous = std::mem::replace(object(&mut self.objects()), value);
        drop(previous); // with the lock released, because it may run Python code
    }

    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        let objects = match self.objects.try_lock() {
            Ok(objects) => objects,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()), // a call is using it
        };
        for object in [&objects.ready, &objects.scheduled, &objects.selector] {
            visit.call(object)?;
        }
        Ok(())
    }

    pub(super) fn clear(&self) {
        for object in [ready as Object, scheduled, selector] {
            self.set(object, None);
        }
    }
}

fn ready(objects: &mut Objects) -> &mut Option<Py<PyAny>> {
    &mut objects.ready
}

fn scheduled(objects: &mut Objects) -> &mut Option<Py<PyAny>> {
    &mut objects.scheduled
}

fn selector(objects: &mut Objects) -> &mut Option<Py<PyAny>> {
    &mut objects.selector
}

fn missing(name: &str) -> PyErr {
    PyAttributeError::new_err(format!("the event loop has no attribute {name:?} yet"))
}

#[pymethods]
impl LoopCore {
    #[getter(_debug)]
    fn get_is_debug(&self) -> bool {
        self.fields.is_debug()
    }

    #[setter(_debug)]
    fn set_is_debug(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.fields.is_debug.store(value.is_truthy()?, Ordering::Relaxed);
        Ok(())
    }

    #[getter(_closed)]
    fn get_is_closed(&self) -> bool {
        self.fields.is_closed()
    }

    #[setter(_closed)]
    fn set_is_closed(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.fields.is_closed.store(value.is_truthy()?, Ordering::Relaxed);
        Ok(())
    }

    #[getter(_stopping)]
    fn get_is_stopping(&self) -> bool {
        self.fields.is_stopping()
    }

    #[setter(_stopping)]
    fn set_is_stopping(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.fields.is_stopping.store(value.is_truthy()?, Ordering::Relaxed);
        Ok(())
    }

    #[getter(_ready)]
    fn get_ready(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.fields.get(py, ready, "_ready")
    }

    #[setter(_ready)]
    fn set_ready(&self, value: Py<PyAny>) {
        self.fields.set(ready, Some(value));
    }

    #[getter(_scheduled)]
    fn get_scheduled(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.fields.get(py, scheduled, "_scheduled")
    }

    #[setter(_scheduled)]
    fn set_scheduled(&self, value: Py<PyAny>) {
        self.fields.set(scheduled, Some(value));
    }

    #[getter(_selector)]
    fn get_selector(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.fields.get(py, selector, "_selector")
    }

    #[setter(_selector)]
    fn set_selector(&self, value: Py<PyAny>) {
        self.stop_polling_directly();
        self.fields.set(selector, Some(value));
    }
}
