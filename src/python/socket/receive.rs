//! Receiving single datagrams: the methods of the standard class.

use std::ffi::c_int;
use std::os::fd::{FromRawFd, OwnedFd};

use pyo3::exceptions::{PyRuntimeWarning, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use super::{BLOCKING, Socket};
use crate::net::{Address, Interest, RecvSlice, Scratch, Visibility, cmsg, with_room, zeroes};
use crate::python::buffer::{NewBytes, Writable, gather, new_bytes};
use crate::python::error::{Error, Result};

/// The results of `recvmsg` after the data: control messages, flags, and the sender.
struct Rest<'py> {
    control: Bound<'py, PyList>,
    flags: c_int,
    from: Bound<'py, PyAny>,
}

type Message<'py, T> = (T, Bound<'py, PyList>, c_int, Bound<'py, PyAny>);

impl<'py> Rest<'py> {
    fn after<T>(self, data: T) -> Message<'py, T> {
        (data, self.control, self.flags, self.from)
    }
}

#[pymethods]
impl Socket {
    /// Receive a datagram of up to bufsize bytes.
    #[pyo3(signature = (bufsize, flags=0, /))]
    fn recv<'py>(
        &self,
        py: Python<'py>,
        bufsize: isize,
        flags: c_int,
    ) -> Result<Bound<'py, PyBytes>> {
        let bufsize = checked_len(bufsize, "negative buffersize in recv")?;
        if bufsize == 0 {
            return Ok(new_bytes(py, b"")?);
        }
        self.receive_bytes(py, bufsize, flags, None)
    }

    /// Receive a datagram of up to bufsize bytes, and its sender's address.
    #[pyo3(signature = (bufsize, flags=0, /))]
    fn recvfrom<'py>(
        &self,
        py: Python<'py>,
        bufsize: isize,
        flags: c_int,
    ) -> Result<(Bound<'py, PyBytes>, Bound<'py, PyAny>)> {
        let bufsize = checked_len(bufsize, "negative buffersize in recvfrom")?;
        self.named_socket()?;
        let mut from = Address::UNNAMED;
        let data = self.receive_bytes(py, bufsize, flags, Some(&mut from))?;
        Ok((data, self.addresses.object(py, from.as_bytes())?))
    }

    /// Receive a datagram into a buffer, and return its length.
    #[pyo3(signature = (buffer, nbytes=0, flags=0))]
    fn recv_into(
        &self,
        py: Python<'_>,
        buffer: &Bound<'_, PyAny>,
        nbytes: isize,
        flags: c_int,
    ) -> Result<usize> {
        let mut buffer = Writable::new(buffer, "recv_into() argument 1")?;
        let nbytes = checked_len(nbytes, "negative buffersize in recv_into")?;
        if nbytes > buffer.len() {
            return Err(PyValueError::new_err("buffer too small for requested bytes").into());
        }
        let len = if nbytes == 0 { buffer.len() } else { nbytes };
        if len == 0 {
            return Ok(0);
        }
        self.receive_into(py, &mut buffer.slice(len), Visibility::Shared, flags, None)
    }

    /// Receive a datagram into a buffer, and return its length and its sender's address.
    #[pyo3(signature = (buffer, nbytes=0, flags=0))]
    fn recvfrom_into<'py>(
        &self,
        py: Python<'py>,
        buffer: &Bound<'py, PyAny>,
        nbytes: isize,
        flags: c_int,
    ) -> Result<(usize, Bound<'py, PyAny>)> {
        let mut buffer = Writable::new(buffer, "recvfrom_into() argument 1")?;
        let nbytes = checked_len(nbytes, "negative buffersize in recvfrom_into")?;
        if nbytes > buffer.len() {
            let message = "nbytes is greater than the length of the buffer";
            return Err(PyValueError::new_err(message).into());
        }
        let len = if nbytes == 0 { buffer.len() } else { nbytes };
        self.named_socket()?;
        let mut from = Address::UNNAMED;
        let (memory, from_memory) = (&mut buffer.slice(len), Some(&mut from));
        let received = self.receive_into(py, memory, Visibility::Shared, flags, from_memory)?;
        Ok((received, self.addresses.object(py, from.as_bytes())?))
    }

    /// Receive a datagram with control messages.
    #[pyo3(signature = (bufsize, ancbufsize=0, flags=0, /))]
    fn recvmsg<'py>(
        &self,
        py: Python<'py>,
        bufsize: isize,
        ancbufsize: isize,
        flags: c_int,
    ) -> Result<Message<'py, Bound<'py, PyBytes>>> {
        let bufsize = checked_len(bufsize, "negative buffer size in recvmsg()")?;
        self.named_socket()?;
        let len = self.useful_len(bufsize)?;
        if len <= Scratch::LEN {
            let mut scratch = Scratch::take()?;
            let memory = &mut [scratch.slice(len)];
            // With MSG_TRUNC the received length is the datagram's, which may exceed the bytes
            // written.
            let private = Visibility::Private;
            let (received, rest) = self.receive_message(py, memory, private, ancbufsize, flags)?;
            let data = new_bytes(py, scratch.bytes(received.min(len)))?;
            return Ok(rest.after(data));
        }
        let mut data = NewBytes::new(py, len)?;
        let (memory, private) = (&mut [data.slice()], Visibility::Private);
        let (received, rest) = self.receive_message(py, memory, private, ancbufsize, flags)?;
        // SAFETY: the kernel has written them.
        let data = unsafe { data.finish(received.min(len)) }?;
        Ok(rest.after(data))
    }

    /// Receive a datagram with control messages into several buffers.
    #[pyo3(signature = (buffers, ancbufsize=0, flags=0, /))]
    fn recvmsg_into<'py>(
        &self,
        py: Python<'py>,
        buffers: &Bound<'py, PyAny>,
        ancbufsize: isize,
        flags: c_int,
    ) -> Result<Message<'py, usize>> {
        let what = "recvmsg_into() argument 1";
        let mut buffers = gather(buffers.try_iter()?.map(|buffer| Writable::new(&buffer?, what)))?;
        let mut memory = with_room(buffers.len(), "a list of buffers")?;
        memory.extend(buffers.iter_mut().map(|buffer| {
            let len = buffer.len();
            buffer.slice(len)
        }));
        let shared = Visibility::Shared;
        let (len, rest) = self.receive_message(py, &mut memory, shared, ancbufsize, flags)?;
        Ok(rest.after(len))
    }
}

