//! One datagram per call.

use std::ffi::c_int;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::{RecvSlice, SendSlice};
use crate::net::address::Address;

/// The results of `recvmsg` besides the bytes.
#[derive(Clone, Copy, Debug)]
pub struct MessageInfo {
    /// The return value: the number of bytes received or, with `MSG_TRUNC` in the flags, the
    /// datagram's full length.
    pub len: usize,
    /// The number of bytes of control messages.
    pub control_len: usize,
    /// `msg_flags`: `MSG_TRUNC`, `MSG_CTRUNC`, `MSG_ERRQUEUE`, …
    pub flags: c_int,
}

/// Receives into one buffer: `recvfrom(2)`, or `recv(2)` without `from`.
pub(in crate::net) fn recv_from(
    fd: BorrowedFd<'_>,
    memory: &mut RecvSlice<'_>,
    from: Option<&mut Address>,
    flags: c_int,
) -> io::Result<usize> {
    let (start, len) = (memory.iovec.iov_base, memory.iovec.iov_len);
    // The pointers: `memory` is writable for `len` bytes, and the name is an Address's storage with
    // its capacity.
    let received = match from {
        None => {
            syscall!(recvfrom(fd.as_raw_fd(), start, len, flags, ptr::null_mut(), ptr::null_mut()))?
        }
        Some(from) => {
            let mut name_len = Address::CAPACITY;
            let name = from.storage_mut().as_mut_ptr().cast();
            let received =
                syscall!(recvfrom(fd.as_raw_fd(), start, len, flags, name, &raw mut name_len))?;
            from.set_len(name_len);
            received
        }
    };
    Ok(received as usize)
}

/// Receives into several buffers, with control messages: `recvmsg(2)`.
pub(in crate::net) fn recv_message(
    fd: BorrowedFd<'_>,
    memory: &mut [RecvSlice<'_>],
    from: &mut Address,
    control: &mut [u8],
    flags: c_int,
) -> io::Result<MessageInfo> {
    let mut header = empty_header();
    header.msg_name = from.storage_mut().as_mut_ptr().cast();
    header.msg_namelen = Address::CAPACITY;
    header.msg_iov = memory.as_mut_ptr().cast();
    header.msg_iovlen = memory.len() as _;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = control.len() as _;
    // The pointers: each part of the header points to memory borrowed for this call; RecvSlice is
    // laid out as iovec.
    let len = syscall!(recvmsg(fd.as_raw_fd(), &raw mut header, flags))? as usize;
    from.set_len(header.msg_namelen);
    // musl's msg_controllen is a u32.
    #[allow(clippy::unnecessary_cast)]
    let control_len = header.msg_controllen as usize;
    Ok(MessageInfo { len, control_len, flags: header.msg_flags })
}

/// Sends one datagram: `sendto(2)`, or `send(2)` without an address.
pub(in crate::net) fn send_to(
    fd: BorrowedFd<'_>,
    memory: SendSlice<'_>,
    to: Option<&Address>,
    flags: c_int,
) -> io::Result<usize> {
    let (name, name_len) = name_of(to);
    // The pointers: `memory` is readable for its length, and the name for its own.
    let sent = syscall!(sendto(
        fd.as_raw_fd(),
        memory.iovec.iov_base,
        memory.iovec.iov_len,
        flags,
        name,
        name_len
    ))?;
    Ok(sent as usize)
}

/// Sends one datagram gathered from several buffers, with control messages: `sendmsg(2)`.
pub(in crate::net) fn send_message(
    fd: BorrowedFd<'_>,
    memory: &[SendSlice<'_>],
    to: Option<&Address>,
    control: &[u8],
    flags: c_int,
) -> io::Result<usize> {
    let (name, name_len) = name_of(to);
    let mut header = empty_header();
    header.msg_name = name.cast_mut().cast();
    header.msg_namelen = name_len;
    header.msg_iov = memory.as_ptr().cast_mut().cast();
    header.msg_iovlen = memory.len() as _;
    if !control.is_empty() {
        header.msg_control = control.as_ptr().cast_mut().cast();
        header.msg_controllen = control.len() as _;
    }
    // The pointers: each part of the header points to memory borrowed for this call, which sendmsg
    // only reads; SendSlice is laid out as iovec.
    let sent = syscall!(sendmsg(fd.as_raw_fd(), &raw const header, flags))?;
    Ok(sent as usize)
}

pub(super) fn empty_header() -> libc::msghdr {
    // SAFETY: msghdr is plain data whose zeroes mean "no name, no memory, no control". (musl pads
    // it with private fields, so it cannot be written out.)
    unsafe { mem::zeroed() }
}

pub(super) fn name_of(address: Option<&Address>) -> (*const libc::sockaddr, libc::socklen_t) {
    address.map_or((ptr::null(), 0), |address| {
        let bytes = address.as_bytes();
        (bytes.as_ptr().cast(), bytes.len() as libc::socklen_t)
    })
}
