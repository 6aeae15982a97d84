//! The counters of a server's workers.

use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::error::Result;
use crate::net::{Count, Tally};

/// Counters that a server's processes share.
#[pyclass(frozen, module = "tomada._core")]
pub(crate) struct ServerCounters(Tally);

#[pymethods]
impl ServerCounters {
    #[new]
    fn new(workers: usize) -> Result<Self> {
        Ok(Self(Tally::new(workers)?))
    }

    /// Count that a worker died and is started again.
    fn add_restart(&self, worker: usize) {
        self.0.add(worker, Count::Restarts, 1);
    }

    /// Add up what all workers have counted.
    fn stats(&self, kernel_drops: u64, filter_drops: u64) -> ServerStats {
        let sum = |count| self.0.sum(count);
        ServerStats {
            received: sum(Count::Received),
            received_bytes: sum(Count::ReceivedBytes),
            receive_calls: sum(Count::ReceiveCalls),
            sent: sum(Count::Sent),
            sent_bytes: sum(Count::SentBytes),
            send_calls: sum(Count::SendCalls),
            truncated: sum(Count::Truncated),
            refused: sum(Count::Refused),
            kernel_drops,
            filter_drops,
            handler_errors: sum(Count::HandlerErrors),
            send_errors: sum(Count::SendErrors),
            receive_errors: sum(Count::ReceiveErrors),
            handler_time: Duration::from_nanos(sum(Count::HandlerTime)).as_secs_f64(),
            restarts: sum(Count::Restarts),
            batches: self.0.batches().collect(),
        }
    }
}

impl ServerCounters {
    pub(crate) fn tally(&self) -> &Tally {
        &self.0
    }
}

/// A server's counters.
#[pyclass(frozen, module = "tomada")]
pub(crate) struct ServerStats {
    #[pyo3(get)]
    received: u64,
    #[pyo3(get)]
    received_bytes: u64,
    #[pyo3(get)]
    receive_calls: u64,
    #[pyo3(get)]
    sent: u64,
    #[pyo3(get)]
    sent_bytes: u64,
    #[pyo3(get)]
    send_calls: u64,
    #[pyo3(get)]
    truncated: u64,
    #[pyo3(get)]
    refused: u64,
    #[pyo3(get)]
    kernel_drops: u64,
    #[pyo3(get)]
    filter_drops: u64,
    #[pyo3(get)]
    handler_errors: u64,
    #[pyo3(get)]
    send_errors: u64,
    #[pyo3(get)]
    receive_errors: u64,
    #[pyo3(get)]
    handler_time: f64,
    #[pyo3(get)]
    restarts: u64,
    batches: Vec<(u64, u64)>,
}

#[pymethods]
impl ServerStats {
    /// How many batches had up to so many datagrams.
    #[getter]
    fn batch_sizes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let sizes = PyDict::new(py);
        for (size, batches) in &self.batches {
            sizes.set_item(size, batches)?;
        }
        Ok(sizes)
    }

    fn __repr__(&self) -> String {
        format!(
            "ServerStats(received={}, sent={}, truncated={}, refused={}, kernel_drops={}, \
             filter_drops={}, handler_errors={}, send_errors={}, receive_errors={}, handler_time={:.3}, restarts={})",
            self.received,
            self.sent,
            self.truncated,
            self.refused,
            self.kernel_drops,
            self.filter_drops,
            self.handler_errors,
            self.send_errors,
            self.receive_errors,
            self.handler_time,
            self.restarts,
        )
    }
}
