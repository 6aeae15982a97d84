//! Socket options.

use std::ffi::{CString, c_int};

use pyo3::exceptions::{PyOSError, PyRuntimeWarning, PyTypeError};
use pyo3::prelude::*;

use super::Socket;
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
    /// Sets an option to a null value with a length. The standard class tries one form of the call
    /// after the other and raises `TypeError` for any wrong argument.
    fn set_null_option(
        &self,
        level: &Bound<'_, PyAny>,
        optname: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
        optlen: &Bound<'_, PyAny>,
    ) -> Result<()> {
        let (Ok(level), Ok(optname), true, Ok(optlen)) =
            (level.extract(), optname.extract(), value.is_none(), masked_word(optlen))
        else {
            let message = "with a length, setsockopt() takes (int, int, None, int)";
            return Err(PyTypeError::new_err(message).into());
        };
        Ok(self.socket()?.set_option_len(level, optname, optlen)?)
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
