//! Receives a server's datagrams.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use pyo3::prelude::*;

use super::deliver::HandlerSink;
use super::report::is_of_peer;
use super::send::RETRY;
use super::{RETIRING, RUNNING, ServerCore, TICK};
use crate::net::{self, Deadline, Filled, Interest, NextReceive, RecvCursor, Stop, Waiting};

/// If a socket that refuses new datagrams has not received any for this long, none are on their
/// way.
const SETTLE: Duration = Duration::from_millis(2);
/// If the handler is not Python code, other threads get the interpreter after this time.
const SWITCH: Duration = Duration::from_millis(5);
/// A receive is tried this many times before an error about a peer is handled: datagrams come
/// first, however many ICMP messages arrive among them.
const ATTEMPTS: usize = 4;

/// The result of a receive.
pub(super) enum Arrivals {
    Messages(Filled),
    Nothing,
    /// There is nothing left to do.
    End,
}

impl ServerCore {
    /// Receives the available datagrams. The first attempt is made attached to the interpreter,
    /// like those of a socket; waiting is not.
    pub(super) fn receive(
        &self,
        py: Python<'_>,
        waiting: &Waiting<'_>,
        cursor: &mut RecvCursor<'_>,
        messages: usize,
        sink: &HandlerSink<'_, '_>,
        of_peer: &mut Option<io::Error>,
    ) -> io::Result<Arrivals> {
        if let Some(filled) = cursor.take_from_backlog() {
            return Ok(Arrivals::Messages(filled));
        }
        if self.state() == RETIRING {
            return Ok(Arrivals::End);
        }
        let socket = sink.socket;
        let mut attempt =
            || socket.with(|fd| self.receive_now(socket, fd, cursor, messages, of_peer));
        let due = socket.tick_dtls();
        // Decrypting takes longer than handing the GIL over: it happens in the wait below.
        let decrypts = socket.has_dtls();
        let stays = sink.attached() < SWITCH || decrypts;
        // Or the queue is probably empty.
        let collects = socket.next_receive() != NextReceive::Now;
        let waits_first = stays && self.state() == RUNNING && (collects || socket.is_in_lull());
        let received = if decrypts || waits_first {
            Err(io::ErrorKind::WouldBlock.into())
        } else if stays {
            attempt()
        } else {
            sink.detach(&mut attempt)
        };
        match received {
            // A signal that arrived before the thread was attached again would not interrupt a
            // sleep.
            Err(error)
                if !stays && error.kind() == io::ErrorKind::WouldBlock && of_peer.is_none() =>
            {
                return Err(io::ErrorKind::Interrupted.into());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => {
                socket.note_try();
                return result.map(Arrivals::Messages);
            }
        }
        if of_peer.is_some() {
            return Ok(Arrivals::Nothing); // errors are reported before waiting
        }
        let (state, spin) = (self.state(), self.socket.bind(py).get().spin_until(Interest::Read));
        let patience = match state {
            RUNNING if self.has_waiting() => RETRY,
            RUNNING => TICK,
            _ => SETTLE,
        };
        let patience = due.map_or(patience, |due| due.min(patience));
        let waited = sink.detach(|| {
            waiting.run(Interest::Read, Deadline::after(patience), spin, |fd, _| {
                if self.state() != state {
                    return Ok(Arrivals::Nothing); // woken to check what to do
                }
                match self.receive_now(socket, fd, cursor, messages, of_peer) {
                    Err(error)
                        if error.kind() == io::ErrorKind::WouldBlock && of_peer.is_some() =>
                    {
                        Ok(Arrivals::Nothing)
                    }
                    received => received.map(Arrivals::Messages),
                }
            })
        });
        match waited {
            Ok(received) => Ok(received),
            Err(Stop::TimedOut) if state == RUNNING => Ok(Arrivals::Nothing),
            Err(Stop::TimedOut) => Ok(Arrivals::End),
            Err(Stop::Closed) => Err(io::Error::from_raw_os_error(libc::EBADF)),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    /// Receives without waiting, and immediately counts the datagrams that the guard has refused.
    /// An error about a peer is stored, and the receive retried.
    pub(super) fn receive_now(
        &self,
        socket: &net::Socket,
        fd: BorrowedFd<'_>,
        cursor: &mut RecvCursor<'_>,
        messages: usize,
        of_peer: &mut Option<io::Error>,
    ) -> io::Result<Filled> {
        let mut attempts = 1;
        let received = loop {
            match cursor.receive_messages(fd, messages, libc::MSG_DONTWAIT) {
                Err(error) if attempts < ATTEMPTS && is_of_peer(&error) => {
                    attempts += 1;
                    *of_peer = Some(error);
                }
                received => break received,
            }
        };
        self.count_delta(socket);
        received
    }
}
