//! The turns of an event loop.

use pyo3::prelude::*;

use crate::net::Turns;

/// A counter that an event loop increments once per turn.
#[pyclass(frozen, module = "tomada._core")]
pub(crate) struct Turn(pub(super) Turns);

#[pymethods]
impl Turn {
    #[new]
    fn new() -> Self {
        Self(Turns::default())
    }

    /// Begin the next turn.
    fn advance(&self) {
        self.0.advance();
    }
}

impl Turn {
    /// The number of this turn.
    pub(super) fn count(&self) -> u64 {
        self.0.count()
    }
}
