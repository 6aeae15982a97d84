//! Allocations that may fail: directly from the kernel, or large enough to be checked.
//!
//! Rust aborts the process if an allocation fails. Therefore large allocations, and those whose
//! size a user or a peer chooses, use `try_reserve` or this module. If they fail, the error is
//! [`io::ErrorKind::OutOfMemory`].

use std::alloc::{Layout, alloc_zeroed};
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64};

/// The error for a failed allocation of `bytes` for `what`.
pub fn no_memory(bytes: usize, what: &str) -> io::Error {
    let text = format!("not enough memory for {what} ({bytes} bytes)");
    io::Error::new(io::ErrorKind::OutOfMemory, text)
}

/// An empty vector with room for `len` items, described by `what`.
pub fn with_room<T>(len: usize, what: &str) -> io::Result<Vec<T>> {
    let mut items = Vec::new();
    let result = items.try_reserve_exact(len);
    result.map_err(|_| no_memory(len.saturating_mul(size_of::<T>()), what))?;
    Ok(items)
}

/// Reserves room for `more` items, described by `what`, in a growing vector.
pub fn make_room<T>(items: &mut Vec<T>, more: usize, what: &str) -> io::Result<()> {
    let len = items.len().saturating_add(more);
    let result = items.try_reserve(more);
    result.map_err(|_| no_memory(len.saturating_mul(size_of::<T>()), what))
}

/// Zeroed memory for `len` items, described by `what`.
pub fn zeroes<T: Zeroes>(len: usize, what: &str) -> io::Result<Box<[T]>> {
    const { assert!(size_of::<T>() > 0, "items must have a size") };
    if len == 0 {
        return Ok(Box::default());
    }
    let layout = Layout::array::<T>(len).map_err(|_| no_memory(usize::MAX, what))?;
    // SAFETY: the layout is not empty: neither an item nor the number of them is 0.
    let start = unsafe { alloc_zeroed(layout) };
    if start.is_null() {
        return Err(no_memory(layout.size(), what));
    }
    // SAFETY: the memory was just allocated with the layout of this slice, and its items may be
    // zero.
    Ok(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(start.cast(), len)) })
}

/// A type that is valid if all its bytes are zero.
///
/// # Safety
/// The type must have this property.
pub unsafe trait Zeroes {}

// SAFETY: zero is a valid byte.
unsafe impl Zeroes for u8 {}
// SAFETY: its items are valid.
unsafe impl<T: Zeroes, const LEN: usize> Zeroes for [T; LEN] {}
// SAFETY: zero is a valid number.
unsafe impl Zeroes for u32 {}
// SAFETY: as above.
unsafe impl Zeroes for u64 {}
// SAFETY: as above.
unsafe impl Zeroes for AtomicU32 {}

