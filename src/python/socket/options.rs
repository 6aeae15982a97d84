//! Socket options.

use std::ffi::{CString, c_int};

use pyo3::exceptions::{PyOSError, PyRuntimeWarning, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::Socket;
use crate::python::buffer::Readable;
use crate::python::error::Result;

/// The longest option that `getsockopt` reads, as in the standard class.
const LONGEST_OPTION: usize = 1024;

#[pymethods]
impl Socket {
    /// Get a socket option: an int, or, given a length, bytes.
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
        Ok(PyBytes::new(py, &value[..len]).into_any())
    }

    /// Set a socket option to an int, to bytes, or, with a length, to a null value.
    #[pyo3(signature = (level, optname, value, optlen=None, /))]
    fn setsockopt(
        &self,
        py: Python<'_>,
        level: c_int,
        optname: c_int,
        value: &Bound<'_, PyAny>,
        optlen: Option<u32>,
    ) -> Result<()> {
        let socket = self.socket()?;
        match (value.is_none(), optlen) {
            (true, Some(optlen)) => return Ok(socket.set_option_len(level, optname, optlen)?),
            (true, None) => {
                let message =
                    "setsockopt() takes a length as its fourth argument when the value is None";
                return Err(PyTypeError::new_err(message).into());
            }
            (false, Some(_)) => {
                let message = "setsockopt() takes a fourth argument only when the value is None";
                return Err(PyTypeError::new_err(message).into());
            }
            (false, None) => {}
        }
        let Ok(value) = value.extract::<c_int>() else {
            return Ok(socket.set_option(level, optname, &Readable::new(value)?.to_vec())?);
        };
        socket.set_int_option(level, optname, value)?;
        if level == libc::SOL_SOCKET && matches!(optname, libc::SO_RCVBUF | libc::SO_SNDBUF) {
            self.warn_if_clamped(py, optname, value)?;
        }
        Ok(())
    }
}

impl Socket {
    /// Warns where the kernel gave a smaller buffer than was asked for, which it does without a
    /// word. It reports twice the size that it was given (`socket(7)`).
    fn warn_if_clamped(&self, py: Python<'_>, optname: c_int, asked: c_int) -> Result<()> {
        let given = self.socket()?.int_option(libc::SOL_SOCKET, optname)? / 2;
        if given >= asked {
            return Ok(());
        }
        let (option, limit) = match optname {
            libc::SO_RCVBUF => ("SO_RCVBUF", "net.core.rmem_max"),
            _ => ("SO_SNDBUF", "net.core.wmem_max"),
        };
        let text = format!(
            "{option}: asked for {asked} bytes, got {given}, the limit of sysctl {limit}; \
             raise that, or use {option}FORCE with CAP_NET_ADMIN"
        );
        let text = CString::new(text).unwrap_or_default();
        Ok(PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), &text, 1)?)
    }
}
