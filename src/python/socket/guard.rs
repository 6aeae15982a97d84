//! The guard of a socket.

use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;

use super::Socket;
use crate::python::error::Result;
use crate::python::guard::Guard;

/// The guard that the user has set.
#[derive(Default)]
pub(super) struct GivenGuard(Mutex<Option<Py<Guard>>>);

#[pymethods]
impl Socket {
    /// The guard, or None.
    #[getter]
    fn guard(&self, py: Python<'_>) -> Option<Py<Guard>> {
        let given = self.given_guard.0.lock().unwrap_or_else(PoisonError::into_inner);
        given.as_ref().map(|guard| guard.clone_ref(py))
    }

    #[setter]
    fn set_guard(&self, guard: Option<Bound<'_, Guard>>) -> Result<()> {
        self.socket()?.set_guard(guard.as_ref().map(|guard| guard.get().inner().clone()))?;
        let mut given = self.given_guard.0.lock().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *given, guard.map(Bound::unbind));
        drop(given);
        drop(old);
        Ok(())
    }
}
