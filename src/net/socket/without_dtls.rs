//! Stands in for DTLS in a build without it.

use std::io;
use std::time::Duration;

use super::Socket;

impl Socket {
    /// Whether the socket has sessions.
    #[inline]
    pub fn has_dtls(&self) -> bool {
        false
    }

    /// Does nothing.
    pub fn tick_dtls(&self) -> Option<Duration> {
        None
    }

    /// Does nothing.
    pub fn close_dtls(&self) {}

    /// Does nothing.
    pub fn close_handshakes(&self) {}

    /// Does nothing.
    #[allow(clippy::unnecessary_wraps, clippy::unused_self)] // with DTLS it may fail
    pub(super) fn end_of_session(&self) -> io::Result<()> {
        Ok(())
    }

    /// Does nothing.
    #[allow(clippy::unnecessary_wraps, clippy::unused_self)] // with DTLS it may fail
    pub(super) fn raise_end_of_session(&self) -> io::Result<()> {
        Ok(())
    }

    /// Does nothing.
    #[allow(clippy::unnecessary_wraps, clippy::unused_self)] // with DTLS it may fail
    pub(super) fn check_not_opening(&self) -> io::Result<()> {
        Ok(())
    }
}
