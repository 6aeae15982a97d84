//! The fast part of an asyncio datagram transport. The rest is in Python.

mod errors;
mod life;
mod read;
mod take;
mod write;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::Instant;

use pyo3::exceptions::{PyKeyboardInterrupt, PySystemExit};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::datagram::Datagram;
use super::error::Result;
use super::event_loop::LoopCore;
use super::socket::Socket;
use crate::net::{
    Address, AtomicPhase, Costs, GroOnDemand, Phase, ReplySources, ThreadRing, TurnSkipping, Turns,
    hang_if_ended,
};

use life::SendState;

/// The core of a datagram transport.
#[pyclass(frozen, module = "tomada._core")]
pub(crate) struct TransportCore {
    socket: Py<Socket>,
    /// Whether the socket may refer to the transport, because it is of a subclass that has
    /// attributes. Other sockets are hidden from the garbage collector, which would finalize them
    /// before the transport.
    may_be_referred_to: bool,
    links: Mutex<Option<Links>>,
    /// Incremented by `set_protocol`, so that a drain notices.
    protocol_version: AtomicU64,
    /// Whether the protocol's type accepts whole batches.
    takes_batches: AtomicBool,
    phase: AtomicPhase,
    /// Whether a drain that ran out of time continues in the next turn.
    resume_scheduled: AtomicBool,
    skipping: TurnSkipping,
    /// How many drains are running; more than one if a callback runs the loop.
    draining: AtomicU32,
    send_state: Mutex<SendState>,
    /// The only address that datagrams may be sent to, if there is one.
    peer: Option<Py<PyAny>>,
    /// That address in the kernel's format, if the socket is not connected to it.
    default_address: Option<Box<Address>>,
    /// The turns of the loop, if it counts them.
    turns: Option<Arc<Turns>>,
    /// The turn of the last datagram that was sent immediately; on a loop that does not count its
    /// turns, the time, in nanoseconds since this was created.
    last_turn: AtomicU64,
    created: Instant,
    /// Whether a flush at the end of the turn is scheduled.
    flush_scheduled: AtomicBool,
    reply_sources: ReplySources,
    /// Whether the protocol was told of errors in this turn of the loop, so it learns of others in
    /// the next one.
    errors_scheduled: AtomicBool,
    /// How many receives there were since the kernel's error queue was last emptied between
    /// datagrams.
    receives: AtomicU32,
    /// Whether the protocol wants each datagram's metadata.
    tells_metadata: AtomicBool,
    /// Whether `sendto` raises the caller's own mistakes. If not, the protocol is told of them.
    raises_mistakes: AtomicBool,
    current: Mutex<Option<Py<Datagram>>>,
    /// The longest datagram that can be sent to the connected peer, once it was asked for.
    longest_to_peer: OnceLock<usize>,
    gro: GroOnDemand,
    /// How many options the socket held before this transport was created.
    options_before: usize,
    costs: Costs,
}

/// The Python objects around a transport. They refer back to it.
struct Links {
    event_loop: Py<PyAny>,
    transport: Py<PyAny>,
    /// Called with each step that the transport must do next.
    act: Py<PyAny>,
    protocol: Py<PyAny>,
}

