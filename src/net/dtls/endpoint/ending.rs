//! The ends of sessions and of handshakes.

use std::sync::Arc;

use super::super::endpoint_counts::count;
use super::super::events::SessionEvent;
use super::super::failure::{SessionError, SessionErrorKind};
use super::super::outbox::Outbox;
use super::super::session::SessionScratch;
use super::super::session_table::SharedSession;
use super::super::settings::Settings;
use super::Endpoint;
use crate::net::address::Address;

impl Endpoint {
    /// Ends the session with a peer, or with the only one, and tells it; returns whether there was
    /// one.
    pub fn close(&self, peer: Option<&Address>, outbox: &mut Outbox) -> bool {
        let Some(link) = self.live(peer) else { return false };
        self.close_link(&link, &mut SessionScratch::default(), outbox);
        true
    }

    /// Ends all sessions, and handshakes under way, which have not failed then; tells the peers.
    pub fn close_all(&self, outbox: &mut Outbox) {
        self.close_each(outbox, |_| true);
    }

    /// Ends all handshakes under way, and tells the peers.
    pub fn close_handshakes(&self, outbox: &mut Outbox) {
        self.close_each(outbox, |link| !link.is_established());
    }

    fn close_each(&self, outbox: &mut Outbox, is_chosen: impl Fn(&SharedSession) -> bool) {
        let (links, mut scratch) = (self.state().table.all(), SessionScratch::default());
        for link in links.iter().filter(|link| is_chosen(link)) {
            self.close_link(link, &mut scratch, outbox);
        }
    }

    /// Ends a session and tells its peer, unless another thread is in the middle of its handshake.
    fn close_link(
        &self,
        link: &Arc<SharedSession>,
        scratch: &mut SessionScratch,
        outbox: &mut Outbox,
    ) {
        let Some(mut session) = link.enter() else { return };
        session.close(scratch);
        self.take_goodbye(link, scratch, outbox);
        let text = "this side has closed the session";
        let failure = SessionError::new(SessionErrorKind::Closed, text);
        // Still locked, so that no other thread completes the handshake after its end.
        if link.is_established() {
            self.end(link, failure);
        } else {
            self.remove(link, &failure);
        }
    }

    pub(super) fn evict(
        &self,
        link: &Arc<SharedSession>,
        scratch: &mut SessionScratch,
        outbox: &mut Outbox,
    ) {
        count(&self.counters.evicted);
        link.session().close(scratch);
        self.take_goodbye(link, scratch, outbox);
        let text = "the session was idle for too long, or made room for another one";
        self.end(link, SessionError::new(SessionErrorKind::Evicted, text));
    }

    /// Takes a session's last datagrams, while it is still known where they leave from.
    fn take_goodbye(
        &self,
        link: &SharedSession,
        scratch: &mut SessionScratch,
        outbox: &mut Outbox,
    ) {
        let source = self.state().table.source(&link.peer);
        outbox.take(scratch, link.peer, source);
    }

    /// The failure of a handshake that the peer does not go on with.
    pub(super) fn timed_out(&self) -> SessionError {
        let uses_keys =
            |settings: &Settings| settings.psk_client.is_some() || settings.psk_server.is_some();
        let text = if self.context.read(uses_keys) {
            "the handshake timed out: the peer did not answer with DTLS, or uses a different \
             pre-shared key"
        } else {
            "the handshake timed out: the peer did not answer with DTLS"
        };
        SessionError::new(SessionErrorKind::TimedOut, text)
    }

    /// Removes a session that has ended.
    pub(super) fn end(&self, link: &SharedSession, mut failure: SessionError) {
        if let Some(peer) = link.peer.ip()
            && !link.is_established()
        {
            let wanted = match (&failure.kind, &self.options.server_name) {
                (SessionErrorKind::Certificate(_), Some(name)) => format!(", as {name}"),
                _ => String::new(),
            };
            failure.text = format!("{} (peer {peer}{wanted})", failure.text);
        }
        if !self.remove(link, &failure) {
            return;
        }
        let (counter, event) = if link.is_established() {
            (&self.counters.ended, SessionEvent::Lost(link.peer, failure))
        } else {
            if self.options.peer.is_none() {
                self.state().last_failure = Some(failure.text.clone());
            }
            count(match failure.kind {
                SessionErrorKind::Certificate(_) => &self.counters.failed_certificate,
                SessionErrorKind::TimedOut => &self.counters.failed_timeout,
                _ => &self.counters.failed_protocol,
            });
            (&self.counters.failed, SessionEvent::Failed(link.peer, failure))
        };
        count(counter);
        self.note(event);
    }

    /// Removes a session from the table; returns whether it was there.
    fn remove(&self, link: &SharedSession, failure: &SessionError) -> bool {
        let mut state = self.state();
        let was_there = state.table.remove(link);
        if was_there && self.options.peer.is_some() {
            state.ended = Some(failure.clone());
            state.is_end_told = false;
        }
        was_there
    }
}
