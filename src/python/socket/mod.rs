//! The socket class: its life, its timeout, and how every operation waits.

mod connect;
mod options;
mod receive;
mod send;

use std::ffi::{CString, c_int};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use pyo3::exceptions::{PyOverflowError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyTuple};

use super::address::AddressCache;
use super::audit;
use super::error::{Error, Result};
use crate::net::{self, Deadline, Interest, Stop, Waiting};

/// A datagram socket.
#[pyclass(frozen, subclass, name = "Socket", module = "tomada._core")]
pub(crate) struct Socket {
    /// Empty until `_open`, which a subclass that overrides `__init__` may never call.
    inner: OnceLock<net::Socket>,
    /// In nanoseconds; 0 does not wait, [`BLOCKING`] waits for ever.
    timeout: AtomicI64,
    addresses: AddressCache,
}

const BLOCKING: i64 = -1;

/// Return the family and type of an open socket.
#[pyfunction]
#[pyo3(signature = (fileno, /))]
pub(crate) fn kind_of(fileno: RawFd) -> Result<(c_int, c_int)> {
    Ok(net::Socket::kind_of(fileno)?)
}

#[pymethods]
impl Socket {
    /// Create and return a new object, which `_open` makes a socket.
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            inner: OnceLock::new(),
            timeout: AtomicI64::new(BLOCKING),
            addresses: AddressCache::default(),
        }
    }

    /// Open a new socket, or take over the descriptor `fileno`.
    #[pyo3(signature = (family, r#type, proto, fileno, default_timeout, /))]
    fn _open(
        slf: &Bound<'_, Self>,
        family: c_int,
        r#type: c_int,
        proto: c_int,
        fileno: Option<&Bound<'_, PyAny>>,
        default_timeout: Option<&Bound<'_, PyAny>>,
    ) -> Result<()> {
        audit::new_socket(slf.as_any(), family, r#type, proto)?;
        let default = parse_timeout(default_timeout)?;
        let timeout = if r#type != -1 && r#type & libc::SOCK_NONBLOCK != 0 { 0 } else { default };
        let socket = match fileno {
            None => net::Socket::open(family, r#type, proto)?,
            Some(fileno) => {
                if fileno.is_instance_of::<PyFloat>() {
                    let message = "integer argument expected, got float";
                    return Err(PyTypeError::new_err(message).into());
                }
                let fd: RawFd = fileno.extract()?;
                if fd < 0 {
                    return Err(PyValueError::new_err("negative file descriptor").into());
                }
                let given = |value: c_int| (value != -1).then_some(value);
                // SAFETY: as the standard module's documentation of `fileno` demands, the caller
                // gives the descriptor up.
                unsafe { net::Socket::adopt(fd, given(family), given(r#type), given(proto)) }?
            }
        };
        let this = slf.get();
        if let Err(extra) = this.inner.set(socket) {
            if fileno.is_some() {
                // Not ours to close after all.
                let _ = extra.descriptor().release().map(IntoRawFd::into_raw_fd);
            }
            return Err(PyRuntimeError::new_err("this socket object was opened before").into());
        }
        this.timeout.store(timeout, Ordering::Relaxed);
        if timeout >= 0 {
            this.socket()?.set_nonblocking(true)?;
        }
        Ok(())
    }

    /// Close the socket.
    fn close(&self, py: Python<'_>) -> Result<()> {
        match py.detach(|| self.inner.get().map_or(Ok(()), |socket| socket.descriptor().close())) {
            // The descriptor is closed in any case, and what the peer does is no error of ours.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            result => Ok(result?),
        }
    }

    /// Close the socket object without closing the descriptor, and return the descriptor.
    fn detach(&self, py: Python<'_>) -> RawFd {
        let release = || self.inner.get().and_then(|socket| socket.descriptor().release());
        py.detach(release).map_or(-1, IntoRawFd::into_raw_fd)
    }

    /// Return the descriptor, or -1 once closed.
    fn fileno(&self) -> RawFd {
        self.inner.get().map_or(-1, |socket| socket.descriptor().as_raw())
    }

    /// The address family.
    #[getter]
    fn family(&self) -> c_int {
        self.inner.get().map_or(0, net::Socket::family)
    }

    /// The socket type.
    #[getter]
    fn r#type(&self) -> c_int {
        self.inner.get().map_or(0, net::Socket::kind)
    }

    /// The protocol.
    #[getter]
    fn proto(&self) -> c_int {
        self.inner.get().map_or(0, net::Socket::protocol)
    }

    /// The timeout in seconds, or None.
    #[getter]
    fn timeout(&self) -> Option<f64> {
        let timeout = self.timeout.load(Ordering::Relaxed);
        (timeout >= 0).then(|| Duration::from_nanos(timeout as u64).as_secs_f64())
    }

    /// Return the timeout in seconds, or None.
    fn gettimeout(&self) -> Option<f64> {
        self.timeout()
    }

    /// Set the timeout in seconds; None waits for ever, zero does not wait.
    #[pyo3(signature = (timeout, /))]
    fn settimeout(&self, timeout: Option<&Bound<'_, PyAny>>) -> Result<()> {
        self.set_timeout(parse_timeout(timeout)?)
    }

    /// Wait for ever, or not at all.
    #[pyo3(signature = (flag, /))]
    fn setblocking(&self, flag: &Bound<'_, PyAny>) -> Result<()> {
        self.set_timeout(if flag.is_truthy()? { BLOCKING } else { 0 })
    }

    /// Return whether operations wait.
    fn getblocking(&self) -> bool {
        self.timeout.load(Ordering::Relaxed) != 0
    }

    fn __repr__(&self) -> String {
        format!(
            "<socket object, fd={}, family={}, type={}, proto={}>",
            self.fileno(),
            self.family(),
            self.r#type(),
            self.proto()
        )
    }

    /// Warn where the socket was never closed; dropping it then closes it.
    ///
    /// pyo3 gives the class itself no finalizer. A subclass made in Python finds this method and
    /// calls it as its own.
    fn __del__(slf: &Bound<'_, Self>) -> PyResult<()> {
        if slf.get().fileno() == -1 {
            return Ok(());
        }
        let message = CString::new(format!("unclosed {}", slf.repr()?)).unwrap_or_default();
        // SAFETY: attached; the format takes one C string.
        let result = unsafe {
            ffi::PyErr_ResourceWarning(slf.as_ptr(), 1, c"%s".as_ptr(), message.as_ptr())
        };
        if result == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

impl Socket {
    /// The open socket; `EBADF` where it was never opened.
    fn socket(&self) -> Result<&net::Socket> {
        self.inner.get().ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF).into())
    }

    fn set_timeout(&self, timeout: i64) -> Result<()> {
        self.timeout.store(timeout, Ordering::Relaxed);
        Ok(self.socket()?.set_nonblocking(timeout >= 0)?)
    }

    /// Makes one attempt, then, where the socket waits at all, waits until another succeeds.
    ///
    /// The first attempt is made attached to the interpreter: a system call on a datagram that is
    /// there is shorter than a hand-over of the GIL to a thread that wants it. While waiting, the
    /// thread is detached, and signal handlers run (PEP 475) with no operation in flight, so that
    /// they may do anything to the socket, closing it included.
    fn transfer<T: Send>(
        &self,
        py: Python<'_>,
        interest: Interest,
        flags: c_int,
        mut attempt: impl FnMut(&net::Socket, BorrowedFd<'_>, c_int) -> io::Result<T> + Send,
    ) -> Result<T> {
        let socket = self.socket()?;
        let timeout = self.timeout.load(Ordering::Relaxed);
        if timeout == BLOCKING && !socket.is_datagram() {
            return blocking(py, socket, |fd| attempt(socket, fd, flags));
        }
        let asks = flags;
        let flags = flags | libc::MSG_DONTWAIT;
        loop {
            let result = {
                let in_flight = socket.descriptor().enter()?;
                attempt(socket, in_flight.as_fd(), flags)
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => py.check_signals()?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if timeout == 0 || asks & libc::MSG_DONTWAIT != 0 {
                        return Err(error.into());
                    }
                    break;
                }
                result => return Ok(result?),
            }
        }
        let deadline = deadline(timeout);
        let waiting = Waiting::new(socket.descriptor());
        loop {
            let wait = || waiting.run(interest, deadline, None, |fd| attempt(socket, fd, flags));
            match py.detach(wait) {
                Err(Stop::Failed(error)) if error.kind() == io::ErrorKind::Interrupted => {
                    py.check_signals()?;
                }
                result => return Ok(result?),
            }
        }
    }
}

/// Makes an attempt that blocks in the kernel, as streams do that a subclass opened.
fn blocking<T: Send>(
    py: Python<'_>,
    socket: &net::Socket,
    mut attempt: impl FnMut(BorrowedFd<'_>) -> io::Result<T> + Send,
) -> Result<T> {
    loop {
        let result = py.detach(|| {
            let in_flight = socket.descriptor().enter()?;
            attempt(in_flight.as_fd())
        });
        match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => py.check_signals()?,
            result => return result.map_err(Error::from),
        }
    }
}

fn deadline(timeout: i64) -> Deadline {
    u64::try_from(timeout).map_or(Deadline::NEVER, |ns| Deadline::after(Duration::from_nanos(ns)))
}

/// Reads a timeout as the standard module does: `None`, or seconds that are not negative and not
/// more than `poll` can count, rounded up to a nanosecond.
fn parse_timeout(timeout: Option<&Bound<'_, PyAny>>) -> Result<i64> {
    let Some(timeout) = timeout else { return Ok(BLOCKING) };
    let nanoseconds = match timeout.cast::<PyFloat>() {
        Ok(seconds) if seconds.value().is_nan() => {
            return Err(PyValueError::new_err("Invalid value NaN (not a number)").into());
        }
        // A number beyond the range of i64 becomes its end.
        Ok(seconds) => (seconds.value() * 1e9).ceil() as i64,
        Err(_) => timeout.extract::<i64>()?.saturating_mul(1_000_000_000),
    };
    if nanoseconds == i64::MAX || nanoseconds == i64::MIN {
        let message = "timestamp too large to convert to C PyTime_t";
        return Err(PyOverflowError::new_err(message).into());
    }
    if nanoseconds < 0 {
        return Err(PyValueError::new_err("Timeout value out of range").into());
    }
    if nanoseconds / 1_000_000 > c_int::MAX.into() {
        return Err(PyOverflowError::new_err("timeout doesn't fit into C timeval").into());
    }
    Ok(nanoseconds)
}
