//! What is remembered of sources, in a table of fixed size.
//!
//! A keyed hash (`SipHash`, with a key of this table's own) gives each source a set of eight
//! places, so that nobody outside can choose whom he meets there. Half of a set is for strangers, half for
//! the known: who was heard from over a second or longer, or was vouched for.
//!
//! Who is displaced, where a set is full:
//!
//! * By a new stranger, the stranger whose bucket lacks least, and of several the one not heard
//!   from for the longest time. *The newcomer takes over what its bucket lacks* (as the counters of
//!   Metwally's Space-Saving do). So a source never gets more than its rate, however many come and
//!   go: what is held against it can only be more than it took.
//! * By a stranger that becomes known, a known one not heard from for a minute (ten where it was
//!   vouched for), and nobody else. So no flood displaces a known peer that is heard now and then.

use std::hash::{BuildHasher, RandomState};
use std::hint::black_box;
use std::io;

use crate::net::sys::{Memory, zeroes};

/// Sources that a set holds.
const WAYS: usize = 8;
/// Those of them that are for the known.
const KNOWN: usize = 4;

/// A set's memory: of each place the source's hash (zero where it is free), the time its bucket is
/// full, when it was first and last let in, and what it may be sent. A line of the processor's
/// cache each.
const SET: usize = 4 * WAYS;
const TAG: usize = 0;
const FULL: usize = WAYS;
const TIMES: usize = 2 * WAYS;
const CREDIT: usize = 3 * WAYS;

/// Who may be sent anything.
const VALIDATED: u64 = u64::MAX;

/// How long a stranger is heard until it is known, in milliseconds.
const PROBATION: u32 = 1000;
/// How long a known source keeps its place without being heard.
const KEPT: u32 = 60_000;
const KEPT_VALIDATED: u32 = 600_000;

pub(super) struct Table {
    memory: Memory,
    sets: usize,
    /// Of each set, a bit for each known source in it, which others may have as well. It is small
    /// enough to stay in the processor's caches.
    known: Box<[u8]>,
    keys: RandomState,
}

/// A place in the table: where it begins in a set, and which of the set's it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    set: usize,
    way: usize,
}

impl Table {
    /// A table for so many sources; a power of two, and at least eight. It takes 32 bytes for each,
    /// once that many have come.
    pub(super) fn new(sources: usize) -> io::Result<Self> {
        let memory = Memory::new(sources * SET / WAYS * size_of::<u64>())?;
        memory.prefer_large_pages();
        let sets = sources / WAYS;
        let known = zeroes(sets, "what a guard knows of sources")?;
        Ok(Self { memory, sets, known, keys: RandomState::new() })
    }

    /// What stands for a source.
    pub(super) fn hash(&self, source: u128) -> u64 {
        self.keys.hash_one(source).max(1)
    }

    /// Has the processor fetch what a search for a source looks at, for soon.
    pub(super) fn prefetch(&self, hash: u64) {
        // Loads that nothing depends on run beside one another.
        black_box(self.memory.words()[self.set_of(hash)]);
    }

    /// Whether a source may be known; where not, it is a stranger for certain, and the table itself
    /// was not touched to say so.
    pub(super) fn may_be_known(&self, hash: u64) -> bool {
        self.known[self.set_of(hash) / SET] & bit_of(hash) != 0
    }

    /// The place of a source, if it has one.
    pub(super) fn find(&self, hash: u64) -> Option<Place> {
        let set = self.set_of(hash);
        let way = self.memory.words()[set..][..WAYS].iter().position(|&tag| tag == hash)?;
        Some(Place { set, way })
    }

    /// The place that a source gets which has none, as it is now, somebody else's perhaps.
    pub(super) fn place_for(&self, hash: u64, now: u64) -> Place {
        let set = self.set_of(hash);
        let strangers = (KNOWN..WAYS).map(|way| Place { set, way });
        let by_use = |&place: &Place| {
            let idle = milliseconds(now).wrapping_sub(self.times(place).1);
            (self.full(place).saturating_sub(now), u32::MAX - idle)
        };
        strangers.min_by_key(by_use).expect("there are places for strangers")
    }

    /// Notes that a source was let in, which found its place or was given one. A newcomer takes over
    /// when the bucket is full.
    pub(super) fn settle(&mut self, place: Place, hash: u64, now: u64) -> Place {
        let now_ms = milliseconds(now);
        if self.word(place, TAG) != hash {
            *self.word_mut(place, TAG) = hash;
            *self.word_mut(place, CREDIT) = 0;
            self.set_times(place, now_ms, now_ms);
            return place;
        }
        let (first, last) = self.times(place);
        let first = if is_past(last, now_ms, KEPT) { now_ms } else { first };
        self.set_times(place, first, now_ms);
        if !place.is_known() && is_past(first, now_ms, PROBATION) {
            return self.promote(place, now);
        }
        place
    }

    /// Lets a source in, whatever it is.
    pub(super) fn hear(&mut self, hash: u64, now: u64) -> Place {
        let place = self.find(hash).unwrap_or_else(|| self.place_for(hash, now));
        self.settle(place, hash, now)
    }

