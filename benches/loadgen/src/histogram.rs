//! Latencies in a fixed amount of memory.

use crate::json::Line;

/// Counts of nanoseconds in 64 steps for each power of two, so that a percentile is off by less
/// than two percent.
pub(crate) struct Histogram {
    counts: Box<[u64]>,
    total: u64,
}

const STEP_BITS: u32 = 6;
const STEPS: u64 = 1 << STEP_BITS;

impl Histogram {
    pub(crate) fn new() -> Self {
        let buckets = (u64::BITS - STEP_BITS + 1) as usize * STEPS as usize;
        Self { counts: vec![0; buckets].into(), total: 0 }
    }

    pub(crate) fn record(&mut self, nanoseconds: u64) {
        self.counts[bucket(nanoseconds)] += 1;
        self.total += 1;
    }

    /// The number of recorded latencies.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The latency that a given share of the requests does not exceed.
    fn quantile(&self, share: f64) -> u64 {
        let rank = (share * self.total as f64).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank.max(1) {
                return middle(bucket);
            }
        }
        0
    }

    /// Adds the percentiles to a result, in nanoseconds.
    pub(crate) fn describe(&self, line: Line) -> Line {
        line.with("p50", self.quantile(0.5))
            .with("p90", self.quantile(0.9))
            .with("p99", self.quantile(0.99))
            .with("p999", self.quantile(0.999))
    }
}

/// The bucket of a value: the value itself while it is small, later its power of two and the six
/// bits after the first.
fn bucket(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(STEP_BITS + 1);
    (u64::from(shift) * STEPS + (value >> shift)) as usize
}

/// The middle of the values of a bucket.
fn middle(bucket: usize) -> u64 {
    let shift = (bucket as u64 / STEPS).saturating_sub(1);
    let start = (bucket as u64 - shift * STEPS) << shift;
    start + ((1 << shift) >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_values_close_to_each_other() {
        for value in (0..200).chain((0..50).map(|power| 1_234_567_u64 << (power % 40))) {
            let error = middle(bucket(value)).abs_diff(value);
            assert!(error * 64 <= value, "{value} is off by {error}");
        }
        assert!(bucket(u64::MAX) < Histogram::new().counts.len());
    }

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.quantile(0.5), 0);
        (1..=100).for_each(|value| histogram.record(value));
        assert_eq!(histogram.total(), 100);
        assert_eq!((histogram.quantile(0.5), histogram.quantile(0.99)), (50, 99));
    }
}
