//! Audit events (PEP 578), the same ones that the standard module raises.

use std::ffi::{CStr, c_char, c_int};

use pyo3::ffi;
use pyo3::prelude::*;

use super::error::Result;

unsafe extern "C" {
    // Missing in pyo3's bindings; public since CPython 3.8.
    fn PySys_Audit(event: *const c_char, format: *const c_char, ...) -> c_int;
}

/// Raises an event with a socket and one more object. A hook may refuse it with an exception.
///
/// Calls C directly, so that it costs next to nothing if there is no hook.
pub(crate) fn event(
    event: &CStr,
    socket: &Bound<'_, PyAny>,
    object: &Bound<'_, PyAny>,
) -> Result<()> {
    // SAFETY: attached; the format takes two objects, which are borrowed.
    let result =
        unsafe { PySys_Audit(event.as_ptr(), c"OO".as_ptr(), socket.as_ptr(), object.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(PyErr::fetch(socket.py()).into()) }
}

/// The event of a new socket.
pub(crate) fn new_socket(
    socket: &Bound<'_, PyAny>,
    family: c_int,
    kind: c_int,
    protocol: c_int,
) -> Result<()> {
    let (event, format) = (c"socket.__new__", c"Oiii");
    let object: *mut ffi::PyObject = socket.as_ptr();
    // SAFETY: attached; the format takes an object, which is borrowed, and three ints.
    let result =
        unsafe { PySys_Audit(event.as_ptr(), format.as_ptr(), object, family, kind, protocol) };
    if result == 0 { Ok(()) } else { Err(PyErr::fetch(socket.py()).into()) }
}
