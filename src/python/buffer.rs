//! Python's buffers as memory for the kernel.

use std::ffi::c_int;
use std::io;
use std::ptr;

use pyo3::exceptions::{PyMemoryError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyIterator, PyList, PyMemoryView, PySlice, PyString};

use super::error::{Error, Result};
use crate::net::{RecvSlice, SendSlice, make_room, with_room};

/// Longer than any datagram of any family: no call accepts as much (`sendmsg(2)` in the kernel).
const LONGEST: usize = c_int::MAX as usize;

/// Whether an object is of a type that the standard transports accept as a datagram.
pub(crate) fn is_datagram(object: &Bound<'_, PyAny>) -> bool {
    object.is_instance_of::<PyBytes>()
        || object.is_instance_of::<PyByteArray>()
        || object.is_instance_of::<PyMemoryView>()
}

/// Whether an object that should be an iterable of datagrams is one of them, or a text.
pub(crate) fn is_one_datagram(object: &Bound<'_, PyAny>) -> bool {
    is_datagram(object) || object.is_instance_of::<PyString>()
}

/// A bytes-like object to send, whose memory is kept in place.
pub(crate) enum Readable<'py> {
    /// The usual case, which needs no export: `bytes` objects never change and never move.
    Bytes(Bound<'py, PyBytes>),
    Exported(Export<'py>),
}

impl<'py> Readable<'py> {
    /// Accepts any bytes-like object; raises `TypeError` for other objects.
    pub(crate) fn new(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        match object.cast_exact::<PyBytes>() {
            Ok(bytes) => Ok(Self::Bytes(bytes.clone())),
            Err(_) => Export::new(object, ffi::PyBUF_SIMPLE).map(Self::Exported),
        }
    }

    /// Reads all items of an iterable; if it is not one, raises `TypeError` with `message`.
    pub(crate) fn all(iterable: &Bound<'py, PyAny>, message: &'static str) -> PyResult<Vec<Self>> {
        if let Ok(list) = iterable.cast_exact::<PyList>() {
            return gather(list.iter().map(|item| Self::new(&item)));
        }
        let items = iterate(iterable, message)?;
        gather(items.map(|item| Self::new(&item?)))
    }

    pub(crate) fn slice(&self) -> SendSlice<'_> {
        let (start, len) = self.memory();
        // SAFETY: bytes never move, and an exporter keeps the memory in place until the export is
        // dropped.
        unsafe { SendSlice::from_raw(start, len) }
    }

    /// The number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.slice().len()
    }

    /// A copy, for short data that must not change while it is read. Raises `MemoryError` if it is
    /// too long (a mapped file may be larger than all memory).
    pub(crate) fn copy(&self) -> PyResult<Vec<u8>> {
        let (start, len) = self.memory();
        let mut copy = with_room(len, "a copy of the data").map_err(Error::from)?;
        // SAFETY: the memory is in place, and the copy has room for it. If another thread writes
        // there meanwhile, the copy is garbled, as the exporter allows.
        unsafe {
            ptr::copy_nonoverlapping(start, copy.as_mut_ptr(), len);
            copy.set_len(len);
        }
        Ok(copy)
    }

    /// The same as `bytes`, which is the object itself if it has exactly that type. Data longer
    /// than any datagram is not copied but fails with `EMSGSIZE`: a mapped file may be larger than
    /// all memory, and not every allocator fails before the copy has filled it.
    pub(crate) fn into_bytes(self, py: Python<'py>) -> Result<Bound<'py, PyBytes>> {
        let (start, len) = self.memory();
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Exported(_) if len > LONGEST => {
                Err(io::Error::from_raw_os_error(libc::EMSGSIZE).into())
            }
            // SAFETY: the memory is in place until the export is dropped, as above.
            Self::Exported(_) => Ok(unsafe { copied_bytes(py, start, len) }?),
        }
    }

    fn memory(&self) -> (*const u8, usize) {
        match self {
            Self::Bytes(bytes) => (bytes.as_bytes().as_ptr(), bytes.as_bytes().len()),
            Self::Exported(export) if export.len() == 0 => (ptr::dangling(), 0),
            Self::Exported(export) => (export.view.buf.cast_const().cast(), export.len()),
        }
    }
}