    /// Vouches for a source: from now on it may be sent anything, and it is known.
    pub(super) fn validate(&mut self, hash: u64, now: u64) {
        let mut place = self.hear(hash, now);
        if !place.is_known() {
            let way = (0..KNOWN).min_by_key(|&way| {
                let known = Place { set: place.set, way };
                let idle = milliseconds(now).wrapping_sub(self.times(known).1);
                (self.is_taken(known), self.is_validated(known), u32::MAX - idle)
            });
            let way = way.expect("there are places for the known");
            place = self.swap(place, way);
        }
        *self.word_mut(place, CREDIT) = VALIDATED;
    }

    /// When a source's bucket is full.
    pub(super) fn full(&self, place: Place) -> u64 {
        self.word(place, FULL)
    }

    pub(super) fn set_full(&mut self, place: Place, full: u64) {
        *self.word_mut(place, FULL) = full;
    }

    /// Lets a source be sent more bytes.
    pub(super) fn grant(&mut self, place: Place, bytes: u64) {
        let credit = self.word_mut(place, CREDIT);
        if *credit != VALIDATED {
            *credit = credit.saturating_add(bytes).min(VALIDATED - 1);
        }
    }

    /// Takes bytes that a source is to be sent off what it may be sent, if that is enough.
    pub(super) fn spend(&mut self, place: Place, bytes: u64) -> bool {
        let credit = self.word_mut(place, CREDIT);
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
        (hash as usize & (self.sets - 1)) * SET
    }

    fn word(&self, place: Place, field: usize) -> u64 {
        self.memory.words()[place.set + field + place.way]
    }

    fn word_mut(&mut self, place: Place, field: usize) -> &mut u64 {
        &mut self.memory.words_mut()[place.set + field + place.way]
    }

    fn is_taken(&self, place: Place) -> bool {
        self.word(place, TAG) != 0
    }

    fn is_validated(&self, place: Place) -> bool {
        self.word(place, CREDIT) == VALIDATED
    }

    /// When a source was first and last let in. The clock comes round in seven weeks.
    fn times(&self, place: Place) -> (u32, u32) {
        let times = self.word(place, TIMES);
        ((times >> 32) as u32, times as u32)
    }

    fn set_times(&mut self, place: Place, first: u32, last: u32) {
        *self.word_mut(place, TIMES) = u64::from(first) << 32 | u64::from(last);
    }

    /// Gives a stranger a place among the known, if there is one.
    fn promote(&mut self, stranger: Place, now: u64) -> Place {
        let now_ms = milliseconds(now);
        let free = (0..KNOWN).find(|&way| {
            let known = Place { set: stranger.set, way };
            let kept = if self.is_validated(known) { KEPT_VALIDATED } else { KEPT };
            let is_idle = is_past(self.times(known).1, now_ms, kept) && self.full(known) <= now;
            !self.is_taken(known) || is_idle
        });
        free.map_or(stranger, |way| self.swap(stranger, way))
    }

    /// Moves a stranger to the place of a known source, which becomes a stranger.
    fn swap(&mut self, stranger: Place, way: usize) -> Place {
        let set = &mut self.memory.words_mut()[stranger.set..][..SET];
        for field in [TAG, FULL, TIMES, CREDIT] {
            set.swap(field + stranger.way, field + way);
        }
        self.known[stranger.set / SET] =
            set[..KNOWN].iter().filter(|&&tag| tag != 0).fold(0, |bits, &tag| bits | bit_of(tag));
        Place { way, ..stranger }
    }
}

impl Place {
    /// Whether the source there is known.
    pub(super) fn is_known(self) -> bool {
        self.way < KNOWN
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

    /// A table, and buckets of ten tokens, ten of which come in a second.
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
            let place = self.table.hear(hash, now);
            let full = self.table.full(place);
            let passes = self.rate.room(full, now) > 0;
            self.table.set_full(place, self.rate.take(full, now, passes.into()));
            passes
        }

        fn is_known(&self, source: u128) -> bool {
            let hash = self.table.hash(source);
            let is_known = self.table.find(hash).is_some_and(Place::is_known);
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
            now += 10_000; // 2 s in all, so that 30 may pass
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
    fn strangers_together_get_no_more_than_their_places() {
        let mut limited = Limited::new(8);
        let (mut now, mut passed) = (SECOND, 0);
        for source in 0..10_000 {
            now += 1_000_000; // 10 s in all: 4 places, 10 at once and 100 more each
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
    fn known_places_fall_free_after_a_minute_of_silence() {
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
    fn who_is_vouched_for_has_a_place_and_no_limit() {
        let mut limited = Limited::new(8);
        for source in 0..4 {
            limited.hear(source, SECOND);
            limited.hear(source, 2 * SECOND);
        }
        let hash = limited.table.hash(9);
        limited.table.validate(hash, 3 * SECOND);
        assert!(limited.is_known(9));
        let place = limited.table.find(hash).unwrap();
        limited.table.grant(place, 5);
        assert!(limited.table.spend(place, 1 << 40));
    }

    #[test]
    fn credit_is_spent_once_and_ends_with_the_place() {
        let mut limited = Limited::new(8);
        let hash = limited.table.hash(1);
        let place = limited.table.hear(hash, SECOND);
        limited.table.grant(place, 100);
        assert!(limited.table.spend(place, 60));
        assert!(!limited.table.spend(place, 60));
        assert!(limited.table.spend(place, 40));
        limited.table.grant(place, 100);
        for source in 2..9 {
            limited.hear(source, SECOND + 1_000_000);
        }
        assert_eq!(limited.table.find(hash), None);
        let place = limited.table.hear(hash, 2 * SECOND);
        assert!(!limited.table.spend(place, 1));
    }
}
