//! The limit of what a DTLS server can do on one thread.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use openssl::ssl::{
    ErrorCode, SslContext, SslFiletype, SslMethod, SslMode, SslOptions, SslRef,
    SslSessionCacheMode, SslStream,
};

use super::{MTU, Pipe, session};
use crate::args::{Args, Result};
use crate::json::{self, Line};
use crate::ring::Ring;
use crate::sys;

const SLOTS: usize = 64;

/// The loop proves nothing about a peer's address: it only takes the round trip for it.
const COOKIE: [u8; 32] = [b'c'; 32];

/// `dtls-echo`: sends back the data of every record, a batch at a time. `--lean` lets OpenSSL free the
/// buffers of idle sessions.
pub(crate) fn echo(args: &mut Args) -> Result<Line> {
    let (certificate, buffer) = (args.required::<String>("certificate")?, args.optional("rcvbuf")?);
    let is_lean = args.flag("lean");
    let mut common = args.start()?;
    let context = context(&certificate, is_lean)?;
    let socket = sys::bind(Ipv4Addr::LOCALHOST, buffer)?;
    let (sessions, pipe) = (HashMap::new(), Pipe::default());
    let mut server = Server { context, sessions, pipe, plaintext: vec![0; 1 << 14] };
    let mut requests = Ring::new(SLOTS, 2048);
    let mut replies = Replies { ring: Ring::new(SLOTS, 2048), count: 0 };
    json::announce(socket.local_addr()?.port());
    while !common.stop.is_due() {
        let received = match requests.receive(&socket, libc::MSG_WAITFORONE, false) {
            Ok(received) => received,
            Err(error) if sys::is_retry(&error) || sys::is_refused(&error) => continue,
            Err(error) => return Err(error.into()),
        };
        let mut echoed = 0;
        for slot in 0..received {
            let peer = requests.sender(slot);
            let reply = |datagram: &[u8]| replies.push(datagram, peer, &socket);
            echoed += server.take(peer, requests.payload(slot), reply)?;
        }
        replies.flush(&socket)?;
        common.counter.add(echoed);
    }
    Ok(Line::default()
        .with("echoed", common.counter.total())
        .with("sessions", server.sessions.len())
        .with("kernel_drops", sys::kernel_drops(&socket)?))
}

/// A server's context, with a certificate and its key from a file.
fn context(certificate: &str, is_lean: bool) -> Result<SslContext> {
    let mut builder = SslContext::builder(SslMethod::dtls_server())?;
    if is_lean {
        builder.set_mode(SslMode::RELEASE_BUFFERS);
    }
    builder.set_options(SslOptions::NO_QUERY_MTU | SslOptions::COOKIE_EXCHANGE);
    builder.set_session_cache_mode(SslSessionCacheMode::SERVER);
    builder.set_certificate_chain_file(certificate)?;
    builder.set_private_key_file(certificate, SslFiletype::PEM)?;
    builder.set_cookie_generate_cb(|_, cookie| {
        cookie[..COOKIE.len()].copy_from_slice(&COOKIE);
        Ok(COOKIE.len())
    });
    builder.set_cookie_verify_cb(|_, cookie| *cookie == COOKIE);
    Ok(builder.build())
}

struct Server {
    context: SslContext,
    sessions: HashMap<SocketAddrV4, SslStream<Pipe>>,
    /// The memory of all sessions' pipes, which only the one in use needs.
    pipe: Pipe,
    plaintext: Vec<u8>,
}

impl Server {
    /// Passes a datagram to the session of its peer; returns the number of echoed records.
    fn take(
        &mut self,
        peer: SocketAddrV4,
        datagram: &[u8],
        mut reply: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<usize> {
        let stream = match self.sessions.entry(peer) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(session(&self.context, SslRef::set_accept_state)?),
        };
        std::mem::swap(stream.get_mut(), &mut self.pipe);
        stream.get_mut().take_in(datagram);
        let mut echoed = 0;
        // A read also continues a handshake.
        let error = loop {
            match stream.ssl_read(&mut self.plaintext) {
                Ok(len) => stream.ssl_write(&self.plaintext[..len])?,
                Err(error) => break error,
            };
            echoed += 1;
        };
        stream.get_mut().drain(&mut reply)?;
        std::mem::swap(stream.get_mut(), &mut self.pipe);
        if error.code() != ErrorCode::WANT_READ {
            self.sessions.remove(&peer); // after a close_notify or an alert
        }
        Ok(echoed)
    }
}

/// Datagrams to send with one call.
struct Replies {
    ring: Ring,
    count: usize,
}

impl Replies {
    fn push(&mut self, datagram: &[u8], peer: SocketAddrV4, socket: &UdpSocket) -> Result<()> {
        if self.count == SLOTS {
            self.flush(socket)?;
        }
        debug_assert!(datagram.len() <= MTU);
        self.ring.slot(self.count)[..datagram.len()].copy_from_slice(datagram);
        self.ring.prepare(self.count, datagram.len(), Some(peer), None);
        self.count += 1;
        Ok(())
    }

    fn flush(&mut self, socket: &UdpSocket) -> Result<()> {
        self.ring.send_all(socket, self.count)?;
        self.count = 0;
        Ok(())
    }
}