/// Declares a struct that is valid if all its bytes are zero, because each of its fields is.
macro_rules! zeroed {
    (
        $(#[$attribute:meta])*
        $visibility:vis struct $name:ident {
            $($(#[$field_attribute:meta])* $field:ident: $kind:ty),* $(,)?
        }
    ) => {
        $(#[$attribute])*
        #[repr(C)]
        $visibility struct $name {
            $($(#[$field_attribute])* $field: $kind),*
        }

        // SAFETY: the bounds say that each field is valid if its bytes are zero.
        unsafe impl $crate::net::sys::Zeroes for $name
        where
            $($kind: $crate::net::sys::Zeroes),*
        {
        }
    };
}

pub(in crate::net) use zeroed;

/// Zeroed memory that uses a page only after it was written to: `mmap(2)`.
pub struct Memory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it is plain memory with a single owner.
unsafe impl Send for Memory {}
// SAFETY: shared references only read it.
unsafe impl Sync for Memory {}

impl Memory {
    /// Reserves `len` bytes of address space; `len` must not be zero.
    pub fn new(len: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping does not affect existing memory.
        let mapped = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
        match NonNull::new(mapped.cast()) {
            Some(start) if mapped != libc::MAP_FAILED => Ok(Self { start, len }),
            _ => Err(no_memory(len, "received datagrams")),
        }
    }

    /// The size in bytes.
    pub fn size(&self) -> usize {
        self.len
    }

    /// The start address.
    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

/// Zeroed items. Each page of them uses memory only after it was written to.
pub(in crate::net) struct ZeroedPages<T> {
    memory: Memory,
    items: PhantomData<T>,
}

impl<T: Zeroes> ZeroedPages<T> {
    /// Reserves address space for `len` items; `len` must not be zero.
    pub(in crate::net) fn new(len: usize) -> io::Result<Self> {
        const { assert!(size_of::<T>() > 0 && align_of::<T>() <= 4096, "items fit into pages") };
        let memory = Memory::new(len.saturating_mul(size_of::<T>()))?;
        Ok(Self { memory, items: PhantomData })
    }

    /// Requests large pages, so that random accesses touch fewer pages: `madvise(2)`. If the kernel
    /// cannot provide them, small ones are used.
    pub(in crate::net) fn prefer_large_pages(&self) {
        let Memory { start, len } = self.memory;
        // The pointer: the mapping's own.
        let _ = syscall!(madvise(start.as_ptr().cast(), len, libc::MADV_HUGEPAGE));
    }
}

impl<T: Zeroes> Deref for ZeroedPages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let (start, len) = (self.memory.start.as_ptr().cast(), self.memory.len / size_of::<T>());
        // SAFETY: a mapping starts at a page, so it is aligned. It has room for `len` items, which
        // began as zeroes and which only this type gives access to. It lives as long as `self`.
        unsafe { std::slice::from_raw_parts(start, len) }
    }
}

impl<T: Zeroes> DerefMut for ZeroedPages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let (start, len) = (self.memory.start.as_ptr().cast(), self.memory.len / size_of::<T>());
        // SAFETY: as above, and `self` is borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }
}

/// Items that never move, because others point to them: the kernel, through a header. A `Box` is
/// not suitable, because moving it asserts that nobody else accesses its content.
pub(super) struct Pinned<T> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: it owns its items, like a box.
unsafe impl<T: Send> Send for Pinned<T> {}
// SAFETY: shared references only read them.
unsafe impl<T: Sync> Sync for Pinned<T> {}

impl<T> Pinned<T> {
    pub(super) fn new(items: Box<[T]>) -> Self {
        let len = items.len();
        let start = Box::into_raw(items).cast();
        // SAFETY: a box is never null.
        Self { start: unsafe { NonNull::new_unchecked(start) }, len }
    }

    /// A pointer to an item, which must exist.
    #[inline]
    pub(super) fn pointer(&self, index: usize) -> *mut T {
        assert!(index < self.len);
        // SAFETY: it is one of `len` items.
        unsafe { self.start.as_ptr().add(index) }
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        let items = ptr::slice_from_raw_parts_mut(self.start.as_ptr(), self.len);
        // SAFETY: `new` has taken them out of a box, and there are no other pointers to them any
        //   longer.
        drop(unsafe { Box::from_raw(items) });
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing borrows from it any longer. It cannot fail.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Words that this process shares with its forks.
pub(in crate::net) struct SharedWords {
    start: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: the memory is plain, has a single owner, and is only accessed through atomics.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps `len` words, all zero; `len` must not be zero.
    pub(in crate::net) fn new(len: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let bytes = len * size_of::<AtomicU64>();
        // SAFETY: a new anonymous mapping does not affect existing memory.
        let mapped = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
        match NonNull::new(mapped.cast()) {
            Some(start) if mapped != libc::MAP_FAILED => Ok(Self { start, len }),
            _ => Err(no_memory(bytes, "counters")),
        }
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has room for `len` of them, is aligned to a page, lives as long as
        // `self`, and began as zeroes, which are valid. Other processes use atomics too.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<AtomicU64>();
        // SAFETY: the mapping is ours, and nothing borrows from it any longer. It cannot fail.
        unsafe { libc::munmap(self.start.as_ptr().cast(), bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn memory_is_zero_and_has_the_requested_length() {
        for len in [0, 1, 1000] {
            assert_eq!(*zeroes::<u8>(len, "bytes").unwrap(), vec![0; len]);
            assert_eq!(*zeroes::<[u8; 3]>(len, "bytes").unwrap(), vec![[0; 3]; len]);
            let words = zeroes::<AtomicU32>(len, "words").unwrap();
            assert_eq!(words.len(), len);
            assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
            assert!(with_room::<u64>(len, "words").unwrap().capacity() >= len);
        }
    }

    #[test]
    fn a_lack_of_memory_is_an_error_that_says_so() {
        const BEYOND: usize = isize::MAX as usize - 4096; // more than any machine has
        let errors = [
            Memory::new(BEYOND).err(),
            zeroes::<u8>(BEYOND, "bytes").err(),
            zeroes::<[u8; 16]>(BEYOND, "bytes").err(),
            with_room::<u8>(BEYOND, "bytes").err(),
            with_room::<u64>(BEYOND, "words").err(),
            make_room(&mut vec![1], BEYOND, "bytes").err(),
            SharedWords::new(BEYOND / 16).err(),
            ZeroedPages::<u64>::new(BEYOND / 8).err(),
            ZeroedPages::<u64>::new(BEYOND).err(),
        ];
        for error in errors.map(Option::unwrap) {
            assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
            assert!(error.to_string().starts_with("not enough memory for "), "{error}");
        }
    }
}
