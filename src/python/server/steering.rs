//! Steers the reuseport group of a server's sockets.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::net::{Key, Steering};
use crate::python::error::Result;
use crate::python::socket::Socket;

/// Steer datagrams within a socket's reuseport group; `sockets` is the number of sockets in it.
#[pyfunction]
#[pyo3(signature = (socket, how, sockets, /))]
pub(crate) fn steer(socket: &Bound<'_, Socket>, how: &str, sockets: u32) -> Result<()> {
    let steering = match how {
        "hash" => Steering::Hash,
        "cpu" => Steering::Cpu,
        "random" => Steering::Random,
        _ => {
            let message = format!("steering must be 'hash', 'cpu' or 'random', not {how:?}");
            return Err(PyValueError::new_err(message).into());
        }
    };
    Ok(socket.get().socket()?.with(|fd| steering.attach(fd, sockets))?)
}

/// Steer datagrams within a socket's reuseport group by bytes of the payload; `sockets` is the
/// number of sockets in the group.
#[pyfunction]
#[pyo3(signature = (socket, key, sockets, has_header, /))]
pub(crate) fn steer_by_key(
    socket: &Bound<'_, Socket>,
    key: (u16, u16),
    sockets: u32,
    has_header: bool,
) -> Result<()> {
    let (offset, len) = key;
    let key = Key { offset, len: len.clamp(1, Key::LONGEST), has_header };
    Ok(socket.get().socket()?.with(|fd| Steering::Key(key).attach(fd, sockets))?)
}
