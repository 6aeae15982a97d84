//! The datagrams that sessions want to send.

use std::net::IpAddr;
use std::sync::Arc;

use super::packets::Packets;
use super::session::SessionScratch;
use super::session_table::SharedSession;
use crate::net::address::Address;
use crate::net::meta::Source;

/// Datagrams that sessions want to send.
#[derive(Default)]
pub struct Outbox {
    packets: Packets,
    to: Vec<(Address, Option<Source>)>,
    /// Addresses whose owners have proved that they receive what is sent to them.
    pub validated: Vec<IpAddr>,
    /// The sessions that have begun, of which some may have ended again.
    pub begun: Vec<Arc<SharedSession>>,
}

impl Outbox {
    /// The datagrams, each with its destination and its source.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Address, Option<Source>)> {
        self.packets.iter().zip(&self.to).map(|(packet, (to, source))| (packet, to, *source))
    }

    /// The number of datagrams.
    pub fn len(&self) -> usize {
        self.to.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.to.is_empty()
    }

    /// Removes all.
    pub fn clear(&mut self) {
        self.packets.clear();
        self.to.clear();
        self.validated.clear();
        self.begun.clear();
    }

    pub(super) fn push(&mut self, packet: &[u8], to: Address, source: Option<Source>) {
        self.packets.push(packet);
        self.to.push((to, source));
    }

    pub(super) fn take(
        &mut self,
        scratch: &mut SessionScratch,
        to: Address,
        source: Option<Source>,
    ) {
        for packet in scratch.outgoing.iter() {
            self.push(packet, to, source);
        }
        scratch.outgoing.clear();
    }
}
