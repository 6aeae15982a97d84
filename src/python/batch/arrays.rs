//! A batch's datagrams as arrays: one object for all of them. The arrays are copies, which the next
//! receive does not change.

use std::ptr;
use std::sync::atomic::Ordering;

use pyo3::exceptions::{PyModuleNotFoundError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyList, PyMemoryView};

use super::Batch;
use crate::net::{Address, AddressKind, with_room};
use crate::python::buffer::new_bytes;
use crate::python::error::Result;

/// The fields of an address, for numpy; `record` writes them.
const FIELDS: [(&str, &str); 4] =
    [("family", "u2"), ("port", "u2"), ("scope", "u4"), ("address", "(16,)u1")];
const RECORD: usize = 24;

#[pymethods]
impl Batch {
    /// The address of each datagram, as a numpy array of records.
    #[getter]
    fn addresses_array<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>> {
        let numpy = import_numpy(py, "addresses_array")?;
        let dtype = numpy.getattr("dtype")?.call1((PyList::new(py, FIELDS)?,))?;
        let records = {
            let contents = self.lock()?;
            let addresses = contents.layout.address_of_each();
            let mut records = with_room(addresses.len() * RECORD, "addresses")?;
            for address in addresses {
                records.extend_from_slice(&record(address)?);
            }
            records
        };
        Ok(numpy.call_method1("frombuffer", (PyByteArray::new(py, &records), dtype))?)
    }

    /// When the kernel received each datagram, in nanoseconds since 1970.
    #[getter]
    fn timestamps<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>> {
        let bytes = {
            let contents = self.lock()?;
            let mut bytes = with_room(self.len() * size_of::<i64>(), "timestamps")?;
            for time in contents.layout.timestamp_of_each() {
                bytes.extend_from_slice(&time.to_ne_bytes());
            }
            new_bytes(py, &bytes)?
        };
        Ok(PyMemoryView::from(&bytes)?.call_method1("cast", ("q",))?)
    }

    /// The payloads as a numpy array of records.
    #[pyo3(signature = (dtype, *, errors="raise"))]
    fn rows<'py>(
        &self,
        py: Python<'py>,
        dtype: &Bound<'py, PyAny>,
        errors: &str,
    ) -> Result<Bound<'py, PyAny>> {
        let skips = match errors {
            "raise" => false,
            "skip" => true,
            _ => {
                let message = format!("errors must be 'raise' or 'skip', not {errors:?}");
                return Err(PyValueError::new_err(message).into());
            }
        };
        let numpy = import_numpy(py, "rows()")?;
        let dtype = numpy.getattr("dtype")?.call1((dtype,))?;
        let size = dtype.getattr(intern!(py, "itemsize"))?.extract()?;
        let payloads = self.payloads_of_size(size, skips)?;
        Ok(numpy.call_method1("frombuffer", (PyByteArray::new(py, &payloads), dtype))?)
    }
}

impl Batch {
    /// Copies of the payloads that have a size, one after another. Payloads of other sizes are an
    /// error, unless it `skips` them.
    fn payloads_of_size(&self, size: usize, skips: bool) -> Result<Vec<u8>> {
        let _contents = self.lock()?;
        let offsets = self.offsets[..self.len()].iter().map(|at| at.load(Ordering::Relaxed));
        let lengths = self.lengths.iter().map(|len| len.load(Ordering::Relaxed) as usize);
        let mut starts = with_room(self.len(), "the rows of a batch")?;
        for (index, (offset, length)) in offsets.zip(lengths).enumerate() {
            if length == size {
                starts.push(offset as usize);
            } else if !skips {
                let message = format!(
                    "datagram {index} has {length} bytes, but a row of this dtype has {size}; use \
                     errors='skip' to leave such datagrams out"
                );
                return Err(PyValueError::new_err(message).into());
            }
        }
        let mut payloads = with_room::<u8>(starts.len() * size, "the rows of a batch")?;
        for (row, &start) in starts.iter().enumerate() {
            // SAFETY: offset and length were stored together and lie within the memory, as in
            // `payloads`. The copy has room for a row of this size for each start.
            unsafe {
                let to = payloads.as_mut_ptr().add(row * size);
                ptr::copy_nonoverlapping(self.memory.add(start), to, size);
            }
        }
        // SAFETY: that many rows were written.
        unsafe { payloads.set_len(starts.len() * size) };
        Ok(payloads)
    }
}

/// An address as a record of [`FIELDS`]: zeros for a datagram without one.
fn record(address: Option<&Address>) -> PyResult<[u8; RECORD]> {
    let (family, port, scope, ip) = match address.map(Address::kind) {
        None | Some(AddressKind::Unnamed) => return Ok([0; RECORD]),
        Some(AddressKind::V4(address)) => {
            let mut ip = [0; 16];
            ip[..4].copy_from_slice(&address.ip().octets());
            (libc::AF_INET, address.port(), 0, ip)
        }
        Some(AddressKind::V6(address)) => {
            (libc::AF_INET6, address.port(), address.scope_id(), address.ip().octets())
        }
        Some(_) => {
            let message = "addresses_array holds IP addresses only; use addresses for AF_UNIX";
            return Err(PyValueError::new_err(message));
        }
    };
    let mut record = [0; RECORD];
    record[..2].copy_from_slice(&(family as u16).to_ne_bytes());
    record[2..4].copy_from_slice(&port.to_ne_bytes());
    record[4..8].copy_from_slice(&scope.to_ne_bytes());
    record[8..].copy_from_slice(&ip);
    Ok(record)
}

fn import_numpy<'py>(py: Python<'py>, user: &str) -> PyResult<Bound<'py, PyModule>> {
    py.import("numpy").map_err(|error| {
        let is_missing = error.is_instance_of::<PyModuleNotFoundError>(py);
        if !is_missing {
            return error;
        }
        let message = format!("{user} needs numpy, which is not installed: pip install numpy");
        PyModuleNotFoundError::new_err(message)
    })
}
