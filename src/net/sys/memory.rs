//! Memory straight from the kernel.

use std::io;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

/// Zeroed memory that takes up a page only once that page is written: `mmap(2)`.
pub struct Memory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it is plain memory, owned by whoever owns this.
unsafe impl Send for Memory {}
// SAFETY: shared references only read it.
unsafe impl Sync for Memory {}

impl Memory {
    /// Reserves `len` bytes of address space, which must not be zero.
    pub fn new(len: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping, which touches nobody's memory.
        let mapped = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
        match NonNull::new(mapped.cast()) {
            Some(start) if mapped != libc::MAP_FAILED => Ok(Self { start, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Asks for large pages, of which a search here and there touches fewer: `madvise(2)`. Where the
    /// kernel has none to give, small ones do.
    pub(in crate::net) fn prefer_large_pages(&self) {
        // The pointer: the mapping's own.
        let _ = syscall!(madvise(self.start.as_ptr().cast(), self.len, libc::MADV_HUGEPAGE));
    }

    /// The whole of it, as far as it has whole words.
    pub(in crate::net) fn words(&self) -> &[u64] {
        // SAFETY: a mapping starts at a page, aligned for anything, and has that many readable
        // words, which may have any value. It lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.len / 8) }
    }

    /// The same, to write.
    pub(in crate::net) fn words_mut(&mut self) -> &mut [u64] {
        // SAFETY: as above, and `self` is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.len / 8) }
    }

    /// The whole of it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has `len` readable bytes and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The whole of it, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Where it starts.
    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody borrows from it any more. It cannot fail.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Counters that this process and those forked from it share.
pub(in crate::net) struct SharedCounters {
    start: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: the memory is plain, owned by whoever owns this, and reached through atomics only.
unsafe impl Send for SharedCounters {}
// SAFETY: as above.
unsafe impl Sync for SharedCounters {}

impl SharedCounters {
    /// Maps `len` counters, all zero; `len` must not be zero.
    pub(in crate::net) fn new(len: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let bytes = len * size_of::<AtomicU64>();
        // SAFETY: a new anonymous mapping, which touches nobody's memory.
        let mapped = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
        match NonNull::new(mapped.cast()) {
            Some(start) if mapped != libc::MAP_FAILED => Ok(Self { start, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Deref for SharedCounters {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has room for `len` of them, is aligned to a page, lives as long as
        // `self`, and began as zeroes, which are valid. Other processes use atomics too.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for SharedCounters {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<AtomicU64>();
        // SAFETY: the mapping is ours, and nobody borrows from it any more. It cannot fail.
        unsafe { libc::munmap(self.start.as_ptr().cast(), bytes) };
    }
}
