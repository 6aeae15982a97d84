//! The turns of an event loop.

use pyo3::prelude::*;

use crate::net::Turns;

/// A counter that an event loop increments once per turn.
#[derive(Default)]
#[pyclass(frozen, module = "tomada._core")]
pub(crate) struct Turn(pub(super) Turns);

impl Turn {
    /// Begins the next turn.
    pub(crate) fn advance(&self) {
        self.0.advance();
    }

    /// The number of this turn.
    pub(super) fn count(&self) -> u64 {
        self.0.count()
    }
}
