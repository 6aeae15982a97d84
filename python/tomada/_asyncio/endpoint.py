"""The endpoint of :mod:`tomada.asyncio`: datagrams for tasks instead of callbacks."""

from __future__ import annotations

import asyncio
import errno
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from tomada._advice import advise_on_sending
from tomada._asyncio.context_managers import Closing
from tomada._asyncio.own_port import request_here
from tomada._asyncio.read_watch import WindowWatch
from tomada._asyncio.readiness import Readiness
from tomada._asyncio.separate_ports import MOST_IN_FLIGHT, SeparatePorts
from tomada._client.exchange import Exchange
from tomada._client.retry import Retry
from tomada._client.round_trip import RoundTrip
from tomada._peer_errors import PeerErrors, is_from_peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from socket import _Address

    from _typeshed import ReadableBuffer

    from tomada._asyncio.events import Events
    from tomada._asyncio.transport import Datagrams, DatagramTransport
    from tomada._core import Batch, Datagram, DatagramError, Socket, Stats

Item = TypeVar("Item")

# A task that receives without waiting lets other tasks run after LONGEST_RUN seconds. It checks the
# clock every LOOK datagrams.
LONGEST_RUN = 500e-6
LOOK = 16

# The minimum time that shutdown() leaves for closing, in seconds: sending the backlog takes an
# iteration of the loop.
LEAST_TO_CLOSE = 0.1


