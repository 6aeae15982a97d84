//! The attributes of a Python object.

use std::sync::OnceLock;

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

/// The dictionary of an object. A lookup in it is faster than `getattr`, because it does not search
/// the object's classes first. None of them may have a property of the same name.
#[derive(Default)]
pub(super) struct Attributes(OnceLock<Py<PyDict>>);

impl Attributes {
    /// An attribute that the object itself usually has. `owner` must always be the same object, and
    /// nothing may replace its dictionary.
    pub(super) fn get<'py>(
        &self,
        owner: &Bound<'py, PyAny>,
        name: &Bound<'py, PyString>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if self.0.get().is_none() {
            let attributes = owner.getattr(intern!(owner.py(), "__dict__"))?.cast_into()?;
            self.0.get_or_init(|| attributes.unbind());
        }
        let attributes = self.0.get().map(|attributes| attributes.bind(owner.py()));
        let found = attributes.map(|attributes| attributes.get_item(name)).transpose()?.flatten();
        found.map_or_else(|| owner.getattr(name), Ok)
    }

    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.0.get().map_or(Ok(()), |attributes| visit.call(attributes))
    }
}
