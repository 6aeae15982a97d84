//! The engine: datagrams in and out of the Linux kernel. It knows no Python.
//!
//! A [`Socket`] owns a [`Descriptor`] and counts what passes. Its operations never block: they are
//! attempts, made inside [`Descriptor::enter`]; who gets `EAGAIN` and wants to wait gives the
//! attempt to [`Waiting::run`].
//!
//! Many datagrams at once come in through a [`RecvRing`] and go out through a [`SendQueue`].

pub mod address;
pub mod cmsg;
mod counted;
mod descriptor;
mod drops;
mod error_class;
pub mod errors;
mod flow_control;
mod fork_cell;
mod forked;
mod gro;
mod gso;
pub mod guard;
mod inbox;
pub mod meta;
pub mod multicast;
mod pending;
mod phase;
mod recv;
mod recv_cursor;
mod ring;
mod scratch;
mod send;
mod send_backlog;
mod send_limit;
mod send_queue;
mod shared_options;
mod socket;
mod socket_outlet;
mod split;
pub mod stats;
mod steering;
mod sync;
mod sys;
mod tally;
mod wait;
mod waker;

pub use address::{Address, AddressKind};
pub use descriptor::{Descriptor, InFlight};
pub use drops::Drops;
pub use error_class::{ErrorClass, ErrorStreak, may_be_of_earlier};
pub use flow_control::{BacklogSize, FlowControl, Step, WaterMarks};
pub use fork_cell::{ForkCell, ForkCellGuard};
pub use forked::{Inherit, leave_to_parent};
pub use guard::Guard;
pub use meta::{Meta, Source, may_be_of_source};
pub use pending::Held;
pub use phase::{AtomicPhase, Phase, Transition};
pub use recv::{Taken, Visibility};
pub use recv_cursor::{RecvCursor, Ring};
pub use ring::{Datagrams, ExportedRing, Filled, Received, RecvRing, Run, SlotKind, ThreadRing};
pub use scratch::Scratch;
pub use send_backlog::{Flushed, Payload, Refused, SendBacklog, Spare};
pub use send_limit::Shed;
pub use send_queue::{SendQueue, Sent};
pub use socket::Socket;
pub use split::Split;
pub use steering::Steering;
pub use sys::{
    Memory, MessageInfo, RecvSlice, SendSlice, Zeroes, end_with_parent, make_room, no_memory,
    program_option, with_room, zeroes,
};
pub use tally::{Count, Tally};
pub use wait::{Deadline, Interest, KernelWait, Stop, Waiting};