/// Reads all items of an iterator.
pub(crate) fn gather<T>(items: impl Iterator<Item = PyResult<T>>) -> PyResult<Vec<T>> {
    let mut gathered = Vec::new();
    for item in items {
        push(&mut gathered, item?)?;
    }
    Ok(gathered)
}

/// Appends to a vector that may grow large.
pub(crate) fn push<T>(items: &mut Vec<T>, item: T) -> PyResult<()> {
    make_room(items, 1, "a list").map_err(Error::from)?;
    items.push(item);
    Ok(())
}

/// Iterates; if the object is not iterable, raises `TypeError` with `message`. Other exceptions
/// propagate.
pub(crate) fn iterate<'py>(
    iterable: &Bound<'py, PyAny>,
    message: &'static str,
) -> PyResult<Bound<'py, PyIterator>> {
    iterable.try_iter().map_err(|error| {
        let is_no_iterable = error.is_instance_of::<PyTypeError>(iterable.py());
        if is_no_iterable { PyTypeError::new_err(message) } else { error }
    })
}

/// A writable bytes-like object to receive into, whose memory is kept in place.
pub(crate) struct Writable<'py>(Export<'py>);

impl<'py> Writable<'py> {
    /// Accepts a writable, contiguous buffer; otherwise raises a `TypeError` that begins with
    /// `what`.
    pub(crate) fn new(object: &Bound<'py, PyAny>, what: &str) -> PyResult<Self> {
        Export::new(object, ffi::PyBUF_WRITABLE).map(Self).map_err(|_| {
            let found = TypeName(object);
            PyTypeError::new_err(format!(
                "{what} must be read-write bytes-like object, not {found}"
            ))
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The first `len` bytes.
    pub(crate) fn slice(&mut self, len: usize) -> RecvSlice<'_> {
        let len = len.min(self.len());
        // SAFETY: the exporter keeps the memory in place until the export is dropped, and promises
        // that any bytes may be written there.
        unsafe { RecvSlice::from_raw(self.0.view.buf.cast(), len) }
    }
}

/// A buffer that an object has exported (`PyObject_GetBuffer`), until this is dropped.
///
/// Boxed, because an exporter may point into the view.
pub(crate) struct Export<'py> {
    view: Box<ffi::Py_buffer>,
    /// Dropping needs the interpreter.
    _attached: Python<'py>,
}

impl<'py> Export<'py> {
    fn new(object: &Bound<'py, PyAny>, flags: i32) -> PyResult<Self> {
        let mut view = Box::<ffi::Py_buffer>::new_uninit();
        // SAFETY: attached, with an object and room for the view.
        if unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), view.as_mut_ptr(), flags) } == -1 {
            return Err(PyErr::fetch(object.py()));
        }
        // SAFETY: the call has filled it.
        let view = unsafe { view.assume_init() };
        Ok(Self { view, _attached: object.py() })
    }

    fn len(&self) -> usize {
        self.view.len as usize
    }
}

impl Drop for Export<'_> {
    fn drop(&mut self) {
        // SAFETY: attached, and the view is one that PyObject_GetBuffer filled.
        unsafe { ffi::PyBuffer_Release(ptr::from_mut(&mut *self.view)) };
    }
}

/// New `bytes`. Raises `MemoryError` if memory is short, where pyo3's own constructor would panic.
pub(crate) fn new_bytes<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    // SAFETY: a slice is readable.
    unsafe { copied_bytes(py, bytes.as_ptr(), bytes.len()) }
}

