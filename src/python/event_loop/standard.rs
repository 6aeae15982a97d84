//! The objects of the standard library that the loop uses.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyTuple, PyType};

use super::LoopCore;

/// Objects of the standard library, looked up once.
pub(super) struct Standard {
    pub(super) handle_class: Py<PyType>,
    pub(super) timer_class: Py<PyType>,
    new: Py<PyAny>,
    copy_context: Py<PyAny>,
    /// `Handle._run`, which this loop does the work of, unless a program has replaced it.
    run_handle: Py<PyAny>,
    // The methods of the standard loop.
    pub(super) run_once: Py<PyAny>,
    pub(super) call_soon: Py<PyAny>,
    pub(super) call_at: Py<PyAny>,
    pub(super) call_later: Py<PyAny>,
    pub(super) add_reader: Py<PyAny>,
    pub(super) remove_reader: Py<PyAny>,
    pub(super) selector_key: Py<PyAny>,
    /// Reports the exception of a handle's callback.
    pub(super) report: Py<PyAny>,
}

impl Standard {
    pub(super) fn get(py: Python<'_>) -> PyResult<&'_ Self> {
        static STANDARD: PyOnceLock<Standard> = PyOnceLock::new();
        STANDARD.get_or_try_init(py, || {
            let events = py.import("asyncio.events")?;
            let base = py.import("asyncio.base_events")?.getattr("BaseEventLoop")?;
            let handle_class = events.getattr("Handle")?.cast_into::<PyType>()?;
            let method = |name| PyResult::Ok(base.getattr(name)?.unbind());
            let selects = py.import("tomada._asyncio.handles")?.getattr("StandardLoop")?;
            Ok(Self {
                new: py.import("builtins")?.getattr("object")?.getattr("__new__")?.unbind(),
                copy_context: py.import("contextvars")?.getattr("copy_context")?.unbind(),
                run_handle: handle_class.getattr("_run")?.unbind(),
                timer_class: events.getattr("TimerHandle")?.cast_into()?.unbind(),
                handle_class: handle_class.unbind(),
                run_once: method("_run_once")?,
                call_soon: method("call_soon")?,
                call_at: method("call_at")?,
                call_later: method("call_later")?,
                add_reader: selects.getattr("_add_reader")?.unbind(),
                remove_reader: selects.getattr("_remove_reader")?.unbind(),
                selector_key: py.import("selectors")?.getattr("SelectorKey")?.unbind(),
                report: py.import("tomada._asyncio.handles")?.getattr("report")?.unbind(),
            })
        })
    }

    /// Whether handles run as the standard library's do.
    pub(super) fn is_unchanged(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.handle_class.bind(py).getattr(intern!(py, "_run"))?.is(&self.run_handle))
    }

    /// Whether an object is a handle of exactly the standard classes.
    pub(super) fn is_plain(&self, handle: &Bound<'_, PyAny>) -> bool {
        let class = handle.get_type();
        class.is(&self.handle_class) || class.is(&self.timer_class)
    }

    /// Makes a handle, like the class does for a loop that is not in debug mode.
    pub(super) fn handle<'py>(
        &self,
        class: &Py<PyType>,
        event_loop: &Bound<'py, LoopCore>,
        callback: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        context: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = event_loop.py();
        let handle = self.new.bind(py).call1((class.bind(py),))?;
        match context {
            Some(context) => handle.setattr(intern!(py, "_context"), context)?,
            None => handle.setattr(intern!(py, "_context"), self.copy_context.bind(py).call0()?)?,
        }
        handle.setattr(intern!(py, "_loop"), event_loop)?;
        handle.setattr(intern!(py, "_callback"), callback)?;
        handle.setattr(intern!(py, "_args"), args)?;
        handle.setattr(intern!(py, "_cancelled"), false)?;
        handle.setattr(intern!(py, "_repr"), py.None())?;
        handle.setattr(intern!(py, "_source_traceback"), py.None())?;
        Ok(handle)
    }
}
