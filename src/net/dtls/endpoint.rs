//! All sessions of one socket: what arrives is opened, and what is sent is sealed.
//!
//! It does no input or output of its own. The sessions put the datagrams that they want to send into
//! an [`Outbox`].

mod ending;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::context::{Built, Context};
use super::cookie::Cookies;
use super::endpoint_counts::{EndpointCounters, EndpointCounts, HandshakeReport, count};
use super::events::{SessionEvent, Status};
use super::failure::{SessionError, SessionErrorKind};
use super::hello::{ClientHello, FirstRecord};
use super::outbox::Outbox;
use super::packets::Packets;
use super::session::{Progress, Session, SessionScratch};
use super::session_table::{SessionTable, SharedSession, TableLimits};
use super::settings::{ContextError, Role};
use crate::net::address::Address;
use crate::net::fork_mutex::{ForkMutex, ForkMutexGuard, Inherit, leave_to_parent};
use crate::net::meta::Source;

/// The maximum number of events that wait to be read. Beyond it, the oldest are dropped.
const MOST_EVENTS: usize = 1 << 16;

/// A datagram that has arrived.
pub struct Incoming<'a> {
    /// Its bytes.
    pub payload: &'a [u8],
    /// Its sender.
    pub from: &'a Address,
    /// The local address that it was sent to, if that is known.
    pub source: Option<Source>,
    /// When it is handled.
    pub now: Instant,
}

/// The options of an endpoint.
#[derive(Clone, Debug, Default)]
pub struct EndpointOptions {
    /// The only peer, of a connected socket.
    pub peer: Option<Address>,
    /// The name that the server's certificate must be for.
    pub server_name: Option<String>,
    /// How a receive ends once the session with the only peer has ended.
    pub on_end: OnEnd,
}

/// How a receive ends after the session with the only peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnEnd {
    /// It does not end: the program is told in another way.
    #[default]
    Wait,
    /// With no bytes, like that of a stream, or with an error if the session did not end in order.
    Empty,
    /// With an error, once.
    Fail,
}

/// The sessions of a socket.
pub struct Endpoint {
    context: Arc<Context>,
    options: EndpointOptions,
    limits: TableLimits,
    state: ForkMutex<State>,
    counters: EndpointCounters,
    keeps_events: AtomicBool,
}

#[derive(Default)]
struct State {
    table: SessionTable,
    cookies: Option<Cookies>,
    events: VecDeque<SessionEvent>,
    /// The context that a client has begun its session with.
    began_with: Option<Arc<Built>>,
    /// Why the session with the only peer has ended.
    ended: Option<SessionError>,
    /// Whether a receive has failed with that.
    is_end_told: bool,
    /// Why the last handshake that failed has failed, and the counters, as last reported.
    last_failure: Option<String>,
    reported: EndpointCounts,
}

/// A child of a fork has no sessions: two processes that send records with the same numbers and keys
/// would give their secrets away.
impl Inherit for State {
    fn inherit(&mut self) {
        leave_to_parent(self);
        self.ended = Some(SessionError::of_parent());
    }
}

impl Endpoint {
    /// Creates an endpoint of a context's role. With a peer, it has sessions with no other.
    pub fn new(context: Arc<Context>, options: EndpointOptions) -> Result<Self, ContextError> {
        context.build()?;
        let limits = context.read(|settings| settings.limits);
        let cookies = context.cookies()?;
        let state = ForkMutex::new(State { cookies, ..State::default() });
        let (counters, keeps_events) = (EndpointCounters::default(), AtomicBool::new(false));
        Ok(Self { context, options, limits, state, counters, keeps_events })
    }

    /// The context.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Whether the socket is connected, so that there is one peer.
    pub fn has_one_peer(&self) -> bool {
        self.options.peer.is_some()
    }

    /// How a receive ends after the session with the only peer.
    pub fn on_end(&self) -> OnEnd {
        self.options.on_end
    }

