//! Many datagrams per call, without an object for each.

use std::ffi::c_int;

use pyo3::prelude::*;

use super::Socket;
use super::many::{of_receiving, refuse_peeking};
use super::sending::{ItemKind, Sending};
use crate::net::{Filled, Interest, Received, RecvCursor, Ring};
use crate::python::batch::Batch;
use crate::python::error::Result;

#[pymethods]
impl Socket {
    /// Wait for one datagram, then take all that are queued, as long as the batch has slots.
    #[pyo3(signature = (batch, flags=0))]
    fn recv_batch(&self, py: Python<'_>, batch: &Bound<'_, Batch>, flags: c_int) -> Result<usize> {
        self.receive_batch(py, batch, flags, |_| {})?;
        Ok(batch.get().len())
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
        let mut sending = Sending::new(slf, ItemKind::Payloads, flags, errors)?;
        let to = address.map(|address| sending.address(address, "send_batch")).transpose()?;
        let batch = batch.get();
        let contents = batch.lock()?;
        if to.is_none() {
            for address in contents.layout().addresses() {
                sending.audit(&slf.get().addresses.object(slf.py(), address.as_bytes())?)?;
            }
        }
        let mut queue = batch.queue(contents.layout(), to.as_ref())?;
        sending.queue(&mut queue, true)?;
        sending.finish()
    }
}

impl Socket {
    /// As [`recv_batch`](Self::recv_batch); `note` gets each message or datagram.
    pub(crate) fn receive_batch(
        &self,
        py: Python<'_>,
        batch: &Bound<'_, Batch>,
        flags: c_int,
        mut note: impl FnMut(&Received<'_>),
    ) -> Result<Filled> {
        let socket = self.socket()?;
        refuse_peeking(flags)?;
        let batch = batch.get();
        let mut contents = batch.lock()?;
        let (ring, layout) = contents.parts();
        // The previous content is overwritten from now on.
        batch.empty(layout);
        let filled;
        if socket.may_be_coalesced() && !batch.holds_any_message() {
            // Datagrams beyond the room of a slot would be lost without a cursor.
            let mut cursor = RecvCursor::of_thread(socket)?;
            filled = self.receive_for(py, batch, &mut cursor, flags)?;
            while batch.copy(layout, &mut cursor, &mut note)?
                && cursor.take_from_backlog().is_some()
            {}
        } else {
            let mut cursor = RecvCursor::new(socket, ring);
            filled = self.receive_for(py, batch, &mut cursor, flags)?;
            if cursor.held().is_none() {
                batch.lay_out(layout, &mut cursor, &mut note);
            }
            while let Some(held) = cursor.held()
                && batch.copy(layout, held, &mut note)?
            {
                cursor.take_from_backlog();
            }
        }
        Ok(filled)
    }

    /// Receives as many messages as a batch has slots, however many datagrams each contains.
    fn receive_for<R: Ring + Send>(
        &self,
        py: Python<'_>,
        batch: &Batch,
        cursor: &mut RecvCursor<'_, R>,
        flags: c_int,
    ) -> Result<Filled> {
        let mut patience = self.patience_for_many();
        let received = self.transfer(py, &mut patience, Interest::Read, flags, |_, fd, flags| {
            cursor.receive_messages(fd, batch.slots(), flags)
        });
        received.map_err(of_receiving)
    }
}
