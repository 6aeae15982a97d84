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

    /// Begin a window after a socket's first datagram; return False if the caller should receive it
    /// at once.
    fn open(&self, socket: &Bound<'_, Socket>) -> Result<bool> {
        let socket = socket.get().socket()?;
        socket.begin_window();
        let Some(left) = socket.window_left() else { return Ok(false) };
        self.0.set(left)?;
        Ok(true)
    }

    /// Begin the next window, or return False if the caller should wait for a datagram first.
    fn renew(&self, socket: &Bound<'_, Socket>) -> Result<bool> {
        let next = socket.get().socket()?.next_receive();
        if next == NextReceive::AfterWindow && self.open(socket)? {
            return Ok(true);
        }
        self.close()?;
        Ok(false)
    }

    /// End without a call.
    fn close(&self) -> Result<()> {
        Ok(self.0.set(Duration::ZERO)?)
    }
}
