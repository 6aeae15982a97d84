//! The DTLS session that a datagram came through, also in a build without DTLS.

/// A session that a datagram came through.
#[cfg(feature = "dtls")]
pub type CameThrough = super::dtls::SharedSession;

/// A session that a datagram came through. In a build without DTLS, no value of this type exists.
#[cfg(not(feature = "dtls"))]
pub type CameThrough = std::convert::Infallible;

/// The number of a session.
pub fn session_number(session: &CameThrough) -> u64 {
    #[cfg(feature = "dtls")]
    return session.number();
    #[cfg(not(feature = "dtls"))]
    match *session {}
}
