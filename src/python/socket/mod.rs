//! The socket class: its lifecycle, its timeout, and how every operation waits.

mod batch;
mod connect;
pub(crate) mod datagram;
mod datagrams;
mod exchange;
mod extras;
mod guard;
mod interface;
mod many;
mod options;
mod receive;
mod send;
mod sending;

pub(crate) use many::{Senders, pair, triple};

use std::ffi::{CString, c_int};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyTypeError, PyValueError, PyWarning};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyTuple};

use self::guard::GivenGuard;
use self::options::parse_timeout;
use super::address::AddressCache;
use super::audit;
use super::error::{Error, Result};
use crate::net::{self, Deadline, Interest, KernelWait, NextReceive, Stop, Waiting};

/// A datagram socket.
#[pyclass(frozen, subclass, name = "Socket", module = "tomada._core")]
pub(crate) struct Socket {
    /// Empty until `_open`, which a subclass with its own `__init__` may never call.
    inner: OnceLock<net::Socket>,
    /// In nanoseconds. With 0, calls do not wait; with [`BLOCKING`], they wait for ever.
    timeout: AtomicI64,
    /// How long to spin before sleeping, in nanoseconds.
    spin: AtomicU64,
    addresses: AddressCache,
    given_guard: GivenGuard,
}

/// How long one call may wait in total.
struct Patience {
    timeout: i64,
    deadline: Option<Deadline>,
    /// Whether the call takes many datagrams, so it waits for more than one if the socket coalesces.
    collects: bool,
}

const BLOCKING: i64 = -1;

/// A call on a socket without a timeout sleeps this long before it queries whether the kernel would
/// let it wait at all. Most waits are shorter, and save two system calls.
const UNASKED: Duration = Duration::from_micros(200);

/// Return the family and type of an open socket.
#[pyfunction]
#[pyo3(signature = (fileno, /))]
pub(crate) fn kind_of(fileno: RawFd) -> Result<(c_int, c_int)> {
    Ok(net::Socket::kind_of(fileno)?)
}

