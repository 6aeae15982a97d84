//! Rate limits: token buckets, stored as one number each.
//!
//! A bucket stores the time at which it will be full (the generic cell rate algorithm, ITU-T I.371)
//! instead of its tokens and the time when they were counted. Once that time has passed, the bucket
//! is full, which is the same as having no bucket, so it can be forgotten.

/// A rate in datagrams per second, and the maximum burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    /// The time per token, in nanoseconds.
    interval: u64,
    /// The time that fills an empty bucket.
    capacity: u64,
}

/// The longest time that a bucket may take to fill: a hundred years.
const LONGEST: f64 = 100.0 * 365.0 * 86_400.0 * 1e9;

impl Rate {
    /// `None` if the rate is not a positive number, or if filling the bucket would take too long.
    pub(super) fn new(per_second: f64, burst: u32) -> Option<Self> {
        let interval = (1e9 / per_second).round().max(1.0);
        let is_sensible = per_second > 0.0
            && per_second.is_finite()
            && burst > 0
            && interval * f64::from(burst) <= LONGEST;
        let interval = interval as u64;
        is_sensible.then(|| Self { interval, capacity: interval * u64::from(burst) })
    }

    /// The number of datagrams that have a token in a bucket that is full at `full`.
    pub(super) fn room(self, full: u64, now: u64) -> u64 {
        self.tokens(self.capacity, full, now)
    }

    /// As [`room`](Self::room), for sources that must leave half of the bucket to others.
    pub(super) fn half_room(self, full: u64, now: u64) -> u64 {
        self.tokens(self.capacity / 2, full, now)
    }

    fn tokens(self, capacity: u64, full: u64, now: u64) -> u64 {
        let left = capacity.saturating_sub(full.saturating_sub(now));
        // In a flood there are no tokens, and a division would be a large part of the cost.
        if left < self.interval { 0 } else { left / self.interval }
    }

    /// The time when the bucket is full after `datagrams` have taken their tokens.
    pub(super) fn take(self, full: u64, now: u64, datagrams: u64) -> u64 {
        full.max(now) + self.interval * datagrams
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let rate = Rate::new(10.0, 5).unwrap();
        assert_eq!(rate.room(0, SECOND), 5);
        let full = rate.take(0, SECOND, 5);
        assert_eq!(rate.room(full, SECOND), 0);
        assert_eq!(rate.room(full, SECOND + SECOND / 10 - 1), 0);
        assert_eq!(rate.room(full, SECOND + SECOND / 10), 1);
        assert_eq!(rate.room(full, 100 * SECOND), 5);
        assert_eq!(rate.half_room(full, SECOND + 3 * SECOND / 10), 0);
        assert_eq!(rate.half_room(full, 100 * SECOND), 2);
    }

    #[test]
    fn over_any_time_at_most_burst_and_rate_pass() {
        let rate = Rate::new(1000.0, 20).unwrap();
        let (mut full, mut passed) = (0, 0);
        for step in 0..10_000 {
            let now = SECOND + step * 137_000; // 1.37 s in total
            let room = rate.room(full, now).min(3);
            full = rate.take(full, now, room);
            passed += room;
        }
        assert_eq!(passed, 20 + 1369);
    }

    #[test]
    fn invalid_rates_are_none() {
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-300] {
            assert_eq!(Rate::new(rate, 1), None);
        }
        assert_eq!(Rate::new(1.0, 0), None);
        assert!(Rate::new(1e12, 1).is_some());
        assert!(Rate::new(0.001, 1000).is_some());
    }
}
