//! The engine: moves datagrams in and out of the Linux kernel. It does not know about Python.
//!
//! A [`Socket`] owns a [`Descriptor`] and counts its datagrams. Its operations never block: they
//! are attempts, made inside [`Descriptor::enter`]. A caller that gets `EAGAIN` and wants to wait
//! passes the attempt to [`Waiting::run`].
//!
//! Batches of datagrams are received through a [`RecvRing`] and sent through a [`SendQueue`].

pub mod address;
mod came_through;
pub mod cmsg;
mod counted;
pub(crate) mod counters;
mod deliver;
mod descriptor;
#[cfg(feature = "dtls")]
pub mod dtls;
mod error_class;
mod flow_control;
mod fork_mutex;
mod gso;
pub mod guard;
pub mod link;
pub mod meta;
pub mod multicast;
pub mod names;
mod own_address;
mod phase;
pub mod proxy_protocol;
mod recent;
mod recv_backlog;
mod recv_ring;
mod reply_source;
mod reuseport;
mod scratch;
mod send_backlog;
mod send_limit;
mod send_queue;
mod shared_counters;
mod shared_options;
mod sink_counters;
mod socket;
mod socket_outlet;
mod split;
pub mod stats;
mod sync;
mod sys;
mod turns;
mod waker;

pub use address::{Address, AddressKind};
pub use came_through::{CameThrough, session_number};
pub use deliver::{Costs, Flow, Pace, Sink, deliver};
pub use descriptor::{Descriptor, InFlight};
pub use error_class::{ErrorClass, ErrorStreak, may_be_of_earlier};
pub use flow_control::{BacklogSize, FlowControl, Step, WaterMarks};
pub use fork_mutex::{ForkTryMutex, ForkTryMutexGuard, Inherit, leave_to_parent};
pub use guard::Guard;
pub use meta::{Meta, SendMeta, Source, may_be_of_source};
pub use own_address::OwnAddress;
pub use phase::{AtomicPhase, Phase, Transition};
pub use recent::RecentTable;
pub use recv_backlog::Held;
pub use recv_ring::{
    Datagrams, ExportedRing, Filled, Received, RecvRing, Run, SlotKind, ThreadRing,
};
pub use reply_source::{ReplySourceReader, ReplySources};
pub use reuseport::{Key, Steering};
pub use scratch::Scratch;
pub use send_backlog::{Flushed, Payload, Refused, SendBacklog, Spare};
pub use send_limit::Shed;
pub use send_queue::{SendQueue, Sent};
pub use shared_counters::{Count, Notice, ServerCounts, SharedCounters};
pub use sink_counters::{SharedSinkCounters, SinkCounter, SinkCounts};
pub use socket::{
    Deadline, Drops, GroOnDemand, Interest, KernelWait, NextReceive, RecvCursor, Ring, Socket,
    Stop, Taken, TransmitStamp, Visibility, Waiting, error_queue,
};
pub use split::Split;
pub use sys::{
    Memory, MessageInfo, Ready, ReadyEvents, RecvSlice, SendSlice, Timer, Zeroes, end_with_parent,
    hang_if_ended, make_room, no_memory, program_option, with_room, zeroes,
};
pub use turns::{TurnBudget, TurnSkipping, Turns};
