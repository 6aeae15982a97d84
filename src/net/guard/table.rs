//! A guard's state about sources, in a table of fixed size.
//!
//! A keyed hash (`SipHash`, with a random key for each table) assigns each source to a set of eight
//! slots, so nobody outside can choose which sources share a set. Half of a set is for strangers,
//! half for known sources: those that were admitted over a second or longer, or were validated.
//!
//! If a set is full:
//!
//! * A new stranger displaces the stranger whose bucket lacks the fewest tokens and, of several, the
//!   one that was admitted least recently. *The newcomer inherits the bucket* (as the counters of
//!   Metwally's Space-Saving do). So a source never gets more than its rate, however many come and
//!   go: a bucket can only lack more than its source took.
//! * A stranger that becomes known displaces a known source that was not admitted for a minute (ten
//!   if it was validated), and no other. So a flood cannot displace a known peer that sends now and
//!   then.

use std::hash::{BuildHasher, RandomState};
use std::hint::black_box;
use std::io;

use crate::net::sys::{ZeroedPages, zeroed, zeroes};

/// The number of slots in a set.
const SLOTS: usize = 8;
/// The number of them that are for known sources: the first ones.
const KNOWN: usize = 4;

zeroed! {
    /// The slots of a set. Each field fills one of the processor's cache lines, so a search for a
    /// source reads one line.
    struct Set {
        /// The hash of the source; zero if the slot is free.
        hash: [u64; SLOTS],
        /// When the source's bucket is full, in nanoseconds.
        full_at: [u64; SLOTS],
        /// When the source was admitted.
        admitted: [Admitted; SLOTS],
        /// The number of bytes that may be sent to the source.
        credit: [u64; SLOTS],
    }
}

zeroed! {
    /// When a source was admitted, in milliseconds. The clock wraps around after seven weeks.
    #[derive(Clone, Copy)]
    struct Admitted {
        first: u32,
        last: u32,
    }
}

/// The credit of a source that may be sent anything.
const VALIDATED: u64 = u64::MAX;

/// How long it takes until a stranger is known, in milliseconds.
const PROBATION: u32 = 1000;
/// How long a known source keeps its slot without being admitted.
const KEPT: u32 = 60_000;
const KEPT_VALIDATED: u32 = 600_000;

pub(super) struct Table {
    sets: ZeroedPages<Set>,
    /// For each set, a bit for each known source, which strangers may share. It is small enough to
    /// stay in the processor's caches.
    known: Box<[u8]>,
    keys: RandomState,
}

/// The position of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    set: usize,
    index: usize,
}

impl Table {
    /// A table for `sources`, which must be a power of two and at least eight. Each takes 32 bytes,
    /// once that many were admitted.
    pub(super) fn new(sources: usize) -> io::Result<Self> {
        let sets = ZeroedPages::new(sources / SLOTS)?;
        sets.prefer_large_pages();
        let known = zeroes(sources / SLOTS, "a guard's set of known sources")?;
        Ok(Self { sets, known, keys: RandomState::new() })
    }

    /// The hash that identifies a source.
    pub(super) fn hash(&self, source: u128) -> u64 {
        self.keys.hash_one(source).max(1)
    }

    /// Makes the processor prefetch the memory that a search for a source will read.
    pub(super) fn prefetch(&self, hash: u64) {
        // The processor executes loads in parallel if they do not depend on each other.
        black_box(self.sets[self.set_of(hash)].hash[0]);
    }

    /// Whether a source may be known. If false, it certainly is a stranger. Does not read the sets.
    pub(super) fn may_be_known(&self, hash: u64) -> bool {
        self.known[self.set_of(hash)] & bit_of(hash) != 0
    }

    /// The slot of a source, if it has one.
    pub(super) fn find(&self, hash: u64) -> Option<Slot> {
        let set = self.set_of(hash);
        let index = self.sets[set].hash.iter().position(|&other| other == hash)?;
        Some(Slot { set, index })
    }

    /// Chooses a slot for a source that does not have one. It may belong to another source until
    /// now.
    pub(super) fn slot_for(&self, hash: u64, now: u64) -> Slot {
        let index = self.set_of(hash);
        let (set, now_ms) = (&self.sets[index], milliseconds(now));
        let by_use = |&slot: &usize| {
            let idle = now_ms.wrapping_sub(set.admitted[slot].last);
            (set.full_at[slot].saturating_sub(now), u32::MAX - idle)
        };
        let stranger = (KNOWN..SLOTS).min_by_key(by_use);
        Slot { set: index, index: stranger.expect("there are slots for strangers") }
    }

