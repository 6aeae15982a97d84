//! Datagrams from Python that are queued to be sent together.

use std::cell::Cell;
use std::thread::LocalKey;

use pyo3::pybacked::PyBackedBytes;

use crate::net::{self, Payload, Spare};

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
