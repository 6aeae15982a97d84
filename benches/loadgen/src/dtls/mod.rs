//! DTLS by the `openssl` crate: a bare server, and the clients that load any server.

mod clients;
mod server;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use openssl::ssl::{
    ErrorCode, Ssl, SslContext, SslMethod, SslOptions, SslRef, SslStream, SslVerifyMode,
};

pub(crate) use clients::{handshakes, load, pingpong};
pub(crate) use server::echo;

use crate::args::Result;
use crate::sys;

/// All clients offer only these, so that every server does the same computations.
const CIPHER: &str = "ECDHE-ECDSA-AES128-GCM-SHA256";
/// The second group is that of the certificate.
const GROUPS: &str = "X25519:P-256";
/// The longest datagram of a session.
const MTU: usize = 1400;
/// How long a client waits for an answer to its handshake.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long to wait for the answer to the end of a session.
const PARTING: Duration = Duration::from_secs(1);

/// The bytes that OpenSSL has yet to read, and those that it has written.
#[derive(Default)]
struct Pipe {
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// The lengths of the datagrams in `outgoing`.
    lens: Vec<usize>,
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
        self.outgoing.extend_from_slice(datagram);
        self.lens.push(datagram.len());
        Ok(datagram.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Pipe {
    fn take_in(&mut self, datagram: &[u8]) {
        self.incoming.clear();
        self.incoming.extend_from_slice(datagram);
    }

    /// Passes on each datagram that OpenSSL has written.
    fn drain<E>(
        &mut self,
        mut send: impl FnMut(&[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut start = 0;
        for len in self.lens.drain(..) {
            send(&self.outgoing[start..start + len])?;
            start += len;
        }
        self.outgoing.clear();
        Ok(())
    }
}

/// Begins a session, as a client or as a server.
fn session(context: &SslContext, set_state: fn(&mut SslRef)) -> Result<SslStream<Pipe>> {
    let mut ssl = Ssl::new(context)?;
    ssl.set_mtu(MTU as u32)?;
    set_state(&mut ssl);
    Ok(SslStream::new(ssl, Pipe::default())?)
}

/// A client's context. It accepts any certificate: its time is not what is measured.
fn client_context() -> Result<SslContext> {
    let mut builder = SslContext::builder(SslMethod::dtls_client())?;
    builder.set_options(SslOptions::NO_QUERY_MTU);
    builder.set_cipher_list(CIPHER)?;
    builder.set_groups_list(GROUPS)?;
    builder.set_verify(SslVerifyMode::NONE);
    Ok(builder.build())
}

/// A client with a session.
struct Client {
    socket: UdpSocket,
    stream: SslStream<Pipe>,
    buffer: Vec<u8>,
}

impl Client {
    /// Starts a handshake.
    fn start(context: &SslContext, peer: SocketAddrV4) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect(peer)?;
        let stream = session(context, SslRef::set_connect_state)?;
        let mut client = Self { socket, stream, buffer: vec![0; 2 * MTU] };
        client.advance()?;
        Ok(client)
    }

    /// Completes a handshake.
    fn connect(context: &SslContext, peer: SocketAddrV4) -> Result<Self> {
        let mut client = Self::start(context, peer)?;
        client.socket.set_read_timeout(Some(PATIENCE))?;
        loop {
            match client.step()? {
                Some(true) => break,
                Some(false) => {}
                None => return Err("no answer to a handshake".into()),
            }
        }
        client.socket.set_read_timeout(Some(sys::PATIENCE))?;
        Ok(client)
    }

    /// Continues the handshake with the next datagram; returns whether it is complete, or nothing
    /// if there is no datagram in time.
    fn step(&mut self) -> Result<Option<bool>> {
        match self.socket.recv(&mut self.buffer) {
            Ok(len) => self.stream.get_mut().take_in(&self.buffer[..len]),
            Err(error) if sys::is_retry(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        self.advance().map(Some)
    }

    /// Continues the handshake with what has arrived; returns whether it is complete.
    fn advance(&mut self) -> Result<bool> {
        let is_complete = match self.stream.do_handshake() {
            Ok(()) => true,
            Err(error) if error.code() == ErrorCode::WANT_READ => false,
            Err(error) => return Err(error.into()),
        };
        self.flush()?;
        Ok(is_complete)
    }

    fn flush(&mut self) -> io::Result<()> {
        let socket = &self.socket;
        self.stream.get_mut().drain(|datagram| socket.send(datagram).map(drop))
    }

    fn send(&mut self, plaintext: &[u8]) -> Result<()> {
        self.stream.ssl_write(plaintext)?;
        Ok(self.flush()?)
    }

    /// Receives a plaintext, or returns nothing if there is none in time.
    fn receive<'a>(&mut self, plaintext: &'a mut [u8]) -> Result<Option<&'a [u8]>> {
        loop {
            match self.socket.recv(&mut self.buffer) {
                Ok(len) => self.stream.get_mut().take_in(&self.buffer[..len]),
                Err(error) if sys::is_retry(&error) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            match self.stream.ssl_read(plaintext) {
                Ok(len) => return Ok(Some(&plaintext[..len])),
                Err(error) if error.code() == ErrorCode::WANT_READ => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Tells the server that the session ends, and may wait for its answer: otherwise, that would
    /// arrive at the next socket with this port. Returns whether it has arrived.
    fn close(mut self, waits: bool) -> Result<bool> {
        self.stream.shutdown()?;
        self.flush()?;
        if !waits {
            return Ok(false);
        }
        self.socket.set_nonblocking(false)?;
        self.socket.set_read_timeout(Some(PARTING))?;
        let mut rest = vec![0; 2 * MTU];
        loop {
            match self.receive(&mut rest) {
                Ok(Some(_)) => {}             // late data
                Ok(None) => return Ok(false), // no answer in time
                Err(_) => return Ok(true),    // the session has ended
            }
        }
    }
}
