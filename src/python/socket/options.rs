//! Socket options and timeouts.

use std::ffi::{CString, c_int};

use pyo3::exceptions::{PyOSError, PyOverflowError, PyRuntimeWarning, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyFloat;

use super::{BLOCKING, Socket};
use crate::python::address::masked_word;
use crate::python::buffer::{Readable, new_bytes};
use crate::python::error::Result;

/// The longest option that `getsockopt` reads, like the standard class.
const LONGEST_OPTION: usize = 1024;

#[pymethods]
impl Socket {
    /// Get a socket option: an int or, if a length is given, bytes.
    #[pyo3(signature = (level, optname, buflen=0, /))]
    fn getsockopt<'py>(
        &self,
        py: Python<'py>,
        level: c_int,
        optname: c_int,
        buflen: c_int,
    ) -> Result<Bound<'py, PyAny>> {
        let socket = self.socket()?;
        if buflen == 0 {
            let value = socket.int_option(level, optname)?;
            return Ok(value.into_pyobject(py).map_err(PyErr::from)?.into_any());
        }
        let mut value = [0; LONGEST_OPTION];
        let value = usize::try_from(buflen)
            .ok()
            .and_then(|len| value.get_mut(..len))
            .ok_or_else(|| PyOSError::new_err("getsockopt buflen out of range"))?;
        let len = socket.option(level, optname, value)?;
        Ok(new_bytes(py, &value[..len])?.into_any())
    }

    /// Set a socket option to an int, to bytes or, if a length is given, to a null value.
    #[pyo3(signature = (level, optname, value, optlen=Given(None), /))]
    fn setsockopt(
        &self,
        level: &Bound<'_, PyAny>,
        optname: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
        optlen: Given<'_>,
    ) -> Result<()> {
        if let Given(Some(optlen)) = optlen {
            return self.set_null_option(level, optname, value, &optlen);
        }
        let (level, optname) = (level.extract()?, optname.extract()?);
        if value.is_none() {
            let message = "setsockopt() takes a length as well for the value None";
            return Err(PyTypeError::new_err(message).into());
        }
        let socket = self.socket()?;
        match value.extract::<c_int>() {
            Ok(value) => socket.set_int_option(level, optname, value)?,
            // From Python 3.15 on, the standard class does not try an integer as bytes.
            Err(error) if value.py().version_info() >= (3, 15) && is_integer(value) => {
                return Err(error.into());
            }
            Err(_) => socket.set_option(level, optname, &Readable::new(value)?.copy()?)?,
        }
        socket.option_was_set(level, optname);
        if level == libc::SOL_SOCKET
            && matches!(optname, libc::SO_RCVBUF | libc::SO_SNDBUF)
            && let Ok(requested) = value.extract()
        {
            self.warn_if_clamped(value.py(), optname, requested)?;
        }
        Ok(())
    }
}

/// An argument that may be omitted but must not be `None`.
pub(super) struct Given<'py>(pub(super) Option<Bound<'py, PyAny>>);

impl<'py> FromPyObject<'_, 'py> for Given<'py> {
    type Error = std::convert::Infallible;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> std::result::Result<Self, Self::Error> {
        Ok(Self(Some(object.to_owned())))
    }
}

impl Socket {
    /// Sets an option to a null value with a length. Before Python 3.15, the standard class tries
    /// one form of the call after the other and raises `TypeError` for any wrong argument.
    fn set_null_option(
        &self,
        level: &Bound<'_, PyAny>,
        optname: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
        optlen: &Bound<'_, PyAny>,
    ) -> Result<()> {
        let parse =
            || -> Result<_> { Ok((level.extract()?, optname.extract()?, masked_word(optlen)?)) };
        match parse() {
            Ok((level, optname, optlen)) if value.is_none() => {
                Ok(self.socket()?.set_option_len(level, optname, optlen)?)
            }
            Err(error) if value.py().version_info() >= (3, 15) => Err(error),
            _ => {
                let message = "with a length, setsockopt() takes (int, int, None, int)";
                Err(PyTypeError::new_err(message).into())
            }
        }
    }

    /// Warns if the kernel has silently given a smaller buffer than requested. It reports twice the
    /// size that it was given (`socket(7)`).
    fn warn_if_clamped(&self, py: Python<'_>, optname: c_int, requested: c_int) -> Result<()> {
        let given = self.socket()?.int_option(libc::SOL_SOCKET, optname)? / 2;
        if given >= requested {
            return Ok(());
        }
        let (option, limit) = match optname {
            libc::SO_RCVBUF => ("SO_RCVBUF", "net.core.rmem_max"),
            _ => ("SO_SNDBUF", "net.core.wmem_max"),
        };
        let text = format!(
            "{option}: asked for {requested} bytes, got {given}, the limit of sysctl {limit}; \
             raise that, or use {option}FORCE with CAP_NET_ADMIN"
        );
        let text = CString::new(text).unwrap_or_default();
        Ok(PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), &text, 1)?)
    }
}

/// Whether an object has an `__index__`, even if that fails.
fn is_integer(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: attached, with an object.
    unsafe { ffi::PyIndex_Check(object.as_ptr()) != 0 }
}

/// Reads a timeout like the standard module: `None`, or non-negative seconds, rounded away from
/// zero to a nanosecond.
pub(super) fn parse_timeout(timeout: Option<&Bound<'_, PyAny>>) -> Result<i64> {
    let Some(timeout) = timeout else { return Ok(BLOCKING) };
    let nanoseconds = match fraction(timeout)? {
        Some(seconds) if seconds.is_nan() => {
            return Err(PyValueError::new_err("Invalid value NaN (not a number)").into());
        }
        // A number outside the range of i64 becomes the nearest one in range.
        Some(seconds) if seconds < 0.0 => (seconds * 1e9).floor() as i64,
        Some(seconds) => (seconds * 1e9).ceil() as i64,
        None => timeout.extract::<i64>()?.saturating_mul(1_000_000_000),
    };
    if nanoseconds == i64::MAX || nanoseconds == i64::MIN {
        let message = "timestamp too large to convert to C PyTime_t";
        return Err(PyOverflowError::new_err(message).into());
    }
    if nanoseconds < 0 {
        return Err(PyValueError::new_err("Timeout value out of range").into());
    }
    Ok(nanoseconds)
}

/// The value of a number that is read as a float: before Python 3.15, only floats are.
fn fraction(number: &Bound<'_, PyAny>) -> PyResult<Option<f64>> {
    if let Ok(float) = number.cast_exact::<PyFloat>() {
        return Ok(Some(float.value())); // the usual case
    }
    let is_fraction = if number.py().version_info() >= (3, 15) {
        !is_integer(number)
    } else {
        number.is_instance_of::<PyFloat>()
    };
    is_fraction.then(|| number.extract()).transpose()
}
