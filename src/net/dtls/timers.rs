//! The timers of all sessions of an endpoint.

use std::collections::BTreeMap;
use std::time::Instant;

/// Moments, each of a numbered thing; earliest first.
pub(super) struct Timers<T> {
    due: BTreeMap<(Instant, u64), T>,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self { due: BTreeMap::new() }
    }
}

impl<T> Timers<T> {
    /// Sets a timer. The number tells those of the same moment apart.
    pub(super) fn set(&mut self, at: Instant, number: u64, of: T) {
        self.due.insert((at, number), of);
    }

    /// Removes a timer.
    pub(super) fn remove(&mut self, at: Instant, number: u64) {
        self.due.remove(&(at, number));
    }

    /// The moment of the first timer.
    pub(super) fn first(&self) -> Option<Instant> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    /// Removes the first timer if its moment has come.
    pub(super) fn pop(&mut self, now: Instant) -> Option<T> {
        let first = self.due.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timers_are_due_in_order() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut timers = Timers::default();
        for (seconds, number) in [(3, 1), (1, 2), (1, 3), (2, 4)] {
            timers.set(at(seconds), number, number);
        }
        timers.remove(at(2), 4);
        assert_eq!(timers.first(), Some(at(1)));
        assert_eq!(timers.pop(at(0)), None);
        let popped: Vec<_> = std::iter::from_fn(|| timers.pop(at(2))).collect();
        assert_eq!((popped, timers.first()), (vec![2, 3], Some(at(3))));
    }
}
