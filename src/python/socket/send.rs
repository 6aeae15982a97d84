//! Sending single datagrams: the methods of the standard class.

use std::ffi::c_int;

use pyo3::exceptions::{PyOSError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use super::Socket;
use super::options::Given;
use crate::net::{Address, Interest, cmsg, make_room, with_room};
use crate::python::address::Mapping;
use crate::python::audit;
use crate::python::buffer::{Readable, iterate};
use crate::python::error::Result;

#[pymethods]
impl Socket {
    /// Send a datagram to the connected peer, and return the number of bytes.
    #[pyo3(signature = (data, flags=0, /))]
    fn send(&self, py: Python<'_>, data: &Bound<'_, PyAny>, flags: c_int) -> Result<usize> {
        self.send_buffer(py, &Readable::new(data)?, None, flags)
    }

    /// Send a datagram to the connected peer; on a stream socket, continue until all data is sent.
    #[pyo3(signature = (data, flags=0, /))]
    fn sendall(&self, py: Python<'_>, data: &Bound<'_, PyAny>, flags: c_int) -> Result<()> {
        let data = Readable::new(data)?;
        if self.socket()?.is_datagram() {
            return self.send_buffer(py, &data, None, flags).map(drop);
        }
        let mut rest = data.slice();
        let mut patience = self.patience();
        while !rest.is_empty() {
            let sent =
                self.transfer(py, &mut patience, Interest::Write, flags, |socket, fd, flags| {
                    socket.send(fd, rest, None, flags)
                })?;
            rest = rest.after(sent);
            py.check_signals()?;
        }
        Ok(())
    }

    /// Send a datagram to an address, and return the number of bytes.
    #[pyo3(signature = (*args))]
    fn sendto(slf: &Bound<'_, Self>, args: &Bound<'_, PyTuple>) -> Result<usize> {
        let (data, flags, address) = match args.len() {
            2 => (args.get_borrowed_item(0)?, 0, args.get_borrowed_item(1)?),
            3 => {
                let flags = args.get_borrowed_item(1)?.extract()?;
                (args.get_borrowed_item(0)?, flags, args.get_borrowed_item(2)?)
            }
            given => {
                let message = format!("sendto() takes 2 or 3 arguments ({given} given)");
                return Err(PyTypeError::new_err(message).into());
            }
        };
        let this = slf.get();
        let data = Readable::new(&data)?;
        let to = this.parse_address(&address, "sendto")?;
        audit::event(c"socket.sendto", slf.as_any(), &address)?;
        this.send_buffer(slf.py(), &data, Some(&to), flags)
    }

    /// Send a datagram gathered from several buffers, with control messages.
    #[pyo3(signature = (buffers, ancdata=Given(None), flags=0, address=None, /))]
    fn sendmsg(
        slf: &Bound<'_, Self>,
        buffers: &Bound<'_, PyAny>,
        ancdata: Given<'_>,
        flags: c_int,
        address: Option<&Bound<'_, PyAny>>,
    ) -> Result<usize> {
        let (this, py) = (slf.get(), slf.py());
        let to = address.map(|address| this.parse_address(address, "sendmsg")).transpose()?;
        let none = py.None().into_bound(py);
        audit::event(c"socket.sendmsg", slf.as_any(), address.unwrap_or(&none))?;
        let buffers = Readable::all(buffers, "sendmsg() argument 1 must be an iterable")?;
        let mut memory = with_room(buffers.len(), "a list of buffers")?;
        memory.extend(buffers.iter().map(Readable::slice));
        let control = control_buffer(ancdata)?;
        this.transfer(py, &mut this.patience(), Interest::Write, flags, |socket, fd, flags| {
            socket.send_message(fd, &memory, to.as_ref(), &control, flags)
        })
    }
}

impl Socket {
    pub(super) fn send_buffer(
        &self,
        py: Python<'_>,
        data: &Readable<'_>,
        to: Option<&Address>,
        flags: c_int,
    ) -> Result<usize> {
        let memory = data.slice();
        self.transfer(py, &mut self.patience(), Interest::Write, flags, |socket, fd, flags| {
            socket.send(fd, memory, to, flags)
        })
    }

    /// Reads an address like the standard class.
    pub(super) fn parse_address(
        &self,
        address: &Bound<'_, PyAny>,
        caller: &str,
    ) -> Result<Address> {
        self.addresses.parse(self.family(), address, caller, Mapping::Strict)
    }

    /// Reads an address; an IPv6 socket also accepts one of IPv4, which the kernel needs as mapped.
    pub(crate) fn parse_any_address(
        &self,
        address: &Bound<'_, PyAny>,
        caller: &str,
    ) -> Result<Address> {
        self.addresses.parse(self.family(), address, caller, Mapping::Mapped)
    }

    /// Reads the address of a peer, which may be a proxy's client of another family.
    pub(crate) fn parse_peer(
        &self,
        address: &Bound<'_, PyAny>,
        has_proxies: bool,
        caller: &str,
    ) -> Result<Address> {
        self.parse_any_address(address, caller).or_else(|error| {
            if !has_proxies || self.family() != libc::AF_INET {
                return Err(error);
            }
            let parsed = self.addresses.parse(libc::AF_INET6, address, caller, Mapping::Mapped);
            parsed.map_err(|_| error)
        })
    }
}

/// Builds control messages from a list of `(level, type, data)`.
fn control_buffer(ancdata: Given<'_>) -> Result<Vec<u8>> {
    let mut control = Vec::new();
    let Given(Some(items)) = ancdata else { return Ok(control) };
    for item in iterate(&items, "sendmsg() argument 2 must be an iterable")? {
        let item = item?;
        let message = "[sendmsg() ancillary data items] must be 3-item sequences";
        let parts = iterate(&item, message)?.collect::<PyResult<Vec<_>>>()?;
        if parts.len() != 3 || item.is_instance_of::<PyBytes>() {
            return Err(PyTypeError::new_err(message).into());
        }
        let (level, kind) = (parts[0].extract()?, parts[1].extract()?);
        let data = Readable::new(&parts[2])?;
        if cmsg::space(data.len()) > c_int::MAX as usize {
            return Err(PyOSError::new_err("ancillary data item too large").into());
        }
        if control.len() + cmsg::space(data.len()) > c_int::MAX as usize {
            return Err(PyOSError::new_err("too much ancillary data").into());
        }
        let space = cmsg::space(data.len());
        make_room(&mut control, space, "control messages")?;
        cmsg::encode(&mut control, level, kind, &data.copy()?);
    }
    Ok(control)
}
