//! The classes of counters: [`Stats`], [`ServerStats`] and [`GuardStats`].

use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::error::Result;
use crate::net::counters::{guard_counters, server_counters, sink_counters, socket_counters};
use crate::net::guard::GuardCounts;
use crate::net::{
    Count, Drops, ServerCounts, SharedCounters, SharedSinkCounters, SinkCounter, SinkCounts, stats,
};

/// A counter's type in Python.
trait Number: Sized {
    fn from_count(count: u64) -> Self;
    fn text(&self) -> String;
}

impl Number for u64 {
    fn from_count(count: u64) -> Self {
        count
    }

    fn text(&self) -> String {
        self.to_string()
    }
}

/// Seconds, counted in nanoseconds.
impl Number for f64 {
    fn from_count(nanoseconds: u64) -> Self {
        Duration::from_nanos(nanoseconds).as_secs_f64()
    }

    fn text(&self) -> String {
        format!("{self:.3}")
    }
}

/// Declares a class with a property for each counter of a table.
macro_rules! declare_class {
    (
        ($(#[$attribute:meta])* $class:ident of $counts:ty { $($field:ident: $kind:ty),* })
        $($variant:ident $name:ident $unit:ident $text:literal,)*
    ) => {
        $(#[$attribute])*
        pub(crate) struct $class {
            $(#[pyo3(get)] $name: $unit,)*
            $($field: $kind,)*
        }

        impl $class {
            /// The counters' names and descriptions.
            #[allow(dead_code)] // only those of one class are metrics
            const COUNTERS: &[(&str, &str)] = &[$((stringify!($name), $text)),*];

            pub(crate) fn new(counts: $counts $(, $field: $kind)*) -> Self {
                Self { $($name: Number::from_count(counts.$name),)* $($field),* }
            }

            /// The text of the counters whose names are selected.
            fn text(&self, is_shown: impl Fn(&str) -> bool) -> String {
                let counters = [$((stringify!($name), self.$name.text())),*];
                let shown = counters.iter().filter(|(name, _)| is_shown(name));
                let texts: Vec<_> = shown.map(|(name, count)| format!("{name}={count}")).collect();
                format!("{}({})", stringify!($class), texts.join(", "))
            }
        }
    };
}

socket_counters!(declare_class!(
    /// A socket's counters.
    #[pyclass(frozen, module = "tomada")]
    #[derive(Default, PartialEq, Eq)]
    Stats of stats::Stats {}
));

guard_counters!(declare_class!(
    /// A guard's counters.
    #[pyclass(frozen, module = "tomada")]
    #[derive(Default, PartialEq, Eq)]
    GuardStats of GuardCounts {}
));

sink_counters!(declare_class!(
    /// A sink's counters.
    #[pyclass(frozen, module = "tomada.sinks")]
    #[derive(Default, PartialEq, Eq)]
    SinkStats of SinkCounts {}
));

server_counters!(declare_class!(
    /// A server's counters.
    #[pyclass(frozen, module = "tomada")]
    ServerStats of ServerCounts { batches: Vec<(u64, u64)> }
));

impl Stats {
    /// A socket's counters, including those that the kernel keeps.
    pub(crate) fn of_socket(counts: stats::Stats, drops: Drops) -> Self {
        let (kernel_drops, filter_drops) = (drops.unwanted, drops.filtered);
        Self::new(stats::Stats { kernel_drops, filter_drops, ..counts })
    }
}

#[pymethods]
impl Stats {
    fn __eq__(&self, other: &Self) -> bool {
        self == other
    }

    fn __repr__(&self) -> String {
        self.text(|_| true)
    }
}

#[pymethods]
impl GuardStats {
    fn __eq__(&self, other: &Self) -> bool {
        self == other
    }

    fn __repr__(&self) -> String {
        self.text(|_| true)
    }
}

#[pymethods]
impl SinkStats {
    /// Datagrams that the sink holds: received, and neither published nor dropped yet.
    #[getter]
    fn in_flight(&self) -> u64 {
        self.received.saturating_sub(self.published + self.dropped)
    }

    fn __eq__(&self, other: &Self) -> bool {
        self == other
    }

    fn __repr__(&self) -> String {
        self.text(|_| true)
    }
}

/// Counters of a sink, which a server's processes share.
#[pyclass(frozen, module = "tomada._core")]
pub(crate) struct SinkCounters(SharedSinkCounters);

#[pymethods]
impl SinkCounters {
    #[new]
    fn new() -> Result<Self> {
        Ok(Self(SharedSinkCounters::new()?))
    }

    /// Count datagrams.
    #[pyo3(signature = (*, received=0, published=0, dropped=0))]
    fn add(&self, received: u64, published: u64, dropped: u64) {
        self.0.add(SinkCounter::Received, received);
        self.0.add(SinkCounter::Published, published);
        self.0.add(SinkCounter::Dropped, dropped);
    }

    /// Return the counters.
    fn stats(&self) -> SinkStats {
        SinkStats::new(self.0.counts())
    }
}

#[pymethods]
impl ServerStats {
    /// The number of batches by size: for each maximum size, how many batches had at most as many
    /// datagrams.
    #[getter]
    fn batch_sizes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let sizes = PyDict::new(py);
        for (size, batches) in &self.batches {
            sizes.set_item(size, batches)?;
        }
        Ok(sizes)
    }

    fn __repr__(&self) -> String {
        self.text(|name| !name.ends_with("_bytes") && !name.ends_with("_calls"))
    }
}

/// Counters that a server's processes share.
#[pyclass(frozen, module = "tomada._core")]
pub(crate) struct ServerCounters(SharedCounters);

#[pymethods]
impl ServerCounters {
    #[new]
    fn new(workers: usize) -> Result<Self> {
        Ok(Self(SharedCounters::new(workers)?))
    }

    /// The counters' names and descriptions.
    #[staticmethod]
    fn descriptions(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
        let descriptions = PyDict::new(py);
        for (name, text) in ServerStats::COUNTERS {
            descriptions.set_item(name, text)?;
        }
        Ok(descriptions)
    }

    /// Count that a worker exited and is restarted.
    fn add_restart(&self, worker: usize) {
        self.0.add(worker, Count::Restarts, 1);
    }

    /// How many datagrams a worker, or the processes that took its place, have received.
    fn received(&self, worker: usize) -> u64 {
        self.0.of(worker, Count::Received)
    }

    /// A number that grows as a worker, or the processes that took its place, receive.
    fn progress(&self, worker: usize) -> u64 {
        self.0.progress(worker)
    }

    /// Add up what all workers have counted.
    fn stats(&self, kernel_drops: u64, filter_drops: u64) -> ServerStats {
        let counts = ServerCounts { kernel_drops, filter_drops, ..self.0.sums() };
        ServerStats::new(counts, self.0.batches().collect())
    }
}

impl ServerCounters {
    pub(crate) fn shared_counters(&self) -> &SharedCounters {
        &self.0
    }
}
