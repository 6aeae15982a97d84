//! Converts errors to Python exceptions and keeps their errno.

use std::io;

use pyo3::exceptions::{PyMemoryError, PyOSError, PyPermissionError, PyTimeoutError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use crate::net::address::PathTooLong;
#[cfg(feature = "dtls")]
use crate::net::dtls::{SessionError, SessionErrorKind};
use crate::net::names::{ResolveError, resolver_message};
use crate::net::{ErrorClass, Stop};

/// An error of a method, and the exception that it becomes.
pub(crate) enum Error {
    /// A system call failed: the `OSError` subclass of its errno.
    Os(io::Error),
    /// A host name has no address: `socket.gaierror`.
    Resolve(ResolveError),
    /// `TimeoutError`, with the standard module's text.
    TimedOut,
    /// The socket was closed by another thread while this one waited.
    Closed,
    /// An exception that was already raised.
    Python(PyErr),
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Os(error)
    }
}

impl From<ResolveError> for Error {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::System(error) => Self::Os(error),
            ResolveError::Resolver(_) => Self::Resolve(error),
        }
    }
}

impl From<Stop> for Error {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::TimedOut => Self::TimedOut,
            Stop::Closed => Self::Closed,
            Stop::Failed(error) => Self::Os(error),
        }
    }
}

impl From<PathTooLong> for Error {
    fn from(_: PathTooLong) -> Self {
        Self::Python(PyOSError::new_err("AF_UNIX path too long"))
    }
}

impl From<PyErr> for Error {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match error {
            Error::Os(error) | Error::Resolve(ResolveError::System(error)) => os_error(&error),
            Error::Resolve(ResolveError::Resolver(code)) => resolver_error(code),
            Error::TimedOut => PyTimeoutError::new_err("timed out"),
            Error::Closed => PyOSError::new_err((
                libc::EBADF,
                "the socket was closed while this call waited for it",
            )),
            Error::Python(error) => error,
        }
    }
}

/// `OSError(errno, strerror)`, which Python turns into the subclass for the errno.
fn os_error(error: &io::Error) -> PyErr {
    #[cfg(feature = "dtls")]
    if let Some(failure) = error.get_ref().and_then(|inner| inner.downcast_ref()) {
        return self::failure(failure);
    }
    let Some(errno) = error.raw_os_error() else {
        return match error.kind() {
            // std's own kind for an error that the kernel reports with a number.
            io::ErrorKind::WouldBlock => os_error(&io::Error::from_raw_os_error(libc::EAGAIN)),
            io::ErrorKind::Interrupted => os_error(&io::Error::from_raw_os_error(libc::EINTR)),
            // A guard's refusal, whose text is more specific than strerror(3).
            io::ErrorKind::PermissionDenied => {
                PyPermissionError::new_err((libc::EPERM, error.to_string()))
            }
            // Not from the kernel, whose errors have a number.
            io::ErrorKind::OutOfMemory => PyMemoryError::new_err(error.to_string()),
            _ => PyOSError::new_err(error.to_string()),
        };
    };
    // Python's own conversion from errno to exception: it knows the subclass and the C library's
    // text.
    Python::attach(|py| {
        // SAFETY: attached; errno belongs to this thread.
        unsafe {
            *libc::__errno_location() = errno;
            ffi::PyErr_SetFromErrno(ffi::PyExc_OSError);
        }
        PyErr::fetch(py)
    })
}

/// The exception for a failure of a session.
#[cfg(feature = "dtls")]
pub(crate) fn failure(failure: &SessionError) -> PyErr {
    Python::attach(|py| try_failure(py, failure).unwrap_or_else(|error| error))
}

#[cfg(feature = "dtls")]
fn try_failure(py: Python<'_>, failure: &SessionError) -> PyResult<PyErr> {
    let (class, errno) = match failure.kind {
        SessionErrorKind::TooLong => return Ok(with_text(libc::EMSGSIZE, &failure.text)),
        SessionErrorKind::Empty => return Ok(with_text(libc::EINVAL, &failure.text)),
        SessionErrorKind::NoSession => return Ok(with_text(libc::ENOTCONN, &failure.text)),
        SessionErrorKind::Certificate(_) => ("DTLSCertVerificationError", libc::EPROTO),
        SessionErrorKind::Protocol => ("DTLSError", libc::EPROTO),
        SessionErrorKind::TimedOut => ("DTLSTimeoutError", libc::ETIMEDOUT),
        SessionErrorKind::Closed | SessionErrorKind::Evicted => {
            ("DTLSZeroReturnError", libc::ECONNRESET)
        }
    };
    let error = PyErr::from_type(
        py.import("tomada._dtls_errors")?.getattr(class)?.cast_into::<PyType>()?,
        (errno, failure.text.clone()),
    );
    let value = error.value(py);
    if let SessionErrorKind::Certificate(code) = failure.kind {
        value.setattr("reason", "certificate verify failed")?;
        value.setattr("verify_code", code)?;
        value.setattr("verify_message", &failure.reason)?;
    } else {
        value.setattr("reason", &failure.reason)?;
    }
    Ok(error)
}

#[cfg(feature = "dtls")]
fn with_text(errno: std::ffi::c_int, text: &str) -> PyErr {
    PyOSError::new_err((errno, text.to_owned()))
}

fn resolver_error(code: i32) -> PyErr {
    static GAIERROR: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    Python::attach(|py| match GAIERROR.import(py, "socket", "gaierror") {
        Ok(gaierror) => PyErr::from_type(gaierror.clone(), (code, resolver_message(code))),
        Err(error) => error,
    })
}

/// Whether a call failed because of a shortage on this machine, which may end soon.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    ErrorClass::of(error) == ErrorClass::Shortage
}

/// The C library's text for an error.
pub(crate) fn strerror(error: &io::Error) -> String {
    let text = error.to_string();
    // std appends the number.
    text.split(" (os error ").next().unwrap_or_default().to_owned()
}
