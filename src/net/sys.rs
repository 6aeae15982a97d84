//! System calls behind safe functions.
//!
//! All unsafe code of the engine is here. Every function takes its descriptor as a
//! [`BorrowedFd`], so that it is open for the whole call, and its memory as a [`SendSlice`] or a
//! [`RecvSlice`], so that it is valid for the whole call. Errors are what the kernel said:
//! [`io::Error`] with its errno.

use std::ffi::{CStr, c_int, c_void};
use std::io;
use std::marker::PhantomData;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::address::Address;

/// Calls a libc function that returns -1 and sets errno when it fails.
///
/// The caller gives pointers that are valid for what the function does with them; each use says
/// why they are.
macro_rules! syscall {
    ($function:ident ( $($argument:expr),* $(,)? )) => {{
        // SAFETY: the pointers are valid, as the note beside this use of the macro says.
        let result = unsafe { libc::$function($($argument),*) };
        if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }};
}

/// Memory that the kernel reads a datagram from.
///
/// Laid out as `struct iovec`, so that a slice of them is a gather list. It is a pointer and not a
/// `&[u8]` because the memory may belong to a Python object whose bytes another thread changes
/// meanwhile: that garbles the datagram and nothing else, as long as no Rust reference claims that
/// the bytes stand still.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct SendSlice<'a> {
    iovec: libc::iovec,
    memory: PhantomData<&'a [u8]>,
}

// SAFETY: only the kernel reads through the pointer, and the memory outlives 'a on every thread.
unsafe impl Send for SendSlice<'_> {}
// SAFETY: as above; sharing the pointer shares no Rust reference to the bytes.
unsafe impl Sync for SendSlice<'_> {}

impl<'a> SendSlice<'a> {
    /// The bytes of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        // SAFETY: a slice's memory is readable for its lifetime.
        unsafe { Self::from_raw(bytes.as_ptr(), bytes.len()) }
    }

    /// The `len` bytes at `start`.
    ///
    /// # Safety
    /// The memory must stay readable for `'a`. Other threads may write to it.
    pub unsafe fn from_raw(start: *const u8, len: usize) -> Self {
        let iovec = libc::iovec { iov_base: start.cast_mut().cast(), iov_len: len };
        Self { iovec, memory: PhantomData }
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.iovec.iov_len
    }

    /// What comes after the first `len` bytes.
    #[must_use]
    pub fn after(self, len: usize) -> Self {
        let len = len.min(self.len());
        // SAFETY: it is the end of the same memory.
        unsafe { Self::from_raw(self.iovec.iov_base.cast::<u8>().add(len), self.len() - len) }
    }

    /// Whether there are no bytes: an empty datagram is a datagram.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Memory that the kernel writes a datagram to; otherwise as [`SendSlice`].
#[repr(transparent)]
pub struct RecvSlice<'a> {
    iovec: libc::iovec,
    memory: PhantomData<&'a mut [u8]>,
}

// SAFETY: only the kernel writes through the pointer, and the memory outlives 'a on every thread.
unsafe impl Send for RecvSlice<'_> {}

impl<'a> RecvSlice<'a> {
    /// The memory of `bytes`.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        // SAFETY: a slice's memory is writable for its lifetime.
        unsafe { Self::from_raw(bytes.as_mut_ptr(), bytes.len()) }
    }

    /// The `len` bytes at `start`.
    ///
    /// # Safety
    /// The memory must stay writable for `'a`, and hold nothing whose validity depends on its
    /// bytes. Other threads may read and write it.
    pub unsafe fn from_raw(start: *mut u8, len: usize) -> Self {
        Self { iovec: libc::iovec { iov_base: start.cast(), iov_len: len }, memory: PhantomData }
    }

    /// How many bytes fit.
    pub fn len(&self) -> usize {
        self.iovec.iov_len
    }

    /// Whether nothing fits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What `recvmsg` tells besides the bytes.
#[derive(Clone, Copy, Debug)]
pub struct MessageInfo {
    /// What the call returned: bytes received, or, with `MSG_TRUNC` among the flags, the
    /// datagram's full length.
    pub len: usize,
    /// Bytes of control messages.
    pub control_len: usize,
    /// `msg_flags`: `MSG_TRUNC`, `MSG_CTRUNC`, `MSG_ERRQUEUE`, …
    pub flags: c_int,
}

