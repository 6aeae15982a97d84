//! Which address a peer asked, so that it is answered from there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::net::{self, Address, Meta, Received, Source, with_room};

/// The local addresses that peers sent to, on a socket that is bound to all of them. On a socket
/// bound to one there is nothing to remember.
pub(crate) struct Asked {
    is_on: AtomicBool,
    table: Mutex<Vec<Option<Entry>>>,
}

struct Entry {
    peer: Address,
    source: Source,
}

/// So many peers are remembered at the most; one more takes another's place, who is then answered
/// from where the routes say, as from any socket.
const PEERS: usize = 512;

/// A table grows so many times when two peers would take one place.
const GROWTH: usize = 8;

impl Asked {
    /// For a socket; makes the kernel tell the address with each datagram, if it can differ.
    pub(crate) fn of(socket: &net::Socket) -> Self {
        let is_bound_to_all = socket
            .local_address()
            .is_ok_and(|address| address.ip().is_some_and(|ip| ip.ip().is_unspecified()));
        let is_connected = socket.peer_address().is_ok();
        let is_on = is_bound_to_all && !is_connected && socket.tell_destination().is_ok();
        Self { is_on: AtomicBool::new(is_on), table: Mutex::default() }
    }

    /// To take notes of datagrams as they are received.
    pub(crate) fn notes(&self) -> Notes<'_> {
        let (from, control, source) = (Address::UNNAMED, Vec::new(), None);
        Notes { asked: self, from, control, source }
    }

    /// Where to answer a peer from.
    pub(crate) fn source(&self, peer: &Address) -> Option<Source> {
        if !self.is_on.load(Ordering::Relaxed) {
            return None;
        }
        let table = self.table();
        let entry = table.get(place(peer, table.len()))?.as_ref()?;
        (entry.peer == *peer).then_some(entry.source)
    }

    /// Forgets which address a peer asked, which this machine has no more.
    pub(crate) fn forget(&self, peer: &Address) {
        let mut table = self.table();
        let at = place(peer, table.len());
        if let Some(place) = table.get_mut(at)
            && place.as_ref().is_some_and(|entry| entry.peer == *peer)
        {
            *place = None;
        }
    }

    fn put(&self, entry: Entry) {
        let mut table = self.table();
        if table.is_empty() {
            if table.try_reserve(1).is_err() {
                return; // it may forget
            }
            table.push(None);
        }
        let mut at = place(&entry.peer, table.len());
        while table.len() < PEERS
            && table[at].as_ref().is_some_and(|other| other.peer != entry.peer)
        {
            let len = table.len() * GROWTH;
            let Ok(larger) = with_room(len, "the peers of a socket") else { break };
            let old = std::mem::replace(&mut *table, larger);
            table.resize_with(len, || None);
            for other in old.into_iter().flatten() {
                let at = place(&other.peer, len);
                table[at] = Some(other);
            }
            at = place(&entry.peer, len);
        }
        table[at] = Some(entry);
    }

    fn table(&self) -> MutexGuard<'_, Vec<Option<Entry>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes note of where datagrams were sent to.
pub(crate) struct Notes<'a> {
    asked: &'a Asked,
    /// What was noted last. Datagrams that came glued say the same again.
    from: Address,
    control: Vec<u8>,
    source: Option<Source>,
}

impl Notes<'_> {
    /// Takes note of a datagram, and returns where to answer it from, if not from anywhere.
    pub(crate) fn take(&mut self, datagram: &Received<'_>) -> Option<Source> {
        if !self.asked.is_on.load(Ordering::Relaxed) {
            return None;
        }
        if self.control != datagram.control || self.from.as_bytes() != datagram.from {
            self.from = Address::from_bytes(datagram.from);
            self.control.clear();
            self.control.extend_from_slice(datagram.control);
            self.source = Meta::decode(datagram.control).source();
            if let Some(source) = self.source {
                self.asked.put(Entry { peer: self.from, source });
            }
        }
        self.source
    }
}

fn place(peer: &Address, len: usize) -> usize {
    // FNV-1a: short, and good enough for a table that may forget.
    let hash = peer.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash >> 32) as usize & len.wrapping_sub(1)
}
