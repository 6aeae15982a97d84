//! Names and connections.

use std::ffi::c_int;
use std::io;
use std::os::fd::{IntoRawFd, RawFd};

use pyo3::prelude::*;

use super::Socket;
use crate::net::{Address, Interest};
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

    /// Let peers connect, where the type of socket allows it.
    #[pyo3(signature = (backlog=128, /))]
    fn listen(&self, backlog: c_int) -> Result<()> {
        Ok(self.socket()?.listen(backlog.max(0))?)
    }

    /// Take a connection, and return its descriptor and the peer's address.
    fn _accept<'py>(&self, py: Python<'py>) -> Result<(RawFd, Bound<'py, PyAny>)> {
        self.named_socket()?;
        let mut patience = self.patience();
        let (fd, address) = if patience.timeout == super::BLOCKING {
            // accept has no flag that keeps it from blocking, so that the wait comes first.
            self.wait(py, &mut patience, Interest::Read, |socket, fd, _| socket.accept(fd))?
        } else {
            self.transfer(py, &mut patience, Interest::Read, 0, |socket, fd, _| socket.accept(fd))?
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
    fn connect_to(&self, py: Python<'_>, to: &Address) -> Result<()> {
        let socket = self.socket()?;
        match py.detach(|| socket.connect(to)) {
            Ok(()) => return Ok(()),
            // A stream that takes its time; a datagram socket connects at once.
            Err(error) if is_under_way(&error) => {
                if error.kind() == io::ErrorKind::Interrupted {
                    py.check_signals()?;
                }
            }
            Err(error) => return Err(error.into()),
        }
        let mut patience = self.patience();
        if patience.timeout == 0 {
            return Err(io::Error::from_raw_os_error(libc::EINPROGRESS).into());
        }
        self.wait(py, &mut patience, Interest::Write, |socket, fd, _| socket.connect_result(fd))
    }
}

fn is_under_way(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted || error.raw_os_error() == Some(libc::EINPROGRESS)
}
