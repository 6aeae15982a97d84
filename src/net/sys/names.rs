//! The C library's functions for hosts, addresses and interfaces.

use std::ffi::{CStr, c_int, c_void};
use std::io;
use std::mem::{self, MaybeUninit};
use std::net::IpAddr;
use std::ptr;

use crate::net::address::Address;

/// The text of a resolver error: `gai_strerror(3)`.
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
/// This blocks for as long as the resolver takes.
pub(in crate::net) fn resolve(host: &CStr, family: c_int) -> Result<Address, ResolveError> {
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
pub(in crate::net) fn interface_index(name: &CStr) -> io::Result<u32> {
    // SAFETY: a terminated string.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Formats an IP address (4 or 16 bytes, in network order) like the C library.
///
/// Rust's own `Display` differs in rare cases (`::1.2.3.4`), and Python's `socket` uses the C
/// library.
pub(in crate::net) fn format_ip(ip: &[u8]) -> String {
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

/// The index of the interface that has an address: `getifaddrs(3)`; `EADDRNOTAVAIL` if none has.
pub fn interface_with_address(ip: IpAddr) -> io::Result<u32> {
    let mut list = ptr::null_mut();
    // The pointer: room for the list's address.
    syscall!(getifaddrs(&raw mut list))?;
    let mut found = None;
    let mut entry: *const libc::ifaddrs = list;
    // SAFETY: the list ends with a null pointer, and is ours until freeifaddrs. An entry's address
    // is null or has its family's length, and its name is terminated.
    unsafe {
        while let Some(interface) = entry.as_ref() {
            if let Some(address) = interface.ifa_addr.as_ref() {
                let len = match c_int::from(address.sa_family) {
                    libc::AF_INET => size_of::<libc::sockaddr_in>(),
                    libc::AF_INET6 => size_of::<libc::sockaddr_in6>(),
                    _ => 0,
                };
                let bytes = std::slice::from_raw_parts(interface.ifa_addr.cast(), len);
                if Address::from_bytes(bytes).ip().is_some_and(|address| address.ip() == ip) {
                    found = Some(CStr::from_ptr(interface.ifa_name).to_owned());
                }
            }
            entry = interface.ifa_next;
        }
        libc::freeifaddrs(list);
    }
    let name = found.ok_or_else(|| io::Error::from_raw_os_error(libc::EADDRNOTAVAIL))?;
    interface_index(&name)
}
