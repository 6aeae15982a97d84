//! Datagrams from Python that are queued to be sent together.

use std::cell::Cell;
use std::io;
use std::thread::LocalKey;

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::net::{self, Payload, SendQueue, Sent, Spare};

/// Datagrams in the order in which they were accepted.
pub(crate) type SendBacklog = net::SendBacklog<PyBackedBytes>;

thread_local! {
    static SPARE: Cell<Spare<PyBackedBytes>> = const { Cell::new(Spare::NONE) };
}

impl Payload for PyBackedBytes {
    fn spare() -> &'static LocalKey<Cell<Spare<Self>>> {
        &SPARE
    }
}

/// Returns what sends the next datagrams of a queue. Encrypting them takes longer than handing the GIL
/// over, so the thread is detached from the interpreter meanwhile.
pub(crate) fn sending<'a>(
    py: Python<'a>,
    socket: &'a net::Socket,
) -> impl FnMut(&mut SendQueue<'_>) -> io::Result<Sent> + 'a {
    let encrypts = socket.has_dtls();
    move |queue| {
        if encrypts { py.detach(|| socket.send_now(queue)) } else { socket.send_now(queue) }
    }
}
