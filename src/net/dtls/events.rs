//! The events and states of sessions, as an endpoint reports them.

use std::sync::Weak;

use super::failure::SessionError;
use super::session_table::SharedSession;
use crate::net::address::Address;

/// A change of a peer's session.
#[derive(Clone, Debug)]
pub enum SessionEvent {
    /// A session has begun. If it has ended since, it may be gone.
    Established(Weak<SharedSession>),
    /// A complete session has ended.
    Lost(Address, SessionError),
    /// A handshake has failed.
    Failed(Address, SessionError),
}

/// The state of the session with the peer of a connected socket.
#[derive(Clone, Debug)]
pub enum Status {
    /// The handshake is under way.
    Handshaking,
    /// The session is complete.
    Established,
    /// It has ended, or could not begin.
    Ended(SessionError),
}
