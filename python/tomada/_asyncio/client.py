"""The client of :mod:`tomada.asyncio`: requests from many tasks to one server."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket as _std
import struct
import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, Self, overload

from tomada._address import format_address
from tomada._advice import advise_on_sending
from tomada._asyncio.context_managers import AsyncContextManager
from tomada._asyncio.many import Many
from tomada._asyncio.opening import look_up
from tomada._asyncio.requests import TaskRequests
from tomada._client.identity import Identity
from tomada._client.one_socket import Shared
from tomada._client.pace import Pace
from tomada._client.pool import Pool, ask_for, choose
from tomada._client.retry import Retry
from tomada._reports import LogLimiter, logger
from tomada._socket_options import SocketOptions, secured_by

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable
    from socket import _Address

    from _typeshed import ReadableBuffer

    from tomada._client.connection import Connection
    from tomada._core import DtlsContext
    from tomada._socket_options import Secured

# The defaults of max_in_flight: over one shared socket, and with a socket for each request.
IN_FLIGHT = 1024
SOCKETS_IN_FLIGHT = 64

# The requested receive buffer of a socket that all requests share, in bytes. The kernel caps it at
# net.core.rmem_max.
BUFFER = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ClientStats:
    """The counters of a :class:`Client` at one moment.

    ``requests`` is the sum of ``replies``, ``timeouts``, ``errors``, ``cancelled``, ``in_flight``
    and ``waiting``.
    """

    #: Requests that were accepted. Requests are not accepted if ``key`` raises an exception or
    #: returns the key of another request in flight; those waiting for the client to open do not
    #: count yet.
    requests: int
    #: Requests that were answered.
    replies: int
    #: Requests that were not answered in time.
    timeouts: int
    #: Requests that ended with another error, for example because the client was closed.
    errors: int
    #: Requests whose tasks were cancelled.
    cancelled: int
    #: Requests that were sent, or are being sent.
    in_flight: int
    #: Requests that have not been sent yet, because ``max_in_flight`` requests are already in
    #: flight, the client is pacing itself, or the current iteration of the loop has not ended.
    waiting: int
    #: Datagrams that were sent again because no reply had arrived.
    retransmissions: int
    #: Datagrams from the server that do not answer a request in flight: late, repeated, or with a
    #: key that no request has. Always 0 unless the requests share a socket.
    unexpected: int
    #: Datagrams from the server for which ``match`` or ``key`` raised an exception.
    function_errors: int
    #: Datagrams that the kernel has dropped because the client's receive buffer was full. Always 0
    #: unless the requests share a socket.
    kernel_drops: int
    #: The average round-trip time in seconds, or 0 without a measurement.
    round_trip: float


class _Mistakes:
    """Counts and logs exceptions from ``match`` and ``key``, which must not end a request."""

    def __init__(self, address: _Address) -> None:
        self._address = address
        self._limiter = LogLimiter()
        self.count = 0

    def note(self, error: Exception) -> None:
        self.count += 1
        suffix = self._limiter.suffix("function")
        if suffix is not None:
            where = format_address(self._address)
            logger.warning(
                "a datagram from %s was dropped: match or key raised %r%s", where, error, suffix
            )


class Client(AsyncContextManager):
    """Sends requests from any number of tasks to one server and returns the replies.

    ::

        async with tomada.asyncio.Client(("127.0.0.1", 1234), key=lambda data: data[:2]) as client:
            replies = await asyncio.gather(*(client.request(data) for data in questions))

    It runs on any event loop that has ``add_reader``. Its waits, and the reuse of ports, follow the
    rules of :class:`tomada.Client`. Those rules also say which late or duplicate replies a client
    without a ``key`` or ``match`` can mistake for the reply to another request. One rule differs:
    if ``key`` or ``match`` raises an exception for a datagram from the server, this client drops
    the datagram, counts it (``stats().function_errors``), logs the exception, and keeps waiting,
    whereas in :class:`tomada.Client`, the call raises that exception.

    * With a ``key``, all requests share one socket, and the client immediately finds the request
      that a reply belongs to. Do not reuse a key while a late reply with that key may still arrive:
      use a counter. Random numbers collide unless they are long.
    * With a ``match``, all requests share one socket, and the client calls ``match`` for each
      request in flight until one fits. This is slow with hundreds of requests in flight.
    * With neither, each request in flight has its own port, from a pool.

    Requests and retransmissions from the same iteration of the loop are sent together. At first,
    before any reply, the client sends only as many requests as fit into a receive buffer of the
    default size, 208 KiB: about 100 short ones. It raises that number as long as the round-trip
    time shows that the server's queue is short.

    Cancelling a task that waits for a reply does not affect other requests. A client belongs to the
    event loop of its first request. Close it with :meth:`aclose`, or use ``async with``.

    :param address: The server's address: ``(host, port)``, or an ``AF_UNIX`` path or abstract name.
        A host name is resolved once, on entering ``async with`` or by the first request.
    :param timeout: The deadline for the whole request, in seconds. The time starts when the client
        sends the request or queues it behind others, at the latest at the end of the loop's
        iteration.
    :param retries: The maximum number of retransmissions within the timeout.
    :param backoff: The ratio of each later wait to the one before it.
    :param jitter: The maximum random extension of a wait, as a fraction of it.
    :param match: A function that says whether a datagram answers a request: ``match(request, reply)
        -> bool``.
    :param key: A function that returns what a request and its reply have in common: ``key(data) ->
        hashable``. With a ``key`` or ``match``, all requests come from one port, so a server that
        steers by ``"hash"`` (the default) handles them in one of its workers.
    :param max_in_flight: The maximum number of requests in flight; 1,024 by default, or 64 without
        a ``key`` or ``match``. Further requests wait their turn. The wait counts towards the
        timeout, and the :class:`TimeoutError` says how long a request has waited.
    :param retry_refused: Whether to retry if there is no server, or to raise
        :class:`ConnectionRefusedError` at once.
    :param family: ``AF_INET6`` or ``AF_INET``, for a name that has both kinds of addresses.
    :param dtls: A :class:`tomada.dtls.Context` of ``PROTOCOL_DTLS_CLIENT``: requests and replies
        are then encrypted. Each socket has its own session, and the first request over it waits for
        the handshake. If a session ends, or all requests over it time out, the next request opens
        another one.
    :param server_hostname: The host name or address that the server's certificate must match. By
        default, the host of ``address``.
    :raises TypeError: An argument has the wrong type.
    :raises ValueError: An argument is out of range, or both ``match`` and ``key`` are given.
    """

    _advice = "a client needs async with: write async with Client(...) as client"

    def __init__(
        self,
        address: _Address,
        *,
        timeout: float = 1.0,
        retries: int = 3,
        backoff: float = 2.0,
        jitter: float = 0.25,
        match: Callable[[bytes, bytes], bool] | None = None,
        key: Callable[[bytes], Hashable] | None = None,
        max_in_flight: int | None = None,
        retry_refused: bool = True,
        family: int = 0,
        dtls: DtlsContext | None = None,
        server_hostname: str | None = None,
    ) -> None:
        self._retry = Retry(
            timeout, retries, backoff=backoff, jitter=jitter, retry_refused=bool(retry_refused)
        )
        self._identity = Identity(match, key)
        if max_in_flight is None:
            max_in_flight = IN_FLIGHT if self._identity.tells_apart else SOCKETS_IN_FLIGHT
        elif not isinstance(max_in_flight, int):
            raise TypeError(f"max_in_flight must be an int, not {max_in_flight!r}")
        elif max_in_flight < 1:
            raise ValueError(f"max_in_flight must be 1 or more, not {max_in_flight}")
        self._most = max_in_flight
        self._secured = secured_by(dtls, server_hostname, address)
        self._address = address
        self._question = ask_for(address, family)
        if self._question is None:
            self._family: int = _std.AF_UNIX
        else:
            with contextlib.suppress(_std.gaierror):  # a host name, to be resolved on first use
                found = _std.getaddrinfo(*self._question, flags=_std.AI_NUMERICHOST)
                self._family, self._address = choose(found, address)
                self._question = None
        self._pool: Pool | None = None
        self._requests: TaskRequests | None = None
        self._opening = asyncio.Lock()
        self._is_closed = False
        self._connection: Connection | None = None
        self._mistakes = _Mistakes(address)

    @property
    def address(self) -> _Address:
        """The server's address, resolved after the first request."""
        return self._address

    async def request(self, data: ReadableBuffer) -> bytes:
        """Send a request and return the reply.

        Cancelling is safe: a late reply to a cancelled request is not returned to another one,
        unless that one has the same key or its ``match`` accepts the reply.

        :raises TimeoutError: No reply arrived in time, or the request was not even sent because
            others were in flight; the message says which. ``__cause__`` is the last error that an
            ICMP message reported, that ended a handshake, or that ``match`` or ``key`` raised for a
            datagram.
        :raises ConnectionRefusedError: There is no server, and ``retry_refused`` is false; with
            ``AF_UNIX``, it may be a :class:`FileNotFoundError`.
        :raises tomada.dtls.DTLSError: The handshake failed, or the server has ended the session
            after each attempt (:exc:`tomada.dtls.DTLSZeroReturnError`).
        :raises ValueError: Another request in flight has the same key. The request is not counted.
        :raises Exception: ``key`` raised it for this request, which is not sent and not counted. An
            exception that ``key`` or ``match`` raises for a datagram from the server does not end
            the request.
        :raises OSError: ``EBADF``: the client was closed meanwhile; ``EMSGSIZE``: the request is
            longer than a datagram can be; ``EADDRNOTAVAIL``: every free port may still get a late
            reply; or another error that prevents this machine from sending, such as
            ``ENETUNREACH``.
        :raises socket.gaierror: The host has no address.
        """
        requests = self._requests
        if (
            requests is None
            or requests.is_closed
            or requests.loop is not asyncio.get_running_loop()
        ):
            requests = await self._open()
        try:
            return await requests.request(data)
        except OSError as error:
            advise_on_sending(error, self._address)
            raise

    @overload
    async def request_many(
        self,
        requests: Iterable[ReadableBuffer],
        window: int | None = None,
        *,
        errors: Literal["raise"] = "raise",
    ) -> list[bytes]: ...
    @overload
    async def request_many(
        self,
        requests: Iterable[ReadableBuffer],
        window: int | None = None,
        *,
        errors: Literal["return"],
    ) -> list[bytes | OSError]: ...
    async def request_many(
        self,
        requests: Iterable[ReadableBuffer],
        window: int | None = None,
        *,
        errors: Literal["raise", "return"] = "raise",
    ) -> list[bytes] | list[bytes | OSError]:
        """Send many requests, several at once; return the replies in the order of the requests.

        This takes less time than one task per request. Cancelling the call cancels the requests in
        flight.

        :param requests: The requests, as for :meth:`request`. They are read as the window advances.
        :param window: The maximum number of these requests in flight; ``max_in_flight`` by default.
        :param errors: With ``"raise"``, the first request that fails ends the call with its
            exception, whose ``index`` says which request it was. With ``"return"``, an
            :class:`OSError` is returned in place of the reply, and the other requests continue.
            Other exceptions, such as that of a key that is already in flight, end the call.
        :raises TimeoutError: A request was not answered. Other exceptions are as in
            :meth:`request`.
        """
        if window is None:
            window = self._most
        elif not isinstance(window, int):
            raise TypeError(f"window must be an int, not {window!r}")
        elif window < 1:
            raise ValueError(f"window must be 1 or more, not {window}")
        if errors not in {"raise", "return"}:
            raise ValueError(f"errors must be 'raise' or 'return', not {errors!r}")
        many = Many(await self._open(), requests, window, is_raising=errors == "raise")
        try:
            return await many.run()
        except OSError as error:
            advise_on_sending(error, self._address)
            raise

    def stats(self) -> ClientStats:
        """Return the client's counters. A closed client returns its final counters."""
        requests = self._requests
        if requests is None:
            return ClientStats(**dict.fromkeys(ClientStats.__dataclass_fields__, 0))
        in_flight = requests.in_flight
        drops = 0
        if self._connection is not None:
            drops = self._connection.stats().kernel_drops
        ended = requests.replies + requests.timeouts + requests.errors + requests.cancelled
        return ClientStats(
            requests=ended + requests.under_way,
            replies=requests.replies,
            timeouts=requests.timeouts,
            errors=requests.errors,
            cancelled=requests.cancelled,
            in_flight=len(in_flight.requests),
            waiting=requests.under_way - len(in_flight.requests),
            retransmissions=in_flight.retransmissions,
            unexpected=in_flight.unexpected,
            function_errors=self._mistakes.count,
            kernel_drops=drops,
            round_trip=in_flight.pool.round_trip.smoothed,
        )

    async def aclose(self) -> None:
        """Close the client: requests in flight raise :class:`OSError`.

        Closing again does nothing.
        """
        self._close()

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._close()

    def __del__(self) -> None:
        requests: TaskRequests | None = getattr(self, "_requests", None)
        if requests is not None and not self._is_closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self._close()

    def __repr__(self) -> str:
        state = " closed" if self._is_closed else ""
        return f"<tomada.asyncio.Client of {format_address(self._address)}{state}>"

    async def _open(self) -> TaskRequests:
        """Open the sockets, unless they are open."""
        loop = asyncio.get_running_loop()
        async with self._opening:
            if self._is_closed:
                raise OSError(errno.EBADF, "the client is closed")
            if self._requests is None:
                await self._resolve(loop)
                if self._is_closed:
                    raise OSError(errno.EBADF, "the client is closed")
                self._requests = self._start(loop)
        if self._requests.loop is not loop:
            raise RuntimeError(f"{self!r} is in use on another event loop")
        return self._requests

    async def _resolve(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._question is not None:
            host, port, family, kind = self._question
            found = await look_up(loop, host, port, family=family, type=kind)
            self._family, self._address = choose(found, self._address)
            self._question = None

    def _start(self, loop: asyncio.AbstractEventLoop) -> TaskRequests:
        tells_apart = self._identity.tells_apart
        pool = Pool(
            self._family,
            self._address,
            self._retry,
            tells_apart=tells_apart,
            prepare=partial(_prepare, self._secured, is_shared=tells_apart),
            is_secured=self._secured is not None,
        )
        try:
            in_flight = self._identity.in_flight(pool, self._retry, self._address, lasts=True)
            pace = Pace()
            if isinstance(in_flight, Shared):
                self._connection = connection = in_flight.connection
                in_flight.mistaken = self._mistakes.note
                pace = Pace(connection.getsockopt(_std.SOL_SOCKET, _std.SO_RCVBUF))
            requests = TaskRequests(loop, in_flight, self._retry, pace, self._most)
        except BaseException:
            pool.close()
            raise
        self._pool = pool
        return requests

    def _close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if self._requests is not None:
                self._requests.close(OSError(errno.EBADF, "the client is closed"))
        finally:
            if self._pool is not None:
                self._pool.close()


def _prepare(secured: Secured | None, connection: Connection, *, is_shared: bool) -> None:
    SocketOptions(gro=False).apply(connection)
    connection.dtls = secured
    if is_shared:
        # Passed as bytes: with an int, the socket warns if the kernel grants less.
        connection.setsockopt(_std.SOL_SOCKET, _std.SO_RCVBUF, struct.pack("i", BUFFER))
