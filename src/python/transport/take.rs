//! Hands out datagrams to tasks that request them.

use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use super::TransportCore;
use crate::net::Received;
use crate::python::buffer::new_bytes;
use crate::python::error::Result;
use crate::python::socket::{Senders, pair};

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
}

impl TransportCore {
    fn take<'py>(&self, py: Python<'py>, max_datagrams: isize) -> Result<Vec<Bound<'py, PyTuple>>> {
        let socket = self.socket.bind(py).get();
        let mut senders = Senders::new(socket.addresses());
        let mut source_reader = self.reply_sources.reader();
        let convert = |datagram: &Received<'_>| {
            let data = new_bytes(py, datagram.payload)?;
            let pair = pair(data, senders.object(py, datagram.from)?)?;
            source_reader.take(datagram);
            Ok(pair)
        };
        let taken = socket.receive_many(py, max_datagrams, libc::MSG_DONTWAIT, convert);
        let count = taken.as_ref().map_or(0, Vec::len);
        let is_full = isize::try_from(count).is_ok_and(|count| count == max_datagrams);
        self.gro.note(socket.socket()?, count, is_full);
        taken
    }
}
