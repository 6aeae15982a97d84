//! The turns of an event loop, and how the transports of one share the time in them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use pyo3::prelude::*;

/// A counter that an event loop raises once for each of its turns.
#[pyclass(frozen, module = "tomada._core")]
pub(crate) struct Turn {
    count: AtomicU64,
    /// How many transports had to stop for lack of time: in this turn, and in the last one.
    cut_short: AtomicU32,
    cut_short_before: AtomicU32,
    /// How long each transport may deliver in this turn, in nanoseconds, where several share it.
    share: AtomicU64,
}

/// No transport has asked yet.
const UNKNOWN: u64 = u64::MAX;

#[pymethods]
impl Turn {
    #[new]
    fn new() -> Self {
        Self {
            // A transport has seen no turn when it has seen the zeroth.
            count: AtomicU64::new(1),
            cut_short: AtomicU32::new(0),
            cut_short_before: AtomicU32::new(0),
            share: AtomicU64::new(UNKNOWN),
        }
    }

    /// Begin the next turn.
    fn advance(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let cut_short = self.cut_short.load(Ordering::Relaxed);
        let before = self.cut_short_before.load(Ordering::Relaxed);
        if cut_short | before != 0 {
            self.cut_short_before.store(cut_short, Ordering::Relaxed);
            self.cut_short.store(0, Ordering::Relaxed);
            self.share.store(UNKNOWN, Ordering::Relaxed);
        }
    }
}

impl Turn {
    /// Which turn this is.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Takes note that a transport had to stop for lack of time.
    pub(super) fn note_cut_short(&self) {
        self.cut_short.fetch_add(1, Ordering::Relaxed);
    }

    /// How many transports share the time of this turn: those that lacked it in the last one.
    pub(super) fn sharers(&self) -> u32 {
        self.cut_short_before.load(Ordering::Relaxed)
    }

    /// How long each of them may deliver, if the first of them has asked.
    pub(super) fn share(&self) -> Option<Duration> {
        let share = self.share.load(Ordering::Relaxed);
        (share != UNKNOWN).then(|| Duration::from_nanos(share))
    }

    /// Sets how long each of them may deliver.
    pub(super) fn set_share(&self, share: Duration) {
        self.share.store(share.as_nanos() as u64, Ordering::Relaxed);
    }
}
