//! The Python API: thin classes over [`crate::net`] that convert arguments, detach from the
//! interpreter to wait, and convert results.
//!
//! The documentation for users is in `_core.pyi`; the comments here become the one-line `__doc__`
//! of each method.

mod address;
mod audit;
pub(crate) mod batch;
mod buffer;
pub(crate) mod constants;
pub(crate) mod counters;
#[cfg(feature = "dtls")]
pub(crate) mod dtls;
#[cfg(feature = "dtls")]
pub(crate) mod dtls_endpoint;
mod error;
pub(crate) mod event_loop;
pub(crate) mod guard;
pub(crate) mod link;
pub(crate) mod proxy_protocol;
pub(crate) mod records;
mod send_backlog;
pub(crate) mod server;
pub(crate) mod socket;
pub(crate) mod transport;

pub(crate) use socket::datagram;
