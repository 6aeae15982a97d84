//! Names of hosts and interfaces, and addresses as text.

use std::ffi::{CStr, c_int};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::address::Address;
use super::sys;
pub use super::sys::{ResolveError, resolver_message};

/// Resolves a host name to its first address of a family, with the port zero: `getaddrinfo(3)`,
/// which blocks for as long as the resolver takes.
pub fn resolve(host: &CStr, family: c_int) -> Result<Address, ResolveError> {
    sys::resolve(host, family)
}

/// Formats an IPv4 address like the C library.
pub fn format_v4(ip: Ipv4Addr) -> String {
    sys::format_ip(&ip.octets())
}

/// Formats an IPv6 address like the C library, without a scope.
pub fn format_v6(ip: Ipv6Addr) -> String {
    sys::format_ip(&ip.octets())
}

/// The index of a network interface, given its name or its number in decimal.
pub fn interface_index(name: &CStr) -> io::Result<u32> {
    let digits = name.to_str().ok().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    let number = digits.and_then(|digits| digits.parse().ok());
    number.map_or_else(|| sys::interface_index(name), Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_print_as_the_c_library_prints_them() {
        assert_eq!(format_v4(Ipv4Addr::new(192, 0, 2, 1)), "192.0.2.1");
        assert_eq!(format_v6("::ffff:1.2.3.4".parse().unwrap()), "::ffff:1.2.3.4");
        assert_eq!(format_v6("2001:db8:0:0:1::1".parse().unwrap()), "2001:db8::1:0:0:1");
    }
}
