//! Memory to receive into, one piece for each thread that receives.

use std::cell::Cell;
use std::io;

use super::sys::{RecvSlice, zeroes};

/// 64 KiB that belong to the calling thread until they are dropped.
///
/// A thread keeps its piece for the next time, so that a large buffer costs neither an allocation
/// nor fresh pages on each receive. Taken while the thread already has it, as by a finalizer that
/// runs in the middle of a receive, it is a new piece.
pub struct Scratch {
    memory: Box<[u8]>,
}

impl Scratch {
    /// How many bytes there are: the longest datagram of IP.
    pub const LEN: usize = 65_536;

    /// Takes the thread's memory. What it holds is garbage.
    pub fn take() -> io::Result<Self> {
        let kept = KEPT.try_with(Cell::take).ok().flatten();
        let memory = kept.map_or_else(|| zeroes(Self::LEN, "a datagram to be received"), Ok)?;
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
        // A thread that is ending has no place to keep it.
        let _ = KEPT.try_with(|kept| kept.set(Some(memory)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_memory_comes_back_and_a_second_piece_is_another() {
        let first = Scratch::take().unwrap();
        let address = first.bytes(0).as_ptr();
        let second = Scratch::take().unwrap();
        assert_ne!(second.bytes(0).as_ptr(), address);
        drop(second);
        drop(first);
        assert_eq!(Scratch::take().unwrap().bytes(0).as_ptr(), address);
    }
}
