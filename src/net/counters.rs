//! The tables of counters. Each counter is named and described here, and nowhere else in Rust.
//!
//! A table gives its rows to the macro `$declare`, after `$arguments`: the counter's variant, the
//! name and the type that Python sees, and a description. [`declare_counters`] makes the engine's
//! types of it, `src/python/counters.rs` the classes.

/// The counters of a socket.
macro_rules! socket_counters {
    ($declare:ident! $arguments:tt) => {
        $declare! { $arguments
            Received received u64
                "Datagrams received. Reads with `MSG_PEEK` do not count.",
            ReceivedBytes received_bytes u64 "Bytes of payload received, without truncated parts.",
            ReceiveCalls receive_calls u64 "System calls that received them.",
            Sent sent u64 "Datagrams sent.",
            SentBytes sent_bytes u64 "Their payload, in bytes.",
            SendCalls send_calls u64 "System calls that sent them.",
            Truncated truncated u64
                "Received datagrams that were truncated because the buffer was too small.",
            Refused refused u64
                "Datagrams that the socket's guard refused. No other counter includes them.",
            ProxyUntrusted proxy_untrusted u64
                "Datagrams refused because an untrusted address sent a PROXY header.",
            ProxyMalformed proxy_malformed u64
                "Datagrams refused because a trusted proxy's header was missing or malformed.",
            KernelDrops kernel_drops u64
                "Datagrams that the kernel dropped. Counted by the kernel.",
            FilterDrops filter_drops u64
                "Datagrams that the kernel's filter refused. Counted by the kernel.",
            Errors errors u64
                "Entries of the error queue (`IP_RECVERR`): datagrams that failed on their way.",
            SendErrors send_errors u64
                "Datagrams that an event loop's transport or a server accepted but could not send.",
            Transmitted transmitted u64
                "The kernel's reports that datagrams have left (`transmit_timestamps`).",
        }
    };
}

/// The counters of a server's workers, which are also metrics with these descriptions.
macro_rules! server_counters {
    ($declare:ident! $arguments:tt) => {
        $declare! { $arguments
            Received received u64 "Datagrams received.",
            ReceivedBytes received_bytes u64 "Bytes of payload received.",
            ReceiveCalls receive_calls u64 "System calls that received datagrams.",
            Sent sent u64 "Datagrams sent.",
            SentBytes sent_bytes u64 "Bytes of payload sent.",
            SendCalls send_calls u64 "System calls that sent datagrams.",
            Truncated truncated u64 "Received datagrams that were truncated.",
            Refused refused u64 "Datagrams that the guard refused.",
            ProxyUntrusted proxy_untrusted u64
                "Datagrams refused because an untrusted address sent a PROXY header.",
            ProxyMalformed proxy_malformed u64
                "Datagrams refused because a trusted proxy's header was missing or malformed.",
            KernelDrops kernel_drops u64
                "Datagrams that the kernel dropped because there was no room.",
            FilterDrops filter_drops u64
                "Datagrams that the guard's kernel filter refused.",
            HandlerErrors handler_errors u64 "Calls of the handler that failed.",
            Cancelled cancelled u64
                "Datagrams whose handler was cancelled because draining took too long.",
            SendErrors send_errors u64 "Datagrams that could not be sent.",
            ReceiveErrors receive_errors u64
                "Errors that receive calls returned, most of them ICMP messages about peers.",
            HandlerTime handler_time f64 "Seconds spent in the handler.", // counted in nanoseconds
            Restarts restarts u64 "Workers that died and were restarted.",
            DtlsEstablished dtls_established u64 "DTLS handshakes that were completed.",
            DtlsFailed dtls_failed u64 "DTLS handshakes that have failed.",
            DtlsEvicted dtls_evicted u64
                "DTLS sessions and handshakes that made room for others, or were idle for too long.",
            DtlsCookiesSent dtls_cookies_sent u64
                "Cookies sent to DTLS clients whose addresses were not verified yet.",
            DtlsInvalid dtls_invalid u64
                "Datagrams that were not DTLS, or did not belong to a session.",
        }
    };
}

/// The counters of a guard.
macro_rules! guard_counters {
    ($declare:ident! $arguments:tt) => {
        $declare! { $arguments
            Admitted admitted u64 "Admitted.",
            Refused refused u64 "Refused: the sum of the following reasons.",
            Denied denied u64 "Refused: the sender's network is denied.",
            Oversized oversized u64 "Refused: too long.",
            OverRate over_rate u64 "Refused: the source has exceeded its rate.",
            OverCeiling over_ceiling u64
                "Refused: the rate of all sources together was exceeded.",
            OverAmplification over_amplification u64
                "Not sent: larger than the peer's amplification budget.",
        }
    };
}

/// The counters of a sink. They are read in this order.
macro_rules! sink_counters {
    ($declare:ident! $arguments:tt) => {
        $declare! { $arguments
            Published published u64 "Datagrams that the broker has acknowledged.",
            Dropped dropped u64
                "Datagrams dropped: the sink was full, the broker rejected them, or time ran out.",
            Received received u64 "Datagrams received from the server.",
        }
    };
}

/// Declares an enum of counters, and a struct that holds a number for each.
macro_rules! declare_counters {
    (
        ($(#[$counter_doc:meta])* $counter:ident, $(#[$counts_doc:meta])* $counts:ident)
        $($variant:ident $name:ident $unit:ident $text:literal,)*
    ) => {
        $(#[$counter_doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $counter {
            $(#[doc = $text] $variant,)*
        }

        impl $counter {
            /// All counters.
            pub const ALL: &[Self] = &[$(Self::$variant),*];
        }

        $(#[$counts_doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $counts {
            $(#[doc = $text] pub $name: u64,)*
        }

        impl $counts {
            /// Reads each counter.
            pub fn read(mut count: impl FnMut($counter) -> u64) -> Self {
                Self { $($name: count($counter::$variant)),* }
            }

            /// The number that a counter has here.
            pub fn get(&self, counter: $counter) -> u64 {
                match counter {
                    $($counter::$variant => self.$name,)*
                }
            }
        }
    };
}

pub(crate) use {
    declare_counters, guard_counters, server_counters, sink_counters, socket_counters,
};
