//! A socket's names, connections and options.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use super::single::name_of;
use crate::net::address::Address;

/// Sets the socket's local address: `bind(2)`.
pub(in crate::net) fn bind(fd: BorrowedFd<'_>, address: &Address) -> io::Result<()> {
    let (name, len) = name_of(Some(address));
    // The pointers: the name is readable for its length.
    syscall!(bind(fd.as_raw_fd(), name, len)).map(drop)
}

/// Connects the socket to a peer: `connect(2)`.
pub(in crate::net) fn connect(fd: BorrowedFd<'_>, address: &Address) -> io::Result<()> {
    let (name, len) = name_of(Some(address));
    // The pointers: the name is readable for its length.
    syscall!(connect(fd.as_raw_fd(), name, len)).map(drop)
}

/// Accepts a connection: `accept4(2)`, close-on-exec.
pub(in crate::net) fn accept(fd: BorrowedFd<'_>) -> io::Result<(OwnedFd, Address)> {
    let mut address = Address::UNNAMED;
    let mut len = Address::CAPACITY;
    let name = address.storage_mut().as_mut_ptr().cast();
    // The pointers: the name is an Address's storage with its capacity.
    let fd = syscall!(accept4(fd.as_raw_fd(), name, &raw mut len, libc::SOCK_CLOEXEC))?;
    address.set_len(len);
    // SAFETY: the kernel has just made this descriptor for us.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, address))
}

/// Lets peers connect: `listen(2)`.
pub(in crate::net) fn listen(fd: BorrowedFd<'_>, backlog: c_int) -> io::Result<()> {
    // No pointers.
    syscall!(listen(fd.as_raw_fd(), backlog)).map(drop)
}

/// Ends receiving, sending or both: `shutdown(2)`.
pub(in crate::net) fn shutdown(fd: BorrowedFd<'_>, how: c_int) -> io::Result<()> {
    // No pointers.
    syscall!(shutdown(fd.as_raw_fd(), how)).map(drop)
}

/// The socket's own address: `getsockname(2)`.
pub(in crate::net) fn local_address(fd: BorrowedFd<'_>) -> io::Result<Address> {
    let mut address = Address::UNNAMED;
    let mut len = Address::CAPACITY;
    let name = address.storage_mut().as_mut_ptr().cast();
    // The pointers: the name is an Address's storage with its capacity.
    syscall!(getsockname(fd.as_raw_fd(), name, &raw mut len))?;
    address.set_len(len);
    Ok(address)
}

/// The connected peer's address: `getpeername(2)`.
pub(in crate::net) fn peer_address(fd: BorrowedFd<'_>) -> io::Result<Address> {
    let mut address = Address::UNNAMED;
    let mut len = Address::CAPACITY;
    let name = address.storage_mut().as_mut_ptr().cast();
    // The pointers: the name is an Address's storage with its capacity.
    syscall!(getpeername(fd.as_raw_fd(), name, &raw mut len))?;
    address.set_len(len);
    Ok(address)
}