    /// Records that a source was admitted, whose slot was found or assigned. Returns its slot,
    /// which is a different one if the source has become known. A newcomer inherits the slot's
    /// bucket.
    pub(super) fn settle(&mut self, slot: Slot, hash: u64, now: u64) -> Slot {
        let now_ms = milliseconds(now);
        let Slot { set, index } = slot;
        let set = &mut self.sets[set];
        if set.hash[index] != hash {
            set.hash[index] = hash;
            set.credit[index] = 0;
            set.admitted[index] = Admitted { first: now_ms, last: now_ms };
            return slot;
        }
        let Admitted { first, last } = set.admitted[index];
        let first = if is_past(last, now_ms, KEPT) { now_ms } else { first };
        set.admitted[index] = Admitted { first, last: now_ms };
        if !slot.is_known() && is_past(first, now_ms, PROBATION) {
            return self.promote(slot, now);
        }
        slot
    }

    /// Records that a source was admitted, whether or not it has a slot.
    pub(super) fn admit(&mut self, hash: u64, now: u64) -> Slot {
        let slot = self.find(hash).unwrap_or_else(|| self.slot_for(hash, now));
        self.settle(slot, hash, now)
    }

    /// Validates a source: from now on it is known, and it may be sent anything.
    pub(super) fn validate(&mut self, hash: u64, now: u64) {
        let mut slot = self.admit(hash, now);
        if !slot.is_known() {
            let (set, now_ms) = (&self.sets[slot.set], milliseconds(now));
            let known = (0..KNOWN).min_by_key(|&known| {
                let idle = now_ms.wrapping_sub(set.admitted[known].last);
                (set.is_taken(known), set.is_validated(known), u32::MAX - idle)
            });
            slot = self.swap(slot, known.expect("there are slots for known sources"));
        }
        self.sets[slot.set].credit[slot.index] = VALIDATED;
    }

    /// When a source's bucket is full.
    pub(super) fn full_at(&self, slot: Slot) -> u64 {
        self.sets[slot.set].full_at[slot.index]
    }

    pub(super) fn set_full_at(&mut self, slot: Slot, full_at: u64) {
        self.sets[slot.set].full_at[slot.index] = full_at;
    }

    /// Adds bytes to a source's budget.
    pub(super) fn grant(&mut self, slot: Slot, bytes: u64) {
        let credit = &mut self.sets[slot.set].credit[slot.index];
        if *credit != VALIDATED {
            *credit = credit.saturating_add(bytes).min(VALIDATED - 1);
        }
    }

    /// Deducts bytes from a source's budget; returns false if the budget is too small.
    pub(super) fn spend(&mut self, slot: Slot, bytes: u64) -> bool {
        let credit = &mut self.sets[slot.set].credit[slot.index];
        match (*credit, credit.checked_sub(bytes)) {
            (VALIDATED, _) => true,
            (_, Some(rest)) => {
                *credit = rest;
                true
            }
            (_, None) => false,
        }
    }

    fn set_of(&self, hash: u64) -> usize {
        hash as usize & (self.sets.len() - 1)
    }

    /// Gives a stranger a slot for known sources, if there is one.
    fn promote(&mut self, stranger: Slot, now: u64) -> Slot {
        let (set, now_ms) = (&self.sets[stranger.set], milliseconds(now));
        let free = (0..KNOWN).find(|&known| {
            let kept = if set.is_validated(known) { KEPT_VALIDATED } else { KEPT };
            let is_idle =
                is_past(set.admitted[known].last, now_ms, kept) && set.full_at[known] <= now;
            !set.is_taken(known) || is_idle
        });
        free.map_or(stranger, |known| self.swap(stranger, known))
    }

    /// Moves a stranger to the slot of a known source, which becomes a stranger.
    fn swap(&mut self, stranger: Slot, known: usize) -> Slot {
        let set = &mut self.sets[stranger.set];
        set.hash.swap(stranger.index, known);
        set.full_at.swap(stranger.index, known);
        set.admitted.swap(stranger.index, known);
        set.credit.swap(stranger.index, known);
        let taken = set.hash[..KNOWN].iter().filter(|&&hash| hash != 0);
        self.known[stranger.set] = taken.fold(0, |bits, &hash| bits | bit_of(hash));
        Slot { index: known, ..stranger }
    }
}

impl Set {
    fn is_taken(&self, slot: usize) -> bool {
        self.hash[slot] != 0
    }

    fn is_validated(&self, slot: usize) -> bool {
        self.credit[slot] == VALIDATED
    }
}

impl Slot {
    /// Whether its source is known.
    pub(super) fn is_known(self) -> bool {
        self.index < KNOWN
    }
}

fn bit_of(hash: u64) -> u8 {
    1 << (hash >> 61)
}

fn milliseconds(now: u64) -> u32 {
    (now / 1_000_000) as u32
}

