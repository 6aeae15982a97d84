//! The sessions of an endpoint, by the addresses of their peers.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use openssl::ssl::SslRef;

use super::session::Session;
use super::timers::Timers;
use crate::net::address::Address;
use crate::net::meta::Source;
use crate::net::sys;

/// How many sessions an endpoint has at most, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct TableLimits {
    /// The maximum number of complete sessions. Beyond it, the one that was idle for longest ends.
    pub sessions: usize,
    /// The maximum number of handshakes under way. Beyond it, the oldest ends.
    pub handshakes: usize,
    /// How long a handshake may take.
    pub handshake_time: Duration,
    /// How long a session may be idle.
    pub idle_time: Duration,
}

impl Default for TableLimits {
    fn default() -> Self {
        Self {
            sessions: 65_536,
            handshakes: 1024,
            handshake_time: Duration::from_secs(30),
            idle_time: Duration::from_secs(600),
        }
    }
}

/// A session that is shared by the thread that receives, those that send, and the datagrams that came
/// through it.
pub struct SharedSession {
    pub(super) number: u64,
    pub(super) peer: Address,
    /// The random number of the client that began it.
    pub(super) random: [u8; 32],
    pub(super) began: Instant,
    /// Whether others may lock the session. During a handshake its thread may run user code.
    is_established: AtomicBool,
    /// The process that it belongs to.
    generation: u32,
    session: Mutex<Session>,
}

impl fmt::Debug for SharedSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedSession").field("number", &self.number).finish_non_exhaustive()
    }
}

impl SharedSession {
    /// The address of the peer.
    pub fn peer(&self) -> &Address {
        &self.peer
    }

    /// A number that no other session of the endpoint has.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Looks at the session, which may have ended; returns nothing in a child of its process, where
    /// it may be locked for ever.
    pub fn inspect<T>(&self, look: impl FnOnce(&SslRef) -> T) -> Option<T> {
        self.is_own().then(|| look(self.session().ssl()))
    }

    /// The maximum length of a datagram; nothing in a child of its process.
    pub fn limit(&self) -> Option<usize> {
        self.is_own().then(|| self.session().limit())
    }

    fn is_own(&self) -> bool {
        self.generation == sys::fork_generation()
    }

    /// Locks a complete session.
    pub(super) fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the session for its next step. During a handshake this does not wait: the thread that
    /// has the lock may be waiting for the interpreter, which this thread may hold.
    pub(super) fn enter(&self) -> Option<MutexGuard<'_, Session>> {
        if self.is_established() {
            return Some(self.session());
        }
        match self.session.try_lock() {
            Ok(session) => Some(session),
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(super) fn is_established(&self) -> bool {
        self.is_established.load(Ordering::Acquire)
    }
}

/// The sessions with one peer.
#[derive(Default)]
struct PeerSessions {
    /// The session that data is received from and sent by.
    live: Option<Arc<SharedSession>>,
    /// A handshake under way, which replaces the live session if it succeeds (RFC 6347, 4.2.8).
    candidate: Option<Arc<SharedSession>>,
    /// Where the peer has sent to lately.
    source: Option<Source>,
    seen: Option<Instant>,
    idle_at: Option<Instant>,
    due_at: Option<Instant>,
}

/// The sessions of an endpoint.
#[derive(Default)]
pub(super) struct SessionTable {
    entries: HashMap<Address, PeerSessions>,
    /// Handshakes under way, oldest first.
    handshakes: BTreeMap<u64, Address>,
    retransmissions: Timers<Address>,
    idle: Timers<Address>,
    sessions: usize,
    next_number: u64,
}

impl SessionTable {
    /// The number of complete sessions, and of handshakes under way.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.sessions, self.handshakes.len())
    }

    /// The sessions that a datagram from a peer may belong to: one under way, and a complete one.
    pub(super) fn of(
        &self,
        peer: &Address,
    ) -> (Option<Arc<SharedSession>>, Option<Arc<SharedSession>>) {
        let entry = self.entries.get(peer);
        entry.map_or((None, None), |entry| (entry.candidate.clone(), entry.live.clone()))
    }

    /// The complete session with a peer.
    pub(super) fn live(&self, peer: &Address) -> Option<Arc<SharedSession>> {
        self.entries.get(peer)?.live.clone()
    }

    /// Where a peer has sent to.
    pub(super) fn source(&self, peer: &Address) -> Option<Source> {
        self.entries.get(peer)?.source
    }

    /// Notes that a peer has sent something.
    pub(super) fn note_seen(&mut self, peer: &Address, source: Option<Source>, now: Instant) {
        if let Some(entry) = self.entries.get_mut(peer) {
            entry.seen = Some(now);
            entry.source = source.or(entry.source);
        }
    }

    /// Adds a handshake; returns the session that it takes the place of, which never became complete.
    pub(super) fn add(
        &mut self,
        peer: Address,
        random: [u8; 32],
        session: Session,
        source: Option<Source>,
        now: Instant,
    ) -> (Arc<SharedSession>, Option<Arc<SharedSession>>) {
        let number = self.next_number;
        self.next_number += 1;
        let (is_established, session) = (AtomicBool::new(false), Mutex::new(session));
        let generation = sys::fork_generation();
        let link = Arc::new(SharedSession {
            number,
            peer,
            random,
            began: now,
            is_established,
            generation,
            session,
        });
        let entry = self.entries.entry(peer).or_default();
        entry.source = source.or(entry.source);
        let replaced = entry.candidate.replace(Arc::clone(&link));
        if let Some(replaced) = &replaced {
            self.handshakes.remove(&replaced.number);
            self.stop_retransmission(&peer, replaced.number);
        }
        self.handshakes.insert(number, peer);
        (link, replaced)
    }