impl Socket {
    /// Receives into reused memory, and copies out exactly the received bytes: a large `bufsize`
    /// costs nothing.
    pub(super) fn receive_bytes<'py>(
        &self,
        py: Python<'py>,
        bufsize: usize,
        flags: c_int,
        from: Option<&mut Address>,
    ) -> Result<Bound<'py, PyBytes>> {
        let len = self.useful_len(bufsize)?;
        if len > Scratch::LEN {
            let mut data = NewBytes::new(py, len)?;
            let received =
                self.receive_into(py, &mut data.slice(), Visibility::Private, flags, from)?;
            // SAFETY: the kernel has written them.
            return Ok(unsafe { data.finish(received.min(len)) }?);
        }
        let mut scratch = Scratch::take()?;
        let received =
            self.receive_into(py, &mut scratch.slice(len), Visibility::Private, flags, from)?;
        if received > len {
            // MSG_TRUNC requested the full length. The standard class returns that number of bytes,
            // with garbage at the end. Here the end is zeroes.
            return Ok(PyBytes::new_with(py, received, |bytes| {
                bytes[..len].copy_from_slice(scratch.bytes(len));
                Ok(())
            })?);
        }
        Ok(new_bytes(py, scratch.bytes(received))?)
    }

    /// Receives one datagram; returns its length like the kernel: longer than the buffer only if
    /// `flags` has `MSG_TRUNC`.
    fn receive_into(
        &self,
        py: Python<'_>,
        memory: &mut RecvSlice<'_>,
        visibility: Visibility,
        flags: c_int,
        mut from: Option<&mut Address>,
    ) -> Result<usize> {
        let flags = self.meaningful(flags);
        let received = self.transfer(
            py,
            &mut self.patience(),
            interest(flags),
            flags,
            |socket, fd, flags| {
                socket.receive_into(fd, memory, visibility, from.as_deref_mut(), flags)
            },
        )?;
        if flags & libc::MSG_WAITALL != 0 && flags & libc::MSG_PEEK == 0 && received.len > 0 {
            return self.receive_rest_of_stream(py, memory, received.len, flags);
        }
        Ok(if flags & libc::MSG_TRUNC == 0 { received.len } else { received.full_len })
    }

    /// Fills the rest of the memory, as `MSG_WAITALL` requires on a blocking stream; returns the
    /// total length. An error that ends it early is reported by the next call.
    fn receive_rest_of_stream(
        &self,
        py: Python<'_>,
        memory: &mut RecvSlice<'_>,
        mut len: usize,
        flags: c_int,
    ) -> Result<usize> {
        let socket = self.socket()?;
        let blocks = self.patience().timeout == BLOCKING && flags & libc::MSG_DONTWAIT == 0;
        while blocks && socket.kind() == libc::SOCK_STREAM && len < memory.len() {
            let mut rest = memory.after(len);
            let received = self.transfer(
                py,
                &mut self.patience(),
                Interest::Read,
                flags,
                |socket, fd, flags| socket.receive(fd, &mut rest, None, flags),
            );
            match received {
                Ok(received) if received.len > 0 => len += received.len,
                Ok(_) | Err(Error::Os(_) | Error::Closed) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(len)
    }

    fn receive_message<'py>(
        &self,
        py: Python<'py>,
        memory: &mut [RecvSlice<'_>],
        visibility: Visibility,
        ancbufsize: isize,
        flags: c_int,
    ) -> Result<(usize, Rest<'py>)> {
        self.named_socket()?;
        let flags = self.meaningful(flags);
        let control_len = c_int::try_from(ancbufsize)
            .ok()
            .and_then(|len| usize::try_from(len).ok())
            .ok_or_else(|| PyValueError::new_err("invalid ancillary data buffer length"))?;
        let control_len = control_len.min(LONGEST_CONTROL);
        let mut control = zeroes(control_len, "control messages")?;
        let mut from = Address::UNNAMED;
        let info = self.transfer(
            py,
            &mut self.patience(),
            interest(flags),
            flags,
            |socket, fd, flags| {
                socket.receive_message(fd, memory, visibility, &mut from, &mut control, flags)
            },
        )?;
        let control = &control[..info.control_len.min(control_len)];
        let convert = || {
            let from = self.addresses.object(py, from.as_bytes())?;
            Ok(Rest { control: control_list(py, control)?, flags: info.flags, from })
        };
        convert().map(|rest| (info.len, rest)).inspect_err(|_| close_descriptors(control))
    }

    /// The flags that apply to a receive. `AF_UNIX` does not have an error queue, and the kernel
    /// ignores the flag there.
    fn meaningful(&self, flags: c_int) -> c_int {
        if flags & libc::MSG_ERRQUEUE != 0 && self.family() == libc::AF_UNIX {
            flags & !libc::MSG_ERRQUEUE
        } else {
            flags
        }
    }

    /// The part of a buffer that a datagram can fill.
    fn useful_len(&self, bufsize: usize) -> Result<usize> {
        Ok(self.socket()?.largest_datagram().map_or(bufsize, |largest| bufsize.min(largest)))
    }
}

/// Longer than all control messages of any datagram: 253 descriptors, or IPv6's extension headers,
/// of at most 2 KiB each. A larger buffer would only cost the time to clear it.
const LONGEST_CONTROL: usize = 1 << 16;

fn checked_len(len: isize, message: &'static str) -> Result<usize> {
    Ok(usize::try_from(len).map_err(|_| PyValueError::new_err(message))?)
}

fn interest(flags: c_int) -> Interest {
    if flags & libc::MSG_ERRQUEUE == 0 { Interest::Read } else { Interest::Error }
}

/// Converts control messages to a list of `(level, type, data)`.
fn control_list<'py>(py: Python<'py>, control: &[u8]) -> Result<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for message in cmsg::decode(control) {
        if message.is_truncated {
            let category = py.get_type::<PyRuntimeWarning>();
            let text = c"received malformed or improperly-truncated ancillary data";
            PyErr::warn(py, &category, text, 1)?;
        }
        list.append((message.level, message.kind, new_bytes(py, message.data)?))?;
    }
    Ok(list)
}

/// Closes the descriptors in a message that was not delivered (`unix(7)`, `SCM_RIGHTS`).
fn close_descriptors(control: &[u8]) {
    let rights = cmsg::decode(control)
        .filter(|message| (message.level, message.kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS));
    for message in rights {
        for fd in message.data.chunks_exact(size_of::<c_int>()) {
            let fd = c_int::from_ne_bytes([fd[0], fd[1], fd[2], fd[3]]);
            // SAFETY: the kernel has just made this descriptor for the message's receiver.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}