class Endpoint(Closing):
    """A datagram socket for tasks, created by :func:`tomada.asyncio.open_endpoint`.

    It has no queue of its own: datagrams wait in the socket's buffer until a task receives them. If
    the buffer is full, the kernel drops and counts them (``endpoint.stats().kernel_drops``).
    Cancelling a waiting task does not lose a datagram. Several tasks may receive at once; each
    datagram goes to one of them.

    If the endpoint has a peer (``remote_addr``), an ICMP error about an earlier datagram is raised
    once, as an :class:`OSError`, by the next method that receives or by :meth:`drain`.

    An endpoint without a fixed peer talks to many peers, and none of them can end it. Its methods
    do not raise errors about a single peer: a destination port of 0, an unreachable host or
    network, a datagram larger than the path's MTU, a refusal by a filter, the kernel or the
    endpoint's guard, or an ICMP message (with ``IP_RECVERR``). Such errors are counted in
    :meth:`stats` (``send_errors``, ``errors``), stored for :meth:`errors`, and logged at most once
    per second, as warnings of the logger ``tomada``.

    After :meth:`aclose`, which ``async with`` calls, all methods raise :class:`OSError` with
    ``EBADF``, including those that are waiting, and ``async for`` ends.
    """

    def __init__(self, transport: DatagramTransport, events: Events) -> None:
        loop = transport._loop
        self._transport = transport
        self._events = events
        self._core = transport._core
        self._socket: Socket = transport._sock
        # The transport does not read, so its watch is free. A window's watch must not last: the
        # task that it wakes receives later, and only then can the next window begin.
        watch = transport._read_watch
        self._readiness = Readiness(loop, watch, lasts=not isinstance(watch, WindowWatch))
        self._asking: Any = asyncio.Lock()
        self._round_trip = RoundTrip()
        self._ports: SeparatePorts | None = None
        self._is_receiving = True
        self._taken = 0
        self._rested = 0.0
        self._looked = 0.0
        self._sessions = transport._sessions
        if self._sessions is not None:
            self._sessions.ended = self._lose_session
        events.wake = self._readiness.wake
        self._core.raise_mistakes()
        if not transport._has_peer:
            events.peer_errors = PeerErrors()
            self._core.limit_backlog()

    _semaphore: Callable[[int], Any] = asyncio.Semaphore

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._transport!r}>"

    # Receiving

    async def recv(self) -> tuple[bytes, Any]:
        """Receive a datagram and its sender's address. Cancelling is safe."""
        return await self._receive(self._core.recvfrom)

    async def recv_many(self, max_datagrams: int = 64) -> list[tuple[bytes, Any]]:
        """Wait for one datagram and receive all that are queued, up to a maximum."""
        if self._socket._collects:
            await self._collect()
        return await self._receive(self._core.recv_many, max_datagrams)

    async def recv_datagram(self) -> Datagram:
        """Receive a datagram with metadata, like :meth:`tomada.socket.socket.recv_datagram`."""
        return await self._receive(self._core.recv_datagram)

    async def recv_batch(self, batch: Batch) -> int:
        """Receive into a batch and return the number of datagrams.

        Like :meth:`tomada.socket.socket.recv_batch`, this waits for one datagram, then receives all
        that are queued, up to the batch's number of slots. While it waits, the batch is empty.
        Cancelling does not lose a datagram.
        """
        if self._socket._collects:
            batch.clear()
            await self._collect()
        return await self._receive(self._core.recv_batch, batch)

    async def __aiter__(self) -> AsyncIterator[tuple[bytes, Any]]:
        """Receive datagrams, like :meth:`recv`, until the endpoint is closed or shuts down."""
        take = self._core.recvfrom
        try:
            while self._is_receiving and not self.is_closing():
                for _ in range(LOOK):
                    if not self._is_receiving:
                        return
                    try:
                        datagram = take()
                    except BlockingIOError:
                        datagram = None
                    except OSError as error:
                        self._pass_on(error)
                        datagram = None
                    yield await self.recv() if datagram is None else datagram
                await self._look_around()
        except OSError:
            if self._is_receiving and not self.is_closing():
                raise

    async def _collect(self) -> None:
        """Wait while the socket collects datagrams, unless receiving has ended."""
        if self._is_receiving and not self._has_ended(is_readable=False):
            await self._readiness.wait()

    async def _receive(self, take: Callable[..., Item], *args: Any, is_reply: bool = False) -> Item:
        self._taken += 1
        if self._taken % LOOK == 0:
            await self._look_around()
        has_waited = False
        while True:
            if self._events.errors or self._core.is_closing():
                self._events.raise_first()
                self._check_open()
            self._check_receiving(is_reply=is_reply)
            try:
                taken = take(*args)
            except BlockingIOError:
                if self._has_ended(is_readable=has_waited):
                    continue
            except OSError as error:
                self._pass_on(error)
                await self._rest()
                continue
            else:
                if self._readiness.waiters and self._socket.pending:
                    self._readiness.wake()  # the kernel does not report datagrams in the backlog
                return taken
            await self._readiness.wait()
            self._rested = time.monotonic()
            has_waited = True

    def _has_ended(self, *, is_readable: bool) -> bool:
        """Handle events that are not datagrams; return whether an exception is due."""
        if self._sessions is not None:
            self._sessions.tell_ended()
        if is_readable:  # but there is no datagram: the error queue has entries
            self._core.read_errors()
        return bool(self._events.errors) or self._core.is_closing()

    def _check_receiving(self, *, is_reply: bool) -> None:
        if not (self._is_receiving or is_reply):
            raise OSError(errno.ESHUTDOWN, "the endpoint has stopped receiving")

    def _pass_on(self, error: OSError) -> None:
        """Raise an error from a receive, unless it is about one of many peers."""
        if not is_from_peer(error):
            raise error
        if self._core.read_errors():
            return  # it was in the error queue, which also says which datagram it is about
        if self._events.peer_errors is None:
            raise error
        self._events.error_received(error)

    async def _look_around(self) -> None:
        """At intervals, read the error queue, which takes up receive buffer, and rest."""
        now = time.monotonic()
        if now - self._looked >= LONGEST_RUN:
            self._looked = now
            self._core.read_errors()
        if now - self._rested >= LONGEST_RUN:
            await self._rest()

    async def _rest(self) -> None:
        """Let other tasks run, if this one has run for long enough."""
        now = time.monotonic()
        if now - self._rested >= LONGEST_RUN:
            self._rested = now
            await self._pause()

    @staticmethod
    async def _pause() -> None:
        """Let other tasks run."""
        await asyncio.sleep(0)

    @staticmethod
    def _limit(seconds: float) -> Any:
        """Return a context manager that ends its block with :class:`TimeoutError`."""
        return asyncio.timeout(seconds)

    # Sending

    def send(self, data: ReadableBuffer, addr: _Address | None = None) -> None:
        """Send a datagram to ``addr``, or to the peer of a connected endpoint.

        It is sent at once if it is the first in this iteration of the loop; further datagrams are
        sent together at the end of the iteration. A loop that is not an :class:`EventLoop` does not
        count its iterations: there, a datagram is sent at once if none was sent in the last 20 µs.
        When the socket's buffer is full, datagrams wait, in order.

        With a peer, nothing limits the number of waiting datagrams: call :meth:`drain` regularly.
        Without one, a datagram waits for at most one second, and all waiting datagrams together
        take up at most 1 MiB; each counts as its payload plus 256 bytes. Beyond that, the oldest
        are dropped, because the newest are the ones whose peers are still waiting. Dropped
        datagrams are counted in ``stats().send_errors``, stored for :meth:`errors` (only the last
        16 if many are dropped together) and logged. With ``AF_UNIX``, a datagram for a peer whose
        queue is full does not delay those for other peers. Once the queues of 64 peers are full, a
        datagram for another such peer is dropped at once.

        A reply is sent from the local address that received the peer's request.

        The caller's own mistakes raise an exception: no address and no peer, a datagram that is too
        long for IP (more than 65,507 bytes over IPv4), a host name that does not resolve, a wrong
        type. If the kernel refuses a datagram that is sent at once, an endpoint with a peer raises
        that error too. An endpoint without a peer does not: see :meth:`errors`.

        :raises OSError: The datagram cannot be sent; the message names the destination and says
            what to do.
        :raises TypeError: There is no address, or an argument has the wrong type.
        :raises ValueError: The endpoint has a peer, and ``addr`` is another address.
        """
        self._check_open()
        heard = self._events.heard
        try:
            self._transport.sendto(data, addr)
            if self._events.heard != heard:
                self._events.raise_own()
        except OSError as error:
            self._explain(error, addr)
            raise

    def send_many(self, datagrams: Datagrams, addr: _Address | None = None) -> None:
        """Send many datagrams: all to ``addr`` or the peer, or ``(data, address)`` pairs.

        They are sent together, immediately. If the socket's buffer fills up, the rest wait, in
        order.

        :raises OSError: A datagram cannot be sent, as in :meth:`send`. The others have been sent or
            are waiting.
        """
        self._check_open()
        heard = self._events.heard
        try:
            self._transport.sendto_many(datagrams, addr)
            if self._events.heard != heard:
                self._events.raise_own()
        except OSError as error:
            self._explain(error, addr)
            raise

    def _explain(self, error: OSError, addr: _Address | None = None) -> None:
        advise_on_sending(error, self.get_extra_info("peername") if addr is None else addr)

    async def drain(self) -> None:
        """Wait until the send backlog is short.

        If the backlog holds more than 64 KiB of payload, this waits until it holds at most 16 KiB.
        Otherwise, this returns at once, except that it occasionally lets other tasks run. On an
        endpoint without a peer, it also returns when datagrams were dropped because they had waited
        too long. If the endpoint closes, this returns. Cancelling is safe: the datagrams are still
        sent.

        :raises OSError: On an endpoint with a peer, a datagram that had to wait could not be sent.
        """
        self._events.raise_first()
        self._check_open()
        await self._rest()
        while self._events.is_paused:
            await self._events.change()
            self._events.raise_first()

    # Requests

    async def request(
        self,
        data: ReadableBuffer,
        *,
        timeout: float = 1.0,
        retries: int = 3,
        match: Callable[[Any, bytes], bool] | None = None,
        retry_refused: bool = True,
    ) -> bytes:
        """Send a request to the peer and return its reply.

        The endpoint must have a peer (``remote_addr``).

        Without a ``match``, only the port identifies the request that a reply answers, so each
        request is sent from a separate port instead of the endpoint's. That port has the endpoint's
        local address and guard, and the socket options that affect how a datagram travels (device,
        mark, priority, TOS, TTL). :class:`tomada.Client` documents when a port is reused. Up to 64
        tasks may make such requests at once, while others receive. Further requests wait for a free
        port; their timeouts start after that. With ``dtls``, each of these ports has its own
        session.

        With a ``match``, the request is sent from the endpoint's port. Use this if a firewall or
        the peer expects that port. These requests run one at a time, and each one's timeout starts
        when its turn comes. No other task should receive meanwhile, because it would get the reply.
        Datagrams that ``match`` rejects are dropped, and so are those that arrived before the
        request was sent.

        Cancelling is safe: a late reply to a cancelled request is not returned to another one,
        unless that one's ``match`` accepts it.

        The waits between attempts follow the rules of :class:`tomada.Client`, based on the
        round-trip time that this endpoint has measured.

        :param timeout: The deadline for the whole request, in seconds.
        :param retries: The maximum number of retransmissions within the timeout.
        :param match: A function that takes a request and a datagram, in this order, and returns
            whether the datagram is the reply. If it raises an exception, the call raises it too.
        :param retry_refused: Whether to retry if no program is listening on the peer's port, or to
            raise :class:`ConnectionRefusedError` at once. Other ICMP messages never end a request.
        :raises ValueError: The endpoint has no peer.
        :raises TimeoutError: No reply arrived; the message says after how many attempts, and
            ``__cause__`` is the last error that an ICMP message reported.
        :raises OSError: ``EBADF``: the endpoint was closed meanwhile; ``EADDRNOTAVAIL``: every free
            port may still get a late reply; ``ENETUNREACH`` and others: this machine cannot send
            the request.
        """
        peer = self.get_extra_info("peername")
        if peer is None:
            raise ValueError("request() needs an endpoint with a peer: open it with a remote_addr")
        if match is not None and not callable(match):
            raise TypeError(f"match must be a function of a request and a reply, not {match!r}")
        self._check_open()
        retry = Retry(timeout, retries, retry_refused=bool(retry_refused))
        try:
            if match is None:
                return await self._request_apart(data, retry, peer)
            async with self._asking:
                started = time.monotonic()
                exchange = Exchange(retry, self._round_trip, started, partial(match, data))
                return await request_here(self, data, exchange)
        except OSError as error:
            self._explain(error)
            raise

    async def _request_apart(self, data: ReadableBuffer, retry: Retry, peer: Any) -> bytes:
        """Send a request from a separate port."""
        if self._ports is None:
            loop = self._transport._loop
            turns = self._semaphore(MOST_IN_FLIGHT)
            secured = None if self._sessions is None else self._sessions.secured
            self._ports = SeparatePorts(loop, self._socket, peer, self._round_trip, turns, secured)
        ports = self._ports
        async with ports.turns:
            self._check_open()
            return await ports.request(data, retry)

    # Errors, state and closing

    def errors(self) -> list[DatagramError]:
        """Return the errors about individual peers since the last call, oldest first.

        This is for endpoints without a peer; endpoints with one raise errors instead, and their
        list is empty. Each item contains the peer, the reason (``errno``), and the beginning of the
        datagram. Its ``origin`` is 1 if the datagram was not sent because the kernel, a filter or
        the guard refused it. Otherwise, it is the origin of an ICMP message, which the kernel
        reports if ``IP_RECVERR`` is set. At most 256 errors are stored; :meth:`stats` counts all of
        them. Use this instead of ``socket.errors()``, which does not return those that the endpoint
        has already read.
        """
        errors = self._events.peer_errors
        if errors is None:
            return []
        if not self.is_closing():
            self._core.read_all_errors()
        return errors.take()

    @property
    def socket(self) -> Socket:
        """The socket, for its options, groups, :meth:`~tomada.socket.socket.errors` and more."""
        return self._socket

    def stats(self) -> Stats:
        """Return the socket's :class:`tomada.Stats`."""
        return self._socket.stats()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return information about the transport: ``"sockname"``, ``"peername"`` and more."""
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """Return whether the endpoint is closing or closed."""
        return self._core.is_closing()

    def stop_receiving(self) -> None:
        """Stop receiving datagrams; sending and :meth:`request` still work.

        ``async for`` ends, and other methods that receive raise :class:`OSError` with
        ``ESHUTDOWN``, including those that are waiting. Datagrams in the socket's buffer stay
        there. Calling it again does nothing.
        """
        self._is_receiving = False
        self._readiness.stop()
        while self._readiness.wake():
            pass

    async def shutdown(
        self, timeout: float | None = None, tasks: Iterable[asyncio.Future[Any]] = ()
    ) -> int:
        """Close the endpoint in an orderly way: let tasks finish, and send their replies.

        This stops receiving, as :meth:`stop_receiving` does, waits for the tasks, sends the send
        backlog, and closes. It cancels the tasks that have not finished in time and waits until
        they have ended, so it takes longer than ``timeout`` if a task delays its cancellation. It
        does not raise the exception of a task that failed. If this call is cancelled, the endpoint
        stays open but no longer receives.

        :param timeout: The time limit for the tasks and the send backlog, in seconds; no limit by
            default.
        :param tasks: The tasks to wait for, such as a set from which each task removes itself.
            Tasks that are added to it in the meantime are also waited for.
        :return: The number of tasks that were cancelled.
        """
        loop = asyncio.get_running_loop()
        until = math.inf if timeout is None else loop.time() + timeout
        if iter(tasks) is tasks:
            tasks = list(tasks)  # an iterator can be read only once
        for task in tasks:
            if not isinstance(task, asyncio.Future):
                raise TypeError(f"tasks must be made by asyncio.create_task, unlike {task!r}")
        self.stop_receiving()
        own = asyncio.current_task()
        cancelled: set[asyncio.Future[Any]] = set()
        while pending := {task for task in tasks if task is not own and not task.done()}:
            left = until - loop.time()
            if left <= 0:
                for task in pending - cancelled:
                    task.cancel()
                cancelled |= pending
            await asyncio.wait(pending, timeout=left if 0 < left < math.inf else None)
        try:
            async with asyncio.timeout(
                None if timeout is None else max(until - loop.time(), LEAST_TO_CLOSE)
            ):
                await self.aclose()
        except TimeoutError:
            self.abort()
        return len(cancelled)

    async def aclose(self) -> None:
        """End all waits, send what is left in the send backlog, and close the socket.

        A second call waits for the first. If it is cancelled, closing continues in the background.
        """
        if not self.is_closing():
            self._transport.close()
            self._end_waits()
        while not self._events.is_lost:
            await self._events.change()

    def abort(self) -> None:
        """Close at once and drop the send backlog."""
        self._transport.abort()
        self._end_waits()

    def _lose_session(self, error: OSError) -> None:
        """Close, because the only session has ended."""
        self._events.errors.append(error)
        self._transport.close()
        self._end_waits()

    def _end_waits(self) -> None:
        if self._ports is not None:
            self._ports.close()
        self._readiness.stop()
        while self._readiness.wake():
            pass

    def _check_open(self) -> None:
        if self._core.is_closing():
            raise OSError(errno.EBADF, "the endpoint is closed")
