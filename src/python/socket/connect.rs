//! Addresses and connections.

use std::ffi::c_int;
use std::io;
use std::os::fd::{BorrowedFd, IntoRawFd, RawFd};

use pyo3::prelude::*;

use super::Socket;
use crate::net::{self, Address, Deadline, Interest, KernelWait};
use crate::python::address::to_python;
use crate::python::audit;
use crate::python::error::{Error, Result};

#[pymethods]
impl Socket {
    /// Bind the socket to a local address.
    #[pyo3(signature = (address, /))]
    fn bind(slf: &Bound<'_, Self>, address: &Bound<'_, PyAny>) -> Result<()> {
        let to = slf.get().parse_address(address, "bind")?;
        audit::event(c"socket.bind", slf.as_any(), address)?;
        Ok(slf.get().socket()?.bind(&to)?)
    }

    /// Connect the socket to a peer.
    #[pyo3(signature = (address, /))]
    fn connect(slf: &Bound<'_, Self>, address: &Bound<'_, PyAny>) -> Result<()> {
        let to = slf.get().parse_address(address, "connect")?;
        audit::event(c"socket.connect", slf.as_any(), address)?;
        slf.get().connect_to(slf.py(), &to)
    }

    /// Connect the socket to a peer, and return an errno instead of raising it.
    #[pyo3(signature = (address, /))]
    fn connect_ex(slf: &Bound<'_, Self>, address: &Bound<'_, PyAny>) -> Result<c_int> {
        let to = slf.get().parse_address(address, "connect_ex")?;
        audit::event(c"socket.connect", slf.as_any(), address)?;
        match slf.get().connect_to(slf.py(), &to) {
            Ok(()) => Ok(0),
            Err(Error::Os(error)) => Ok(error.raw_os_error().unwrap_or(libc::EIO)),
            Err(Error::TimedOut) => Ok(libc::EWOULDBLOCK),
            Err(error) => Err(error),
        }
    }

    /// Return the socket's own address.
    fn getsockname<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>> {
        let address = self.named_socket()?.local_address()?;
        Ok(to_python(py, address.as_bytes())?)
    }

    /// Return the connected peer's address.
    fn getpeername<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>> {
        let address = self.named_socket()?.peer_address()?;
        Ok(to_python(py, address.as_bytes())?)
    }

    /// Let peers connect, if the socket type allows it.
    #[pyo3(signature = (backlog=128, /))]
    fn listen(&self, backlog: c_int) -> Result<()> {
        Ok(self.socket()?.listen(backlog.max(0))?)
    }

    /// Accept a connection, and return its descriptor and the peer's address.
    fn _accept<'py>(&self, py: Python<'py>) -> Result<(RawFd, Bound<'py, PyAny>)> {
        let socket = self.named_socket()?;
        let mut patience = self.patience();
        // accept has no flag to prevent waiting, and a close would not end the wait. So wait first,
        // if accept would wait.
        let deadline = match patience.timeout {
            super::BLOCKING => socket.with(|fd| Self::accept_deadline(socket, fd))?,
            0 => None,
            // The kernel does not know the backlog; a socket of datagrams refuses at once.
            _ if socket.backlog_len() > 0 => None,
            _ => Some(patience.deadline()),
        };
        let accepted = match deadline {
            Some(deadline) => {
                self.wait(py, deadline, Interest::Read, |socket, fd, _| socket.accept_now(fd))
            }
            None => py.detach(|| socket.with(|fd| socket.accept(fd))).map_err(Error::from),
        };
        let (fd, address) = match accepted {
            Err(Error::TimedOut) if patience.timeout == super::BLOCKING => {
                return Err(io::Error::from(io::ErrorKind::WouldBlock).into()); // SO_RCVTIMEO
            }
            accepted => accepted?,
        };
        let address = to_python(py, address.as_bytes())?;
        Ok((fd.into_raw_fd(), address))
    }

    /// End the connection, and with it the local address and port that the kernel chose for it.
    fn _disconnect(&self) -> Result<()> {
        Ok(self.socket()?.disconnect()?)
    }

    /// Shut down receiving, sending or both.
    #[pyo3(signature = (how, /))]
    fn shutdown(&self, how: c_int) -> Result<()> {
        Ok(self.socket()?.shutdown(how)?)
    }
}

impl Socket {
    /// The deadline of `accept` on a socket without a timeout; `None` if it would not wait.
    fn accept_deadline(socket: &net::Socket, fd: BorrowedFd<'_>) -> io::Result<Option<Deadline>> {
        if !socket.is_listening(fd)? {
            return Ok(None); // it fails
        }
        Ok(match socket.kernel_wait(fd, Interest::Read)? {
            KernelWait::Never => None,
            KernelWait::Limited(limit) => Some(Deadline::after(limit)),
            KernelWait::Unlimited => Some(Deadline::NEVER),
        })
    }

    fn connect_to(&self, py: Python<'_>, to: &Address) -> Result<()> {
        let (socket, mut patience) = (self.socket()?, self.patience());
        py.check_signals()?; // a signal that came before connect would not interrupt it
        // A stream connection takes time; a datagram socket connects immediately.
        let is_under_way = match py.detach(|| socket.connect(to)) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                py.check_signals()?;
                (patience.timeout != 0).then_some(()).ok_or(error)
            }
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
                (patience.timeout > 0).then_some(()).ok_or(error)
            }
            Err(error) => Err(error),
        };
        is_under_way?;
        self.wait(py, patience.deadline(), Interest::Write, |socket, fd, _| {
            socket.connect_result(fd)
        })
    }
}
