//! The objects of the standard library that the loop uses.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

use super::LoopCore;

/// Objects of the standard library, looked up once.
pub(super) struct Standard {
    // The methods of the standard loop.
    pub(super) run_once: Py<PyAny>,
    pub(super) call_soon: Py<PyAny>,
    pub(super) call_at: Py<PyAny>,
    pub(super) call_later: Py<PyAny>,
    pub(super) add_reader: Py<PyAny>,
    pub(super) remove_reader: Py<PyAny>,
    pub(super) selector_key: Py<PyAny>,
    /// The function that is the standard loop's method `time`, and the class of bound methods.
    read_time: Py<PyAny>,
    method_class: Py<PyAny>,
    /// The names that this function uses, and the module `time` with its names. A program may
    /// replace the module, or `monotonic` in it.
    names: Py<PyDict>,
    clock_module: Py<PyModule>,
    clocks: Py<PyDict>,
    deque: Py<PyAny>,
    // The methods of `collections.deque`.
    append: Py<PyAny>,
    pop_left: Py<PyAny>,
}

impl Standard {
    pub(super) fn get(py: Python<'_>) -> PyResult<&'_ Self> {
        static STANDARD: PyOnceLock<Standard> = PyOnceLock::new();
        STANDARD.get_or_try_init(py, || {
            let base = py.import("asyncio.base_events")?.getattr("BaseEventLoop")?;
            let method = |name| PyResult::Ok(base.getattr(name)?.unbind());
            // Saved there when it was imported: a program may have replaced them since.
            let saved = py.import("tomada._asyncio.handles")?;
            let (selects, read_time) =
                (saved.getattr("StandardLoop")?, saved.getattr("standard_time")?);
            let names = read_time.getattr("__globals__")?.cast_into()?.unbind();
            let clocks = py.import("time")?;
            let deque = py.import("collections")?.getattr("deque")?;
            Ok(Self {
                run_once: method("_run_once")?,
                call_soon: method("call_soon")?,
                call_at: method("call_at")?,
                call_later: method("call_later")?,
                add_reader: selects.getattr("_add_reader")?.unbind(),
                remove_reader: selects.getattr("_remove_reader")?.unbind(),
                read_time: read_time.unbind(),
                method_class: py.import("types")?.getattr("MethodType")?.unbind(),
                selector_key: py.import("selectors")?.getattr("SelectorKey")?.unbind(),
                append: deque.getattr("append")?.unbind(),
                pop_left: deque.getattr("popleft")?.unbind(),
                names,
                clocks: clocks.dict().unbind(),
                clock_module: clocks.unbind(),
                deque: deque.unbind(),
            })
        })
    }

    /// The time of a loop's clock, in seconds. Its method is called only if it is not the standard
    /// loop's, which only calls `time.monotonic()`.
    pub(super) fn time<'py>(
        &self,
        event_loop: &Bound<'py, LoopCore>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = event_loop.py();
        let method = event_loop.getattr(intern!(py, "time"))?;
        let is_standard = method.get_type().is(&self.method_class)
            && method.getattr(intern!(py, "__func__"))?.is(&self.read_time)
            && self.names.bind(py).as_any().get_item(intern!(py, "time"))?.is(&self.clock_module);
        if is_standard {
            self.clocks.bind(py).as_any().get_item(intern!(py, "monotonic"))?.call0()
        } else {
            method.call0()
        }
    }

    /// Appends to a deque. Like [`pop_left`](Self::pop_left), it does not search for the method,
    /// unless a program has replaced the deque by an object of another class.
    pub(super) fn append(&self, queue: &Bound<'_, PyAny>, item: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = queue.py();
        let added = if queue.get_type().is(&self.deque) {
            self.append.bind(py).call1((queue, item))
        } else {
            queue.call_method1(intern!(py, "append"), (item,))
        };
        added.map(drop)
    }

    /// Removes the first item of a deque.
    pub(super) fn pop_left<'py>(&self, queue: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = queue.py();
        if queue.get_type().is(&self.deque) {
            self.pop_left.bind(py).call1((queue,))
        } else {
            queue.call_method0(intern!(py, "popleft"))
        }
    }
}
