//! A reusable container of datagrams, in memory that Python reads without a copy.

mod arguments;
mod arrays;
mod index;
mod layout;

use std::ffi::c_int;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use pyo3::exceptions::{PyIndexError, PyRuntimeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyMemoryView};

use super::buffer::{Readable, new_slice};
use super::error::Result;
use crate::net::{
    Address, Datagrams, ExportedRing, ForkTryMutex, ForkTryMutexGuard, Inherit, Received,
    RecvCursor, SendQueue, SendSlice, leave_to_parent, zeroes,
};

use arguments::{checked, parse_of_any_family, saturated};
use index::{Column, Index};
use layout::DATAGRAMS_PER_SLOT;
pub(crate) use layout::Layout;

/// Datagrams in one block of memory.
#[pyclass(frozen, module = "tomada")]
pub(crate) struct Batch {
    contents: ForkTryMutex<Contents>,
    /// Where the payloads are. The mapping lives as long as `contents`, and never moves.
    memory: *mut u8,
    memory_len: usize,
    slots: usize,
    /// The ring's slot size: the requested one, rounded up.
    slot_size: usize,
    /// For each datagram, the offset and the length of its payload. Exported to Python, which may
    /// read them at any time.
    offsets: Box<[AtomicU32]>,
    lengths: Box<[AtomicU32]>,
    len: AtomicUsize,
}

// SAFETY: the pointer refers to memory that `contents` owns and never moves.
unsafe impl Send for Batch {}
// SAFETY: the memory holds plain bytes. They are written by the holder of the lock or, through
// exported buffers, by Python, as for any writable buffer.
unsafe impl Sync for Batch {}

/// The parts that only one call at a time may use.
pub(crate) struct Contents {
    ring: ExportedRing,
    layout: Layout,
    /// Whether a call of the parent was using them at the moment of the fork.
    is_interrupted: bool,
}

/// A child does not get contents that a thread of the parent was changing: its batch is empty.
impl Inherit for Contents {
    fn inherit(&mut self) {
        self.ring.inherit();
        leave_to_parent(&mut self.layout);
        self.is_interrupted = true;
    }
}

const MOST_SLOTS: usize = 4096;
/// The longest IP message, coalesced or not: its length field has 16 bits.
const LARGEST_MESSAGE: usize = 65_535;

