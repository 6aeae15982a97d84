//! DTLS on a socket: everything that it receives is opened, and everything that it sends is sealed.

use std::cell::{Cell, RefCell};
use std::ffi::c_int;
use std::io;
use std::iter;
use std::mem;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Socket;
use crate::net::address::Address;
use crate::net::dtls::{
    Endpoint, HandshakeReport, Incoming, OnEnd, Outbox, Packets, SessionErrorKind, SessionScratch,
    SharedSession,
};
use crate::net::error_class::may_be_of_earlier;
use crate::net::fork_mutex::{ForkMutex, Inherit};
use crate::net::meta::Meta;
use crate::net::recv_backlog::{Held, RecvBacklog};
use crate::net::recv_ring::{Filled, Received, RecvRing};
use crate::net::send_queue::{SendQueue, Sent};
use crate::net::split::Split;
use crate::net::sys::SendSlice;

/// The maximum number of datagrams that are sealed for one call: as many as the kernel takes.
const SEALED: usize = 64;
/// How often a datagram of a session is sent again after an error that may be about an earlier one.
const RETRIES: usize = 4;

/// A socket's sessions.
#[derive(Default)]
pub(super) struct Secured {
    /// Whether there is an endpoint; readable without the lock.
    is_on: AtomicBool,
    endpoint: ForkMutex<Option<Arc<Endpoint>>>,
}

/// A child has the endpoint as well, but none of its sessions.
impl Inherit for Option<Arc<Endpoint>> {
    fn inherit(&mut self) {}
}

/// Memory that a thread uses for one call after another.
#[derive(Default)]
struct Workspace {
    scratch: SessionScratch,
    outbox: Outbox,
    plaintexts: Packets,
    /// The session of each plaintext.
    through: Vec<Arc<SharedSession>>,
    sealed: Packets,
}

thread_local! {
    static SPARE: Cell<Option<Box<Workspace>>> = const { Cell::new(None) };
}

impl Workspace {
    /// Calls a function with the thread's workspace. A key callback may send on another socket in
    /// the middle of that, which then uses a workspace of its own.
    fn with<T>(act: impl FnOnce(&mut Self) -> T) -> T {
        let mut workspace = SPARE.try_with(Cell::take).ok().flatten().unwrap_or_default();
        let result = act(&mut workspace);
        let Self { outbox, plaintexts, through, sealed, .. } = &mut *workspace;
        outbox.clear();
        plaintexts.clear();
        through.clear();
        sealed.clear();
        let _ = SPARE.try_with(|spare| spare.set(Some(workspace)));
        result
    }
}

thread_local! {
    /// The sockets whose records this thread is opening, innermost last.
    static OPENING: RefCell<Vec<*const Socket>> = const { RefCell::new(Vec::new()) };
}

/// Opens a socket's records as long as it exists.
struct Opening;

impl Opening {
    fn of(socket: &Socket) -> Self {
        OPENING.with_borrow_mut(|opening| opening.push(socket));
        Self
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        OPENING.with_borrow_mut(Vec::pop);
    }
}

