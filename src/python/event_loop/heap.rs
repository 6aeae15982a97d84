//! A loop's timers: a list in the order of `heapq`, which compares them without calling their
//! `__lt__`.

use pyo3::prelude::*;
use pyo3::types::PyList;

use super::handle::Handles;

/// Adds a timer.
pub(super) fn push(heap: &Bound<'_, PyList>, timer: Bound<'_, PyAny>, time: f64) -> PyResult<()> {
    heap.append(&timer)?;
    sift_down(heap, 0, heap.len() - 1, timer, time)
}

/// Removes the timer that is due first.
pub(super) fn pop<'py>(heap: &Bound<'py, PyList>) -> PyResult<Bound<'py, PyAny>> {
    let handles = Handles::get(heap.py())?;
    let end = heap.len() - 1;
    let last = heap.get_item(end)?;
    heap.del_item(end)?;
    if end == 0 {
        return Ok(last);
    }
    let first = heap.get_item(0)?;
    // The hole goes down to a leaf, always to the earlier child; then the last timer rises from
    // there.
    let mut hole = 0;
    let mut child = 1;
    while child < end {
        let right = child + 1;
        if right < end
            && handles.when(&heap.get_item(child)?)? >= handles.when(&heap.get_item(right)?)?
        {
            child = right;
        }
        heap.set_item(hole, heap.get_item(child)?)?;
        hole = child;
        child = 2 * hole + 1;
    }
    let time = handles.when(&last)?;
    sift_down(heap, 0, hole, last, time)?;
    Ok(first)
}

/// Moves a timer from a hole towards the start, to its place.
fn sift_down(
    heap: &Bound<'_, PyList>,
    start: usize,
    mut hole: usize,
    timer: Bound<'_, PyAny>,
    time: f64,
) -> PyResult<()> {
    let handles = Handles::get(heap.py())?;
    while hole > start {
        let above = (hole - 1) / 2;
        let parent = heap.get_item(above)?;
        if time >= handles.when(&parent)? {
            break;
        }
        heap.set_item(hole, parent)?;
        hole = above;
    }
    heap.set_item(hole, timer)
}
