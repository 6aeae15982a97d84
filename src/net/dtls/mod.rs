//! DTLS (RFC 6347): sessions with the peers of a socket.
//!
//! A [`Context`] has the certificates and the keys, an [`Endpoint`] the sessions of one socket. The
//! socket [opens](Endpoint::receive) what it receives, [seals](Endpoint::seal) what it sends, and
//! sends what the sessions themselves have to say. The cryptography is OpenSSL's, behind the
//! interface of one session; the answer to a client's first message is our own, so that nothing is
//! kept for a client before it has proved its address.

mod context;
mod cookie;
mod endpoint;
mod endpoint_counts;
mod events;
mod failure;
mod hello;
mod outbox;
mod packets;
mod records;
mod secret;
mod session;
mod session_table;
mod settings;
#[cfg(test)]
mod tests;
mod timers;

pub use context::{ChooseContext, Context};
pub use endpoint::{Endpoint, EndpointOptions, Incoming, OnEnd};
pub use endpoint_counts::{EndpointCounts, HandshakeReport};
pub use events::{SessionEvent, Status};
pub use failure::{SessionError, SessionErrorKind};
pub use outbox::Outbox;
pub use packets::Packets;
pub use secret::Secret;
pub use session::SessionScratch;
pub use session_table::{SharedSession, TableLimits};
pub use settings::{
    ContextError, DEFAULT_MTU, LEAST_MTU, PskClient, PskServer, Role, Settings, Verify,
};