    /// Keeps events until they are [taken](Self::take_event).
    pub fn keep_events(&self) {
        self.keeps_events.store(true, Ordering::Relaxed);
    }

    /// Takes the oldest event.
    pub fn take_event(&self) -> Option<SessionEvent> {
        self.state().events.pop_front()
    }

    /// The counters.
    pub fn counts(&self) -> EndpointCounts {
        self.counters.read()
    }

    /// The events of handshakes since this was last called.
    pub fn take_report(&self) -> HandshakeReport {
        let mut state = self.state();
        let counts = self.counts();
        let before = std::mem::replace(&mut state.reported, counts);
        HandshakeReport {
            established: counts.established - before.established,
            failed: counts.failed - before.failed,
            evicted: counts.evicted - before.evicted,
            cookies_sent: counts.cookies_sent - before.cookies_sent,
            invalid: counts.invalid - before.invalid,
            last_failure: state.last_failure.take(),
        }
    }

    /// The number of complete sessions, and of handshakes under way.
    pub fn sessions(&self) -> (usize, usize) {
        self.state().table.counts()
    }

    /// The state of the session with the only peer.
    pub fn status(&self) -> Status {
        let state = self.state();
        match (&state.ended, self.has_live(&state)) {
            (_, true) => Status::Established,
            (Some(failure), false) => Status::Ended(failure.clone()),
            (None, false) => Status::Handshaking,
        }
    }

    /// Why the session with the only peer has ended, if it has.
    pub fn end_of_session(&self) -> Option<SessionError> {
        let state = self.state();
        state.ended.as_ref().filter(|_| !self.has_live(&state)).cloned()
    }

    /// As above, if a receive is to end with it.
    pub fn end_of_receive(&self) -> Option<SessionError> {
        let is_wanted = match self.options.on_end {
            OnEnd::Wait => false,
            OnEnd::Empty => true,
            OnEnd::Fail => !self.state().is_end_told,
        };
        if is_wanted { self.end_of_session() } else { None }
    }

    /// Records that a receive has failed with the end of the session.
    pub fn note_end_told(&self) {
        self.state().is_end_told = true;
    }

    fn has_live(&self, state: &State) -> bool {
        self.options.peer.is_some_and(|peer| state.table.live(&peer).is_some())
    }

    /// Begins the session with the server.
    pub fn begin(&self, outbox: &mut Outbox) -> Result<(), ContextError> {
        let (Some(peer), Role::Client) = (self.options.peer, self.context.role()) else {
            return Ok(());
        };
        let (mut scratch, now) = (SessionScratch::default(), Instant::now());
        let context = self.context.build()?;
        let session = Session::client(&context, peer, self.options.server_name.as_deref())?;
        let (link, _) = {
            let mut state = self.state();
            state.ended = None;
            state.began_with = Some(context);
            state.table.add(peer, [0; 32], session, None, now)
        };
        let step = |session: &mut Session, scratch: &mut SessionScratch| session.begin(scratch);
        self.advance(&link, now, &mut scratch, outbox, step);
        Ok(())
    }

    /// Opens a datagram that a peer has sent; the plaintexts of its records go to `deliver`, each with
    /// its session.
    pub fn receive(
        &self,
        incoming: &Incoming<'_>,
        scratch: &mut SessionScratch,
        outbox: &mut Outbox,
        mut deliver: impl FnMut(&Arc<SharedSession>, &[u8]),
    ) {
        let &Incoming { payload, from, source, now } = incoming;
        if self.options.peer.is_some_and(|peer| peer != *from) {
            return count(&self.counters.invalid);
        }
        let (candidate, live) = match FirstRecord::parse(payload) {
            FirstRecord::ClientHello(hello) if self.context.role() == Role::Server => {
                return self.receive_hello(incoming, &hello, scratch, outbox);
            }
            FirstRecord::Plain | FirstRecord::Encrypted => self.state().table.of(from),
            _ => (None, None),
        };
        if candidate.is_none() && live.is_none() {
            return count(&self.counters.invalid);
        }
        // A record belongs to whichever can decrypt it.
        let mut is_authentic = false;
        for link in candidate.iter().chain(&live) {
            self.advance(link, now, scratch, outbox, |session, scratch| {
                session.receive(payload, scratch, |plaintext| {
                    is_authentic = true;
                    deliver(link, plaintext);
                })
            });
        }
        if is_authentic {
            self.state().table.note_seen(from, source, now);
        }
    }

