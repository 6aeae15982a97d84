//! Splitting a message that the kernel coalesced into its datagrams.

use std::ops::Range;

/// A coalesced message, and a position at one of its datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    start: usize,
    len: usize,
    segment: usize,
}

impl Split {
    /// A message of `len` bytes that consists of datagrams of `segment` bytes; the last one may be
    /// shorter. Without a segment length it is one datagram, which may be empty.
    pub fn new(len: usize, segment: Option<usize>) -> Self {
        let segment = segment.filter(|&segment| segment > 0).unwrap_or(len);
        Self { start: 0, len, segment }
    }

    /// One datagram, which is a part of a message.
    pub fn one(range: Range<usize>) -> Self {
        Self { start: range.start, len: range.end, segment: range.len() }
    }

    /// The offset of the next datagram.
    pub fn start(&self) -> usize {
        self.start
    }

    /// The offset at which the last datagram ends.
    pub fn end(&self) -> usize {
        self.len
    }

    /// The length of each datagram except the last.
    pub fn segment(&self) -> usize {
        self.segment
    }

    /// Skips `datagrams` of them, fewer than [`remaining`](Self::remaining).
    pub fn skip(&mut self, datagrams: usize) {
        self.start += datagrams * self.segment;
    }

    /// The remaining datagrams, positioned at the start of a copy of their bytes.
    #[must_use]
    pub fn rest(self) -> Self {
        Self { start: 0, len: self.len - self.start, ..self }
    }

    /// The bytes of the next datagram.
    #[inline]
    pub fn range(&self) -> Range<usize> {
        self.start..self.len.min(self.start.saturating_add(self.segment))
    }

    /// Advances to the next datagram; returns false if this was the last.
    #[inline]
    pub fn advance(&mut self) -> bool {
        self.start = self.range().end;
        self.start < self.len
    }

    /// Drops all datagrams outside a range. None may have been skipped before.
    pub fn keep(&mut self, datagrams: &Range<usize>) {
        let offset = |index: usize| {
            self.len.min(self.start.saturating_add(self.segment.saturating_mul(index)))
        };
        (self.start, self.len) = (offset(datagrams.start), offset(datagrams.end));
    }

    /// The number of datagrams left, including the next.
    pub fn remaining(&self) -> usize {
        (self.len - self.start).div_ceil(self.segment.max(1)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(len: usize, segment: Option<usize>) -> Vec<usize> {
        let mut split = Split::new(len, segment);
        let count = split.remaining();
        let mut sizes = vec![split.range().len()];
        while split.advance() {
            sizes.push(split.range().len());
        }
        assert_eq!(sizes.len(), count);
        assert_eq!(sizes.iter().sum::<usize>(), len);
        sizes
    }

    #[test]
    fn a_coalesced_message_is_split_with_a_short_last_datagram() {
        assert_eq!(sizes(5000, Some(1000)), [1000; 5]);
        assert_eq!(sizes(4001, Some(1000)), [1000, 1000, 1000, 1000, 1]);
        assert_eq!(sizes(3, Some(1)), [1, 1, 1]);
    }

    #[test]
    fn a_message_that_is_not_coalesced_is_one_datagram() {
        assert_eq!(sizes(700, None), [700]);
        assert_eq!(sizes(0, None), [0]);
        assert_eq!(sizes(700, Some(700)), [700]);
        assert_eq!(sizes(700, Some(9000)), [700]);
        assert_eq!(sizes(700, Some(0)), [700]);
        assert_eq!(sizes(700, Some(usize::MAX)), [700]);
    }

    #[test]
    fn one_datagram_may_be_any_part_of_a_message() {
        for range in [28..30, 28..28] {
            let mut split = Split::one(range.clone());
            assert_eq!((split.range(), split.remaining()), (range.clone(), 1));
            split.keep(&(0..1));
            assert_eq!(split.range(), range);
            assert_eq!(split.rest().range(), 0..range.len());
            assert!(!split.advance());
        }
    }
}
