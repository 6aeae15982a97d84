//! Attributes that objects keep in slots (`__slots__`), read and written in place.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};

/// An attribute of the objects of one or two classes.
///
/// If the class keeps it in a slot, it is accessed there. Otherwise, and for other objects, it is
/// accessed by its name.
pub(super) struct ObjectSlot {
    name: Py<PyString>,
    classes: [Py<PyType>; 2],
    /// How far into the object the slot is, in bytes.
    offset: Option<usize>,
}

impl ObjectSlot {
    /// Finds the slot of a class, and of a subclass that adds to it, or again the class.
    pub(super) fn new(
        class: &Bound<'_, PyType>,
        subclass: &Bound<'_, PyType>,
        name: &str,
    ) -> PyResult<Self> {
        let py = class.py();
        // Without the global lock, another thread may change the slot in the middle of an access.
        let has_lock = !free_threaded(py)? && subclass.is_subclass(class)?;
        let offset = if has_lock { offset(class, name)? } else { None };
        let classes = [class.clone().unbind(), subclass.clone().unbind()];
        Ok(Self { name: PyString::intern(py, name).unbind(), classes, offset })
    }

    /// The attribute's value.
    #[inline]
    pub(super) fn get<'py>(&self, object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = object.py();
        if let Some(place) = self.place(object) {
            // SAFETY: the slot holds a reference to an object, or null.
            if let Some(value) = unsafe { Bound::from_borrowed_ptr_or_opt(py, *place) } {
                return Ok(value);
            }
        }
        object.getattr(self.name.bind(py))
    }

    /// Sets the attribute.
    #[inline]
    pub(super) fn set<'py>(
        &self,
        object: &Bound<'py, PyAny>,
        value: Bound<'py, PyAny>,
    ) -> PyResult<()> {
        let py = object.py();
        let Some(place) = self.place(object) else {
            return object.setattr(self.name.bind(py), value);
        };
        // SAFETY: as above; the slot gets the new reference, and gives up the previous one.
        let previous = unsafe { Bound::from_owned_ptr_or_opt(py, place.replace(value.into_ptr())) };
        drop(previous); // last, because it may run Python code
        Ok(())
    }

    /// Where an object's slot is.
    #[inline]
    fn place(&self, object: &Bound<'_, PyAny>) -> Option<*mut *mut ffi::PyObject> {
        let class = object.get_type_ptr();
        if !self.classes.iter().any(|known| known.as_ptr().cast() == class) {
            return None;
        }
        // SAFETY: objects of these classes have the slot there. The global lock is held, so nobody
        // else uses it now.
        self.offset.map(|offset| unsafe { object.as_ptr().byte_add(offset).cast() })
    }
}

/// How far into a class's objects a slot is, if the attribute is one.
fn offset(class: &Bound<'_, PyType>, name: &str) -> PyResult<Option<usize>> {
    let attribute = class.getattr(name)?;
    if attribute.get_type_ptr() != &raw mut ffi::PyMemberDescr_Type {
        return Ok(None);
    }
    let descriptor = attribute.as_ptr().cast::<ffi::PyMemberDescrObject>();
    // SAFETY: an object of that type; its class keeps the member's definition for as long as it
    // lives.
    let (owner, member) = unsafe { ((*descriptor).d_common.d_type, &*(*descriptor).d_member) };
    let is_slot = member.type_code == ffi::Py_T_OBJECT_EX && member.flags & ffi::Py_READONLY == 0;
    let is_own = owner == class.as_type_ptr();
    Ok(usize::try_from(member.offset).ok().filter(|_| is_slot && is_own))
}

/// Whether the interpreter was built without the global lock, even if it runs with it.
fn free_threaded(py: Python<'_>) -> PyResult<bool> {
    py.import("sys")?.getattr("abiflags")?.contains("t")
}
