//! The time in which a socket on an event loop collects datagrams.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use pyo3::prelude::*;

use crate::net::{NextReceive, Timer};
use crate::python::error::Result;
use crate::python::socket::Socket;

/// A timer for the loop to watch instead of a socket that collects datagrams.
#[pyclass(frozen, module = "tomada._core")]
pub(crate) struct ReceiveWindow(Timer);

#[pymethods]
impl ReceiveWindow {
    #[new]
    fn new() -> Result<Self> {
        Ok(Self(Timer::new()?))
    }

    /// Return the descriptor, which becomes readable at the end of the window.
    fn fileno(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }

    /// Begin when a socket has a first datagram; return False if it is to be received at once.
    fn open(&self, socket: &Bound<'_, Socket>) -> Result<bool> {
        let socket = socket.get().socket()?;
        let opens = socket.next_receive() != NextReceive::Now;
        if opens {
            self.0.set(socket.coalesce())?;
        }
        Ok(opens)
    }

    /// After a receive, begin the next window, or return False to wait for a first datagram.
    fn renew(&self, socket: &Bound<'_, Socket>) -> Result<bool> {
        let socket = socket.get().socket()?;
        let opens = socket.next_receive() == NextReceive::AfterWindow;
        self.0.set(if opens { socket.coalesce() } else { Duration::ZERO })?;
        Ok(opens)
    }

    /// End without a call.
    fn close(&self) -> Result<()> {
        Ok(self.0.set(Duration::ZERO)?)
    }
}
