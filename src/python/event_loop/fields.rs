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

/// Makes one of the values a property.
macro_rules! property {
    ($index:ident, $name:ident, $get:ident, $set:ident, $delete:ident) => {
        #[pymethods]
        impl LoopCore {
            #[getter($name)]
            fn $get(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
                self.fields.get(py, $index)
            }

            #[setter($name)]
            fn $set(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
                self.fields.set($index, Some(value))
            }

            #[deleter($name)]
            fn $delete(&self) -> PyResult<()> {
                self.fields.set($index, None)
            }
        }
    };
}

property!(READY, _ready, get_ready, set_ready, delete_ready);
property!(SCHEDULED, _scheduled, get_scheduled, set_scheduled, delete_scheduled);
property!(SELECTOR, _selector, get_selector, set_selector, delete_selector);
property!(DEBUG, _debug, get_debug, set_debug, delete_debug);
property!(CLOSED, _closed, get_closed, set_closed, delete_closed);
property!(STOPPING, _stopping, get_stopping, set_stopping, delete_stopping);
