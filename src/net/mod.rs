//! The engine: datagrams in and out of the Linux kernel. It knows no Python.
//!
//! A [`Socket`] owns a [`Descriptor`] and counts what passes. Its operations never block: they are
//! attempts, made inside [`Descriptor::enter`]; who gets `EAGAIN` and wants to wait gives the
//! attempt to [`Waiting::run`].

pub mod address;
pub mod cmsg;
mod descriptor;
mod scratch;
mod socket;
pub mod stats;
mod sys;
mod wait;

pub use address::{Address, AddressKind};
pub use descriptor::{Descriptor, InFlight};
pub use scratch::Scratch;
pub use socket::{Received, Socket};
pub use sys::{MessageInfo, RecvSlice, SendSlice};
pub use wait::{Deadline, Interest, Stop, Waiting};
