//! The counters of an endpoint.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counts {
    ($($(#[$about:meta])* $name:ident,)*) => {
        #[derive(Default)]
        pub(super) struct EndpointCounters { $(pub(super) $name: AtomicU64,)* }

        /// The counters of an endpoint.
        #[derive(Clone, Copy, Debug, Default)]
        pub struct EndpointCounts { $($(#[$about])* pub $name: u64,)* }

        impl EndpointCounters {
            pub(super) fn read(&self) -> EndpointCounts {
                EndpointCounts { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }

        impl EndpointCounts {
            /// The counters with their names.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counts! {
    /// Complete handshakes.
    established,
    /// Handshakes that have failed.
    failed,
    /// Those of them whose peer's certificate was not accepted.
    failed_certificate,
    /// Those of them whose peer has stopped answering.
    failed_timeout,
    /// Those of them that have failed because the two sides do not agree.
    failed_protocol,
    /// Sessions that have ended, for any reason.
    ended,
    /// Sessions that a new one with the same peer has replaced.
    replaced,
    /// Sessions and handshakes that made room for others, or were idle for too long.
    evicted,
    /// Requests for a cookie that were sent to clients.
    cookies_sent,
    /// Datagrams that are not DTLS, or belong to no session.
    invalid,
}

/// The events of an endpoint's handshakes since the last report.
#[derive(Debug, Default)]
pub struct HandshakeReport {
    /// Complete handshakes.
    pub established: u64,
    /// Handshakes that have failed.
    pub failed: u64,
    /// Sessions and handshakes that made room for others, or were idle for too long.
    pub evicted: u64,
    /// Requests for a cookie that were sent to clients.
    pub cookies_sent: u64,
    /// Datagrams that are not DTLS, or belong to no session.
    pub invalid: u64,
    /// Why the last handshake that failed has failed, in words.
    pub last_failure: Option<String>,
}

/// Raises a counter by one.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
