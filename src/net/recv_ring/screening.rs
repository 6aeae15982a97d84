//! Removing PROXY headers, and datagrams that must not be handed out, from a receive.

use std::io;
#[cfg(feature = "dtls")]
use std::sync::Arc;

#[cfg(feature = "dtls")]
use super::Received;
use super::{Filled, Part, RecvRing};
#[cfg(feature = "dtls")]
use crate::net::came_through::CameThrough;
use crate::net::guard::{Arrival, Guard};
use crate::net::proxy_protocol::{Proxies, Refusal};
use crate::net::split::Split;
use crate::net::sys::make_room;

/// How many datagrams were refused because of their PROXY headers.
#[derive(Clone, Copy, Default)]
pub(in crate::net) struct Unproxied {
    pub(in crate::net) untrusted: usize,
    pub(in crate::net) malformed: usize,
    /// Dropped because memory allocation failed.
    pub(in crate::net) lost: usize,
}

impl RecvRing {
    /// Reads and removes the PROXY headers of the last receive. Removes the datagrams that must not
    /// be accepted, and returns their number. Each remaining datagram is a part of its own, because
    /// coalesced datagrams of a proxy may come from different clients.
    pub(in crate::net) fn remove_headers(
        &mut self,
        proxies: &Proxies,
        filled: &mut Filled,
    ) -> Unproxied {
        let mut refused = Unproxied::default();
        let Filled { messages, is_full, datagrams, .. } = *filled;
        *filled = Filled { messages, is_full, ..Filled::default() };
        let mut parts = Vec::new();
        let has_room = parts.try_reserve(datagrams).is_ok()
            && self.clients.try_reserve(datagrams).is_ok()
            && self.arrivals.try_reserve(datagrams).is_ok();
        if !has_room {
            self.splits.clear();
            return Unproxied { lost: datagrams, ..refused };
        }
        for &Part { slot, mut split, .. } in &self.splits {
            let sender = self.messages.message(slot).name;
            loop {
                let range = split.range();
                match proxies.origin(sender, self.messages.payload(slot, range.clone())) {
                    Ok(origin) => {
                        let split = Split::one(range.start + origin.header_len..range.end);
                        let client = origin.client.map(|client| {
                            self.clients.push(client);
                            self.clients.len() - 1
                        });
                        filled.count(split, self.is_truncated(slot));
                        parts.push(Part { slot, split, client, session: None });
                    }
                    Err(Refusal::Untrusted) => refused.untrusted += 1,
                    Err(Refusal::Malformed) => refused.malformed += 1,
                }
                if !split.advance() {
                    break;
                }
            }
        }
        self.splits = parts;
        refused
    }

    /// Allocates the memory that [`screen`](Self::screen) needs for a full receive, so that it
    /// cannot fail.
    pub(in crate::net) fn prepare_to_screen(&mut self) -> io::Result<()> {
        self.arrivals.clear();
        let slots = self.slots();
        make_room(&mut self.arrivals, slots, "messages for a guard")
    }

    /// Removes the datagrams that a guard refuses from the last receive, and returns their number.
    pub(in crate::net) fn screen(&mut self, guard: &Guard, filled: &mut Filled) -> usize {
        self.arrivals.clear();
        self.arrivals.extend(self.splits.iter().map(|part| {
            let (from, split) =
                (part.from(self.messages.message(part.slot).name, &self.clients), part.split);
            let bytes = split.end() - split.start();
            Arrival::run(from, bytes, split.range().len(), split.remaining())
        }));
        let refused = guard.admit(&mut self.arrivals);
        if refused > 0 {
            let mut arrivals = self.arrivals.iter();
            let messages = &mut self.messages;
            self.splits.retain_mut(|Part { slot, split, .. }| {
                let passing = arrivals.next().map_or(0..0, Arrival::passing);
                let len = split.end();
                split.keep(&passing);
                let kept = if passing.is_empty() { 0..0 } else { split.start()..split.end() };
                messages.hide_payload(*slot, 0..kept.start);
                messages.hide_payload(*slot, kept.end..len);
                !passing.is_empty()
            });
            let Filled { messages, is_full, .. } = *filled;
            *filled = Filled { messages, is_full, ..Filled::default() };
            for &Part { slot, split, .. } in &self.splits {
                filled.count(split, self.is_truncated(slot));
            }
        }
        refused
    }

    /// Replaces each message of the last receive by what `rewrite` makes of it, and drops it if that
    /// is nothing. `rewrite` gets the message as one piece, and the length of its datagrams; it puts
    /// what replaces them, which must fit into a slot, into the vector, and returns their session.
    /// Each message must be one part, as it is without proxies.
    #[cfg(feature = "dtls")]
    pub(in crate::net) fn rewrite(
        &mut self,
        mut rewrite: impl FnMut(Received<'_>, usize, &mut Vec<u8>) -> Option<(Split, Arc<CameThrough>)>,
    ) {
        let mut new = Vec::new();
        let mut splits = std::mem::take(&mut self.splits);
        splits.retain_mut(|part| {
            let (slot, whole) = (part.slot, part.split.start()..part.split.end());
            let Ok(payload) = self.messages.copy_payload(slot, whole) else { return false };
            new.clear();
            let received = self.received(part, &payload);
            let rewritten = rewrite(received, part.split.segment(), &mut new);
            self.messages.replace_payload(slot, &new);
            let Some((split, session)) = rewritten else { return false };
            part.split = split;
            part.session = Some(self.sessions.len());
            self.sessions.push(session);
            true
        });
        self.splits = splits;
    }

    /// Drops datagrams of the last receive that came through sessions which fail a test, and counts
    /// the others; returns how many it has dropped.
    #[cfg(feature = "dtls")]
    pub(in crate::net) fn keep_sessions(
        &mut self,
        filled: &mut Filled,
        mut may_stay: impl FnMut(&CameThrough) -> bool,
    ) -> usize {
        let Filled { messages, is_full, .. } = *filled;
        *filled = Filled { messages, is_full, ..Filled::default() };
        let mut dropped = 0;
        self.splits.retain(|part| {
            let stays = part.session.is_some_and(|at| may_stay(&self.sessions[at]));
            dropped += if stays { 0 } else { part.split.remaining() };
            stays
        });
        for &Part { slot, split, .. } in &self.splits {
            filled.count(split, self.is_truncated(slot));
        }
        dropped
    }
}
