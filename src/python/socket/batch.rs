//! Many datagrams a call, without an object for each.

use std::ffi::c_int;

use pyo3::prelude::*;

use super::many::refuse_peeking;
use super::sending::Sending;
use super::{Patience, Socket};
use crate::net::{Datagrams, Interest, ThreadRing};
use crate::python::batch::{Batch, Contents};
use crate::python::error::Result;

#[pymethods]
impl Socket {
    /// Wait for one datagram, then take all that are there, as far as the batch has slots.
    #[pyo3(signature = (batch, flags=0))]
    fn recv_batch(&self, py: Python<'_>, batch: &Bound<'_, Batch>, flags: c_int) -> Result<usize> {
        let socket = self.socket()?;
        refuse_peeking(flags)?;
        let batch = batch.get();
        let mut contents = batch.lock()?;
        let slots = batch.slots();
        let mut patience = self.patience();
        if socket.pending() > 0 || socket.may_be_glued() && !batch.holds_any_message() {
            return self.receive_copies(py, &mut patience, batch, &mut contents, flags);
        }
        let ring = contents.ring();
        self.transfer(py, &mut patience, Interest::Read, flags, |socket, fd, flags| {
            // As many messages as there are slots, however many datagrams each has.
            socket.receive_messages(fd, ring, slots, flags)
        })?;
        if contents.ring().current().is_none() {
            // Another thread has kept some meanwhile.
            return self.receive_copies(py, &mut patience, batch, &mut contents, flags);
        }
        batch.lay_out(&mut contents);
        socket.keep(contents.ring());
        socket.share_kept();
        Ok(batch.len())
    }

    /// Send the datagrams of a batch, each to its own address, or all to one.
    #[pyo3(signature = (batch, address=None, flags=0, *, errors="raise"))]
    fn send_batch<'py>(
        slf: &Bound<'py, Self>,
        batch: &Bound<'py, Batch>,
        address: Option<&Bound<'py, PyAny>>,
        flags: c_int,
        errors: &str,
    ) -> Result<Bound<'py, PyAny>> {
        let mut sending = Sending::new(slf, flags, errors)?;
        let to = address.map(|address| sending.address(address, "send_batch")).transpose()?;
        let batch = batch.get();
        let contents = batch.lock()?;
        if to.is_none() {
            for address in contents.addresses() {
                sending.audit(&slf.get().addresses.object(slf.py(), address.as_bytes())?)?;
            }
        }
        let mut queue = batch.queue(&contents, to.as_ref())?;
        sending.queue(&mut queue, true)?;
        sending.finish()
    }
}

impl Socket {
    /// Receives by way of the datagrams that are kept, which are copied: where there are some, and
    /// where a glued message may be longer than a slot, in which the datagrams behind would be lost.
    fn receive_copies(
        &self,
        py: Python<'_>,
        patience: &mut Patience,
        batch: &Batch,
        contents: &mut Contents,
        flags: c_int,
    ) -> Result<usize> {
        let socket = self.socket()?;
        batch.empty(contents);
        loop {
            // A slot is for one message, of one datagram or of several.
            for _ in 0..batch.slots() {
                let Some(mut held) = socket.take_kept() else { break };
                let mut result = Ok(true);
                while let Some(datagram) = held.current() {
                    result = batch.push_received(contents, &datagram);
                    if !matches!(result, Ok(true)) {
                        break;
                    }
                    held.advance();
                }
                socket.put_back(held);
                if result.is_err() && batch.len() == 0 {
                    result?;
                }
            }
            if batch.len() > 0 {
                socket.share_kept();
                return Ok(batch.len());
            }
            let mut ring = ThreadRing::take(socket.slot_kind())?;
            self.transfer(py, patience, Interest::Read, flags, |socket, fd, flags| {
                socket.receive_ring(fd, &mut ring, batch.slots(), flags)
            })?;
            socket.keep(&ring);
        }
    }
}
