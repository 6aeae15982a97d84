//! The datagrams of a batch, apart from their payloads.

use std::io;

use pyo3::prelude::*;

use crate::net::{Address, Meta, Received, make_room, with_room};
use crate::python::address::to_python;

/// The datagrams of a batch, apart from the location of their payloads.
#[derive(Default)]
pub(crate) struct Layout {
    /// For each datagram, the index of its address in `addresses`.
    pub(super) senders: Vec<u32>,
    pub(super) addresses: Vec<Address>,
    /// The kernel's timestamp of each datagram up to the last one that has one; 0 stands for none.
    timestamps: Vec<i64>,
    /// The indexes of truncated datagrams.
    pub(super) truncated: Vec<usize>,
    /// The end of the appended payloads.
    pub(super) end: usize,
    /// The number of messages that were copied in.
    pub(super) messages: usize,
}

/// The room for datagrams per slot: the most that the kernel coalesces into one message.
pub(super) const DATAGRAMS_PER_SLOT: usize = 128;
const NO_ADDRESS: u32 = u32::MAX;

impl Layout {
    /// A layout without datagrams, with memory for all that this number of slots can receive.
    pub(super) fn for_slots(slots: usize) -> io::Result<Self> {
        let datagrams = slots * DATAGRAMS_PER_SLOT;
        Ok(Self {
            senders: with_room(datagrams, "the senders of datagrams")?,
            addresses: with_room(slots, "the senders of datagrams")?,
            timestamps: with_room(datagrams, "the timestamps of datagrams")?,
            truncated: with_room(slots, "the indexes of datagrams")?,
            end: 0,
            messages: 0,
        })
    }

    /// Reserves memory for one more datagram.
    pub(super) fn reserve_one(&mut self) -> io::Result<()> {
        let timestamps = self.senders.len() + 1 - self.timestamps.len();
        make_room(&mut self.senders, 1, "the senders of datagrams")?;
        make_room(&mut self.addresses, 1, "the senders of datagrams")?;
        make_room(&mut self.timestamps, timestamps, "the timestamps of datagrams")?;
        make_room(&mut self.truncated, 1, "the indexes of datagrams")
    }

    /// Removes all datagrams.
    pub(super) fn clear(&mut self) {
        self.senders.clear();
        self.addresses.clear();
        self.timestamps.clear();
        self.truncated.clear();
        (self.end, self.messages) = (0, 0);
    }

    /// Adds the sender and the time of a received message's datagrams, after which there are `len`.
    pub(super) fn add_received(&mut self, received: &Received<'_>, len: usize) {
        let sender = self.sender(received.from);
        if let Some(time) = Meta::timestamp(received.control) {
            self.timestamps.resize(self.senders.len(), 0);
            self.timestamps.resize(len, time);
        }
        self.senders.resize(len, sender);
    }

    /// Adds a datagram that was not received.
    pub(super) fn add_own(&mut self, address: Option<Address>) {
        let sender = address.map_or(NO_ADDRESS, |address| self.sender(address.as_bytes()));
        self.senders.push(sender);
    }

    /// The index of the last datagram's address, which is often that of the previous one.
    fn sender(&mut self, from: &[u8]) -> u32 {
        if self.addresses.last().is_none_or(|last| last.as_bytes() != from) {
            self.addresses.push(Address::from_bytes(from));
        }
        self.addresses.len() as u32 - 1
    }

    /// The addresses of the datagrams, with consecutive duplicates omitted.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.addresses.iter().filter(|address| !address.as_bytes().is_empty())
    }

    /// The address of each datagram; `None` if it was appended without one.
    pub(super) fn address_of_each(&self) -> impl ExactSizeIterator<Item = Option<&Address>> {
        self.senders.iter().map(|&sender| self.addresses.get(sender as usize))
    }

    /// The kernel's timestamp of each datagram.
    pub(super) fn timestamp_of_each(&self) -> impl Iterator<Item = i64> {
        let without = self.senders.len() - self.timestamps.len();
        self.timestamps.iter().copied().chain(std::iter::repeat_n(0, without))
    }

    /// The address of each datagram.
    pub(super) fn address_objects<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let objects = self
            .addresses
            .iter()
            .map(|address| to_python(py, address.as_bytes()))
            .collect::<PyResult<Vec<_>>>()?;
        let none = py.None().into_bound(py);
        let of_each = |&sender: &u32| objects.get(sender as usize).unwrap_or(&none).clone();
        Ok(self.senders.iter().map(of_each).collect())
    }
}
