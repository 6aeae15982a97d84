"""The datagram transport of :mod:`tomada.asyncio`."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import warnings
from asyncio.trsock import TransportSocket
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tomada import _core
from tomada._asyncio.owned import own
from tomada._asyncio.read_watch import stop_watching_for_room, watch_for_room, watch_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from socket import _Address

    from _typeshed import ReadableBuffer

    from tomada._asyncio.sessions import Sessions

    Datagrams: TypeAlias = Iterable[ReadableBuffer] | Iterable[tuple[ReadableBuffer, _Address]]

_logger = logging.getLogger("asyncio")

PAUSE = 1e-3  # how long to wait for a full AF_UNIX peer before retrying, in seconds

Signal: TypeAlias = Literal["pause_writing", "resume_writing"]
Step: TypeAlias = (
    Signal
    | Literal["watch", "unwatch", "lose", "deliver", "tell_errors", "tell_begun", "tell_ended"]
)


class DatagramTransport(asyncio.DatagramTransport, asyncio.Transport):
    """A faster transport than that of :meth:`asyncio.loop.create_datagram_endpoint`.

    It behaves as :class:`asyncio.DatagramTransport` documents. It receives many datagrams at once
    and delivers them one by one to ``protocol.datagram_received(data, addr)``. If the protocol's
    *type* defines ``protocol.datagrams_received(list)``, it delivers lists of ``(data, addr)``
    pairs to that method instead. It pauses after a fraction of a millisecond to let the loop run
    other callbacks.

    Datagrams that a protocol sends from ``datagram_received`` are sent together once all received
    datagrams have been delivered. Elsewhere, the first datagram of a loop iteration is sent at
    once, and the others are sent together at the end of the iteration. A loop that is not a
    :class:`tomada.asyncio.EventLoop` does not count its iterations: there, a datagram is sent at
    once if none was sent in the last 20 µs. Datagrams are sent in order; closing the transport
    first sends those that are waiting.

    Besides ``"socket"``, ``"sockname"`` and ``"peername"``, :meth:`get_extra_info` supports:

    * ``"stats"``: the socket's :class:`tomada.Stats`.
    * ``"datagram"``: the :class:`tomada.Datagram` being delivered, with its metadata, inside
      ``datagram_received``. The first call enables the metadata for later datagrams and returns
      ``None``: make it in ``connection_made``.
    * ``"errors"``: a list of :class:`tomada.DatagramError`, removed from the error queue. If the
      socket's ``IP_RECVERR`` is set, ``error_received`` is called for each of them with an
      :class:`OSError` whose ``datagram_error`` is the report. An error about a datagram that could
      not be sent also has a ``datagram_error``. None of these errors closes the transport.

    * ``"dtls"``: with ``dtls``, a function that returns the :class:`tomada.dtls.Session` with a
      given address, or with the only peer.

    On a machine with several addresses, a reply is sent from the local address that received the
    peer's datagram.

    Nothing limits how many datagrams wait while the socket's buffer is full. As with asyncio's own
    transports, the protocol has to stop sending when ``pause_writing`` is called. That matters most
    if it replies to strangers, whose addresses may be forged.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: Any,
        protocol: asyncio.BaseProtocol,
        address: Any = None,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
        *,
        shown: Any = None,
        delivers: bool = True,
        restore: Callable[[], None] | None = None,
        gro: bool | None = None,
        sessions: Sessions | None = None,
    ) -> None:
        super().__init__(extra)
        connection_made = protocol.connection_made  # fails before there is anything to close
        self._loop: Any = loop
        self._read_watch = watch_of(loop, sock)
        self._sock: Any = sock
        self._sock_fd = sock._descriptor()
        self._shown: Any = sock if shown is None else shown
        self._extra: dict[str, Any] = {} if extra is None else extra
        self._extra["socket"] = TransportSocket(self._shown)
        self._extra["sockname"] = _name(sock.getsockname)
        if "peername" not in self._extra:
            self._extra["peername"] = _name(sock.getpeername)
        self._context: contextvars.Context | None = None  # for delivering datagrams

        peername = self._extra["peername"]
        # libuv stops watching a descriptor that has an error: see ReadWatch.
        self._stops_at_errors = not isinstance(loop, asyncio.SelectorEventLoop)
        self._has_peer = (address or peername) is not None
        self._core = core = _core.TransportCore(
            sock,
            loop,
            self,
            self._act,
            delivers=delivers,
            peer=address or peername,
            is_connected=peername is not None,
            is_shared=restore is not None,
            gro=gro,
        )
        self._restore = restore
        self._sessions = sessions
        if sessions is not None:
            sessions.attach(self)
        # Call the core directly, without a Python frame in between.
        self.sendto = core.sendto  # type: ignore[method-assign]
        try:
            self._begin(protocol, connection_made, waiter)
        except BaseException:
            core.restore_options()
            raise

    def _begin(
        self,
        protocol: asyncio.BaseProtocol,
        connection_made: Callable[[asyncio.BaseTransport], None],
        waiter: asyncio.Future[None] | None,
    ) -> None:
        self.set_protocol(protocol)
        # If its owner closes the socket, the descriptor must stay open until the transport is
        # closed: libuv aborts the process if a watched descriptor is gone.
        self._sock._io_refs += 1
        own(self._loop, self, self._sock_fd)
        if self._shown is not self._sock:
            own(self._loop, self, self._shown.fileno())

        self._loop.call_soon(connection_made, self)
        self._loop.call_soon(self._start_reading, waiter)

    def __repr__(self) -> str:
        info = [type(self).__name__]
        if self._sock is None:
            info.append("closed")
        elif self.is_closing():
            info.append("closing")
        info.append(f"fd={self._sock_fd}")
        if self._sock is not None:
            info.append(f"read={'polling' if self._core.is_delivering else 'idle'}")
            state = "polling" if self._core.is_full else "idle"
            info.append(f"write=<{state}, bufsize={self.get_write_buffer_size()}>")
        return f"<{' '.join(info)}>"

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if getattr(self, "_sock", None) is not None:
            _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            with contextlib.suppress(Exception):
                self._core.flush()  # datagrams of the loop's last iteration
            self._close_sockets()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return information about the transport, as the class docstring describes."""
        sock = self._sock
        if sock is not None:
            try:
                if name == "stats":
                    return sock.stats()
                if name == "datagram":
                    return self._core.datagram() or default
                if name == "errors":
                    return sock.errors()
                if name == "dtls" and self._sessions is not None:
                    return self._sessions.session
            except OSError:
                if sock.fileno() != -1:
                    raise
                # This is another thread, and the loop has just closed the transport.
        return self._extra.get(name, default)

    # Reading

    def is_reading(self) -> bool:
        """Return whether datagrams are being delivered."""
        return self._core.is_reading()

    def pause_reading(self) -> None:
        """Stop delivering until :meth:`resume_reading`. Datagrams wait in the socket's buffer."""
        if not self._core.pause_reading():
            return
        self._read_watch.stop()
        if self._loop.get_debug():
            _logger.debug("%r pauses reading", self)

    def resume_reading(self) -> None:
        """Resume delivering datagrams."""
        if not self._core.resume_reading():
            return
        self._watch()
        if self._loop.get_debug():
            _logger.debug("%r resumes reading", self)

    def _start_reading(self, waiter: asyncio.Future[None] | None) -> None:
        """Begin after connection_made was called, and wake the task that opens the transport."""
        try:
            if self._core.start_reading():
                self._watch()
        finally:
            if waiter is not None and not waiter.cancelled():
                waiter.set_result(None)

    def _watch(self) -> None:
        if self._context is None:
            self._context = contextvars.copy_context()
        self._read_watch.start(self._core.read_ready, self._context)
        if self._sock.pending:
            self._act("deliver")

    # Writing

    def sendto(self, data: ReadableBuffer, addr: _Address | None = None) -> None:
        """Send a datagram to ``addr``, or to the peer.

        This never waits, unless ``addr`` has a host name: resolving the name blocks the loop.
        If the socket's buffer is full, the datagram waits in the send backlog. An error about the
        datagram, such as ``EMSGSIZE``, is reported to ``protocol.error_received``. On a transport
        that is closing, the datagram is dropped, with a warning.

        :param data: A bytes-like object.
        :param addr: The destination, preferably with a numeric host. It may be left out only if the
            transport has a peer.
        :raises TypeError: ``data`` is not a bytes-like object, ``addr`` is not an address, or the
            transport has no peer and ``addr`` is missing.
        :raises ValueError: The transport has a peer, and ``addr`` is another address.
        """
        self._core.sendto(data, addr)

    def sendto_many(self, datagrams: Datagrams, addr: _Address | None = None) -> None:
        """Send many datagrams: all to ``addr`` or the peer, or ``(data, address)`` pairs.

        They are sent together: at once or, inside a callback that receives datagrams, when that
        callback has returned.
        """
        self._core.sendto_many(datagrams, addr)

    def get_write_buffer_size(self) -> int:
        """Return the size of the send backlog, in bytes of payload."""
        return self._core.buffered

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the low-water and high-water marks, in bytes."""
        return self._core.limits

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the sizes in bytes at which ``pause_writing`` and ``resume_writing`` are called."""
        self._core.set_limits(high, low)

    def _watch_for_room(self) -> None:
        if self._core.is_full:
            watch_for_room(self._loop, self._sock_fd, self._on_room)

    def _on_room(self) -> None:
        found_room = self._core.write_ready()
        if not self._core.is_full:
            return
        if not found_room:
            # An unconnected AF_UNIX socket is writable even if its peer's queue is full, and
            # nothing reports when there is room: retry after a while, without keeping the loop
            # busy.
            stop_watching_for_room(self._loop, self._sock_fd)
            self._loop.call_later(PAUSE, self._watch_for_room)
        elif self._stops_at_errors:
            stop_watching_for_room(self._loop, self._sock_fd)
            self._watch_for_room()

    # Steps that the core requests

    def _act(self, step: Step) -> None:
        """Take a step that the core requests. The core calls no other method of this class."""
        match step:
            case "watch":
                self._watch_for_room()
            case "unwatch":
                stop_watching_for_room(self._loop, self._sock_fd)
            case "pause_writing" | "resume_writing":
                self._tell(step)
            case "lose":
                self._loop.call_soon(self._call_connection_lost)
            case "deliver":
                # All callbacks run in one context, so they see each other's context variables.
                self._loop.call_soon(self._core.resume, context=self._context)
            case "tell_begun" | "tell_ended":
                if self._sessions is not None:
                    getattr(self._sessions, step)()
            case "tell_errors":
                self._loop.call_soon(self._core.resume_errors, context=self._context)

    def _tell(self, method: Signal) -> None:
        protocol: Any = self._protocol
        try:
            getattr(protocol, method)()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - as for all callbacks of the loop
            self._loop.call_exception_handler(
                {
                    "message": f"protocol.{method}() failed",
                    "exception": error,
                    "transport": self,
                    "protocol": protocol,
                }
            )

    # Closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Set a new protocol."""
        self._protocol: asyncio.BaseProtocol | None = protocol
        # Looked up on the type, not on the instance: some protocols have every attribute.
        self._core.set_protocol(protocol, hasattr(type(protocol), "datagrams_received"))

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the current protocol."""
        return self._protocol  # type: ignore[return-value]

    def is_closing(self) -> bool:
        """Return whether the transport is closing or closed."""
        return self._core.is_closing()

    def close(self) -> None:
        """Stop delivering, send what is left in the send backlog, and close.

        Then call ``connection_lost(None)``.
        """
        if self._core.close():
            self._read_watch.stop()
            self._core.flush()

    def abort(self) -> None:
        """Close at once and drop the send backlog."""
        if self._core.abort():
            self._read_watch.stop()
            self._act("lose")

    def _call_connection_lost(self) -> None:
        try:
            if self._protocol is not None:
                self._protocol.connection_lost(None)
        finally:
            self._close_sockets()
            self._core.unlink()
            self._protocol = None
            self._loop = None

    def _close_sockets(self) -> None:
        sock, self._sock = self._sock, None
        if self._restore is not None:
            with contextlib.suppress(OSError):
                self._core.restore_options()
            self._restore()
            self._restore = None
        if self._sessions is not None:
            with contextlib.suppress(OSError):
                self._sessions.close()
        self._read_watch.close()
        sock.close()
        sock._decref_socketios()
        if self._shown is not sock:
            self._shown.close()


def _name(ask: Any) -> Any:
    try:
        return ask()
    except OSError:
        return None