    /// Handles a client's first message: without a valid cookie, nothing is kept of it.
    fn receive_hello(
        &self,
        incoming: &Incoming<'_>,
        hello: &ClientHello<'_>,
        scratch: &mut SessionScratch,
        outbox: &mut Outbox,
    ) {
        let &Incoming { payload, from, source, now } = incoming;
        let known = {
            let mut state = self.state();
            let Some(cookies) = &mut state.cookies else { return };
            if !(hello.is_second() && cookies.check(from, hello, now)) {
                let answer = hello.verify_request(cookies.make(from, hello, now));
                outbox.push(&answer, *from, source);
                return count(&self.counters.cookies_sent);
            }
            let (candidate, live) = state.table.of(from);
            candidate.into_iter().chain(live).find(|link| link.random == hello.random)
        };
        if let Some(ip) = from.ip() {
            outbox.validated.push(ip.ip());
        }
        if let Some(link) = known {
            // A retransmission.
            return self.advance(&link, now, scratch, outbox, |session, scratch| {
                session.receive(payload, scratch, |_| {})
            });
        }
        let session = match self.context.build().and_then(|context| Session::server(&context)) {
            Ok(session) => session,
            Err(error) => {
                self.state().last_failure =
                    Some(format!("the server's context cannot be used: {error}"));
                return count(&self.counters.failed);
            }
        };
        let (link, replaced, surplus) = {
            let mut state = self.state();
            state.ended = None;
            let (link, replaced) = state.table.add(*from, hello.random, session, source, now);
            let surplus = state.table.surplus_handshake(self.limits.handshakes);
            if let Some(surplus) = &surplus {
                state.table.remove(surplus);
            }
            if replaced.is_some()
                && let Some(peer) = from.ip()
            {
                state.last_failure = Some(format!("the client has begun another (peer {peer})"));
            }
            (link, replaced, surplus)
        };
        if replaced.is_some() {
            count(&self.counters.failed);
        }
        if surplus.is_some() {
            count(&self.counters.evicted);
        }
        self.advance(&link, now, scratch, outbox, |session, scratch| {
            session.listen(payload, scratch)
        });
    }

    /// Makes a record of a plaintext for a peer, or for the only one.
    pub fn seal(
        &self,
        to: Option<&Address>,
        plaintext: &[u8],
        into: &mut Packets,
    ) -> Result<(), SessionError> {
        let Some(link) = self.live(to) else {
            let ended = self.state().ended.clone();
            return Err(ended.unwrap_or_else(SessionError::no_session));
        };
        link.session().seal(plaintext, into)
    }

    /// The complete session with a peer, or with the only one.
    pub fn live(&self, peer: Option<&Address>) -> Option<Arc<SharedSession>> {
        let peer = peer.or(self.options.peer.as_ref())?;
        self.state().table.live(peer)
    }

    /// Whether another session with the same peer has begun since, and is complete.
    pub fn has_later_than(&self, session: &SharedSession) -> bool {
        self.has_later(&session.peer, session.number)
    }

    /// Whether another session with a peer has begun since the one with this number, and is complete.
    pub fn has_later(&self, peer: &Address, number: u64) -> bool {
        self.state().table.live(peer).is_some_and(|live| live.number > number)
    }

