//! A batch's index for Python: the offset and the length of each payload.

use std::ffi::{c_int, c_void};
use std::ptr;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;

use super::Batch;

/// The column of the index that a view shows.
#[derive(Clone, Copy)]
pub(super) enum Column {
    Offsets,
    Lengths,
}

/// The exporter of one column of a batch's index.
#[pyclass(frozen)]
pub(super) struct Index {
    batch: Py<Batch>,
    column: Column,
    /// `shape[0]` of the view: the number of datagrams when it was created.
    len: ffi::Py_ssize_t,
}

impl Index {
    pub(super) fn view<'py>(
        batch: &Bound<'py, Batch>,
        column: Column,
    ) -> PyResult<Bound<'py, PyMemoryView>> {
        let len = batch.get().len() as ffi::Py_ssize_t;
        let index = Bound::new(batch.py(), Self { batch: batch.clone().unbind(), column, len })?;
        PyMemoryView::from(&index)
    }
}

#[pymethods]
impl Index {
    /// # Safety
    /// Called by Python, with a valid pointer to a view.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        const ITEM: isize = size_of::<u32>() as isize;
        let this = slf.get();
        let batch = this.batch.bind(slf.py()).get();
        let column = match this.column {
            Column::Offsets => &batch.offsets,
            Column::Lengths => &batch.lengths,
        };
        let start = column.as_ptr().cast_mut().cast::<c_void>();
        let len = this.len * ITEM;
        // SAFETY: the column has at least `len` bytes and lives as long as the batch. The view
        //   refers to
        // this object, and this object to the batch. The view is read-only.
        unsafe {
            if ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, len, 1, flags) != 0 {
                return Err(PyErr::fetch(slf.py()));
            }
            // FillInfo describes bytes; these are unsigned ints.
            (*view).itemsize = ITEM;
            if flags & ffi::PyBUF_FORMAT == ffi::PyBUF_FORMAT {
                (*view).format = c"I".as_ptr().cast_mut();
            }
            if flags & ffi::PyBUF_ND == ffi::PyBUF_ND {
                (*view).shape = ptr::from_ref(&this.len).cast_mut();
            }
            if flags & ffi::PyBUF_STRIDES == ffi::PyBUF_STRIDES {
                (*view).strides = &raw mut (*view).itemsize;
            }
        }
        Ok(())
    }
}
