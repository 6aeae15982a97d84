//! The datagrams that a guard checks.

use std::net::IpAddr;
use std::ops::Range;

use crate::net::address::AddressKind;

/// The datagrams of one kernel message, which all have the same source.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub(super) source: Option<IpAddr>,
    /// The number of payload bytes in total.
    bytes: usize,
    /// The number of payload bytes of the longest datagram.
    longest: usize,
    pub(super) datagrams: usize,
    /// The number of oversized datagrams; they come first.
    oversized: usize,
    /// The number of the others that pass; they come next.
    pub(super) passing: usize,
    /// The table's hash of the source.
    pub(super) hash: u64,
}

impl Arrival {
    /// One datagram from a sender, given as the kernel writes addresses.
    pub fn one(from: &[u8], len: usize) -> Self {
        Self::run(from, len, len, 1)
    }

    /// A run of coalesced datagrams with `bytes` in total. The first one is the longest.
    pub fn run(from: &[u8], bytes: usize, longest: usize, datagrams: usize) -> Self {
        let source = match AddressKind::of(from) {
            AddressKind::V4(address) => Some(IpAddr::V4(*address.ip())),
            AddressKind::V6(address) => Some(IpAddr::V6(*address.ip())),
            _ => None,
        };
        Self { source, bytes, longest, datagrams, oversized: 0, passing: datagrams, hash: 0 }
    }

    /// The indexes of the datagrams that pass.
    pub fn passing(&self) -> Range<usize> {
        self.oversized..self.oversized + self.passing
    }

    /// The number of payload bytes of the datagrams that pass.
    pub(super) fn passing_bytes(&self) -> usize {
        let Range { start, end } = self.passing();
        let offset = |index: usize| self.bytes.min(index * self.longest);
        offset(end) - offset(start)
    }

    /// Refuses the datagrams that are longer than `max_size`, and returns their number: all, or all
    /// but the last, which may be shorter.
    pub(super) fn refuse_oversized(&mut self, max_size: usize) -> usize {
        let last = self.bytes - self.longest * (self.datagrams - 1);
        self.oversized = match (self.longest > max_size, last > max_size) {
            (false, _) => 0,
            (true, true) => self.datagrams,
            (true, false) => self.datagrams - 1,
        };
        self.passing -= self.oversized;
        self.oversized
    }
}