/// # Safety
/// The memory must be readable. Other threads may write to it.
unsafe fn copied_bytes(
    py: Python<'_>,
    start: *const u8,
    len: usize,
) -> PyResult<Bound<'_, PyBytes>> {
    // SAFETY: attached; the memory is readable for the call, which returns new bytes or sets an
    // exception.
    unsafe {
        let bytes = ffi::PyBytes_FromStringAndSize(start.cast(), len as ffi::Py_ssize_t);
        Ok(Bound::from_owned_ptr_or_err(py, bytes)?.cast_into_unchecked())
    }
}

/// A new list. Raises `MemoryError` if memory is short, where pyo3's own constructor would panic.
pub(crate) fn new_list<'py, T>(
    py: Python<'py>,
    items: Vec<Bound<'py, T>>,
) -> PyResult<Bound<'py, PyList>> {
    // SAFETY: attached. The list is new and has a slot for each item, which takes over its
    // reference.
    unsafe {
        let list = ffi::PyList_New(items.len() as ffi::Py_ssize_t);
        let list = Bound::from_owned_ptr_or_err(py, list)?;
        for (index, item) in items.into_iter().enumerate() {
            ffi::PyList_SET_ITEM(list.as_ptr(), index as ffi::Py_ssize_t, item.into_ptr());
        }
        Ok(list.cast_into_unchecked())
    }
}

/// A slice with step one. pyo3 0.30's constructor leaks its two numbers.
pub(crate) fn new_slice(py: Python<'_>, start: isize, end: isize) -> PyResult<Bound<'_, PySlice>> {
    let (start, end) = (start.into_pyobject(py)?, end.into_pyobject(py)?);
    // SAFETY: attached. The slice takes its own references; a null step means one.
    unsafe {
        let slice = ffi::PySlice_New(start.as_ptr(), end.as_ptr(), ptr::null_mut());
        Ok(Bound::from_owned_ptr_or_err(py, slice)?.cast_into_unchecked())
    }
}

/// New, uninitialised `bytes` to receive into if the thread's scratch memory is too small.
pub(crate) struct NewBytes<'py>(Bound<'py, PyBytes>);

impl<'py> NewBytes<'py> {
    pub(crate) fn new(py: Python<'py>, len: usize) -> PyResult<Self> {
        let len = isize::try_from(len).map_err(|_| PyMemoryError::new_err(()))?;
        // SAFETY: attached; the call returns new bytes or sets an exception.
        unsafe {
            let bytes = ffi::PyBytes_FromStringAndSize(ptr::null(), len);
            Ok(Self(Bound::from_owned_ptr_or_err(py, bytes)?.cast_into_unchecked()))
        }
    }

    pub(crate) fn slice(&mut self) -> RecvSlice<'_> {
        // SAFETY: the bytes are new and not shared, so they may still be written.
        unsafe {
            let start = ffi::PyBytes_AsString(self.0.as_ptr());
            RecvSlice::from_raw(start.cast(), ffi::PyBytes_Size(self.0.as_ptr()) as usize)
        }
    }

    /// The first `len` bytes.
    ///
    /// # Safety
    /// The kernel must have written them.
    pub(crate) unsafe fn finish(self, len: usize) -> PyResult<Bound<'py, PyBytes>> {
        // SAFETY: the memory is there, and the caller says that its first bytes are written.
        unsafe {
            let (start, capacity) =
                (ffi::PyBytes_AsString(self.0.as_ptr()), ffi::PyBytes_Size(self.0.as_ptr()));
            if len == capacity as usize {
                return Ok(self.0);
            }
            new_bytes(self.0.py(), std::slice::from_raw_parts(start.cast(), len))
        }
    }
}

/// The result of `str(object)`. Runs pending signal handlers first: formatting the object would
/// swallow their exceptions.
pub(crate) fn text_of(object: &Bound<'_, PyAny>) -> PyResult<String> {
    Ok(object.str()?.to_string_lossy().into_owned())
}

/// The name of an object's type, for error messages.
pub(crate) struct TypeName<'a, 'py>(pub(crate) &'a Bound<'py, PyAny>);

impl std::fmt::Display for TypeName<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.get_type().name() {
            Ok(name) => name.fmt(f),
            Err(_) => f.write_str("this type"),
        }
    }
}