    /// When [`handle_timeouts`](Self::handle_timeouts) has something to do.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.state().table.next_due()
    }

    /// Retransmits what peers have not answered, and ends what takes too long.
    pub fn handle_timeouts(&self, now: Instant, outbox: &mut Outbox) {
        if self.next_timeout().is_none_or(|at| at > now) {
            return;
        }
        let mut scratch = SessionScratch::default();
        loop {
            let Some(link) = self.state().table.due_handshake(now) else { break };
            if now.saturating_duration_since(link.began) >= self.limits.handshake_time {
                self.end(&link, self.timed_out());
                continue;
            }
            let step =
                |session: &mut Session, scratch: &mut SessionScratch| session.retransmit(scratch);
            self.advance(&link, now, &mut scratch, outbox, step);
        }
        loop {
            let Some(link) = self.state().table.idle_session(self.limits.idle_time, now) else {
                break;
            };
            self.evict(&link, &mut scratch, outbox);
        }
    }

    /// Runs a step of a session, and does what follows from it.
    fn advance(
        &self,
        link: &Arc<SharedSession>,
        now: Instant,
        scratch: &mut SessionScratch,
        outbox: &mut Outbox,
        step: impl FnOnce(&mut Session, &mut SessionScratch) -> Progress,
    ) {
        let (progress, timeout) = {
            // If another thread is in the middle of a handshake, this datagram is lost, and repeated.
            let Some(mut session) = link.enter() else { return };
            let progress = step(&mut session, scratch);
            let timeout = (!session.is_established()).then(|| session.timeout()).flatten();
            (progress, timeout)
        };
        if !scratch.outgoing.is_empty() {
            let source = self.state().table.source(&link.peer);
            outbox.take(scratch, link.peer, source);
        }
        match progress {
            Progress::Same if link.is_established() => {}
            Progress::Same => {
                let end = link.began + self.limits.handshake_time;
                let due = timeout.map_or(end, |timeout| end.min(now + timeout));
                self.state().table.set_retransmission(link, due);
            }
            Progress::Established => self.establish(link, now, scratch, outbox),
            Progress::Unanswered => self.end(link, self.timed_out()),
            Progress::Ended(failure) => self.end(link, failure),
            Progress::EstablishedAndEnded(failure) => {
                self.establish(link, now, scratch, outbox);
                self.end(link, failure);
            }
        }
    }

    fn establish(
        &self,
        link: &Arc<SharedSession>,
        now: Instant,
        scratch: &mut SessionScratch,
        outbox: &mut Outbox,
    ) {
        let (replaced, surplus) = {
            let mut state = self.state();
            let replaced = state.table.establish(link, self.limits.idle_time, now);
            if !link.is_established() {
                return; // the handshake was ended or replaced meanwhile
            }
            let TableLimits { sessions, idle_time, .. } = self.limits;
            (replaced, state.table.surplus_session(sessions, idle_time, now))
        };
        count(&self.counters.established);
        outbox.begun.push(Arc::clone(link));
        let context = self.state().began_with.clone();
        if let Some(context) = context {
            context.keep(link.peer, self.options.server_name.clone(), link.session().ssl());
        }
        if replaced.is_some() {
            count(&self.counters.replaced);
            let text = "the peer has begun a new session";
            let failure = SessionError::new(SessionErrorKind::Closed, text);
            self.note(SessionEvent::Lost(link.peer, failure));
        }
        self.note(SessionEvent::Established(Arc::downgrade(link)));
        if let Some(surplus) = surplus {
            self.evict(&surplus, scratch, outbox);
        }
    }

    fn note(&self, event: SessionEvent) {
        if self.keeps_events.load(Ordering::Relaxed) {
            let mut state = self.state();
            if state.events.len() == MOST_EVENTS {
                state.events.pop_front();
            }
            state.events.push_back(event);
        }
    }

    fn state(&self) -> ForkMutexGuard<'_, State> {
        self.state.lock()
    }
}