/// Reads an option into `value`; returns the option's length in bytes: `getsockopt(2)`.
pub(in crate::net) fn option(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &mut [u8],
) -> io::Result<usize> {
    // The kernel counts a filter in instructions. If given a length in bytes, it would write past
    // it.
    let is_filter = (level, name) == (libc::SOL_SOCKET, libc::SO_GET_FILTER);
    let unit = if is_filter { size_of::<libc::sock_filter>() } else { 1 };
    if value.len() < unit {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut len = (value.len() / unit) as libc::socklen_t;
    let start = value.as_mut_ptr().cast::<c_void>();
    // The pointers: `value` is writable for its length.
    syscall!(getsockopt(fd.as_raw_fd(), level, name, start, &raw mut len))?;
    Ok(value.len().min(len as usize * unit))
}

/// Whether a socket has a filter: without a buffer, `SO_GET_FILTER` returns its length.
pub(in crate::net) fn has_filter(fd: BorrowedFd<'_>) -> bool {
    let (level, name) = (libc::SOL_SOCKET, libc::SO_GET_FILTER);
    let mut len: libc::socklen_t = 0;
    // The pointers: the length says that there is no memory to write to.
    match syscall!(getsockopt(fd.as_raw_fd(), level, name, ptr::null_mut(), &raw mut len)) {
        Ok(_) => len > 0,
        // A filter that is not classic BPF cannot be read.
        Err(error) => error.raw_os_error() == Some(libc::EACCES),
    }
}

/// Reads an option that is an `int`.
pub(in crate::net) fn int_option(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
) -> io::Result<c_int> {
    let mut value = [0; size_of::<c_int>()];
    option(fd, level, name, &mut value)?;
    Ok(c_int::from_ne_bytes(value))
}

/// Reads the cookie of an open socket, which only its duplicates share: `SO_COOKIE`.
pub(in crate::net) fn socket_cookie(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut value = [0; size_of::<u64>()];
    option(fd, libc::SOL_SOCKET, libc::SO_COOKIE, &mut value)?;
    Ok(u64::from_ne_bytes(value))
}

/// Reads an option that is a time, such as `SO_RCVTIMEO`; zero means no limit.
pub(in crate::net) fn time_option(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
) -> io::Result<Duration> {
    const SECONDS: usize = offset_of!(libc::timeval, tv_sec);
    const MICROSECONDS: usize = offset_of!(libc::timeval, tv_usec);
    let mut value = [0; size_of::<libc::timeval>()];
    option(fd, level, name, &mut value)?;
    let word = |at: usize| {
        let word = value[at..].first_chunk().map_or(0, |word| i64::from_ne_bytes(*word));
        u64::try_from(word).unwrap_or(0)
    };
    Ok(Duration::from_secs(word(SECONDS)) + Duration::from_micros(word(MICROSECONDS)))
}

/// Whether a call that waits fails with `EAGAIN` instead: `O_NONBLOCK` in `fcntl(2)`.
pub(in crate::net) fn is_nonblocking(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // No pointers.
    Ok(syscall!(fcntl(fd.as_raw_fd(), libc::F_GETFL))? & libc::O_NONBLOCK != 0)
}

/// Sets an option: `setsockopt(2)`.
pub(in crate::net) fn set_option(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &[u8],
) -> io::Result<()> {
    let (start, len) = (value.as_ptr().cast::<c_void>(), value.len() as libc::socklen_t);
    // The pointers: `value` is readable for its length.
    syscall!(setsockopt(fd.as_raw_fd(), level, name, start, len)).map(drop)
}

/// Sets an option that is an `int`.
pub(in crate::net) fn set_int_option(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: c_int,
) -> io::Result<()> {
    set_option(fd, level, name, &value.to_ne_bytes())
}

/// Sets an option to a null value with a length, as a few options of `AF_ALG` require.
pub(in crate::net) fn set_option_len(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    len: libc::socklen_t,
) -> io::Result<()> {
    // The pointers: a null value, which the kernel rejects or ignores.
    syscall!(setsockopt(fd.as_raw_fd(), level, name, ptr::null(), len)).map(drop)
}

/// Attaches a classic BPF program to a socket: with `SO_ATTACH_FILTER`, the kernel drops the
/// datagrams that the program rejects; with `SO_ATTACH_REUSEPORT_CBPF`, the program chooses a
/// socket of the reuseport group for each datagram (`socket(7)`).
pub(in crate::net) fn attach_program(
    fd: BorrowedFd<'_>,
    name: c_int,
    program: &[libc::sock_filter],
) -> io::Result<()> {
    set_option(fd, libc::SOL_SOCKET, name, &program_option(program))
}

/// The value of an option that takes a program: a `struct sock_fprog`, which points to the program.
/// Built as bytes, so that the padding is zero rather than stack content.
pub fn program_option(program: &[libc::sock_filter]) -> [u8; size_of::<libc::sock_fprog>()] {
    const FILTER: usize = offset_of!(libc::sock_fprog, filter);
    let mut option = [0; _];
    option[..size_of::<u16>()].copy_from_slice(&(program.len() as u16).to_ne_bytes());
    let address = program.as_ptr().addr().to_ne_bytes();
    option[FILTER..FILTER + address.len()].copy_from_slice(&address);
    option
}

/// The inode of a descriptor: `fstat(2)`.
pub(in crate::net) fn inode(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // The pointer: room for the kernel's result.
    syscall!(fstat(fd.as_raw_fd(), stat.as_mut_ptr()))?;
    // SAFETY: the kernel has written it.
    Ok(unsafe { stat.assume_init() }.st_ino)
}

/// Closes a descriptor; returns the kernel's error, if any. It is closed in either case.
pub(in crate::net) fn close(fd: OwnedFd) -> io::Result<()> {
    // No pointers; the descriptor is ours to close.
    syscall!(close(fd.into_raw_fd())).map(drop)
}

/// Borrows a descriptor by its number.
///
/// # Safety
/// It must stay open for `'a`.
pub(in crate::net) unsafe fn borrow_fd<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: the caller's promise.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Takes a descriptor over by its number.
///
/// # Safety
/// It must be open, and no other code may close it.
pub(in crate::net) unsafe fn own_fd(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller's promise.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
