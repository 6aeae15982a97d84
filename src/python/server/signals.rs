//! The signal handlers of a server's process.

use std::ffi::c_int;
use std::mem;

use pyo3::exceptions::PyException;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

/// How many exceptions of signal handlers a restoration survives.
const ATTEMPTS: usize = 100;

/// The previous wake-up descriptor and handlers.
struct Before {
    descriptor: c_int,
    handlers: Vec<(c_int, Py<PyAny>)>,
}

/// Installs signal handlers and a wake-up descriptor, and restores the previous ones.
// In Python, the exception of a signal handler can come before any line, also before one that
// restores. `__exit__` is not Python: it is called whatever happens in the `with` block, and goes on
// if `signal.signal()` runs a handler that raises. Some versions of CPython can run a handler
// between `__enter__` and the block; then the object is dropped, and restores them in `drop`.
#[pyclass(module = "tomada._core")]
pub(crate) struct SignalHandlers {
    handlers: Py<PyDict>,
    descriptor: c_int,
    /// The owner of the descriptor. It is kept while the descriptor is installed: the interpreter
    /// can deadlock when a signal arrives and the descriptor, or its other end, is closed.
    owner: Option<Py<PyAny>>,
    before: Option<Before>,
    is_for_good: bool,
}

#[pymethods]
impl SignalHandlers {
    #[new]
    #[pyo3(signature = (handlers, fileno, owner, /))]
    fn new(handlers: Py<PyDict>, fileno: c_int, owner: Py<PyAny>) -> Self {
        let owner = Some(owner);
        Self { handlers, descriptor: fileno, owner, before: None, is_for_good: false }
    }

    /// Install them for good.
    fn install(&mut self, py: Python<'_>) -> PyResult<()> {
        self.is_for_good = true;
        self.__enter__(py)
    }

    fn __enter__(&mut self, py: Python<'_>) -> PyResult<()> {
        if self.before.is_some() || !is_main_thread(py)? {
            return Ok(());
        }
        let signal = py.import(intern!(py, "signal"))?;
        let quietly = PyDict::new(py);
        quietly.set_item(intern!(py, "warn_on_full_buffer"), false)?;
        let handlers: Vec<(c_int, Py<PyAny>)> = self
            .handlers
            .bind(py)
            .iter()
            .map(|(number, handler)| Ok((number.extract()?, handler.unbind())))
            .collect::<PyResult<_>>()?;
        let mut before = Vec::with_capacity(handlers.len());
        for (number, _) in &handlers {
            let handler = signal.call_method1(intern!(py, "getsignal"), (number,))?;
            if !handler.is_none() {
                // None: not installed from Python, so it cannot be restored.
                before.push((*number, handler.unbind()));
            }
        }
        let last = set_descriptor(&signal, self.descriptor, Some(&quietly))?;
        self.before = Some(Before { descriptor: last, handlers: before });
        for (number, handler) in &handlers {
            if let Err(error) = set_handler(&signal, *number, handler) {
                return Err(match self.restore(py) {
                    Ok(()) => error,
                    Err(other) => more_urgent(py, error, other),
                });
            }
        }
        Ok(())
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&mut self, py: Python<'_>, _error: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.restore(py)
    }
}

impl SignalHandlers {
    /// Restores everything, then raises an exception of the signal handlers that ran meanwhile.
    fn restore(&mut self, py: Python<'_>) -> PyResult<()> {
        let Some(before) = &self.before else { return Ok(()) };
        let signal = py.import(intern!(py, "signal"))?;
        if set_descriptor(&signal, before.descriptor, None).is_err() {
            set_descriptor(&signal, -1, None)?; // the previous one was closed meanwhile
        }
        let Some(before) = self.before.take() else { return Ok(()) };
        let mut raised = None;
        for (number, handler) in &before.handlers {
            for _ in 0..ATTEMPTS {
                let Err(error) = set_handler(&signal, *number, handler) else { break };
                raised = Some(match raised {
                    Some(first) => more_urgent(py, first, error),
                    None => error,
                });
            }
        }
        raised.map_or(Ok(()), Err)
    }
}

/// Of two exceptions, the one to raise: the first one, unless only the second one ends the program
/// (`KeyboardInterrupt`, `SystemExit`).
fn more_urgent(py: Python<'_>, first: PyErr, second: PyErr) -> PyErr {
    let is_error = |error: &PyErr| error.is_instance_of::<PyException>(py);
    if is_error(&first) && !is_error(&second) { second } else { first }
}

impl Drop for SignalHandlers {
    fn drop(&mut self) {
        if self.before.is_some() && !self.is_for_good {
            Python::attach(|py| {
                let raised = PyErr::take(py);
                if let Err(error) = self.restore(py) {
                    error.write_unraisable(py, None);
                }
                if let Some(error) = raised {
                    error.restore(py);
                }
            });
        }
        if self.before.is_some() {
            mem::forget(self.owner.take());
        }
    }
}

/// Returns whether this is the main thread, the only one that can install handlers.
fn is_main_thread(py: Python<'_>) -> PyResult<bool> {
    let threading = py.import(intern!(py, "threading"))?;
    let current = threading.call_method0(intern!(py, "current_thread"))?;
    Ok(current.is(&threading.call_method0(intern!(py, "main_thread"))?))
}

/// Sets the wake-up descriptor, and returns the previous one.
fn set_descriptor(
    signal: &Bound<'_, PyModule>,
    descriptor: c_int,
    options: Option<&Bound<'_, PyDict>>,
) -> PyResult<c_int> {
    signal.call_method(intern!(signal.py(), "set_wakeup_fd"), (descriptor,), options)?.extract()
}

/// Installs a handler. Before and after that, the handlers of signals that have arrived run.
fn set_handler(signal: &Bound<'_, PyModule>, number: c_int, handler: &Py<PyAny>) -> PyResult<()> {
    signal.call_method1(intern!(signal.py(), "signal"), (number, handler)).map(drop)
}
