//! The phase and the flow control of a transport, and the steps that result from them.

use std::sync::{MutexGuard, PoisonError};

use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::PyFloat;

use super::TransportCore;
use crate::net::{BacklogSize, FlowControl, Phase, Step, Transition, WaterMarks, hang_if_ended};
use crate::python::error::Result;
use crate::python::send_backlog::SendBacklog;

/// The sending side of a transport.
#[derive(Default)]
pub(super) struct SendState {
    pub(super) backlog: SendBacklog,
    pub(super) flow: FlowControl,
    /// Whether the oldest datagrams are dropped if too many wait for room in the socket's buffer.
    pub(super) is_limited: bool,
    /// How many datagrams the program tried to send after the connection was lost.
    pub(super) lost_sends: u32,
}

impl SendState {
    /// The next thing for the transport to do, if any.
    pub(super) fn step(&self, phase: Phase) -> Option<Step> {
        self.flow.step(phase, self.size())
    }

    fn size(&self) -> BacklogSize {
        BacklogSize { datagrams: self.backlog.len(), bytes: self.backlog.bytes() }
    }
}

#[pymethods]
impl TransportCore {
    /// Begin to deliver datagrams, unless the transport was paused or closed before.
    fn start_reading(&self) -> bool {
        self.phase.advance(Transition::Start)
    }

    /// Stop delivering datagrams; return whether this changes anything.
    fn pause_reading(&self) -> bool {
        self.phase.advance(Transition::Pause)
    }

    /// Deliver datagrams again; return whether this changes anything.
    fn resume_reading(&self) -> bool {
        self.phase.advance(Transition::Resume)
    }

    /// Stop delivering datagrams, and close when the backlog is sent; return whether this changes
    /// anything. A flush comes next.
    fn close(&self) -> bool {
        self.phase.advance(Transition::Close)
    }

    /// Drop the backlog, and stop sending; return whether this changes anything.
    fn abort(slf: &Bound<'_, Self>) -> Result<bool> {
        let this = slf.get();
        if !this.phase.advance(Transition::Lose) {
            return Ok(false);
        }
        let mut send_state = this.send_state(slf.py());
        let dropped = std::mem::take(&mut send_state.backlog);
        send_state.flow.set_full(false);
        drop(send_state);
        drop(dropped);
        Self::settle(slf)?;
        Ok(true)
    }

    /// Whether the protocol wants datagrams.
    fn is_reading(&self) -> bool {
        matches!(self.phase.get(), Phase::Starting | Phase::Delivering)
    }

    /// Whether the transport is closing or closed.
    fn is_closing(&self) -> bool {
        self.phase.get() >= Phase::Closing
    }

    /// Whether datagrams are delivered.
    #[getter]
    pub(super) fn is_delivering(&self) -> bool {
        self.phase.get() == Phase::Delivering
    }

    /// Whether the socket's buffer is full.
    #[getter]
    pub(super) fn is_full(&self, py: Python<'_>) -> bool {
        self.send_state(py).flow.is_full()
    }

    /// The number of bytes in the send backlog.
    #[getter]
    fn buffered(&self, py: Python<'_>) -> usize {
        self.send_state(py).backlog.bytes()
    }

    /// The number of datagrams in the send backlog.
    #[getter]
    fn queued(&self, py: Python<'_>) -> usize {
        self.send_state(py).backlog.len()
    }

    /// The sizes in bytes at which the protocol resumes and pauses sending.
    #[getter]
    fn limits<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let marks = self.send_state(py).flow.marks();
        Ok((number(py, marks.low())?, number(py, marks.high())?))
    }

    /// Set the sizes in bytes at which the protocol pauses and resumes sending.
    fn set_limits(
        slf: &Bound<'_, Self>,
        high: Option<&Bound<'_, PyAny>>,
        low: Option<&Bound<'_, PyAny>>,
    ) -> Result<()> {
        let marks = WaterMarks::new(high.map(limit).transpose()?, low.map(limit).transpose()?);
        let marks = marks.map_err(|marks| {
            let (high, low) = (marks.high(), marks.low());
            let message = format!("high ({high}) must be >= low ({low}) must be >= 0");
            PyValueError::new_err(message)
        })?;
        slf.get().send_state(slf.py()).flow.set_marks(marks);
        Self::settle(slf)
    }

    /// From now on, the datagrams that wait for room in the socket's buffer are limited.
    fn limit_backlog(&self, py: Python<'_>) {
        self.send_state(py).is_limited = true;
    }
}

impl TransportCore {
    /// Locks the sending side. A thread that waits for the lock is detached from the interpreter:
    /// another thread holds it for system calls, and drops `bytes`, for which the interpreter has
    /// locks of its own.
    pub(super) fn send_state(&self, py: Python<'_>) -> MutexGuard<'_, SendState> {
        self.send_state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the transport do all pending steps.
    pub(super) fn settle(slf: &Bound<'_, Self>) -> Result<()> {
        let (py, this) = (slf.py(), slf.get());
        while let Some(step) = this.take_step(py) {
            this.act(py, name(step))?;
        }
        Ok(())
    }

    fn take_step(&self, py: Python<'_>) -> Option<Step> {
        let mut send_state = self.send_state(py);
        let (phase, size) = (self.phase.get(), send_state.size());
        let step = send_state.flow.take_step(phase, size);
        step.filter(|step| *step != Step::Lose || self.phase.advance(Transition::Lose))
    }

    /// Makes the transport do something.
    pub(super) fn act(&self, py: Python<'_>, what: &str) -> Result<()> {
        let act = self.links().as_ref().map(|links| links.act.clone_ref(py));
        if let Some(act) = act {
            hang_if_ended(|| act.call1(py, (what,)))?;
        }
        Ok(())
    }
}

/// The transport's name for a step.
fn name(step: Step) -> &'static str {
    match step {
        Step::Watch => "watch",
        Step::Pause => "pause_writing",
        Step::Resume => "resume_writing",
        Step::Unwatch => "unwatch",
        Step::Lose => "lose",
    }
}

/// Reads a limit in bytes: any number, such as an `int` of any size.
fn limit(value: &Bound<'_, PyAny>) -> PyResult<f64> {
    match value.extract::<f64>() {
        Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => {
            Ok(if value.lt(0)? { f64::NEG_INFINITY } else { f64::INFINITY })
        }
        result => result,
    }
}

/// Makes a Python number: an `int` if possible.
fn number(py: Python<'_>, value: f64) -> PyResult<Bound<'_, PyAny>> {
    let number = PyFloat::new(py, value).into_any();
    if value.is_finite() && value.fract() == 0.0 {
        return number.call_method0(intern!(py, "__int__"));
    }
    Ok(number)
}