#[pymethods]
impl Socket {
    /// Create and return a new object, which `_open` turns into a socket.
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            inner: OnceLock::new(),
            timeout: AtomicI64::new(BLOCKING),
            spin: AtomicU64::new(0),
            addresses: AddressCache::default(),
            given_guard: GivenGuard::default(),
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
        let is_nonblocking = r#type != -1 && r#type & libc::SOCK_NONBLOCK != 0;
        let socket = match fileno {
            None => net::Socket::open(family, r#type, proto)?,
            Some(fileno) => {
                if fileno.is_instance_of::<PyFloat>() {
                    let message = "integer argument expected, got float";
                    return Err(PyTypeError::new_err(message).into());
                }
                // The standard class also uses only the lower half of a long.
                let fd = fileno.extract::<i64>()? as RawFd;
                if fd < 0 {
                    return Err(PyValueError::new_err("negative file descriptor").into());
                }
                let given = |value: c_int| (value != -1).then_some(value);
                // SAFETY: the standard module's documentation of `fileno` requires that the caller
                // gives the descriptor up.
                unsafe { net::Socket::adopt(fd, given(family), given(r#type), given(proto)) }?
            }
        };
        let this = slf.get();
        if let Err(extra) = this.inner.set(socket) {
            if fileno.is_some() {
                // The descriptor still belongs to the caller.
                let _ = extra.descriptor().release().map(IntoRawFd::into_raw_fd);
            }
            return Err(PyRuntimeError::new_err("this socket object was opened before").into());
        }
        if is_nonblocking {
            this.timeout.store(0, Ordering::Relaxed);
        } else if default != BLOCKING {
            this.set_timeout(default)?;
        }
        Ok(())
    }

    /// Close the socket.
    fn close(&self, py: Python<'_>) -> Result<()> {
        let closed = py.detach(|| self.close_descriptor());
        self.addresses.clear(py);
        closed.map_err(explain_deadlock)
    }

    /// Close the socket object without closing the descriptor, and return the descriptor.
    fn detach(&self, py: Python<'_>) -> Result<RawFd> {
        let release = || self.inner.get().map_or(Ok(None), net::Socket::release);
        let released = py.detach(release).map_err(explain_deadlock)?;
        self.addresses.clear(py);
        Ok(released.map_or(-1, IntoRawFd::into_raw_fd))
    }

    /// Return the descriptor, or -1 once closed.
    fn fileno(&self) -> RawFd {
        if let Some(socket) = self.inner.get() {
            socket.number_was_given();
        }
        self.number()
    }

    /// Return the descriptor, or -1 once closed, for code that neither duplicates it nor sets
    /// options.
    #[pyo3(name = "_descriptor")]
    fn number(&self) -> RawFd {
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
        #[allow(clippy::cast_precision_loss)] // as in the standard class, to the last bit
        (timeout >= 0).then(|| timeout as f64 / 1e9)
    }

    /// Return the timeout in seconds, or None.
    fn gettimeout(&self) -> Option<f64> {
        self.timeout()
    }

    /// Set the timeout in seconds; with None, operations wait for ever; with zero, they do not
    /// wait.
    #[pyo3(signature = (timeout, /))]
    fn settimeout(&self, timeout: Option<&Bound<'_, PyAny>>) -> Result<()> {
        self.set_timeout(parse_timeout(timeout)?)
    }

    /// Set whether operations wait for ever or not at all.
    #[pyo3(signature = (flag, /))]
    fn setblocking(&self, flag: &Bound<'_, PyAny>) -> Result<()> {
        // CPython 3.11 requires an int, later versions accept any object.
        let is_blocking = if flag.py().version_info() < (3, 12) {
            flag.extract::<i64>()? != 0
        } else {
            flag.is_truthy()?
        };
        self.set_timeout(if is_blocking { BLOCKING } else { 0 })
    }

    /// Return whether operations wait.
    fn getblocking(&self) -> bool {
        self.timeout.load(Ordering::Relaxed) != 0
    }

    fn __repr__(&self) -> String {
        format!(
            "<socket object, fd={}, family={}, type={}, proto={}>",
            self.number(),
            self.family(),
            self.r#type(),
            self.proto()
        )
    }

    /// Warn if the socket was never closed; dropping it then closes it.
    ///
    /// pyo3 gives the class itself no finalizer. A subclass defined in Python finds this method and
    /// uses it as its own.
    fn __del__(slf: &Bound<'_, Self>) -> PyResult<()> {
        if slf.get().number() == -1 {
            return Ok(());
        }
        let Ok(repr) = slf.repr() else { return Ok(()) }; // the interpreter is exiting
        let message = CString::new(format!("unclosed {repr}")).unwrap_or_default();
        // SAFETY: attached; the format takes one C string.
        let result = unsafe {
            ffi::PyErr_ResourceWarning(slf.as_ptr(), 1, c"%s".as_ptr(), message.as_ptr())
        };
        if result == 0 {
            return Ok(());
        }
        // A warning turned into an error is reported. Other errors come from an interpreter that is
        // exiting.
        let error = PyErr::fetch(slf.py());
        if error.is_instance_of::<PyWarning>(slf.py()) { Err(error) } else { Ok(()) }
    }
}

impl Socket {
    /// The open socket; `EBADF` if it was never opened.
    pub(crate) fn socket(&self) -> Result<&net::Socket> {
        self.inner.get().ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF).into())
    }

    fn close_descriptor(&self) -> io::Result<()> {
        match self.inner.get().map_or(Ok(()), net::Socket::close) {
            // The descriptor is closed in any case, and a peer's reset is not an error of this
            // socket.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            result => result,
        }
    }

    /// The open socket, for a call that returns an address. The standard class fails differently
    /// there, because a socket that was never opened does not have a family.
    fn named_socket(&self) -> Result<&net::Socket> {
        let message = "getsockaddrlen: bad family";
        self.inner.get().ok_or_else(|| PyOSError::new_err(message).into())
    }

    pub(crate) fn addresses(&self) -> &AddressCache {
        &self.addresses
    }

    fn patience(&self) -> Patience {
        let timeout = self.timeout.load(Ordering::Relaxed);
        Patience { timeout, deadline: None, collects: false }
    }

    /// The patience of a call that takes many datagrams.
    fn patience_for_many(&self) -> Patience {
        Patience { collects: true, ..self.patience() }
    }

    /// The instant until which to spin before sleeping, if the socket spins.
    pub(crate) fn spin_until(&self, interest: Interest) -> Option<Instant> {
        let spin = self.spin.load(Ordering::Relaxed);
        (spin > 0 && interest == Interest::Read)
            .then(|| Instant::now().checked_add(Duration::from_nanos(spin)))
            .flatten()
    }

    fn set_timeout(&self, timeout: i64) -> Result<()> {
        self.timeout.store(timeout, Ordering::Relaxed);
        Ok(self.socket()?.set_nonblocking(timeout >= 0)?)
    }

    /// Makes one attempt; if that fails and the socket waits at all, waits until another succeeds.
    /// If the queue is probably empty, it waits first.
    ///
    /// The first attempt is made attached to the interpreter: a system call for a queued datagram
    /// is shorter than handing the GIL over to a thread that wants it. While waiting, the thread is
    /// detached, and signal handlers run (PEP 475) while no operation is in flight, so they may do
    /// anything to the socket, including closing it.
    fn transfer<T: Send>(
        &self,
        py: Python<'_>,
        patience: &mut Patience,
        interest: Interest,
        flags: c_int,
        mut attempt: impl FnMut(&net::Socket, BorrowedFd<'_>, c_int) -> io::Result<T> + Send,
    ) -> Result<T> {
        let socket = self.socket()?;
        let blocks = patience.timeout == BLOCKING;
        // The kernel never blocks on the error queue; poll does.
        let is_nonblocking = flags & (libc::MSG_DONTWAIT | libc::MSG_ERRQUEUE) != 0;
        let waits = patience.timeout > 0 || blocks && !is_nonblocking;
        let asked = flags;
        let flags = flags | libc::MSG_DONTWAIT;
        let collects = patience.collects && socket.next_receive() != NextReceive::Now;
        let mut must_wait = waits
            && interest == Interest::Read
            && (collects || socket.is_in_lull())
            // Otherwise the kernel may not let the call wait at all.
            && (!blocks || !socket.may_limit_waits() || socket.waits_unlimited());
        while !must_wait {
            match socket.with(|fd| attempt(socket, fd, flags)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => py.check_signals()?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && waits => {
                    must_wait = true;
                }
                result => {
                    if interest == Interest::Read {
                        socket.note_try();
                    }
                    socket.share_backlog();
                    return Ok(result?);
                }
            }
        }
        let result = self.wait_as_kernel(py, patience, interest, |socket, fd, hung_up| {
            // A socket that was shut down never receives another datagram. Only a call that may
            // block reports this, with a length of zero; others return EAGAIN without end.
            let flags = if hung_up && blocks { asked } else { flags };
            attempt(socket, fd, flags)
        });
        socket.share_backlog();
        result
    }

    /// Waits until an attempt succeeds; attempts are made when the kernel reports readiness.
    /// Without a timeout it waits as long as the kernel would let a call on the descriptor wait,
    /// which other holders of the descriptor may limit: then it fails with `EAGAIN`.
    fn wait_as_kernel<T: Send>(
        &self,
        py: Python<'_>,
        patience: &mut Patience,
        interest: Interest,
        mut attempt: impl FnMut(&net::Socket, BorrowedFd<'_>, bool) -> io::Result<T> + Send,
    ) -> Result<T> {
        let (socket, deadline) = (self.socket()?, patience.deadline());
        let collects = patience.collects && !socket.coalesce().is_zero();
        if patience.timeout != BLOCKING || !socket.may_limit_waits() {
            return self.run_detached(py, interest, collects, |waiting, spin| {
                waiting.run(interest, deadline, spin, |fd, hung_up| attempt(socket, fd, hung_up))
            });
        }
        let started = Instant::now();
        let mut asked = None;
        self.run_detached(py, interest, collects, |waiting, spin| {
            let mut run = |deadline| {
                waiting.run(interest, deadline, spin, |fd, hung_up| attempt(socket, fd, hung_up))
            };
            let deadline = if let Some(deadline) = asked {
                deadline
            } else {
                if socket.waits_unlimited() && !collects {
                    match run(Deadline::at(started.checked_add(UNASKED))) {
                        Err(Stop::TimedOut) => {}
                        result => return result,
                    }
                }
                *asked.insert(self.kernel_deadline(socket, interest, started)?)
            };
            match run(deadline) {
                Err(Stop::TimedOut) => Err(Stop::Failed(io::ErrorKind::WouldBlock.into())),
                result => result,
            }
        })
    }

    /// The deadline that the kernel would give a call that began at `started`; `EAGAIN` if the call
    /// would not wait at all.
    fn kernel_deadline(
        &self,
        socket: &net::Socket,
        interest: Interest,
        started: Instant,
    ) -> std::result::Result<Deadline, Stop> {
        let in_flight = socket.descriptor().enter().map_err(|_| Stop::Closed)?;
        let wait = socket.kernel_wait(in_flight.as_fd(), interest).map_err(Stop::Failed)?;
        match wait {
            // If another thread has set this through the same object, it applies to later calls.
            KernelWait::Never if self.timeout.load(Ordering::Relaxed) != BLOCKING => {
                Ok(Deadline::NEVER)
            }
            KernelWait::Never => Err(Stop::Failed(io::ErrorKind::WouldBlock.into())),
            KernelWait::Limited(limit) => Ok(Deadline::at(started.checked_add(limit))),
            KernelWait::Unlimited => Ok(Deadline::NEVER),
        }
    }

    /// Waits until an attempt succeeds; attempts are made when the kernel reports readiness.
    fn wait<T: Send>(
        &self,
        py: Python<'_>,
        deadline: Deadline,
        interest: Interest,
        mut attempt: impl FnMut(&net::Socket, BorrowedFd<'_>, bool) -> io::Result<T> + Send,
    ) -> Result<T> {
        let socket = self.socket()?;
        self.run_detached(py, interest, false, |waiting, spin| {
            waiting.run(interest, deadline, spin, |fd, hung_up| attempt(socket, fd, hung_up))
        })
    }

    /// Waits with `run`, detached from the interpreter, until the result is not `EINTR`.
    ///
    /// A signal interrupts a sleep, but not a thread that waits to be attached again, which takes
    /// milliseconds beside a busy thread: the signal only sets a flag of the interpreter. So signal
    /// handlers run after each such moment and before the thread may sleep, and `run` must not
    /// attach between one sleep and the next.
    fn run_detached<T: Send>(
        &self,
        py: Python<'_>,
        interest: Interest,
        collects: bool,
        mut run: impl FnMut(&Waiting<'_>, Option<Instant>) -> std::result::Result<T, Stop> + Send,
    ) -> Result<T> {
        let (mut waiting, mut spin) = (Waiting::new(self.socket()?), self.spin_until(interest));
        if collects {
            (waiting, spin) = (waiting.collecting(), None);
        }
        loop {
            py.check_signals()?;
            match py.detach(|| run(&waiting, spin)) {
                Err(Stop::Failed(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return Ok(result?),
            }
        }
    }
}

impl Patience {
    /// The deadline, counted from the first call of this.
    fn deadline(&mut self) -> Deadline {
        *self.deadline.get_or_insert_with(|| match u64::try_from(self.timeout) {
            Ok(timeout) => Deadline::after(Duration::from_nanos(timeout)),
            Err(_) => Deadline::NEVER,
        })
    }
}

/// Says why a callback cannot give a socket up.
fn explain_deadlock(error: io::Error) -> Error {
    if error.raw_os_error() != Some(libc::EDEADLK) {
        return error.into();
    }
    let text = "a callback cannot close the socket of its own handshake: close it later";
    PyOSError::new_err((libc::EDEADLK, text)).into()
}