/// Receives into one piece of memory: `recvfrom(2)`, or `recv(2)` where `from` is not asked for.
pub(super) fn recv_from(
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

/// Receives into several pieces of memory, with control messages: `recvmsg(2)`.
pub(super) fn recv_message(
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

/// Sends one datagram: `sendto(2)`, or `send(2)` where there is no address.
pub(super) fn send_to(
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

/// Sends one datagram gathered from several pieces, with control messages: `sendmsg(2)`.
pub(super) fn send_message(
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

fn empty_header() -> libc::msghdr {
    // SAFETY: msghdr is plain data whose zeroes mean "no name, no memory, no control". (musl pads
    // it with private fields, so it cannot be written out.)
    unsafe { mem::zeroed() }
}

fn name_of(address: Option<&Address>) -> (*const libc::sockaddr, libc::socklen_t) {
    address.map_or((ptr::null(), 0), |address| {
        let bytes = address.as_bytes();
        (bytes.as_ptr().cast(), bytes.len() as libc::socklen_t)
    })
}

/// Gives the socket its local address: `bind(2)`.
pub(super) fn bind(fd: BorrowedFd<'_>, address: &Address) -> io::Result<()> {
    let (name, len) = name_of(Some(address));
    // The pointers: the name is readable for its length.
    syscall!(bind(fd.as_raw_fd(), name, len)).map(drop)
}

/// Gives the socket its peer: `connect(2)`.
pub(super) fn connect(fd: BorrowedFd<'_>, address: &Address) -> io::Result<()> {
    let (name, len) = name_of(Some(address));
    // The pointers: the name is readable for its length.
    syscall!(connect(fd.as_raw_fd(), name, len)).map(drop)
}

/// Takes a connection: `accept4(2)`, close-on-exec.
pub(super) fn accept(fd: BorrowedFd<'_>) -> io::Result<(OwnedFd, Address)> {
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
pub(super) fn listen(fd: BorrowedFd<'_>, backlog: c_int) -> io::Result<()> {
    // No pointers.
    syscall!(listen(fd.as_raw_fd(), backlog)).map(drop)
}

/// Ends receiving, sending or both: `shutdown(2)`.
pub(super) fn shutdown(fd: BorrowedFd<'_>, how: c_int) -> io::Result<()> {
    // No pointers.
    syscall!(shutdown(fd.as_raw_fd(), how)).map(drop)
}

/// The socket's own address: `getsockname(2)`.
pub(super) fn local_address(fd: BorrowedFd<'_>) -> io::Result<Address> {
    let mut address = Address::UNNAMED;
    let mut len = Address::CAPACITY;
    let name = address.storage_mut().as_mut_ptr().cast();
    // The pointers: the name is an Address's storage with its capacity.
    syscall!(getsockname(fd.as_raw_fd(), name, &raw mut len))?;
    address.set_len(len);
    Ok(address)
}

/// The connected peer's address: `getpeername(2)`.
pub(super) fn peer_address(fd: BorrowedFd<'_>) -> io::Result<Address> {
    let mut address = Address::UNNAMED;
    let mut len = Address::CAPACITY;
    let name = address.storage_mut().as_mut_ptr().cast();
    // The pointers: the name is an Address's storage with its capacity.
    syscall!(getpeername(fd.as_raw_fd(), name, &raw mut len))?;
    address.set_len(len);
    Ok(address)
}

/// Reads an option into `value` and says how many bytes it has: `getsockopt(2)`.
pub(super) fn option(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &mut [u8],
) -> io::Result<usize> {
    let mut len = value.len() as libc::socklen_t;
    let start = value.as_mut_ptr().cast::<c_void>();
    // The pointers: `value` is writable for its length.
    syscall!(getsockopt(fd.as_raw_fd(), level, name, start, &raw mut len))?;
    Ok(len as usize)
}

/// Reads an option that is an `int`.
pub(super) fn int_option(fd: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<c_int> {
    let mut value = [0; size_of::<c_int>()];
    option(fd, level, name, &mut value)?;
    Ok(c_int::from_ne_bytes(value))
}

/// Sets an option: `setsockopt(2)`.
pub(super) fn set_option(
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
pub(super) fn set_int_option(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: c_int,
) -> io::Result<()> {
    set_option(fd, level, name, &value.to_ne_bytes())
}

/// Sets an option to no value but a length, as a few options of `AF_ALG` want it.
pub(super) fn set_option_len(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    len: libc::socklen_t,
) -> io::Result<()> {
    // The pointers: a null value, which the kernel rejects or ignores.
    syscall!(setsockopt(fd.as_raw_fd(), level, name, ptr::null(), len)).map(drop)
}

/// Closes a descriptor and says what the kernel said. It is gone in either case.
pub(super) fn close(fd: OwnedFd) -> io::Result<()> {
    use std::os::fd::IntoRawFd;
    // No pointers; the descriptor is ours to close.
    syscall!(close(fd.into_raw_fd())).map(drop)
}

/// Waits for one of `fds` for at most `timeout`: `ppoll(2)`, which counts in nanoseconds where
/// `poll` rounds up to a millisecond.
pub(super) fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<usize> {
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    let count = fds.len() as libc::nfds_t;
    // The pointers: `fds` is a slice of pollfd, the timeout lives on this stack, no signal mask.
    let ready = syscall!(ppoll(fds.as_mut_ptr(), count, timeout, ptr::null()))?;
    Ok(ready as usize)
}

/// Makes a counter to wake a thread with: `eventfd(2)`, close-on-exec and non-blocking.
pub(super) fn eventfd() -> io::Result<OwnedFd> {
    // No pointers.
    let fd = syscall!(eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds one to an eventfd.
pub(super) fn signal_event(fd: BorrowedFd<'_>) -> io::Result<()> {
    let one = 1_u64.to_ne_bytes();
    // The pointers: eight readable bytes.
    syscall!(write(fd.as_raw_fd(), one.as_ptr().cast(), one.len())).map(drop)
}

/// Sets an eventfd back to zero.
pub(super) fn clear_event(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut count = [0_u8; 8];
    // The pointers: eight writable bytes.
    syscall!(read(fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len())).map(drop)
}

/// Turns a C library's number for a bad name into its text: `gai_strerror(3)`.
pub fn resolver_message(code: c_int) -> String {
    // SAFETY: gai_strerror returns a constant string for every code.
    unsafe { CStr::from_ptr(libc::gai_strerror(code)) }.to_string_lossy().into_owned()
}

/// Why a host name has no address.
#[derive(Debug)]
pub enum ResolveError {
    /// The resolver's own code, an `EAI_…` constant.
    Resolver(c_int),
    /// A system call failed (`EAI_SYSTEM`).
    System(io::Error),
}

/// Resolves a host name to the first address of a family: `getaddrinfo(3)`.
///
/// This blocks for as long as the resolver wants.
pub(super) fn resolve(host: &CStr, family: c_int) -> Result<Address, ResolveError> {
    // SAFETY: addrinfo is plain data; zeroes are "no hint".
    let mut hints: libc::addrinfo = unsafe { mem::zeroed() };
    hints.ai_family = family;
    let mut list = ptr::null_mut();
    // SAFETY: a terminated host, no service, readable hints, and room for the result's pointer.
    let code =
        unsafe { libc::getaddrinfo(host.as_ptr(), ptr::null(), &raw const hints, &raw mut list) };
    if code == libc::EAI_SYSTEM {
        return Err(ResolveError::System(io::Error::last_os_error()));
    }
    if code != 0 {
        return Err(ResolveError::Resolver(code));
    }
    // SAFETY: on success the list has at least one entry, whose address has ai_addrlen bytes, and
    // it is ours until freeaddrinfo.
    unsafe {
        let (name, len) = ((*list).ai_addr.cast::<u8>(), (*list).ai_addrlen as usize);
        let address = Address::from_bytes(std::slice::from_raw_parts(name, len));
        libc::freeaddrinfo(list);
        Ok(address)
    }
}

/// An interface's index by its name: `if_nametoindex(3)`.
pub(super) fn interface_index(name: &CStr) -> io::Result<u32> {
    // SAFETY: a terminated string.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Writes an IP address (4 or 16 bytes, in network order) as the C library writes it.
///
/// Rust's own `Display` differs in rare cases (`::1.2.3.4`), and what Python's `socket` prints is
/// the C library's.
pub(super) fn format_ip(ip: &[u8]) -> String {
    unsafe extern "C" {
        fn inet_ntop(
            family: c_int,
            address: *const c_void,
            text: *mut libc::c_char,
            len: libc::socklen_t,
        ) -> *const libc::c_char;
    }
    let family = match ip.len() {
        4 => libc::AF_INET,
        16 => libc::AF_INET6,
        other => unreachable!("an IP address has 4 or 16 bytes, not {other}"),
    };
    // POSIX: INET6_ADDRSTRLEN, the longest text with its end, is 46.
    let mut text = [MaybeUninit::<u8>::uninit(); 64];
    // SAFETY: `ip` has the family's length, and `text` room for the longest address; on success
    // inet_ntop has written a terminated string there.
    unsafe {
        let len = text.len() as libc::socklen_t;
        let start = inet_ntop(family, ip.as_ptr().cast(), text.as_mut_ptr().cast(), len);
        assert!(!start.is_null(), "inet_ntop fails only for a short buffer or a bad family");
        CStr::from_ptr(start).to_string_lossy().into_owned()
    }
}

/// Which process this is, counted in forks from the one that loaded the library.
///
/// State that a fork copies but that is only true in the parent (who waits, who is inside a system
/// call) carries this number, and is void where it differs.
pub(super) fn fork_generation() -> u32 {
    static GENERATION: AtomicU32 = AtomicU32::new(0);
    static REGISTERED: Once = Once::new();
    extern "C" fn count_fork() {
        GENERATION.fetch_add(1, Ordering::Relaxed);
    }
    REGISTERED.call_once(|| {
        // SAFETY: the handler is a static function that is safe to call after any fork. It fails
        // only for want of memory, and then only the child of a fork with threads inside system
        // calls would notice.
        unsafe { libc::pthread_atfork(None, None, Some(count_fork)) };
    });
    GENERATION.load(Ordering::Relaxed)
}

/// Borrows a descriptor by its number.
///
/// # Safety
/// It must stay open for `'a`.
pub(super) unsafe fn borrow_fd<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: the caller's promise.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Takes a descriptor over by its number.
///
/// # Safety
/// It must be open, and nobody else's to close.
pub(super) unsafe fn own_fd(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller's promise.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
