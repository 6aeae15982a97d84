//! Results of the handler: checked, and queued to be sent.

use pyo3::exceptions::{PyOSError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};

use super::ServerCore;
use crate::net::{Address, Count, Source};
use crate::python::buffer::{Readable, TypeName, is_one_datagram};
use crate::python::error::Error;

/// The longest payload of an IPv4 datagram: 65,535 bytes less the IP and UDP headers.
const LARGEST_V4: usize = 65_507;
/// The longest payload of an IPv6 datagram, whose length field does not count the IP header.
const LARGEST_V6: usize = 65_527;

/// The longest reply that a socket of this family can send.
pub(super) fn largest(family: i32) -> usize {
    match family {
        libc::AF_INET => LARGEST_V4,
        libc::AF_INET6 => LARGEST_V6,
        _ => usize::MAX, // up to the kernel
    }
}

/// Where a reply goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    /// The sender's address. If a proxy is in between, that of the proxy's client.
    pub(super) peer: Address,
    /// The address to send to, if another one.
    pub(super) proxy: Option<Address>,
    pub(super) source: Option<Source>,
    /// The number of the DTLS session that the datagram came through.
    pub(super) session: Option<u64>,
}

/// The peers that one result of the handler replies to.
#[expect(clippy::large_enum_variant, reason = "most are One; a box would cost each call more")]
pub(super) enum ReplyTo {
    One(Route),
    /// The senders of a batch, each with its number of consecutive datagrams.
    Batch(Vec<(Route, usize)>),
}

impl ReplyTo {
    /// The number of datagrams that the handler was called with.
    pub(super) fn datagrams(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Batch(senders) => senders.iter().map(|(_, count)| count).sum(),
        }
    }

    /// The sender, unless it is one of several.
    pub(super) fn sender(&self) -> Option<&[u8]> {
        match self {
            Self::One(route) => Some(route.peer.as_bytes()),
            Self::Batch(_) => None,
        }
    }
}

impl ServerCore {
    /// Queues the replies in a result of the handler.
    pub(super) fn queue_result(&self, to: &ReplyTo, result: &Bound<'_, PyAny>) -> PyResult<()> {
        match to {
            ReplyTo::One(route) => self.queue_reply(route, result),
            ReplyTo::Batch(senders) => self.queue_replies(result, senders),
        }
    }

    /// Queues the replies to a batch. An invalid reply does not affect the others.
    fn queue_replies(
        &self,
        replies: &Bound<'_, PyAny>,
        senders: &[(Route, usize)],
    ) -> PyResult<()> {
        let py = replies.py();
        if replies.is_none() {
            return Ok(());
        }
        if !replies.is_exact_instance_of::<PyList>() {
            self.refuse_awaitable(replies)?;
        }
        if is_one_datagram(replies) {
            let message = format!(
                "{}: a handler of batches returns an iterable with a reply (or None) for each \
                 datagram, or None, and not one reply",
                self.handler_name(py)
            );
            return Err(PyTypeError::new_err(message));
        }
        let mut each =
            senders.iter().flat_map(|(sender, count)| std::iter::repeat_n(sender, *count));
        for reply in replies.try_iter()? {
            let reply = reply?;
            let Some(route) = each.next() else {
                let message = "a handler of batches returned more replies than there were \
                               datagrams; use sendto() for others";
                return Err(PyValueError::new_err(message));
            };
            self.queue_reply(route, &reply)
                .or_else(|error| self.fail(py, error, Some(route.peer.as_bytes())))?;
        }
        Ok(())
    }

    /// Queues a reply.
    pub(super) fn queue_reply(&self, route: &Route, reply: &Bound<'_, PyAny>) -> PyResult<()> {
        if reply.is_none() {
            return Ok(());
        }
        let data = match reply.cast_exact::<PyBytes>() {
            Ok(data) => data.clone(),
            Err(_) => self.to_bytes(reply)?,
        };
        let len = data.as_bytes().len();
        if len > self.largest {
            let message = format!(
                "a reply of {len} bytes is too long: a datagram takes at most {}; split it",
                self.largest
            );
            return Err(PyOSError::new_err((libc::EMSGSIZE, message)));
        }
        let is_unnamed = route.peer.as_bytes().is_empty();
        if is_unnamed && !self.is_connected {
            let message = "cannot reply: the sender has no address";
            return Err(PyOSError::new_err((libc::EDESTADDRREQ, message)));
        }
        if route.proxy.is_some() {
            let socket = self.socket.bind(reply.py()).get().socket()?;
            socket.spend_for_client(&route.peer, len).map_err(Error::from)?;
        }
        let to = (!is_unnamed).then(|| route.proxy.unwrap_or(route.peer));
        let pushed = self.send_backlog().push_in(route.session, data.into(), to, route.source);
        Ok(pushed.map_err(Error::from)?)
    }

    /// Counts and reports an error of one call, or of the datagrams for it.
    pub(super) fn fail(&self, py: Python<'_>, error: PyErr, from: Option<&[u8]>) -> PyResult<()> {
        self.count(Count::HandlerErrors, 1);
        self.report_error(py, "handler", error, from)
    }

    /// Converts a reply that is not `bytes` to bytes that cannot change.
    fn to_bytes<'py>(&self, reply: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        if let Ok(data) = Readable::new(reply) {
            return Ok(data.into_bytes(reply.py())?);
        }
        self.refuse_awaitable(reply)?;
        let (name, found) = (self.handler_name(reply.py()), TypeName(reply));
        let hint = if reply.is_instance_of::<PyString>() { "; encode() it" } else { "" };
        let message = format!(
            "{name}: a handler returns a bytes-like object, or None for no reply, not {found}{hint}"
        );
        Err(PyTypeError::new_err(message))
    }

    /// Rejects the result of a call that should have been awaited.
    ///
    /// A coroutine is closed, because Python warns about each one that is dropped without having run.
    fn refuse_awaitable(&self, reply: &Bound<'_, PyAny>) -> PyResult<()> {
        let kind = reply.get_type();
        let what = if kind.hasattr("__await__")? {
            "an awaitable"
        } else if kind.hasattr("__anext__")? {
            "an asynchronous iterator"
        } else {
            return Ok(());
        };
        let abc = reply.py().import("collections.abc")?;
        let (what, advice) = if reply.is_instance(&abc.getattr("Coroutine")?)? {
            reply.call_method0("close")?;
            ("a coroutine", "write the handler with async def, or give the server a loop")
        } else {
            (what, "return the reply itself")
        };
        let message =
            format!("{}: the handler returned {what}: {advice}", self.handler_name(reply.py()));
        Err(PyTypeError::new_err(message))
    }

    /// The handler's name, for messages.
    fn handler_name(&self, py: Python<'_>) -> String {
        let handler = self.handler.bind(py);
        let name = handler.getattr("__qualname__").and_then(|name| name.extract());
        name.unwrap_or_else(|_| TypeName(handler).to_string())
    }
}
