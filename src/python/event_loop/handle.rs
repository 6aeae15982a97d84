//! The standard library's handles, made and run without calling their methods.

use pyo3::exceptions::{PyKeyboardInterrupt, PySystemExit};
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyTuple, PyType};
use pyo3::{ffi, intern, prelude::*};

use super::LoopCore;
use super::object_slot::ObjectSlot;

/// `asyncio.Handle` and `asyncio.TimerHandle`, looked up once.
pub(super) struct Handles {
    handle_class: Py<PyType>,
    timer_class: Py<PyType>,
    /// `Handle._run`, which [`run`] does the work of, unless a program has replaced it.
    run: Py<PyAny>,
    /// Reports the exception of a callback.
    report: Py<PyAny>,
    callback: ObjectSlot,
    args: ObjectSlot,
    cancelled: ObjectSlot,
    context: ObjectSlot,
    event_loop: ObjectSlot,
    repr: ObjectSlot,
    source_traceback: ObjectSlot,
    when: ObjectSlot,
    scheduled: ObjectSlot,
}

impl Handles {
    pub(super) fn get(py: Python<'_>) -> PyResult<&'_ Self> {
        static HANDLES: PyOnceLock<Handles> = PyOnceLock::new();
        HANDLES.get_or_try_init(py, || {
            let events = py.import("asyncio.events")?;
            let saved = py.import("tomada._asyncio.handles")?;
            let handle = events.getattr("Handle")?.cast_into::<PyType>()?;
            let timer = events.getattr("TimerHandle")?.cast_into::<PyType>()?;
            let of_all = |name| ObjectSlot::new(&handle, &timer, name);
            let of_timers = |name| ObjectSlot::new(&timer, &timer, name);
            Ok(Self {
                // Saved when it was imported: a program may have replaced the method since.
                run: saved.getattr("run_handle")?.unbind(),
                report: saved.getattr("report")?.unbind(),
                callback: of_all("_callback")?,
                args: of_all("_args")?,
                cancelled: of_all("_cancelled")?,
                context: of_all("_context")?,
                event_loop: of_all("_loop")?,
                repr: of_all("_repr")?,
                source_traceback: of_all("_source_traceback")?,
                when: of_timers("_when")?,
                scheduled: of_timers("_scheduled")?,
                handle_class: handle.unbind(),
                timer_class: timer.unbind(),
            })
        })
    }

    /// Whether handles run as the standard library's do.
    pub(super) fn are_unchanged(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.handle_class.bind(py).getattr(intern!(py, "_run"))?.is(&self.run))
    }

    /// Makes a handle, like the class does for a loop that is not in debug mode.
    pub(super) fn new_handle<'py>(
        &self,
        event_loop: &Bound<'py, LoopCore>,
        callback: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        context: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.make(&self.handle_class, event_loop, callback, args, context)
    }

    /// Makes the handle of a timer that is about to be scheduled, in the same way.
    pub(super) fn new_timer<'py>(
        &self,
        when: &Bound<'py, PyAny>,
        event_loop: &Bound<'py, LoopCore>,
        callback: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        context: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let timer = self.make(&self.timer_class, event_loop, callback, args, context)?;
        self.when.set(&timer, when.clone())?;
        self.set_scheduled(&timer, true)?;
        Ok(timer)
    }

    fn make<'py>(
        &self,
        class: &Py<PyType>,
        event_loop: &Bound<'py, LoopCore>,
        callback: &Bound<'py, PyAny>,
        args: &Bound<'py, PyTuple>,
        context: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = event_loop.py();
        // SAFETY: attached. It is what `object.__new__` does for such a class.
        let handle = unsafe {
            let class = class.as_ptr().cast();
            Bound::from_owned_ptr_or_err(py, ffi::PyType_GenericAlloc(class, 0))?
        };
        let context = match context {
            Some(context) => context.clone(),
            // SAFETY: attached; returns a new reference.
            None => unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyContext_CopyCurrent())? },
        };
        let none = || py.None().into_bound(py);
        self.context.set(&handle, context)?;
        self.event_loop.set(&handle, event_loop.clone().into_any())?;
        self.callback.set(&handle, callback.clone())?;
        self.args.set(&handle, args.clone().into_any())?;
        self.cancelled.set(&handle, truth(py, false))?;
        self.repr.set(&handle, none())?;
        self.source_traceback.set(&handle, none())?;
        Ok(handle)
    }

    pub(super) fn is_cancelled(&self, handle: &Bound<'_, PyAny>) -> PyResult<bool> {
        self.cancelled.get(handle)?.is_truthy()
    }

    /// When a timer is due, in seconds of the loop's clock.
    pub(super) fn when(&self, timer: &Bound<'_, PyAny>) -> PyResult<f64> {
        self.when.get(timer)?.extract()
    }

    /// Notes whether a timer is in the heap.
    pub(super) fn set_scheduled(&self, timer: &Bound<'_, PyAny>, value: bool) -> PyResult<()> {
        self.scheduled.set(timer, truth(timer.py(), value))
    }

    /// Runs a handle, like its own method does.
    pub(super) fn run(&self, handle: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = handle.py();
        if self.is_cancelled(handle)? {
            return Ok(());
        }
        let class = handle.get_type();
        if !(class.is(&self.handle_class) || class.is(&self.timer_class)) {
            return handle.call_method0(intern!(py, "_run")).map(drop);
        }
        let args = self.args.get(handle)?;
        let Ok(args) = args.cast::<PyTuple>() else {
            return handle.call_method0(intern!(py, "_run")).map(drop);
        };
        let (context, callback) = (self.context.get(handle)?, self.callback.get(handle)?);
        let Err(error) = call_in(&context, &callback, args) else { return Ok(()) };
        let ends_loop = error.is_instance_of::<PySystemExit>(py)
            || error.is_instance_of::<PyKeyboardInterrupt>(py);
        if ends_loop {
            return Err(error);
        }
        self.report.bind(py).call1((handle, error)).map(drop)
    }
}

fn truth(py: Python<'_>, value: bool) -> Bound<'_, PyAny> {
    PyBool::new(py, value).to_owned().into_any()
}

/// Calls a function in a context, like `Context.run`.
fn call_in<'py>(
    context: &Bound<'py, PyAny>,
    callback: &Bound<'py, PyAny>,
    args: &Bound<'py, PyTuple>,
) -> PyResult<Bound<'py, PyAny>> {
    /// Exits the context, even if a panic unwinds the stack.
    struct Entered<'a, 'py>(&'a Bound<'py, PyAny>);

    impl Entered<'_, '_> {
        fn exit(&self) -> PyResult<()> {
            // SAFETY: attached, and it is a context.
            match unsafe { ffi::PyContext_Exit(self.0.as_ptr()) } {
                0 => Ok(()),
                _ => Err(PyErr::fetch(self.0.py())),
            }
        }
    }

    impl Drop for Entered<'_, '_> {
        fn drop(&mut self) {
            let _ = self.exit();
        }
    }

    let py = context.py();
    // SAFETY: attached.
    if unsafe { ffi::PyContext_CheckExact(context.as_ptr()) } == 0 {
        let all: Vec<_> = std::iter::once(callback).chain(args.as_slice()).collect();
        return context.call_method1(intern!(py, "run"), PyTuple::new(py, all)?);
    }
    // SAFETY: as above, and it is a context.
    if unsafe { ffi::PyContext_Enter(context.as_ptr()) } != 0 {
        return Err(PyErr::fetch(py));
    }
    let entered = Entered(context);
    let result = callback.call1(args);
    let exited = entered.exit();
    std::mem::forget(entered);
    exited.and(result)
}
