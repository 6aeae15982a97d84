//! Reading the arguments of a batch's methods.

use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::net::Address;
use crate::python::address::{Mapping, parse};
use crate::python::error::Result;

/// Reads an `int`; a number outside the type's range becomes the nearest one in range.
pub(super) fn saturated(object: &Bound<'_, PyAny>) -> PyResult<i64> {
    object.extract().or_else(|error: PyErr| {
        if !error.is_instance_of::<PyOverflowError>(object.py()) {
            return Err(error);
        }
        Ok(if object.lt(0)? { i64::MIN } else { i64::MAX })
    })
}

pub(super) fn checked(number: i64, name: &str, most: usize) -> PyResult<usize> {
    usize::try_from(number).ok().filter(|number| (1..=most).contains(number)).ok_or_else(|| {
        PyValueError::new_err(format!("{name} must be from 1 to {most}, not {number}"))
    })
}

/// Reads an address of the family that it looks like.
pub(super) fn parse_of_any_family(address: &Bound<'_, PyAny>) -> Result<Address> {
    let family = match address.get_item(0) {
        _ if !address.is_instance_of::<pyo3::types::PyTuple>() => libc::AF_UNIX,
        Ok(host) => match host.extract::<&str>() {
            Ok(host) if host.contains(':') => libc::AF_INET6,
            _ if address.len()? > 2 => libc::AF_INET6,
            _ => libc::AF_INET,
        },
        Err(_) => {
            let message = "an address is a tuple (host, port) or an AF_UNIX name";
            return Err(PyTypeError::new_err(message).into());
        }
    };
    parse(family, address, "append", Mapping::Mapped)
}
