//! Interfaces and IP addresses as arguments.

use std::ffi::CString;
use std::io;
use std::net::IpAddr;

use pyo3::exceptions::{PyOSError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyString};

use crate::net::multicast::interface_with_address;
use crate::net::names::interface_index;
use crate::python::error::{Error, Result};

/// Reads a numeric IP address.
pub(super) fn parse_ip(text: &str, what: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| {
        PyValueError::new_err(format!("{what} must be a numeric IP address, not {text:?}")).into()
    })
}

/// The index of an interface, given its name, its index, or one of its addresses.
pub(super) fn index_of(interface: Option<&Bound<'_, PyAny>>) -> Result<u32> {
    let Some(interface) = interface else { return Ok(0) };
    if interface.is_instance_of::<PyInt>() {
        return Ok(interface.extract()?);
    }
    let Ok(name) = interface.cast::<PyString>() else {
        let message = "interface must be a name, an index or an address of an interface";
        return Err(PyTypeError::new_err(message).into());
    };
    let name = name.to_str()?;
    let index = match name.parse::<IpAddr>() {
        Ok(address) => interface_with_address(address),
        Err(_) => match CString::new(name) {
            Ok(name) => interface_index(&name),
            Err(_) => Err(io::Error::from_raw_os_error(libc::ENODEV)),
        },
    };
    index.map_err(|error| {
        let text = format!("no interface {name:?}");
        Error::Python(PyOSError::new_err((error.raw_os_error(), text)))
    })
}
