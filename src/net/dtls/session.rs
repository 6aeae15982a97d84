//! One session with one peer. It does no input or output of its own: datagrams are passed in and
//! taken out.
//!
//! Everything that this crate needs of a DTLS library is in this interface, so that another one can
//! take the place of OpenSSL.

use std::io::{self, Read, Write};
use std::time::Duration;

use openssl::error::ErrorStack;
use openssl::ssl::{ErrorCode, ShutdownState, Ssl, SslCipherRef, SslRef, SslStream, SslVersion};

use super::context::Built;
use super::failure::{SessionError, SessionErrorKind};
use super::hello::{application_bytes, out_of_place, plain_close_notify};
use super::packets::Packets;
use super::records::{LONGEST_PLAINTEXT, Lengths};
use super::settings::ContextError;
use crate::net::address::Address;
use crate::net::sys::openssl::{
    data_mtu, handle_timeout, has_pending, listen, max_fragment_length, retransmission_timeout,
    set_mtu,
};

/// How many bytes of data may arrive before the end of a handshake that they have overtaken. OpenSSL
/// keeps them.
const MOST_EARLY: usize = 1 << 17;

/// Memory that the sessions of a thread share, because most sessions are idle.
pub struct SessionScratch {
    incoming: Vec<u8>,
    plaintext: Box<[u8; LONGEST_PLAINTEXT]>,
    /// The datagrams to send.
    pub(super) outgoing: Packets,
}

impl Default for SessionScratch {
    fn default() -> Self {
        let plaintext = Box::new([0; LONGEST_PLAINTEXT]);
        Self { incoming: Vec::new(), plaintext, outgoing: Packets::default() }
    }
}

/// A session.
pub(super) struct Session {
    stream: SslStream<Pipe>,
    /// The MTU that OpenSSL is told, and the one for data.
    mtus: (usize, usize),
    limit: usize,
    /// The lengths of encrypted records, once the handshake is complete.
    lengths: Option<Lengths>,
    /// The bytes of data that have arrived during the handshake.
    early: usize,
}

/// The result of a step of a session.
pub(super) enum Progress {
    /// The session continues as it was.
    Same,
    /// The handshake is complete.
    Established,
    /// The peer has not answered any of the retransmissions.
    Unanswered,
    /// The session has ended.
    Ended(SessionError),
    /// The handshake is complete, and the session has ended: records have overtaken each other.
    EstablishedAndEnded(SessionError),
}

impl Session {
    /// Begins a session with a server, of which `server_name` is the name in its certificate.
    pub(super) fn client(
        context: &Built,
        peer: Address,
        server_name: Option<&str>,
    ) -> Result<Self, ContextError> {
        Ok(Self::new(context, context.start_client(peer, server_name)?)?)
    }

    /// Begins a session with a client, whose cookie was found to be valid. The `ClientHello` is
    /// passed to [`listen`](Self::listen).
    pub(super) fn server(context: &Built) -> Result<Self, ContextError> {
        Ok(Self::new(context, context.start(None)?)?)
    }

    fn new(context: &Built, ssl: Ssl) -> Result<Self, ErrorStack> {
        let stream = SslStream::new(ssl, Pipe::default())?;
        let settings = context.settings();
        let mtus = (settings.handshake_mtu(), settings.mtu);
        Ok(Self { stream, mtus, limit: 0, lengths: None, early: 0 })
    }

    /// OpenSSL's session, for what users want to know about it.
    pub(super) fn ssl(&self) -> &SslRef {
        self.stream.ssl()
    }

    /// Whether the handshake is complete.
    pub(super) fn is_established(&self) -> bool {
        self.lengths.is_some()
    }

    /// The maximum length of a plaintext.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Takes the `ClientHello` that the session begins with.
    pub(super) fn listen(&mut self, datagram: &[u8], scratch: &mut SessionScratch) -> Progress {
        self.with(datagram, scratch, |session, _| match listen(session.stream.ssl()) {
            Ok(true) => session.handshake(),
            Ok(false) => Progress::Ended(SessionError::new(
                SessionErrorKind::Protocol,
                "no valid ClientHello",
            )),
            Err(stack) => Progress::Ended(SessionError::of_stack(Some(&stack))),
        })
    }

    /// Sends the first flight of a client.
    pub(super) fn begin(&mut self, scratch: &mut SessionScratch) -> Progress {
        self.with(&[], scratch, |session, _| session.handshake())
    }

    /// Takes a datagram of the peer, and passes the plaintexts of its records on. Records that are
    /// replayed, forged or garbled are dropped.
    pub(super) fn receive(
        &mut self,
        datagram: &[u8],
        scratch: &mut SessionScratch,
        mut deliver: impl FnMut(&[u8]),
    ) -> Progress {
        let datagram = if let Some(lengths) = self.lengths {
            lengths.readable(datagram)
        } else {
            let early = application_bytes(datagram);
            self.early += early;
            if early > 0 && self.early > MOST_EARLY {
                return Progress::Same;
            }
            datagram
        };
        self.with(datagram, scratch, |session, plaintext| {
            let mut progress = Progress::Same;
            if !session.is_established() {
                progress = session.handshake();
                if !session.is_established() {
                    return progress;
                }
            }
            loop {
                match session.stream.ssl_read(&mut plaintext[..]) {
                    Ok(len) => {
                        deliver(&plaintext[..len]);
                        // Most datagrams have one record. After a handshake there may be others,
                        // which have overtaken its end.
                        if matches!(progress, Progress::Same) && !has_pending(session.ssl()) {
                            return progress;
                        }
                    }
                    Err(error) if error.code() == ErrorCode::WANT_READ => return progress,
                    Err(error) => {
                        let failure = SessionError::of(session.stream.ssl(), &error);
                        if failure.kind == SessionErrorKind::Closed {
                            let _ = session.stream.shutdown(); // answers with a close_notify
                        }
                        return match progress {
                            Progress::Established => Progress::EstablishedAndEnded(failure),
                            _ => Progress::Ended(failure),
                        };
                    }
                }
            }
        })
    }