    /// The oldest handshake, if there are more than `most`.
    pub(super) fn surplus_handshake(&self, most: usize) -> Option<Arc<SharedSession>> {
        if self.handshakes.len() <= most {
            return None;
        }
        let (_, peer) = self.handshakes.first_key_value()?;
        self.entries.get(peer)?.candidate.clone()
    }

    /// Makes a handshake the live session, unless it has ended; returns the one that it replaces.
    pub(super) fn establish(
        &mut self,
        link: &Arc<SharedSession>,
        idle_time: Duration,
        now: Instant,
    ) -> Option<Arc<SharedSession>> {
        self.handshakes.remove(&link.number)?; // or it has ended meanwhile
        self.stop_retransmission(&link.peer, link.number);
        let entry = self.entries.get_mut(&link.peer)?;
        entry.candidate = None;
        link.is_established.store(true, Ordering::Release);
        let replaced = entry.live.replace(Arc::clone(link));
        entry.seen = Some(now);
        match (&replaced, entry.idle_at) {
            (Some(replaced), Some(at)) => self.idle.remove(at, replaced.number),
            (Some(_), None) => {} // it was idle for too long, and is about to be removed
            (None, _) => self.sessions += 1,
        }
        let at = now + idle_time;
        entry.idle_at = Some(at);
        self.idle.set(at, link.number, link.peer);
        replaced
    }

    /// Removes a session; returns whether it was there.
    pub(super) fn remove(&mut self, link: &SharedSession) -> bool {
        self.stop_retransmission(&link.peer, link.number);
        let Some(entry) = self.entries.get_mut(&link.peer) else { return false };
        let is_it = |slot: &Option<Arc<SharedSession>>| {
            slot.as_ref().is_some_and(|other| other.number == link.number)
        };
        let was_there = if is_it(&entry.candidate) {
            entry.candidate = None;
            self.handshakes.remove(&link.number);
            true
        } else if is_it(&entry.live) {
            entry.live = None;
            self.sessions -= 1;
            if let Some(at) = entry.idle_at.take() {
                self.idle.remove(at, link.number);
            }
            true
        } else {
            false
        };
        if entry.candidate.is_none() && entry.live.is_none() {
            self.entries.remove(&link.peer);
        }
        was_there
    }

    /// Sets when a handshake's next retransmission, or its end, is due.
    pub(super) fn set_retransmission(&mut self, link: &SharedSession, at: Instant) {
        self.stop_retransmission(&link.peer, link.number);
        if let Some(entry) = self.entries.get_mut(&link.peer) {
            entry.due_at = Some(at);
            self.retransmissions.set(at, link.number, link.peer);
        }
    }

    fn stop_retransmission(&mut self, peer: &Address, number: u64) {
        if let Some(entry) = self.entries.get_mut(peer)
            && let Some(at) = entry.due_at.take()
        {
            self.retransmissions.remove(at, number);
        }
    }

    /// When something is due next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.retransmissions.first().into_iter().chain(self.idle.first()).min()
    }

    /// A handshake whose retransmission, or whose end, is due.
    pub(super) fn due_handshake(&mut self, now: Instant) -> Option<Arc<SharedSession>> {
        while let Some(peer) = self.retransmissions.pop(now) {
            if let Some(entry) = self.entries.get_mut(&peer) {
                entry.due_at = None;
                if entry.candidate.is_some() {
                    return entry.candidate.clone();
                }
            }
        }
        None
    }

    /// A session that was idle for too long.
    pub(super) fn idle_session(
        &mut self,
        idle_time: Duration,
        now: Instant,
    ) -> Option<Arc<SharedSession>> {
        self.next_idle(idle_time, now, now)
    }

    /// The session that was idle for longest, if there are more than `most`.
    pub(super) fn surplus_session(
        &mut self,
        most: usize,
        idle_time: Duration,
        now: Instant,
    ) -> Option<Arc<SharedSession>> {
        if self.sessions <= most {
            return None;
        }
        self.next_idle(idle_time, now + idle_time, now)
    }

    /// The session that has been idle for longest, if its timer is due before some moment. Timers of
    /// sessions that were in use since they were set are set anew.
    fn next_idle(
        &mut self,
        idle_time: Duration,
        before: Instant,
        now: Instant,
    ) -> Option<Arc<SharedSession>> {
        while let Some(peer) = self.idle.pop(before) {
            let Some(entry) = self.entries.get_mut(&peer) else { continue };
            let set_for = entry.idle_at.take();
            let Some(link) = &entry.live else { continue };
            let at = entry.seen.unwrap_or(now) + idle_time;
            if set_for.is_some_and(|set_for| at <= set_for) {
                return Some(Arc::clone(link));
            }
            entry.idle_at = Some(at);
            self.idle.set(at, link.number, peer);
        }
        None
    }

    /// All sessions: those that are complete, and handshakes under way.
    pub(super) fn all(&self) -> Vec<Arc<SharedSession>> {
        let both = |entry: &PeerSessions| [entry.live.clone(), entry.candidate.clone()];
        self.entries.values().flat_map(both).flatten().collect()
    }
}