impl Batch {
    /// Locks the contents; fails if another call is using them.
    pub(crate) fn lock(&self) -> Result<ForkTryMutexGuard<'_, Contents>> {
        let Some(mut contents) = self.contents.try_lock() else {
            let message = "this Batch is in use by another call; give each thread its own";
            return Err(PyRuntimeError::new_err(message).into());
        };
        if contents.is_interrupted {
            contents.layout = Layout::for_slots(self.slots)?;
            contents.is_interrupted = false;
            self.empty(&mut contents.layout);
        }
        Ok(contents)
    }

    /// The number of datagrams.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// Lays out the received datagrams. Those that do not fit stay in the ring. `note` gets each
    /// message, without its payload.
    pub(crate) fn lay_out(
        &self,
        layout: &mut Layout,
        cursor: &mut RecvCursor<'_, &mut ExportedRing>,
        mut note: impl FnMut(&Received<'_>),
    ) {
        let mut len = 0;
        layout.clear();
        cursor.drain_layout(|received, run| {
            let indexes = len..self.offsets.len().min(len + run.datagrams);
            let mut start = run.start;
            for (offset, length) in
                self.offsets[indexes.clone()].iter().zip(&self.lengths[indexes.clone()])
            {
                offset.store(start as u32, Ordering::Relaxed);
                length.store(run.segment as u32, Ordering::Relaxed);
                start += run.segment;
            }
            if indexes.len() == run.datagrams {
                // The last datagram may be shorter than the others, or truncated.
                let last = run.end - (start - run.segment);
                self.lengths[indexes.end - 1].store(last as u32, Ordering::Relaxed);
                if received.is_truncated() {
                    layout.truncated.push(indexes.end - 1);
                }
            }
            layout.add_received(received, indexes.end);
            note(received);
            len = indexes.end;
            indexes.len()
        });
        layout.end = self.memory_len; // append() must not overwrite a slot
        self.len.store(len, Ordering::Release);
    }

    /// Copies a payload behind the others; returns false if there is no room. The caller adds the
    /// datagram's sender.
    fn push(&self, layout: &mut Layout, payload: &[u8]) -> Result<bool> {
        let (index, start) = (self.len(), layout.end);
        let (Some(offset), Some(length)) = (self.offsets.get(index), self.lengths.get(index))
        else {
            return Ok(false);
        };
        if payload.len() > self.memory_len - start {
            return Ok(false);
        }
        layout.reserve_one()?;
        // SAFETY: `start + payload.len()` is within the memory, as checked above. If the memory is
        // exported, Python sees the new bytes.
        unsafe {
            ptr::copy_nonoverlapping(payload.as_ptr(), self.memory.add(start), payload.len());
        }
        offset.store(start as u32, Ordering::Relaxed);
        length.store(payload.len() as u32, Ordering::Relaxed);
        layout.end = start + payload.len();
        self.len.store(index + 1, Ordering::Release);
        Ok(true)
    }

    /// Appends a copy of a datagram; returns false if there is no room.
    fn push_own(
        &self,
        layout: &mut Layout,
        payload: &[u8],
        address: Option<Address>,
    ) -> Result<bool> {
        let is_pushed = self.push(layout, payload)?;
        if is_pushed {
            layout.add_own(address);
        }
        Ok(is_pushed)
    }

    /// Appends copies of received datagrams, each truncated to a slot's size. Returns whether there
    /// is room for more: a slot is for one message, of one or several datagrams. `note` gets each
    /// datagram.
    pub(crate) fn copy(
        &self,
        layout: &mut Layout,
        datagrams: &mut impl Datagrams,
        mut note: impl FnMut(&Received<'_>),
    ) -> Result<bool> {
        while let Some(datagram) = datagrams.current() {
            let payload = &datagram.payload[..datagram.payload.len().min(self.slot_size)];
            match self.push(layout, payload) {
                Ok(true) => {}
                Err(error) if self.len() == 0 => return Err(error),
                Ok(false) | Err(_) => return Ok(false),
            }
            if datagram.is_truncated() || payload.len() < datagram.payload.len() {
                layout.truncated.push(self.len() - 1);
            }
            layout.add_received(&datagram, self.len());
            note(&datagram);
            datagrams.advance();
        }
        layout.messages += 1;
        Ok(layout.messages < self.slots)
    }

    /// The maximum number of kernel messages in one receive.
    pub(crate) fn slots(&self) -> usize {
        self.slots
    }

    /// Whether a slot can hold any message that the kernel may coalesce.
    pub(crate) fn holds_any_message(&self) -> bool {
        self.slot_size >= LARGEST_MESSAGE
    }

    /// Removes all datagrams.
    pub(crate) fn empty(&self, layout: &mut Layout) {
        self.len.store(0, Ordering::Release);
        layout.clear();
    }

    /// The datagrams as a queue: each to its own address, or all to one.
    pub(crate) fn queue<'a>(
        &'a self,
        layout: &Layout,
        to: Option<&Address>,
    ) -> Result<SendQueue<'a>> {
        let mut queue = SendQueue::with_room(self.len())?;
        let senders = &layout.senders[..self.len()];
        let mut start = 0;
        for group in senders.chunk_by(|one, other| to.is_some() || one == other) {
            let own = || layout.addresses.get(group[0] as usize);
            let to = to.or_else(own).filter(|to| !to.as_bytes().is_empty());
            let end = start + group.len();
            queue.push_all(self.payloads(start..end), to, None)?;
            start = end;
        }
        Ok(queue)
    }

    fn payloads(&self, indexes: Range<usize>) -> impl ExactSizeIterator<Item = SendSlice<'_>> {
        let places = self.offsets[indexes.clone()].iter().zip(&self.lengths[indexes]);
        places.map(|(start, len)| {
            let start = start.load(Ordering::Relaxed) as usize;
            let len = len.load(Ordering::Relaxed) as usize;
            // SAFETY: offset and length were stored together and lie within the memory, which lives
            // as long as `self`.
            unsafe { SendSlice::from_raw(self.memory.add(start), len) }
        })
    }
}

impl Contents {
    /// The ring to receive into, and the layout of the received datagrams.
    pub(crate) fn parts(&mut self) -> (&mut ExportedRing, &mut Layout) {
        (&mut self.ring, &mut self.layout)
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }
}

#[pymethods]
impl Batch {
    #[new]
    #[pyo3(signature = (slots=64, *, slot_size=65_536))]
    fn new(
        #[pyo3(from_py_with = saturated)] slots: i64,
        #[pyo3(from_py_with = saturated)] slot_size: i64,
    ) -> Result<Self> {
        let slots = checked(slots, "slots", MOST_SLOTS)?;
        // Offsets have 32 bits.
        let slot_size = checked(slot_size, "slot_size", u32::MAX as usize / slots - 2 * 64)?;
        let ring = ExportedRing::new(slots, slot_size)?;
        let (memory, memory_len) = ring.memory();
        let index = || zeroes(slots * DATAGRAMS_PER_SLOT, "the offsets of datagrams");
        let layout = Layout::for_slots(slots)?;
        Ok(Self {
            contents: ForkTryMutex::new(Contents { ring, layout, is_interrupted: false }),
            memory,
            memory_len,
            slots,
            slot_size: memory_len / slots - 64,
            offsets: index()?,
            lengths: index()?,
            len: AtomicUsize::new(0),
        })
    }

    /// The maximum number of kernel messages in one receive.
    #[getter(slots)]
    fn slot_count(&self) -> usize {
        self.slots
    }

    /// The offset of each payload, as unsigned 32-bit integers.
    #[getter]
    fn offsets<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyMemoryView>> {
        Index::view(slf, Column::Offsets)
    }

    /// The length of each payload, as unsigned 32-bit integers.
    #[getter]
    fn lengths<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyMemoryView>> {
        Index::view(slf, Column::Lengths)
    }

