//! Memory that the kernel reads and writes.

use std::marker::PhantomData;

/// Memory that the kernel reads a datagram from.
///
/// Laid out as `struct iovec`, so a slice of them is a gather list. It is a pointer rather than a
/// `&[u8]`, because the memory may belong to a Python object whose bytes another thread changes
/// meanwhile. That garbles the datagram and nothing else, as long as no Rust reference claims that
/// the bytes do not change.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct SendSlice<'a> {
    pub(super) iovec: libc::iovec,
    memory: PhantomData<&'a [u8]>,
}

// SAFETY: only the kernel reads through the pointer, and the memory outlives 'a on every thread.
unsafe impl Send for SendSlice<'_> {}
// SAFETY: as above; sharing the pointer shares no Rust reference to the bytes.
unsafe impl Sync for SendSlice<'_> {}

impl<'a> SendSlice<'a> {
    /// The bytes of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        // SAFETY: a slice's memory is readable for its lifetime.
        unsafe { Self::from_raw(bytes.as_ptr(), bytes.len()) }
    }

    /// The `len` bytes at `start`.
    ///
    /// # Safety
    /// The memory must stay readable for `'a`. Other threads may write to it.
    pub unsafe fn from_raw(start: *const u8, len: usize) -> Self {
        let iovec = libc::iovec { iov_base: start.cast_mut().cast(), iov_len: len };
        Self { iovec, memory: PhantomData }
    }

    /// The start address, which identifies it.
    #[cfg(test)]
    pub(in crate::net) fn address(&self) -> usize {
        self.iovec.iov_base.addr()
    }

    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.iovec.iov_len
    }

    /// The rest after the first `len` bytes.
    #[must_use]
    pub fn after(self, len: usize) -> Self {
        let len = len.min(self.len());
        // SAFETY: it is the end of the same memory.
        unsafe { Self::from_raw(self.iovec.iov_base.cast::<u8>().add(len), self.len() - len) }
    }

    /// Appends `next` if it is adjacent in memory; otherwise returns false.
    pub fn extend(&mut self, next: Self) -> bool {
        let end = self.iovec.iov_base.cast::<u8>().wrapping_add(self.len());
        let is_adjacent = end == next.iovec.iov_base.cast();
        if is_adjacent {
            self.iovec.iov_len += next.len();
        }
        is_adjacent
    }

    /// A copy of the bytes. Another thread that changes them meanwhile garbles it.
    #[cfg(feature = "dtls")]
    pub(in crate::net) fn to_vec(self) -> std::io::Result<Vec<u8>> {
        let mut copy = super::with_room(self.len(), "a copy of a datagram")?;
        // SAFETY: the memory is readable, and the copy has room for it.
        unsafe {
            let start = self.iovec.iov_base.cast::<u8>();
            std::ptr::copy_nonoverlapping(start, copy.as_mut_ptr(), self.len());
            copy.set_len(self.len());
        }
        Ok(copy)
    }

    /// Whether there are no bytes. An empty datagram is still a datagram.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Memory that the kernel writes a datagram to; otherwise as [`SendSlice`].
#[repr(transparent)]
pub struct RecvSlice<'a> {
    pub(super) iovec: libc::iovec,
    memory: PhantomData<&'a mut [u8]>,
}

// SAFETY: only the kernel writes through the pointer, and the memory outlives 'a on every thread.
unsafe impl Send for RecvSlice<'_> {}

impl<'a> RecvSlice<'a> {
    /// The memory of `bytes`.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        // SAFETY: a slice's memory is writable for its lifetime.
        unsafe { Self::from_raw(bytes.as_mut_ptr(), bytes.len()) }
    }

    /// The `len` bytes at `start`.
    ///
    /// # Safety
    /// The memory must stay writable for `'a`, and hold nothing whose validity depends on its
    /// bytes. Other threads may read and write it.
    pub unsafe fn from_raw(start: *mut u8, len: usize) -> Self {
        Self { iovec: libc::iovec { iov_base: start.cast(), iov_len: len }, memory: PhantomData }
    }

    /// The number of bytes that fit.
    pub fn len(&self) -> usize {
        self.iovec.iov_len
    }

    /// The rest after the first `len` bytes.
    #[must_use]
    pub fn after(&mut self, len: usize) -> RecvSlice<'_> {
        let len = len.min(self.len());
        // SAFETY: it is the end of the same memory.
        unsafe { RecvSlice::from_raw(self.iovec.iov_base.cast::<u8>().add(len), self.len() - len) }
    }

    /// Copies as much of `bytes` as fits; returns the number of bytes copied.
    pub fn fill(&mut self, bytes: &[u8]) -> usize {
        let len = self.len().min(bytes.len());
        // SAFETY: the memory is writable for at least `len` bytes, and is not `bytes`, which is
        // borrowed elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.iovec.iov_base.cast(), len) };
        len
    }

    /// Whether nothing fits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
