//! The attributes of the standard loop that every turn reads. As properties, they are found without a
//! search in the loop's dictionary.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use pyo3::exceptions::PyAttributeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;

use super::LoopCore;

const NAMES: [&str; 6] = ["_ready", "_scheduled", "_selector", "_debug", "_closed", "_stopping"];
// The indexes of the names. The last three are used as truth values only.
const READY: usize = 0;
const SCHEDULED: usize = 1;
const SELECTOR: usize = 2;
const DEBUG: usize = 3;
const CLOSED: usize = 4;
const STOPPING: usize = 5;

/// The values of the attributes, and which of them are true.
#[derive(Default)]
pub(super) struct Fields {
    values: Mutex<[Option<Py<PyAny>>; NAMES.len()]>,
    truths: [AtomicBool; NAMES.len()],
}

impl Fields {
    /// Whether the loop is in debug mode.
    pub(super) fn is_debug(&self) -> bool {
        self.truths[DEBUG].load(Ordering::Relaxed)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.truths[CLOSED].load(Ordering::Relaxed)
    }

    /// Whether the loop ends after this turn.
    pub(super) fn is_stopping(&self) -> bool {
        self.truths[STOPPING].load(Ordering::Relaxed)
    }

    /// The handles that run next, and the heap of timers.
    pub(super) fn queues<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let values = self.values();
        match (&values[READY], &values[SCHEDULED]) {
            (Some(ready), Some(scheduled)) => {
                Ok((ready.bind(py).clone(), scheduled.bind(py).clone()))
            }
            (None, _) => Err(missing(READY)),
            (_, None) => Err(missing(SCHEDULED)),
        }
    }

    /// Whether this is the loop's selector.
    pub(super) fn has_selector(&self, selector: &Py<PyAny>) -> bool {
        self.values()[SELECTOR].as_ref().is_some_and(|found| found.is(selector))
    }

    fn values(&self) -> MutexGuard<'_, [Option<Py<PyAny>>; NAMES.len()]> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, py: Python<'_>, index: usize) -> PyResult<Py<PyAny>> {
        let value = self.values()[index].as_ref().map(|value| value.clone_ref(py));
        value.ok_or_else(|| missing(index))
    }

    fn set(&self, index: usize, value: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        if index >= DEBUG {
            let is_true = value.map_or(Ok(false), PyAnyMethods::is_truthy)?;
            self.truths[index].store(is_true, Ordering::Relaxed);
        }
        self.replace(index, value.map(|value| value.clone().unbind()));
        Ok(())
    }

    fn replace(&self, index: usize, value: Option<Py<PyAny>>) {
        let previous = std::mem::replace(&mut self.values()[index], value);
        drop(previous); // with the lock released, because it may run Python code
    }

    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        let values = match self.values.try_lock() {
            Ok(values) => values,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()), // a call is using them
        };
        values.iter().try_for_each(|value| visit.call(value))
    }

    pub(super) fn clear(&self) {
        for index in 0..NAMES.len() {
            self.replace(index, None);
        }
    }
}

fn missing(index: usize) -> PyErr {
    PyAttributeError::new_err(format!("the event loop has no attribute {:?}", NAMES[index]))
}

#[pymethods]
impl LoopCore {
    #[getter(_ready)]
    fn get_ready(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.fields.get(py, READY)
    }

    #[setter(_ready)]
    fn set_ready(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.fields.set(READY, Some(value))
    }

    #[deleter(_ready)]
    fn delete_ready(&self) -> PyResult<()> {
        self.fields.set(READY, None)
    }

    #[getter(_scheduled)]
    fn get_scheduled(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.fields.get(py, SCHEDULED)
    }

    #[setter(_scheduled)]
    fn set_scheduled(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.fields.set(SCHEDULED, Some(value))
    }

    #[deleter(_scheduled)]
    fn delete_scheduled(&self) -> PyResult<()> {
        self.fields.set(SCHEDULED, None)
    }

    #[getter(_selector)]
    fn get_selector(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.fields.get(py, SELECTOR)
    }

    #[setter(_selector)]
    fn set_selector(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.fields.set(SELECTOR, Some(value))
    }

    #[deleter(_selector)]
    fn delete_selector(&self) -> PyResult<()> {
        self.fields.set(SELECTOR, None)
    }

    #[getter(_debug)]
    fn get_debug(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.fields.get(py, DEBUG)
    }

    #[setter(_debug)]
    fn set_debug(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.fields.set(DEBUG, Some(value))
    }

    #[deleter(_debug)]
    fn delete_debug(&self) -> PyResult<()> {
        self.fields.set(DEBUG, None)
    }

    #[getter(_closed)]
    fn get_closed(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.fields.get(py, CLOSED)
    }

    #[setter(_closed)]
    fn set_closed(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.fields.set(CLOSED, Some(value))
    }

    #[deleter(_closed)]
    fn delete_closed(&self) -> PyResult<()> {
        self.fields.set(CLOSED, None)
    }

    #[getter(_stopping)]
    fn get_stopping(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.fields.get(py, STOPPING)
    }

    #[setter(_stopping)]
    fn set_stopping(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.fields.set(STOPPING, Some(value))
    }

    #[deleter(_stopping)]
    fn delete_stopping(&self) -> PyResult<()> {
        self.fields.set(STOPPING, None)
    }
}