#[pymethods]
impl TransportCore {
    #[new]
    #[allow(clippy::too_many_arguments)] // the properties of the transport, most of them keywords
    #[pyo3(signature = (
        socket,
        event_loop,
        transport,
        act,
        *,
        delivers,
        peer,
        is_connected,
        is_shared,
        gro,
    ))]
    fn new(
        socket: &Bound<'_, Socket>,
        event_loop: Py<PyAny>,
        transport: Py<PyAny>,
        act: Py<PyAny>,
        delivers: bool,
        peer: Option<Py<PyAny>>,
        is_connected: bool,
        is_shared: bool,
        gro: Option<bool>,
    ) -> Result<Self> {
        let py = socket.py();
        let default_address = match &peer {
            Some(peer) if !is_connected => {
                Some(Box::new(socket.get().parse_any_address(peer.bind(py), "sendto")?))
            }
            _ => None,
        };
        // Otherwise each read would fail to allocate memory, with no caller to report it to.
        drop(ThreadRing::take(socket.get().socket()?.slot_kind())?);
        let turns = event_loop.bind(py).cast::<LoopCore>().ok();
        let turns = turns.map(|event_loop| event_loop.get().turns().clone());
        let options_before = socket.get().socket()?.held_options();
        let has_attributes = socket.get_type().getattr(intern!(py, "__dictoffset__"))?;
        let may_be_referred_to = has_attributes.is_truthy()?;
        let links = Links { event_loop, transport, act, protocol: py.None() };
        // Last, so that a socket's options change only if its transport exists and restores them.
        if is_shared {
            let inner = socket.get().socket()?;
            if let Err(error) = inner.set_shared_gro(gro) {
                inner.restore_options(options_before)?;
                return Err(error.into());
            }
        }
        let reply_sources = ReplySources::of(socket.get().socket()?, is_connected);
        Ok(Self {
            socket: socket.clone().unbind(),
            may_be_referred_to,
            links: Mutex::new(Some(links)),
            protocol_version: AtomicU64::new(0),
            takes_batches: AtomicBool::new(false),
            phase: AtomicPhase::new(if delivers { Phase::Starting } else { Phase::Paused }),
            resume_scheduled: AtomicBool::new(false),
            skipping: TurnSkipping::default(),
            draining: AtomicU32::new(0),
            send_state: Mutex::default(),
            peer,
            default_address,
            turns,
            last_turn: AtomicU64::new(0),
            created: Instant::now(),
            flush_scheduled: AtomicBool::new(false),
            reply_sources,
            errors_scheduled: AtomicBool::new(false),
            receives: AtomicU32::new(0),
            tells_metadata: AtomicBool::new(false),
            raises_mistakes: AtomicBool::new(false),
            current: Mutex::new(None),
            longest_to_peer: OnceLock::new(),
            gro: GroOnDemand::new(is_shared || gro.is_some()),
            options_before,
            costs: Costs::default(),
        })
    }

    /// Set the protocol that datagrams are delivered to, one by one or in batches.
    fn set_protocol(&self, protocol: &Bound<'_, PyAny>, takes_batches: bool) {
        let old = self
            .links()
            .as_mut()
            .map(|links| std::mem::replace(&mut links.protocol, protocol.clone().unbind()));
        self.takes_batches.store(takes_batches, Ordering::Relaxed);
        self.protocol_version.fetch_add(1, Ordering::Relaxed);
        drop(old); // this may run code, so the lock must be free
    }

    /// From now on, `sendto` raises the caller's own mistakes instead of telling the protocol.
    fn raise_mistakes(&self) {
        self.raises_mistakes.store(true, Ordering::Relaxed);
    }

    /// On a shared socket, restore the options that no other transport or server relies on.
    fn restore_options(&self, py: Python<'_>) -> Result<()> {
        Ok(self.socket.bind(py).get().socket()?.restore_options(self.options_before)?)
    }

    /// Let go of the loop, the transport and the protocol.
    fn unlink(&self) {
        let links = self.links().take();
        let current = self.current().take();
        drop((links, current));
    }

    /// The datagram that is being delivered, with its metadata.
    fn datagram(&self, py: Python<'_>) -> Result<Option<Py<Datagram>>> {
        if !self.tells_metadata.swap(true, Ordering::Relaxed) {
            self.socket.bind(py).get().socket()?.request_metadata()?;
        }
        Ok(self.current().as_ref().map(|datagram| datagram.clone_ref(py)))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        // Both remain after `unlink`.
        if self.may_be_referred_to {
            visit.call(&self.socket)?;
        }
        visit.call(&self.peer)?;
        // If the lock is taken, a call is using the links, which keeps everything alive anyway.
        let links = match self.links.try_lock() {
            Ok(links) => links,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        if let Some(links) = links.as_ref() {
            visit.call(&links.event_loop)?;
            visit.call(&links.transport)?;
            visit.call(&links.act)?;
            visit.call(&links.protocol)?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        self.unlink();
    }
}

impl TransportCore {
    fn links(&self) -> MutexGuard<'_, Option<Links>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> MutexGuard<'_, Option<Py<Datagram>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn protocol<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.links().as_ref().map(|links| links.protocol.bind(py).clone())
    }

    fn event_loop<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.links().as_ref().map(|links| links.event_loop.bind(py).clone())
    }

    fn transport<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.links().as_ref().map(|links| links.transport.bind(py).clone())
    }

    /// Schedules one of this object's methods for the loop's next turn.
    fn call_soon(slf: &Bound<'_, Self>, method: &str) -> PyResult<()> {
        let py = slf.py();
        if let Some(event_loop) = slf.get().event_loop(py) {
            event_loop.call_method1(intern!(py, "call_soon"), (slf.getattr(method)?,))?;
        }
        Ok(())
    }

    /// Tells the protocol of an error that does not end the transport.
    fn tell_error(&self, py: Python<'_>, error: PyErr) -> PyResult<()> {
        let Some(protocol) = self.protocol(py) else { return Ok(()) };
        let call = || protocol.call_method1(intern!(py, "error_received"), (error,));
        let result = hang_if_ended(call);
        self.catch(py, "error_received", result.map(drop))
    }

    /// Passes an exception of a callback to the loop's exception handler, like the loop does for
    /// its own callbacks. Exceptions that end the program propagate.
    fn catch(&self, py: Python<'_>, callback: &str, result: PyResult<()>) -> PyResult<()> {
        let Err(error) = result else { return Ok(()) };
        let ends_program = error.is_instance_of::<PySystemExit>(py)
            || error.is_instance_of::<PyKeyboardInterrupt>(py);
        let Some(event_loop) = self.event_loop(py).filter(|_| !ends_program) else {
            return Err(error);
        };
        let context = PyDict::new(py);
        context.set_item("message", format!("Exception in callback {callback}()"))?;
        context.set_item("exception", error)?;
        context.set_item("transport", self.transport(py))?;
        context.set_item("protocol", self.protocol(py))?;
        let name = intern!(py, "call_exception_handler");
        hang_if_ended(|| event_loop.call_method1(name, (context,))).map(drop)
    }
}
