"""A client that asks a server over datagrams, and asks again when the network loses one."""

from __future__ import annotations

import errno
import warnings
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from tomada._address import format_address
from tomada._advice import OF_SENDING, advise
from tomada._client.exchange import Exchange
from tomada._client.pipeline import Matched, Separate
from tomada._client.pool import (
    MOST_REPORTS,
    Connection,
    Pool,
    RefusedError,
    has_no_room,
    resolve,
)
from tomada._client.retry import LONGEST_TIMEOUT, Retry
from tomada._peer_errors import is_from_peer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from socket import _Address

    from _typeshed import ReadableBuffer

__all__ = ["Client"]


class Client:
    """Sends requests to one server, each a datagram, and returns the replies.

    ::

        with tomada.Client(("127.0.0.1", 1234), timeout=0.5, retries=3) as client:
            reply = client.request(b"ping")

    The client retransmits a request with exponential backoff until its timeout. So the server may
    get a request twice; this matters only if requests have side effects.

    The client returns the server's answer to this request and nothing else: it drops datagrams of
    strangers and late replies. Each request in flight has a port of its own, which says whose reply
    a datagram is. A port over which a request was sent twice, was not answered or was cancelled is
    not used again. Every other one rests while 31 others are used or for the timeout, in case the
    network duplicates a datagram. During the first 256 requests, and for good once a duplicate has
    come, it also rests for at least ``4 * (SRTT + 4 * RTTVAR)``. A ``match`` tells replies apart
    without that, over one port.

    **Waits.** The first wait comes from the round trip, measured by the rules of RFC 6298: ``SRTT +
    max(50 ms, 4 * RTTVAR)``. Until a reply was measured it is an eighth of the timeout, with the
    default arguments, and at most 1 s. After a request that had to be sent again it is twice as
    long, up to half of the timeout, until a reply to a request that was sent once. The later waits
    divide the rest of the timeout in proportion to the backoff: a request with the default
    arguments is sent at 0, 125, 375 and 875 ms when nothing is known, and at about 0, 50, 321 and
    864 ms to a near server. A retransmission that could not be answered in time is not sent.

    Any number of threads may use a client at once. A child process after ``fork`` may too: it gets
    sockets of its own. Close the client at the end, or use it in a ``with`` statement.

    :param address: The server's: ``(host, port)``, or a path or abstract name of ``AF_UNIX``. A
        name is resolved once, now, and to IPv4 where it can be.
    :param timeout: The deadline of a whole request, in seconds.
    :param retries: How often a request is sent again within the timeout, at the most.
    :param backoff: How many times longer each wait is than the one before it, after the first.
    :param jitter: By up to which share of a wait it is longer at random, so that clients which
        failed together do not come back together.
    :param match: Says whether a datagram answers a request: ``match(request, reply) -> bool``. It
        may be called often. With it, one socket serves for all requests, whatever happens, and
        :meth:`request_many` is several times faster.
    :param retry_refused: Whether to go on when there is no server (it may be about to start), or to
        raise :class:`ConnectionRefusedError` at once. Other ICMP messages never end a request.
    :param family: ``AF_INET6`` or ``AF_INET``, for a name that has addresses of both.
    :param spin: How long a wait stays awake before it sleeps, in seconds; see
        :attr:`tomada.socket.socket.spin`.
    :raises socket.gaierror: The host has no address.
    :raises TypeError: An argument is of a wrong type.
    :raises ValueError: An argument is out of range.
    """

    def __init__(  # noqa: PLR0913 - what can be said about a request
        self,
        address: _Address,
        timeout: float = 1.0,
        retries: int = 3,
        *,
        backoff: float = 2.0,
        jitter: float = 0.25,
        match: Callable[[Any, bytes], bool] | None = None,
        retry_refused: bool = True,
        family: int = 0,
        spin: float = 0.0,
    ) -> None:
        self._retry = Retry(
            timeout, retries, backoff=backoff, jitter=jitter, retry_refused=bool(retry_refused)
        )
        if match is not None and not callable(match):
            raise TypeError(f"match must be a function of a request and a reply, not {match!r}")
        if not isinstance(spin, int | float):
            raise TypeError(f"spin must be a number of seconds, not {spin!r}")
        if not 0 <= spin <= LONGEST_TIMEOUT:
            wanted = f"a number of seconds, 0 or more, up to {LONGEST_TIMEOUT:,}"
            raise ValueError(f"spin must be {wanted}, not {spin!r}")
        self._match = match
        found, self._address = resolve(address, family)
        self._pool = Pool(
            found,
            self._address,
            self._retry,
            tells_apart=match is not None,
            prepare=partial(_set_spin, spin=spin),
        )

    @property
    def address(self) -> _Address:
        """The server's address, after its name was resolved."""
        return self._address

    def request(self, data: ReadableBuffer) -> bytes:  # noqa: C901 - most requests' way, in one piece
        """Send a request, and return the reply.

        It ends with an :class:`OSError` when another thread closes the client.

        :raises TimeoutError: No reply came; the text says after how many attempts. ``__cause__``
            has the last error that an ICMP message brought, such as a
            :class:`ConnectionRefusedError` where there was no server.
        :raises ConnectionRefusedError: There is no server, and ``retry_refused`` is false; with
            ``AF_UNIX`` it may be a :class:`FileNotFoundError`.
        :raises OSError: ``EMSGSIZE``, where the request is longer than a datagram can be; why this
            machine cannot send it, such as ``ENETUNREACH``; what else a socket raises.
        """
        started = monotonic()
        pool, match = self._pool, self._match
        idle = pool.idle
        try:
            connection = idle.popleft()
        except IndexError:
            return self._insist(data, started, None)
        if (pool.watched or len(idle) < pool.few) and not pool.admits(connection, started):
            return self._insist(data, started, None)
        # Most requests are answered, and this is their way: as little as can be between them and
        # the kernel. An idle connection has the timeout of a first attempt. It hears no strangers:
        # what came before it was connected is thrown away with what is late.
        refusal = None
        try:
            if connection.wait != pool.wait:
                connection.wait = pool.wait
                connection.settimeout(pool.wait)
            reply = connection._exchange(data)  # noqa: SLF001 - made for this
        except TimeoutError:
            pass
        except OSError as error:
            if not is_from_peer(error):
                pool.retire(connection)
                self._explain(error)
                raise
            refusal = error
        except BaseException:
            pool.retire(connection)
            raise
        else:
            if reply is None:
                pool.retire(connection)
                return self._insist(data, started, None)
            try:
                is_answer = match is None or match(data, reply)
            except BaseException:
                pool.put(connection)
                raise
            if is_answer:
                now = monotonic()
                if now >= pool.sample_due:
                    pool.sample(now - started, now)
                connection.used_at = now
                idle.append(connection)
                return reply
        return self._insist(data, started, connection, refusal)

    def _insist(
        self,
        data: ReadableBuffer,
        started: float,
        connection: Connection | None,
        refusal: OSError | None = None,
    ) -> bytes:
        """Make all attempts of a request or, with the connection that it was sent on, the rest."""
        pool, match = self._opened(), self._match
        exchange = Exchange(
            self._retry,
            pool.round_trip,
            started,
            None if match is None else partial(match, data),
        )
        is_sent = connection is not None
        if connection is None:
            connection = self._take()
        try:
            # The first attempt began with the request, whatever has taken time since.
            exchange.attempt(started)
            if refusal is not None:
                exchange.refuse(refusal)
            while True:
                if not is_sent:
                    self._ask(connection, data, exchange)
                is_sent = False
                reply = self._answer(connection, exchange)
                if reply is not None:
                    exchange.complete(monotonic())
                    return reply
                if not exchange.attempt(monotonic()):
                    raise exchange.timed_out(self._address, monotonic())
        except OSError as error:
            self._explain(error)
            raise
        finally:
            if exchange.may_reuse_port:
                pool.put(connection)
            else:
                pool.retire(connection)

    def _take(self) -> Connection:
        try:
            return self._pool.take()
        except OSError as error:
            self._explain(error)
            raise

    @staticmethod
    def _ask(connection: Connection, data: ReadableBuffer, exchange: Exchange) -> None:
        try:
            connection.ask(data, exchange.due)
        except RefusedError as refused:
            exchange.refuse(refused.args[0])
        except OSError as error:
            if not has_no_room(error):
                raise
            # As good as lost on the way.

    @staticmethod
    def _answer(connection: Connection, exchange: Exchange) -> bytes | None:
        # After a refusal the server may be up again at the next attempt, and an ICMP message may
        # be forged. Until then, an answer to the one before is as welcome.
        late = 0
        while late < MOST_REPORTS:
            try:
                return connection.answer(exchange.due, exchange.accepts)
            except RefusedError as refused:
                exchange.refuse(refused.args[0])
                late += exchange.due <= monotonic()
        return None

    @overload
    def request_many(
        self,
        requests: Iterable[ReadableBuffer],
        window: int = 32,
        *,
        errors: Literal["raise"] = "raise",
    ) -> list[bytes]: ...
    @overload
    def request_many(
        self, requests: Iterable[ReadableBuffer], window: int = 32, *, errors: Literal["return"]
    ) -> list[bytes | OSError]: ...
    def request_many(
        self,
        requests: Iterable[ReadableBuffer],
        window: int = 32,
        *,
        errors: Literal["raise", "return"] = "raise",
    ) -> list[bytes] | list[bytes | OSError]:
        """Send many requests, several at once, and return the replies in the requests' order.

        Each request has the whole timeout for itself. With the client's ``match``, all share one
        socket and are sent in batches. Without it, each request in flight has a port of its own, as
        nothing else says reliably which reply is whose.

        :param requests: Requests as of :meth:`request`; taken as the window moves on.
        :param window: How many may be in flight at once: no more than the server's queue takes.
        :param errors: With ``"raise"``, the first request that fails ends the call with its
            exception, whose ``index`` says which it was. With ``"return"`` the exception stands in
            the reply's place, and the others go on.
        :raises TimeoutError: And others, as :meth:`request`.
        """
        pool = self._opened()
        if not isinstance(window, int):
            raise TypeError(f"window must be an int, not {window!r}")
        if window < 1:
            raise ValueError(f"window must be 1 or more, not {window}")
        if errors not in {"raise", "return"}:
            raise ValueError(f"errors must be 'raise' or 'return', not {errors!r}")
        how = self._retry, self._address
        match = self._match
        try:
            work = Separate(pool, *how) if match is None else Matched(match, pool, *how)
            return work.run(requests, window, is_raising=errors == "raise")
        except OSError as error:
            self._explain(error)
            raise

    def _opened(self) -> Pool:
        if self._pool.is_closed:
            raise OSError(errno.EBADF, "the client is closed")
        return self._pool

    def _explain(self, error: BaseException) -> None:
        """Say what it means that a request could not be sent, or a socket was closed under it."""
        if not isinstance(error, OSError):
            return
        if error.errno == errno.EBADF:
            self._opened()
        if error.errno in OF_SENDING:
            advise(error, format_address(self._address), OF_SENDING)

    def close(self) -> None:
        """Close the client: requests in other threads end with an :class:`OSError`.

        Closing again does nothing.
        """
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        pool = getattr(self, "_pool", None)
        if pool is not None and not pool.is_closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            pool.close()

    def __repr__(self) -> str:
        state = " closed" if self._pool.is_closed else ""
        return f"<tomada.Client of {format_address(self._address)}{state}>"


def _set_spin(connection: Connection, spin: float) -> None:
    connection.spin = spin
