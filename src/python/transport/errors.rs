//! Reports errors from the error queue to the protocol.

use std::sync::atomic::Ordering;

use pyo3::prelude::*;

use super::TransportCore;
use crate::python::error::Result;

/// The protocol learns of at most this many entries of the error queue in one turn of the loop:
/// anyone can send ICMP messages, and each costs Python an exception and a call.
const TOLD: usize = 16;
/// The maximum number of entries that an error queue stores.
const MOST: usize = 256;

#[pymethods]
impl TransportCore {
    /// Empty the kernel's error queue, report some entries to the protocol now and the others in
    /// the next turns; return whether there were errors.
    fn read_errors(slf: &Bound<'_, Self>) -> Result<bool> {
        Self::tell_errors(slf)
    }

    /// Report all stored entries to the protocol at once.
    fn read_all_errors(slf: &Bound<'_, Self>) -> Result<()> {
        Self::empty_error_queue(slf)?;
        Self::tell_stored(slf, MOST)
    }

    /// Continue to report errors to the protocol.
    fn resume_errors(slf: &Bound<'_, Self>) -> Result<()> {
        let this = slf.get();
        this.errors_scheduled.store(false, Ordering::Relaxed);
        if this.links().is_some() {
            Self::tell_errors(slf)?;
        }
        Ok(())
    }
}

impl TransportCore {
    /// Empties the kernel's error queue, and reports some entries to the protocol, unless it has
    /// reported others in this turn. Returns whether the kernel's queue had errors.
    ///
    /// If it had, they describe what a call on the socket has just reported without a peer's
    /// address: with `IP_RECVERR` each ICMP message is reported in both ways.
    pub(super) fn tell_errors(slf: &Bound<'_, Self>) -> Result<bool> {
        let had_errors = Self::empty_error_queue(slf)?;
        let socket = slf.get().socket.bind(slf.py()).get().socket()?;
        let is_due = !slf.get().errors_scheduled.load(Ordering::Relaxed);
        if is_due && socket.has_stored_error_messages() {
            // This comes first, because the protocol may send and get the next error.
            Self::schedule_errors(slf)?;
            Self::tell_stored(slf, TOLD)?;
        }
        Ok(had_errors)
    }

    /// Empties the kernel's error queue, which takes the receive buffer's room. The protocol learns
    /// of the errors in the next turn.
    pub(super) fn keep_errors(slf: &Bound<'_, Self>) -> Result<()> {
        let has_errors = Self::empty_error_queue(slf)?;
        let is_due = !slf.get().errors_scheduled.load(Ordering::Relaxed);
        if has_errors && is_due { Self::schedule_errors(slf) } else { Ok(()) }
    }

    fn empty_error_queue(slf: &Bound<'_, Self>) -> Result<bool> {
        let this = slf.get();
        this.receives.store(0, Ordering::Relaxed);
        let socket = this.socket.bind(slf.py()).get().socket()?;
        Ok(socket.with(|fd| Ok(socket.store_error_messages(fd)))?.1 > 0)
    }

    fn schedule_errors(slf: &Bound<'_, Self>) -> Result<()> {
        let this = slf.get();
        this.errors_scheduled.store(true, Ordering::Relaxed);
        this.act(slf.py(), "tell_errors")
            .inspect_err(|_| this.errors_scheduled.store(false, Ordering::Relaxed))
    }

    fn tell_stored(slf: &Bound<'_, Self>, most: usize) -> Result<()> {
        let (py, this) = (slf.py(), slf.get());
        let owner = this.socket.bind(py).get();
        let socket = owner.socket()?;
        for _ in 0..most {
            let Some(message) = socket.take_stored_error_message() else { break };
            if let Some(noted) = owner.describe(py, message)? {
                let error = noted.into_exception(py)?;
                this.tell_error(py, error)?;
            }
        }
        Ok(())
    }
}
