//! A table of values that are used again and again.

use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};

use super::sys::with_room;

/// Remembers values by their hash, as long as there is room.
///
/// It begins with a single slot, and grows while values recur that had no room: most tables need one
/// slot, and a busy server's has one for each of thousands of peers. It grows only if one in
/// [`RARE`] of the values without room has recurred lately, so a flood of values that do not recur,
/// such as forged addresses, does not make it grow. In a table that has grown, such a value replaces
/// another only where it is taken for one that recurs, which happens to one in thousands. It never
/// has more than [`MOST`] slots, or [`FEW`] if it is [small](Self::small).
pub struct RecentTable<T> {
    slots: Box<[Option<T>]>,
    /// How much values that had no room have recurred since the table has grown: [`RARE`] for each
    /// that has, less one for each that has not.
    recurred: usize,
    /// The greatest number of slots.
    most: usize,
}

/// How many slots a value may be in.
const WAYS: usize = 4;
/// The number of slots of a table with more than one, as long as it has not grown.
const FEW: usize = 16;
/// How many times as many slots a table gets that grows.
const GROWTH: usize = 4;
/// The greatest number of slots.
const MOST: usize = 1 << 16;
/// If fewer than one in this many values without room have recurred, the table does not grow.
const RARE: usize = 64;
/// Parts of the hashes of values that had no room lately, in any table: a table of its own would be
/// larger than most tables. A value is taken for another one if 15 bits of their hashes are equal.
static MISSED: [AtomicU16; 1 << 14] = [const { AtomicU16::new(0) }; 1 << 14];

impl<T> Default for RecentTable<T> {
    fn default() -> Self {
        Self { slots: Box::default(), recurred: 0, most: MOST }
    }
}

impl<T> RecentTable<T> {
    /// A table that stays small. For hashes that recur though the values do not, such as addresses
    /// in memory, which would make it grow.
    pub fn small() -> Self {
        Self { most: FEW, ..Self::default() }
    }

    /// The value with a hash for which `is` returns true.
    #[inline]
    pub fn get(&self, hash: u64, is: impl Fn(&T) -> bool) -> Option<&T> {
        self.slots[self.set_of(spread(hash))].iter().flatten().find(|value| is(value))
    }

    /// Adds a value that is not in the table, if it has room or the value has recurred.
    pub fn insert(&mut self, hash: u64, value: T) {
        let hash = spread(hash);
        match self.slots.len() {
            0 => self.resize(1),
            1 if self.slots[0].is_some() => self.resize(FEW),
            _ => {}
        }
        let set = self.set_of(hash);
        if let Some(free) = self.slots[set].iter_mut().find(|slot| slot.is_none()) {
            *free = Some(value);
            return;
        }
        let has_recurred = self.most > FEW && self.note_missed(hash);
        self.recurred =
            if has_recurred { self.recurred + RARE } else { self.recurred.saturating_sub(1) };
        if self.recurred > RARE * self.slots.len() && self.slots.len() < self.most {
            self.recurred = 0;
            self.resize(GROWTH * self.slots.len());
        } else if !has_recurred && self.slots.len() > FEW {
            return;
        }
        let set = self.set_of(hash);
        let index = set.start + hash as usize % set.len().max(1);
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Some(value);
        }
    }

    /// Empties the table, and gives it a number of slots. Without memory for them, it stays as it is.
    fn resize(&mut self, len: usize) {
        if let Ok(mut slots) = with_room(len, "addresses") {
            slots.extend((0..len).map(|_| None));
            self.slots = slots.into();
        }
    }

    /// Records that a value had no room; returns whether it had none before, as far as known.
    fn note_missed(&self, hash: u64) -> bool {
        let hash = hash ^ spread(self.slots.as_ptr() as u64); // of this table
        let (index, tag) = ((hash >> 16) as usize % MISSED.len(), (hash >> 48) as u16 | 1);
        MISSED[index].swap(tag, Ordering::Relaxed) == tag
    }

    /// The slots that a value may be in.
    #[inline]
    fn set_of(&self, hash: u64) -> Range<usize> {
        let ways = WAYS.min(self.slots.len());
        let sets = self.slots.len() / WAYS;
        // Both are powers of two, or zero.
        let start = (hash >> 32) as usize & sets.saturating_sub(1);
        start * ways..start * ways + ways
    }
}

/// Spreads hashes that differ in few bits: multiplied by 2^64 / golden ratio (Knuth, TAOCP 6.4).
#[inline]
fn spread(hash: u64) -> u64 {
    let product = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ product >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks values up in turn, and adds those that are not found; returns how many were found.
    fn found(table: &mut RecentTable<u64>, values: Range<u64>) -> usize {
        let mut found = 0;
        for value in values {
            match table.get(value, |known| *known == value) {
                Some(_) => found += 1,
                None => table.insert(value, value),
            }
        }
        found
    }

    #[test]
    fn one_value_needs_one_slot() {
        let mut table = RecentTable::default();
        assert_eq!(table.get(1, |_| true), None);
        assert_eq!(found(&mut table, 1..2), 0);
        assert_eq!(found(&mut table, 1..2), 1);
        assert_eq!(table.slots.len(), 1);
        found(&mut table, 2..3);
        assert_eq!(table.slots.len(), FEW);
    }

    #[test]
    fn values_with_one_hash_are_told_apart() {
        let mut table = RecentTable::default();
        for value in 0..4_u64 {
            table.insert(7, value);
        }
        assert_eq!(table.get(7, |known| *known == 3), Some(&3));
        assert_eq!(table.get(7, |known| *known == 9), None);
    }

    #[test]
    fn the_table_grows_until_recurring_values_have_room() {
        for count in [8_usize, 64, 250, 10_000] {
            let mut table = RecentTable::default();
            // A round in which the table grows finds few.
            let most = (0..200).map(|_| found(&mut table, 0..count as u64)).max();
            assert!(most > Some(count * 9 / 10), "{most:?} of {count} in {}", table.slots.len());
            assert!(table.slots.len() <= MOST);
        }
    }

    #[test]
    fn a_small_table_does_not_grow() {
        let mut table = RecentTable::small();
        for _ in 0..40 {
            found(&mut table, 0..1000);
        }
        assert_eq!(table.slots.len(), FEW);
        assert_eq!(found(&mut table, 999..1000), 1);
    }

    #[test]
    fn values_that_do_not_recur_do_not_make_the_table_grow() {
        let mut table = RecentTable::default();
        // Among this many random hashes, many are taken for others.
        let mut random = 1_u64;
        for _ in 0..2_000_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            table.insert(random, random);
        }
        assert_eq!(table.slots.len(), FEW);
    }

    #[test]
    fn values_that_do_not_recur_do_not_replace_others() {
        let mut table = RecentTable::default();
        for _ in 0..40 {
            found(&mut table, 0..1000);
        }
        let (len, before) = (table.slots.len(), found(&mut table, 0..1000));
        found(&mut table, 1_000_000..2_000_000);
        assert_eq!(table.slots.len(), len);
        assert!(found(&mut table, 0..1000) > before * 9 / 10);
    }
}