    /// Makes a record of a plaintext.
    pub(super) fn seal(
        &mut self,
        plaintext: &[u8],
        into: &mut Packets,
    ) -> Result<(), SessionError> {
        if plaintext.is_empty() {
            let text = "DTLS cannot carry an empty datagram";
            return Err(SessionError::new(SessionErrorKind::Empty, text));
        }
        if plaintext.len() > self.limit {
            let text = format!(
                "{} bytes are too long for one record of this session, which carries {}; split them, or \
                 raise the context's mtu",
                plaintext.len(),
                self.limit
            );
            return Err(SessionError::new(SessionErrorKind::TooLong, &text));
        }
        drop(ErrorStack::get());
        std::mem::swap(&mut self.stream.get_mut().outgoing, into);
        let written = self.stream.ssl_write(plaintext);
        std::mem::swap(&mut self.stream.get_mut().outgoing, into);
        written.map(drop).map_err(|error| SessionError::of(self.stream.ssl(), &error))
    }

    /// The time until [`retransmit`](Self::retransmit) is due, if it may be.
    pub(super) fn timeout(&self) -> Option<Duration> {
        retransmission_timeout(self.stream.ssl())
    }

    /// Sends the last flight again if its time has come.
    pub(super) fn retransmit(&mut self, scratch: &mut SessionScratch) -> Progress {
        self.with(&[], scratch, |session, _| match handle_timeout(session.stream.ssl()) {
            Ok(()) => Progress::Same,
            Err(_) => Progress::Unanswered,
        })
    }

    /// Tells the peer that the session ends. A server also tells the client of a handshake under way,
    /// which may begin another one with the server's successor, and would otherwise repeat its
    /// messages in vain.
    pub(super) fn close(&mut self, scratch: &mut SessionScratch) {
        if self.stream.get_shutdown().contains(ShutdownState::SENT) {
            return;
        }
        if self.is_established() {
            self.with(&[], scratch, |session, _| {
                let _ = session.stream.shutdown();
            });
        } else if self.ssl().is_server() {
            // OpenSSL does not shut a session down in the middle of a handshake.
            let is_1_2 = self.ssl().version2() == Some(SslVersion::DTLS1_2);
            if self.ssl().session_reused() {
                // By now, the client expects encrypted alerts only, which OpenSSL must make.
                self.with(&out_of_place(is_1_2), scratch, |session, _| session.handshake());
            } else {
                scratch.outgoing.push(&plain_close_notify(is_1_2));
            }
        }
    }

    fn handshake(&mut self) -> Progress {
        match self.stream.do_handshake() {
            Ok(()) => {
                let ssl = self.stream.ssl();
                set_mtu(ssl, self.mtus.1);
                self.limit = data_mtu(ssl).min(LONGEST_PLAINTEXT);
                set_mtu(ssl, self.mtus.0); // for messages of the handshake that get lost
                let cipher = ssl.current_cipher().map_or("", SslCipherRef::name);
                self.lengths =
                    Some(Lengths::new(cipher, ssl.session().and_then(max_fragment_length)));
                Progress::Established
            }
            Err(error) if error.code() == ErrorCode::WANT_READ => Progress::Same,
            Err(error) => Progress::Ended(SessionError::of(self.stream.ssl(), &error)),
        }
    }

    /// Runs a step of the session, which reads the datagram and writes to the scratch memory.
    fn with<T>(
        &mut self,
        datagram: &[u8],
        scratch: &mut SessionScratch,
        step: impl FnOnce(&mut Self, &mut [u8; LONGEST_PLAINTEXT]) -> T,
    ) -> T {
        let SessionScratch { incoming, plaintext, outgoing } = scratch;
        incoming.clear();
        incoming.extend_from_slice(datagram);
        let mut swap = |session: &mut Self| {
            let pipe = session.stream.get_mut();
            std::mem::swap(&mut pipe.incoming, incoming);
            std::mem::swap(&mut pipe.outgoing, outgoing);
        };
        swap(self);
        // OpenSSL would take an error that another session has left for one of this.
        drop(ErrorStack::get());
        let result = step(self, plaintext);
        swap(self);
        result
    }
}

/// The two directions of a session, as OpenSSL sees them: each read takes a datagram, and each write
/// makes one.
#[derive(Default)]
struct Pipe {
    /// The next datagram, or nothing.
    incoming: Vec<u8>,
    outgoing: Packets,
}

impl Read for Pipe {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if self.incoming.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let len = self.incoming.len().min(room.len());
        room[..len].copy_from_slice(&self.incoming[..len]);
        self.incoming.clear();
        Ok(len)
    }
}

impl Write for Pipe {
    fn write(&mut self, datagram: &[u8]) -> io::Result<usize> {
        self.outgoing.push(datagram);
        Ok(datagram.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
