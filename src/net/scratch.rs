//! Memory to receive into, one buffer for each receiving thread.

use std::cell::Cell;
use std::io;

use super::sys::{RecvSlice, zeroes};

/// 64 KiB that belong to the calling thread until this is dropped.
///
/// A thread keeps its buffer for the next receive, so a large buffer costs neither an allocation
/// nor fresh pages each time. If the thread's buffer is already taken, for example because a
/// finalizer runs in the middle of a receive, a new one is allocated.
pub struct Scratch {
    memory: Box<[u8]>,
}

impl Scratch {
    /// The number of bytes: enough for the longest IP datagram.
    pub const LEN: usize = 65_536;

    /// Takes the thread's buffer. Its content is undefined.
    pub fn take() -> io::Result<Self> {
        let kept = KEPT.try_with(Cell::take).ok().flatten();
        let memory = kept.map_or_else(|| zeroes(Self::LEN, "a received datagram"), Ok)?;
        Ok(Self { memory })
    }

    /// The first `len` bytes, to receive into.
    pub fn slice(&mut self, len: usize) -> RecvSlice<'_> {
        RecvSlice::new(&mut self.memory[..len])
    }

    /// The first `len` bytes.
    pub fn bytes(&self, len: usize) -> &[u8] {
        &self.memory[..len]
    }
}

thread_local! {
    static KEPT: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        // A thread that is exiting has nowhere to keep it.
        let _ = KEPT.try_with(|kept| kept.set(Some(memory)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_reused_and_a_second_buffer_is_different() {
        let first = Scratch::take().unwrap();
        let address = first.bytes(0).as_ptr();
        let second = Scratch::take().unwrap();
        assert_ne!(second.bytes(0).as_ptr(), address);
        drop(second);
        drop(first);
        assert_eq!(Scratch::take().unwrap().bytes(0).as_ptr(), address);
    }
}
