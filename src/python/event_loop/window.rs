//! The time in which a socket on an event loop collects datagrams.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use crate::net::{self, NextReceive, Timer};
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
        if socket.next_receive() == NextReceive::Now {
            return Ok(false);
        }
        self.begin(socket)
    }

    /// After a receive, begin the next window, or return False to wait for a first datagram.
    fn renew(&self, socket: &Bound<'_, Socket>) -> Result<bool> {
        let socket = socket.get().socket()?;
        if socket.next_receive() == NextReceive::AfterWindow {
            return self.begin(socket);
        }
        self.0.set(Duration::ZERO)?;
        Ok(false)
    }

    /// End without a call.
    fn close(&self) -> Result<()> {
        Ok(self.0.set(Duration::ZERO)?)
    }
}

impl ReceiveWindow {
    fn begin(&self, socket: &net::Socket) -> Result<bool> {
        let now = Instant::now();
        let time = socket.window_end(now).saturating_duration_since(now);
        self.0.set(time.max(Duration::from_nanos(1)))?; // zero would stop it
        Ok(true)
    }
}
