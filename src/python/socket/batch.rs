//! Many datagrams a call, without an object for each.

use std::ffi::c_int;

use pyo3::prelude::*;

use super::Socket;
use super::many::{Sending, refuse_peeking};
use crate::net::{Address, Datagrams, Interest};
use crate::python::batch::Batch;
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
        if socket.pending() > 0 {
            batch.empty(&mut contents);
            while let Some(mut held) = socket.take_kept() {
                while let Some(datagram) = held.current() {
                    let from = Some(Address::from_bytes(datagram.from));
                    let (payload, is_cut) = (datagram.payload, datagram.is_truncated);
                    if !batch.push(&mut contents, payload, from, is_cut) {
                        socket.put_back(held);
                        return Ok(batch.len());
                    }
                    held.advance();
                }
            }
            return Ok(batch.len());
        }
        let slots = contents.ring().slots();
        let ring = contents.ring();
        self.transfer(py, &mut self.patience(), Interest::Read, flags, |socket, fd, flags| {
            // As many messages as there are slots, however many datagrams each has.
            socket.receive_messages(fd, ring, slots, flags)
        })?;
        batch.lay_out(&mut contents);
        socket.keep(contents.ring());
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
        let to = address.map(|address| sending.resolve(address)).transpose()?;
        let batch = batch.get();
        let contents = batch.lock()?;
        let mut queue = batch.queue(&contents, to.as_ref());
        sending.portion(&mut queue, true)?;
        sending.finish()
    }
}
