//! Hands out datagrams to tasks that request them.

use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use super::TransportCore;
use crate::net::{Received, ReplySourceReader};
use crate::python::batch::Batch;
use crate::python::buffer::new_bytes;
use crate::python::datagram::Datagram;
use crate::python::error::Result;
use crate::python::socket::{Senders, Socket, pair};

#[pymethods]
impl TransportCore {
    /// Take a datagram and its sender's address.
    fn recvfrom<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyTuple>> {
        // A call with a maximum of one returns exactly one.
        Ok(self.take(py, 1)?.swap_remove(0))
    }

    /// Take all queued datagrams, up to a maximum, with their senders' addresses.
    fn recv_many<'py>(&self, py: Python<'py>, max_datagrams: isize) -> Result<Bound<'py, PyList>> {
        let datagrams = self.take(py, max_datagrams)?;
        self.socket.bind(py).get().to_list(py, datagrams)
    }

    /// Take a datagram with its metadata.
    fn recv_datagram(&self, py: Python<'_>) -> Result<Datagram> {
        self.record(py, |socket, reader| {
            let note = |received: &Received<'_>| {
                reader.take(received);
            };
            let datagram = Socket::receive_datagram(socket, libc::MSG_DONTWAIT, note)?;
            Ok((datagram, 1, true))
        })
    }

    /// Take as many queued datagrams as a batch has room for.
    fn recv_batch(&self, batch: &Bound<'_, Batch>) -> Result<usize> {
        self.record(batch.py(), |socket, reader| {
            let note = |received: &Received<'_>| {
                reader.take(received);
            };
            let flags = libc::MSG_DONTWAIT;
            let filled = socket.get().receive_batch(batch.py(), batch, flags, note)?;
            Ok((batch.get().len(), filled.messages, filled.is_full))
        })
    }
}

impl TransportCore {
    /// Runs a receive, and records what the transport must know of each: the address that every
    /// peer has sent to, and whether datagrams arrive in volume. `receive` also returns the number
    /// of messages, and whether there may be more.
    fn record<T>(
        &self,
        py: Python<'_>,
        receive: impl FnOnce(&Bound<'_, Socket>, &mut ReplySourceReader<'_>) -> Result<(T, usize, bool)>,
    ) -> Result<T> {
        let socket = self.socket.bind(py);
        let received = receive(socket, &mut self.reply_sources.reader());
        let (messages, is_full) =
            received.as_ref().map_or((0, false), |&(_, messages, is_full)| (messages, is_full));
        self.gro.note(socket.get().socket()?, messages, is_full);
        received.map(|(received, ..)| received)
    }

    fn take<'py>(&self, py: Python<'py>, max_datagrams: isize) -> Result<Vec<Bound<'py, PyTuple>>> {
        self.record(py, |socket, reader| {
            let mut senders = Senders::new(socket.get().addresses());
            let convert = |datagram: &Received<'_>| {
                let data = new_bytes(py, datagram.payload)?;
                let pair = pair(data, senders.object(py, datagram.from)?)?;
                reader.take(datagram);
                Ok(pair)
            };
            let flags = libc::MSG_DONTWAIT;
            let taken = socket.get().receive_many(py, max_datagrams, flags, convert)?;
            let count = taken.len();
            let is_full = isize::try_from(count).is_ok_and(|count| count == max_datagrams);
            Ok((taken, count, is_full))
        })
    }
}
