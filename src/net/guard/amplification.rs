//! Limits the bytes sent to an address that may be forged, to a multiple of the bytes received from
//! it (RFC 9000, section 8).

use std::fmt;
use std::io;
use std::net::IpAddr;

use super::arrival::Arrival;
use super::counters::GuardCounts;
use super::table::Slot;
use super::{Guard, Sources, number};
use crate::net::address::Address;

/// Why a datagram must not be sent.
#[derive(Debug)]
struct OverAmplification;

impl Guard {
    /// Whether the guard limits sending.
    pub fn limits_sending(&self) -> bool {
        self.policy().amplification.is_some()
    }

    /// Deducts a datagram from the peer's amplification budget. If the budget is too small, returns
    /// false, and the datagram must not be sent. A connected peer has no address here: the user has
    /// chosen it, so it has no limit.
    pub fn spend(&self, to: Option<&Address>, bytes: usize) -> bool {
        let (true, Some(to)) = (self.limits_sending(), to.and_then(Address::ip)) else {
            return true;
        };
        self.sources().is_none_or(|mut sources| {
            let hash = sources.table.hash(number(to.ip()));
            let slot = sources.table.find(hash);
            slot.is_some_and(|slot| sources.table.spend(slot, bytes as u64))
        })
    }

    /// Refunds a datagram that was not sent after all.
    pub fn refund(&self, to: Option<&Address>, bytes: usize) {
        if let (true, Some(to)) = (self.limits_sending(), to.and_then(Address::ip))
            && let Some(mut sources) = self.sources()
        {
            let hash = sources.table.hash(number(to.ip()));
            if let Some(slot) = sources.table.find(hash) {
                sources.table.grant(slot, bytes as u64);
            }
        }
    }

    /// Counts a datagram that must not be sent, and returns the error for it: `EPERM`.
    pub(in crate::net) fn refuse_to_send(&self) -> io::Error {
        self.count(GuardCounts { over_amplification: 1, ..GuardCounts::default() });
        io::Error::new(io::ErrorKind::PermissionDenied, OverAmplification)
    }

    /// Records that the caller has verified that the address belongs to its sender. It may be sent
    /// anything from now on, and counts as known.
    pub fn validate(&self, address: IpAddr) {
        let now = self.now();
        if let Some(mut sources) = self.sources() {
            for source in [number(address), self.rate_source(address)] {
                let hash = sources.table.hash(source);
                sources.table.validate(hash, now);
            }
        }
    }

    /// Adds received bytes to the budget of their source address. `slot` is that of the rate's
    /// source, which may be the address's network.
    pub(super) fn grant(
        &self,
        sources: &mut Sources,
        arrival: &Arrival,
        slot: Slot,
        address: IpAddr,
        now: u64,
    ) {
        let Some(factor) = self.policy().amplification else { return };
        #[allow(clippy::cast_precision_loss)] // 64 KiB at most
        let credit = (arrival.passing_bytes() as f64 * factor) as u64;
        let hash = sources.table.hash(number(address));
        let slot = if hash == arrival.hash { slot } else { sources.table.admit(hash, now) };
        sources.table.grant(slot, credit);
    }
}

impl fmt::Display for OverAmplification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot send: the datagram exceeds the peer's amplification limit")
    }
}

impl std::error::Error for OverAmplification {}