impl Socket {
    /// Sets or removes the sessions that the socket's datagrams belong to. From then on, it hands
    /// out only what peers have sent in these sessions.
    ///
    /// DTLS works on datagram sockets of IP only; others return `EAFNOSUPPORT`. A socket that trusts
    /// proxies returns `EOPNOTSUPP`.
    pub fn set_dtls(&self, endpoint: Option<Arc<Endpoint>>) -> io::Result<()> {
        if endpoint.is_some() && !(self.is_ip() && self.is_datagram()) {
            return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
        }
        if endpoint.is_some() && self.proxies().is_some() {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        let mut current = self.secured.endpoint.lock();
        self.secured.is_on.store(endpoint.is_some(), Ordering::Release);
        let old = mem::replace(&mut *current, endpoint);
        drop(current);
        drop(old);
        self.with_backlog(RecvBacklog::take_all); // it is not of these sessions
        Ok(())
    }

    /// Takes the sessions of another socket over, with the plaintexts that were not received yet.
    pub fn take_dtls_of(&self, other: &Self) -> io::Result<()> {
        if std::ptr::eq(self, other) {
            return Ok(());
        }
        self.set_dtls(other.dtls())?;
        let received = other.with_backlog(RecvBacklog::take_all);
        let lost = self
            .with_backlog(|backlog| received.into_iter().map(|held| backlog.push_back(held)).sum());
        self.counters().count_dropped(lost);
        Ok(())
    }

    /// The socket's sessions, if it has any.
    #[inline]
    pub fn dtls(&self) -> Option<Arc<Endpoint>> {
        if !self.has_dtls() {
            return None; // the usual case
        }
        self.secured.endpoint.lock().clone()
    }

    /// Whether the socket has sessions.
    #[inline]
    pub fn has_dtls(&self) -> bool {
        self.secured.is_on.load(Ordering::Acquire)
    }

    /// Runs a step of the sessions that is not the receipt of a datagram, and sends what they have to
    /// say.
    pub fn with_dtls<T>(&self, act: impl FnOnce(&Endpoint, &mut Outbox) -> T) -> Option<T> {
        let endpoint = self.dtls()?;
        Some(Workspace::with(|workspace| {
            let result = act(&endpoint, &mut workspace.outbox);
            let _ = self.with(|fd| {
                self.send_outbox(fd, &endpoint, &workspace.outbox);
                Ok(())
            });
            result
        }))
    }

    /// Retransmits what is due; returns the time until this must be called again, if there is one.
    pub fn tick_dtls(&self) -> Option<Duration> {
        if !self.has_dtls() {
            return None; // the usual case
        }
        let now = Instant::now();
        self.with_dtls(|endpoint, outbox| {
            endpoint.handle_timeouts(now, outbox);
            Some(endpoint.next_timeout()?.saturating_duration_since(now))
        })?
    }

    /// The events of handshakes since this was last called, if the socket has sessions.
    pub fn take_handshake_report(&self) -> Option<HandshakeReport> {
        Some(self.dtls()?.take_report())
    }

    /// Ends all sessions and handshakes, and tells the peers.
    pub fn close_dtls(&self) {
        if self.has_dtls() {
            self.with_dtls(Endpoint::close_all);
        }
    }

    /// Ends all handshakes under way, and tells the peers.
    pub fn close_handshakes(&self) {
        if self.has_dtls() {
            self.with_dtls(Endpoint::close_handshakes);
        }
    }

    /// Returns `EDEADLK` if this thread is opening the socket's records, which calls the user's
    /// callbacks: to give the descriptor up, such a callback would wait for itself.
    pub(super) fn check_not_opening(&self) -> io::Result<()> {
        let is_opening =
            OPENING.try_with(|opening| opening.borrow().contains(&ptr::from_ref(self)));
        if is_opening.unwrap_or(false) {
            return Err(io::Error::from_raw_os_error(libc::EDEADLK));
        }
        Ok(())
    }

    /// Replaces the datagrams of the last receive by the plaintexts in them, and sends the sessions'
    /// own datagrams. If a peer has begun another session, what came through earlier ones is dropped:
    /// no user must take it for the new session's. Plaintexts after the first run of equal ones that
    /// fit into the slot go to the backlog: the end of a handshake releases those that have overtaken
    /// it, more than a slot holds.
    pub(super) fn open_records(
        &self,
        fd: BorrowedFd<'_>,
        ring: &mut RecvRing,
        filled: &mut Filled,
    ) {
        let Some(endpoint) = self.dtls() else { return };
        let (now, _opening) = (Instant::now(), Opening::of(self));
        let (mut rest, mut rest_bytes) = (Vec::new(), 0);
        let slot_len = ring.messages().slot_len();
        let before = endpoint.counts().established;
        let begun = Workspace::with(|workspace| {
            let Workspace { scratch, outbox, plaintexts, through, .. } = workspace;
            ring.rewrite(|message, segment, room| {
                let from = Address::from_bytes(message.from);
                let source = Meta::decode(message.control).source();
                plaintexts.clear();
                through.clear();
                for payload in message.payload.chunks(segment.max(1)) {
                    let incoming = Incoming { payload, from: &from, source, now };
                    endpoint.receive(&incoming, scratch, outbox, |session, plaintext| {
                        plaintexts.push(plaintext);
                        through.push(Arc::clone(session));
                    });
                }
                let first = through.first()?;
                let of_first = through.iter().take_while(|session| Arc::ptr_eq(session, first));
                let run = first_run(plaintexts, slot_len).min(of_first.count());
                for plaintext in plaintexts.iter().take(run) {
                    room.extend_from_slice(plaintext);
                }
                let copy = |(payload, session)| {
                    Held::copy_of(Received { payload, session: Some(session), ..message })
                };
                rest.extend(plaintexts.iter().zip(&*through).skip(run).map(copy));
                rest_bytes += plaintexts.iter().skip(run).map(<[u8]>::len).sum::<usize>();
                let split = Split::new(room.len(), plaintexts.get(0).map(<[u8]>::len));
                (run > 0).then(|| (split, Arc::clone(first))) // or all of them are too long
            });
            self.send_outbox(fd, &endpoint, outbox);
            mem::take(&mut outbox.begun)
        });
        let begun_after = |session: &SharedSession| {
            let is_later = |other: &Arc<SharedSession>| {
                other.peer() == session.peer() && other.number() > session.number()
            };
            begun.iter().any(is_later) || endpoint.has_later_than(session)
        };
        let is_current = |session: &SharedSession| {
            endpoint.counts().established == before || !begun_after(session)
        };
        self.counters().count_lost(ring.keep_sessions(filled, is_current));
        let mut lost = 0;
        if !rest.is_empty() {
            self.counters().count_also_received(rest.len(), rest_bytes);
            lost += self.with_backlog(|backlog| {
                rest.into_iter()
                    .map(|held| held.map_or(1, |held| backlog.push_back(held)))
                    .sum::<usize>()
            });
        }
        if endpoint.counts().established != before {
            lost += self.with_backlog(|backlog| backlog.keep_sessions(is_current));
        }
        self.counters().count_dropped(lost);
        ring.hold_sessions(begun); // until the events have been read
    }

    /// The error of a receive that found nothing, if nothing can come because the only session has
    /// ended: `ESHUTDOWN` if the receive is to return no bytes.
    pub(super) fn end_of_session(&self) -> io::Result<()> {
        let Some(endpoint) = self.dtls() else { return Ok(()) };
        let Some(failure) = endpoint.end_of_receive() else { return Ok(()) };
        let is_orderly =
            matches!(failure.kind, SessionErrorKind::Closed | SessionErrorKind::Evicted);
        Err(if is_orderly && endpoint.on_end() == OnEnd::Empty {
            io::Error::from_raw_os_error(libc::ESHUTDOWN)
        } else {
            failure.into()
        })
    }

    /// As above, for a receive that fails with it.
    pub(super) fn raise_end_of_session(&self) -> io::Result<()> {
        self.end_of_session().inspect_err(|_| {
            if let Some(endpoint) = self.dtls() {
                endpoint.note_end_told();
            }
        })
    }

    /// Sends the sessions' own datagrams. Those that cannot leave are lost: sessions retransmit.
    fn send_outbox(&self, fd: BorrowedFd<'_>, endpoint: &Endpoint, outbox: &Outbox) {
        if let Some(guard) = self.guard() {
            outbox.validated.iter().for_each(|&address| guard.validate(address));
        }
        if outbox.is_empty() {
            return; // the usual case
        }
        let Ok(mut queue) = SendQueue::with_room(outbox.len()) else { return };
        for (packet, to, source) in outbox.iter() {
            let to = (!endpoint.has_one_peer()).then_some(to);
            if queue.push(SendSlice::new(packet), to, source).is_err() {
                break;
            }
        }
        let mut retries = 0;
        while !queue.is_empty() {
            match self.send_plain(fd, &mut queue, libc::MSG_DONTWAIT) {
                Ok(_) => retries = 0,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if retries < RETRIES && may_be_of_earlier(&error) => retries += 1,
                Err(_) if queue.forget_source() => {}
                Err(_) => {
                    self.counters().count_send_errors(queue.skip());
                    retries = 0;
                }
            }
        }
    }

    /// Seals the next datagrams of a queue, and sends them; otherwise as
    /// [`send_queue`](Self::send_queue).
    pub(super) fn send_sealed(
        &self,
        endpoint: &Endpoint,
        fd: BorrowedFd<'_>,
        queue: &mut SendQueue<'_>,
        flags: c_int,
    ) -> io::Result<Sent> {
        Workspace::with(|Workspace { sealed, .. }| {
            for (payload, to, _) in queue.next_datagrams(SEALED) {
                if let Err(failure) = endpoint.seal(to, &payload.to_vec()?, sealed) {
                    if sealed.is_empty() {
                        return Err(failure.into());
                    }
                    break; // the error is raised when it is the first
                }
            }
            let mut records = SendQueue::with_room(sealed.len())?;
            for (record, (_, to, meta)) in sealed.iter().zip(queue.next_datagrams(SEALED)) {
                records.push_all(iter::once(SendSlice::new(record)), to, meta)?;
            }
            let result = self.send_plain(fd, &mut records, flags);
            queue.advance_as(&records);
            result
        })
    }
}

/// Seals one datagram that consists of several parts, and passes the record on to be sent; returns the
/// datagram's length.
pub(super) fn send_record(
    endpoint: &Endpoint,
    parts: &[SendSlice<'_>],
    to: Option<&Address>,
    send: impl FnOnce(SendSlice<'_>) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut plaintext = Vec::new();
    for part in parts {
        plaintext.extend(part.to_vec()?);
    }
    Workspace::with(|Workspace { sealed, .. }| {
        endpoint.seal(to, &plaintext, sealed)?;
        send(SendSlice::new(sealed.get(0).unwrap_or_default()))?;
        Ok(plaintext.len())
    })
}

/// The number of plaintexts at the beginning that have one length, except that the last may be
/// shorter, and that fit into some room together.
fn first_run(plaintexts: &Packets, room: usize) -> usize {
    let Some(len) = plaintexts.get(0).map(<[u8]>::len) else { return 0 };
    let most = room.checked_div(len).unwrap_or(1); // empty ones cannot be told apart in a run
    let same = plaintexts.iter().take(most).take_while(|plaintext| plaintext.len() == len).count();
    let fits = 1..len.min(room + 1 - same * len);
    let ends = plaintexts.get(same).is_some_and(|next| fits.contains(&next.len()));
    same + usize::from(ends)
}