/// Whether `span` has passed between two instants.
fn is_past(since: u32, now: u32, span: u32) -> bool {
    now.wrapping_sub(since) >= span
}

#[cfg(test)]
mod tests {
    use super::super::bucket::Rate;
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// A table, and buckets of ten tokens, refilled at ten per second.
    struct Limited {
        table: Table,
        rate: Rate,
    }

    impl Limited {
        fn new(sources: usize) -> Self {
            Self { table: Table::new(sources).unwrap(), rate: Rate::new(10.0, 10).unwrap() }
        }

        /// Whether a datagram passes.
        fn hear(&mut self, source: u128, now: u64) -> bool {
            let hash = self.table.hash(source);
            let slot = self.table.admit(hash, now);
            let full_at = self.table.full_at(slot);
            let passes = self.rate.room(full_at, now) > 0;
            self.table.set_full_at(slot, self.rate.take(full_at, now, passes.into()));
            passes
        }

        fn is_known(&self, source: u128) -> bool {
            let hash = self.table.hash(source);
            let is_known = self.table.find(hash).is_some_and(Slot::is_known);
            assert!(!is_known || self.table.may_be_known(hash));
            is_known
        }
    }

    #[test]
    fn a_flood_of_strangers_does_not_let_an_offender_back_in() {
        let mut limited = Limited::new(64);
        let mut now = SECOND;
        let mut passed = 0;
        for round in 0..200_000 {
            now += 10_000; // 2 s in total, so that 30 may pass
            passed += u32::from(limited.hear(7, now));
            limited.hear(1000 + round, now);
        }
        assert!(passed <= 30, "{passed}");
    }

    #[test]
    fn a_flood_of_strangers_does_not_lock_a_known_peer_out() {
        let mut limited = Limited::new(64);
        let mut now = SECOND;
        for _ in 0..12 {
            now += SECOND / 5;
            assert!(limited.hear(7, now));
        }
        assert!(limited.is_known(7));
        for round in 0..200_000 {
            now += 100_000;
            limited.hear(1000 + round, now);
            if round % 2000 == 0 {
                assert!(limited.hear(7, now), "round {round}");
            }
        }
        assert!(limited.is_known(7));
    }

    #[test]
    fn strangers_together_get_no_more_than_their_slots() {
        let mut limited = Limited::new(8);
        let (mut now, mut passed) = (SECOND, 0);
        for source in 0..10_000 {
            now += 1_000_000; // 10 s in total: 4 slots, 10 at once and 100 more each
            passed += u32::from(limited.hear(source, now));
        }
        assert!((400..=440).contains(&passed), "{passed}");
    }

    #[test]
    fn a_stranger_that_comes_alone_is_not_refused() {
        let mut limited = Limited::new(1 << 10);
        for source in 0..100_000 {
            assert!(limited.hear(source, SECOND + source as u64 * 1_000_000));
        }
    }

    #[test]
    fn known_slots_are_free_after_a_minute_of_silence() {
        let mut limited = Limited::new(8);
        for source in 0..4 {
            limited.hear(source, SECOND);
            limited.hear(source, 2 * SECOND);
        }
        limited.hear(9, 3 * SECOND);
        limited.hear(9, 5 * SECOND);
        assert!(!limited.is_known(9) && (0..4).all(|source| limited.is_known(source)));
        limited.hear(9, 61 * SECOND);
        assert!(!limited.is_known(9));
        limited.hear(9, 63 * SECOND);
        assert!(limited.is_known(9));
    }

    #[test]
    fn a_validated_source_has_a_slot_and_no_limit() {
        let mut limited = Limited::new(8);
        for source in 0..4 {
            limited.hear(source, SECOND);
            limited.hear(source, 2 * SECOND);
        }
        let hash = limited.table.hash(9);
        limited.table.validate(hash, 3 * SECOND);
        assert!(limited.is_known(9));
        let slot = limited.table.find(hash).unwrap();
        limited.table.grant(slot, 5);
        assert!(limited.table.spend(slot, 1 << 40));
    }

    #[test]
    fn credit_is_spent_once_and_ends_with_the_slot() {
        let mut limited = Limited::new(8);
        let hash = limited.table.hash(1);
        let slot = limited.table.admit(hash, SECOND);
        limited.table.grant(slot, 100);
        assert!(limited.table.spend(slot, 60));
        assert!(!limited.table.spend(slot, 60));
        assert!(limited.table.spend(slot, 40));
        limited.table.grant(slot, 100);
        for source in 2..9 {
            limited.hear(source, SECOND + 1_000_000);
        }
        assert_eq!(limited.table.find(hash), None);
        let slot = limited.table.admit(hash, 2 * SECOND);
        assert!(!limited.table.spend(slot, 1));
    }
}
