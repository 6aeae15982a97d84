//! Membership in multicast groups, for any source or a single one, over IPv4 and IPv6 (`ip(7)`, RFC
//! 3678).

use std::ffi::c_int;
use std::mem::offset_of;
use std::net::{IpAddr, SocketAddr};

use super::address::Address;
pub use super::sys::interface_with_address;

/// A group to join or leave.
#[derive(Clone, Copy, Debug)]
pub struct Membership {
    /// The group's address.
    pub group: IpAddr,
    /// The interface's index; 0 lets the routing table decide.
    pub interface: u32,
    /// The only sender to receive from, or `None` for all senders.
    pub source: Option<IpAddr>,
}

/// A change to a membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// `MCAST_JOIN_GROUP`, `MCAST_JOIN_SOURCE_GROUP`
    Join,
    /// `MCAST_LEAVE_GROUP`, `MCAST_LEAVE_SOURCE_GROUP`
    Leave,
}

impl Membership {
    /// The option that makes a change, as level, name and value.
    pub fn option(&self, change: Change) -> (c_int, c_int, Vec<u8>) {
        let level = match self.group {
            IpAddr::V4(_) => libc::IPPROTO_IP,
            IpAddr::V6(_) => libc::IPPROTO_IPV6,
        };
        match self.source {
            None => {
                let mut value = vec![0; size_of::<libc::group_req>()];
                put(&mut value, offset_of!(libc::group_req, gr_interface), &self.index());
                put_ip(&mut value, offset_of!(libc::group_req, gr_group), self.group);
                let name = match change {
                    Change::Join => libc::MCAST_JOIN_GROUP,
                    Change::Leave => libc::MCAST_LEAVE_GROUP,
                };
                (level, name, value)
            }
            Some(source) => {
                let mut value = vec![0; size_of::<libc::group_source_req>()];
                put(&mut value, offset_of!(libc::group_source_req, gsr_interface), &self.index());
                put_ip(&mut value, offset_of!(libc::group_source_req, gsr_group), self.group);
                put_ip(&mut value, offset_of!(libc::group_source_req, gsr_source), source);
                let name = match change {
                    Change::Join => libc::MCAST_JOIN_SOURCE_GROUP,
                    Change::Leave => libc::MCAST_LEAVE_SOURCE_GROUP,
                };
                (level, name, value)
            }
        }
    }

    fn index(&self) -> [u8; 4] {
        self.interface.to_ne_bytes()
    }
}

fn put(value: &mut [u8], at: usize, bytes: &[u8]) {
    value[at..at + bytes.len()].copy_from_slice(bytes);
}

fn put_ip(value: &mut [u8], at: usize, ip: IpAddr) {
    put(value, at, Address::from(SocketAddr::new(ip, 0)).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Socket;

    #[test]
    fn a_group_is_joined_and_left_on_either_family() {
        for (family, group) in [(libc::AF_INET, "239.1.2.3"), (libc::AF_INET6, "ff15::1:2:3")] {
            let socket = Socket::open(family, libc::SOCK_DGRAM, 0).unwrap();
            let interface = interface_with_address("127.0.0.1".parse().unwrap()).unwrap();
            let membership = Membership { group: group.parse().unwrap(), interface, source: None };
            for change in [Change::Join, Change::Leave] {
                let (level, name, value) = membership.option(change);
                socket.set_option(level, name, &value).unwrap();
            }
            let (level, name, value) = membership.option(Change::Leave);
            let error = socket.set_option(level, name, &value).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL), "left twice");
        }
    }

    #[test]
    fn a_group_of_one_source_is_joined_and_left() {
        let socket = Socket::open(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
        let membership = Membership {
            group: "232.1.2.3".parse().unwrap(),
            interface: interface_with_address("127.0.0.1".parse().unwrap()).unwrap(),
            source: Some("127.0.0.1".parse().unwrap()),
        };
        for change in [Change::Join, Change::Leave] {
            let (level, name, value) = membership.option(change);
            socket.set_option(level, name, &value).unwrap();
        }
    }

    #[test]
    fn an_address_that_no_interface_has_is_an_error() {
        let error = interface_with_address("192.0.2.1".parse().unwrap()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
    }
}