    /// The address of each datagram.
    #[getter]
    fn addresses<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyList>> {
        let addresses = self.lock()?.layout.address_objects(py)?;
        Ok(PyList::new(py, addresses)?)
    }

    /// The indexes of truncated datagrams.
    #[getter]
    fn truncated(&self) -> Result<Vec<usize>> {
        Ok(self.lock()?.layout.truncated.clone())
    }

    /// Remove all datagrams.
    fn clear(&self) -> Result<()> {
        let mut contents = self.lock()?;
        self.empty(&mut contents.layout);
        Ok(())
    }

    /// Append a copy of a datagram.
    #[pyo3(signature = (data, address=None))]
    fn append(&self, data: &Bound<'_, PyAny>, address: Option<&Bound<'_, PyAny>>) -> Result<()> {
        let address = address.map(parse_of_any_family).transpose()?;
        let payload = self.payload(data)?;
        let mut contents = self.lock()?;
        if self.push_own(&mut contents.layout, &payload, address)? {
            return Ok(());
        }
        Err(self.no_room(payload.len(), &contents.layout))
    }

    /// Split a buffer into datagrams of `size` bytes (the last may be shorter), and append copies.
    #[pyo3(signature = (data, size, address=None))]
    fn extend(
        &self,
        data: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = saturated)] size: i64,
        address: Option<&Bound<'_, PyAny>>,
    ) -> Result<()> {
        let size = checked(size, "size", isize::MAX as usize)?;
        let address = address.map(parse_of_any_family).transpose()?;
        let payload = self.payload(data)?;
        let mut contents = self.lock()?;
        let count = payload.len().div_ceil(size);
        let room = self.memory_len - contents.layout.end;
        if payload.len() > room || count > self.offsets.len() - self.len() {
            return Err(self.no_room(payload.len(), &contents.layout));
        }
        for datagram in payload.chunks(size) {
            self.push_own(&mut contents.layout, datagram, address)?;
        }
        Ok(())
    }

    fn __len__(&self) -> usize {
        self.len()
    }

    fn __getitem__<'py>(slf: &Bound<'py, Self>, index: isize) -> Result<Bound<'py, PyAny>> {
        let contents = slf.get().lock()?;
        let len = contents.layout.senders.len();
        let from_end = if index < 0 { index + len as isize } else { index };
        let index = usize::try_from(from_end).ok().filter(|&index| index < len);
        let index = index.ok_or_else(|| PyIndexError::new_err("Batch index out of range"))?;
        Ok(Self::view_payload(slf, index)?)
    }

    fn __iter__<'py>(slf: &Bound<'py, Self>) -> Result<Bound<'py, PyAny>> {
        let contents = slf.get().lock()?;
        let addresses = contents.layout.address_objects(slf.py())?;
        let pairs = addresses
            .into_iter()
            .enumerate()
            .map(|(index, address)| Ok((Self::view_payload(slf, index)?, address)))
            .collect::<PyResult<Vec<_>>>()?;
        Ok(PyList::new(slf.py(), pairs)?.into_any().try_iter()?.into_any())
    }

    /// # Safety
    /// Called by Python, with a valid pointer to a view.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let (start, len) = (slf.get().memory.cast(), slf.get().memory_len as isize);
        // SAFETY: the memory is writable, and lives as long as the object, to which the view holds
        // a reference.
        match unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, len, 0, flags) } {
            0 => Ok(()),
            _ => Err(PyErr::fetch(slf.py())),
        }
    }

    fn __repr__(&self) -> String {
        let len = self.len();
        let bytes: usize =
            self.lengths[..len].iter().map(|length| length.load(Ordering::Relaxed) as usize).sum();
        format!("<tomada.Batch of {len} datagrams, {bytes} bytes>")
    }
}

impl Batch {
    /// A view of one payload. The caller holds the lock, so offset and length belong together.
    fn view_payload<'py>(slf: &Bound<'py, Self>, index: usize) -> PyResult<Bound<'py, PyAny>> {
        let start = slf.get().offsets[index].load(Ordering::Relaxed) as isize;
        let end = start + slf.get().lengths[index].load(Ordering::Relaxed) as isize;
        PyMemoryView::from(slf)?.get_item(new_slice(slf.py(), start, end)?)
    }

    /// A copy of the data to append. Data longer than the whole batch is not copied.
    fn payload(&self, data: &Bound<'_, PyAny>) -> Result<Vec<u8>> {
        let payload = Readable::new(data)?;
        if payload.len() > self.memory_len {
            return Err(self.no_room(payload.len(), &self.lock()?.layout));
        }
        Ok(payload.copy()?)
    }

    fn no_room(&self, len: usize, layout: &Layout) -> super::error::Error {
        let (count, most) = (self.len(), self.offsets.len());
        let left = self.memory_len - layout.end;
        let message = format!(
            "no room for {len} bytes more: the batch has {count} of {most} datagrams, and {left} \
             bytes left; clear() it, or make one of more slots"
        );
        PyValueError::new_err(message).into()
    }
}
