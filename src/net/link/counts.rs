//! The fates of the datagrams of one direction: in numbers, and one by one.

use std::collections::VecDeque;

/// Why a datagram did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Its loss was drawn.
    Lost,
    /// A script dropped it.
    Scripted,
    /// The direction was cut.
    Cut,
    /// The queue before the bottleneck was full.
    QueueFull,
    /// It was longer than the MTU.
    TooLong,
    /// It was for a port that the link no longer uses.
    Rebound,
    /// The kernel refused to send it.
    Unsendable,
}

impl DropReason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Lost,
        Self::Scripted,
        Self::Cut,
        Self::QueueFull,
        Self::TooLong,
        Self::Rebound,
        Self::Unsendable,
    ];

    /// Its name in Python.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Scripted => "scripted",
            Self::Cut => "cut",
            Self::QueueFull => "queue_full",
            Self::TooLong => "too_long",
            Self::Rebound => "rebound",
            Self::Unsendable => "unsendable",
        }
    }
}

/// The counters of one direction. Received and duplicated datagrams were sent, dropped, or are
/// queued.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkCounts {
    /// Datagrams that arrived at the link.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Datagrams that left, duplicates included.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Copies that the link made.
    pub duplicated: u64,
    /// Dropped datagrams, by [reason](DropReason).
    pub dropped: [u64; DropReason::ALL.len()],
    /// Datagrams with a flipped bit.
    pub corrupted: u64,
    /// Datagrams that were truncated.
    pub truncated: u64,
    /// Datagrams that the next one was to overtake.
    pub reordered: u64,
    /// Datagrams that were delayed.
    pub delayed: u64,
}

impl LinkCounts {
    pub(super) fn drop(&mut self, reason: DropReason) {
        self.dropped[reason as usize] += 1;
    }

    /// The number of datagrams that have arrived and neither left nor been dropped.
    pub fn queued(&self) -> u64 {
        self.received + self.duplicated - self.sent - self.dropped.iter().sum::<u64>()
    }
}

/// The fate of one datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FateRecord {
    /// When it arrived, in nanoseconds on the link's clock.
    pub at: u64,
    /// Its flow.
    pub flow: u32,
    /// Its position in its flow, from 0.
    pub index: u64,
    /// Its length when it arrived.
    pub size: usize,
    /// Why no copy of it arrived, if none did.
    pub dropped: Option<DropReason>,
    /// How many copies left, or are queued.
    pub copies: u32,
    /// The drawn delay of the first copy, in nanoseconds.
    pub delay: u64,
    /// The bit that was flipped.
    pub corrupted: Option<usize>,
    /// The length that it was cut to.
    pub truncated: Option<usize>,
    /// Whether the next datagram was to overtake it.
    pub is_reordered: bool,
}

/// The latest records.
#[derive(Debug, Default)]
pub(super) struct FateLog {
    records: VecDeque<FateRecord>,
    /// The number of the first one, counted from the beginning.
    first: u64,
    room: usize,
}

impl FateLog {
    pub(super) fn new(room: usize) -> Self {
        Self { room, ..Self::default() }
    }

    /// Adds a record, and returns its number. If allocation fails, or the log is full, the oldest
    /// one is forgotten.
    pub(super) fn push(&mut self, record: FateRecord) -> u64 {
        while self.records.len() >= self.room || self.records.try_reserve(1).is_err() {
            if self.records.pop_front().is_none() {
                break;
            }
            self.first += 1;
        }
        let number = self.first + self.records.len() as u64;
        if self.room > 0 && self.records.capacity() > self.records.len() {
            self.records.push_back(record);
        } else {
            self.first += 1;
        }
        number
    }

    /// Notes that a copy did not arrive.
    pub(super) fn drop_copy(&mut self, number: u64, reason: DropReason) {
        let Some(index) = number.checked_sub(self.first) else { return };
        if let Some(record) = self.records.get_mut(index as usize) {
            record.copies = record.copies.saturating_sub(1);
            if record.copies == 0 {
                record.dropped = Some(reason);
            }
        }
    }

    pub(super) fn records(&self) -> impl ExactSizeIterator<Item = &FateRecord> {
        self.records.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(index: u64) -> FateRecord {
        FateRecord {
            at: 0,
            flow: 0,
            index,
            size: 1,
            dropped: None,
            copies: 2,
            delay: 0,
            corrupted: None,
            truncated: None,
            is_reordered: false,
        }
    }

    #[test]
    fn the_log_keeps_the_latest_and_finds_them_by_number() {
        let mut log = FateLog::new(2);
        let numbers: Vec<_> = (0..4).map(|index| log.push(record(index))).collect();
        assert_eq!(numbers, [0, 1, 2, 3]);
        assert_eq!(log.records().map(|record| record.index).collect::<Vec<_>>(), [2, 3]);
        log.drop_copy(0, DropReason::Cut); // forgotten
        log.drop_copy(3, DropReason::Unsendable);
        log.drop_copy(3, DropReason::Cut);
        log.drop_copy(2, DropReason::Cut);
        let fates = log.records().map(|record| (record.copies, record.dropped));
        assert_eq!(fates.collect::<Vec<_>>(), [(1, None), (0, Some(DropReason::Cut))]);
    }

    #[test]
    fn a_log_without_room_stays_empty() {
        let mut log = FateLog::new(0);
        assert_eq!((log.push(record(0)), log.push(record(1)), log.records().len()), (0, 1, 0));
    }

    #[test]
    fn the_reasons_are_in_the_order_of_their_numbers() {
        for (number, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number);
        }
    }
}
