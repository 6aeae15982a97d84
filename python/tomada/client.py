"""A client that sends requests as datagrams and retransmits those that get no reply."""

from __future__ import annotations

import errno
import warnings
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from tomada._address import format_address
from tomada._advice import advise_on_sending
from tomada._client.connection import (
    MOST_REPORTS,
    Connection,
    RefusedError,
    SecuringError,
    has_no_room,
)
from tomada._client.exchange import Exchange, is_end_of_session
from tomada._client.identity import Identity
from tomada._client.pipeline import Pipeline
from tomada._client.pool import Pool, resolve
from tomada._client.retry import SHORTEST_WAIT, Retry
from tomada._peer_errors import is_from_peer
from tomada._proxy_header import header_for
from tomada._socket_options import SocketOptions, secured_by

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable
    from socket import _Address

    from _typeshed import ReadableBuffer

    from tomada._core import DtlsContext

__all__ = ["Client"]


class Client:
    """Sends requests to one server, each as a datagram, and returns the replies.

    ::

        with tomada.Client(("127.0.0.1", 1234), timeout=0.5, retries=3) as client:
            reply = client.request(b"ping")

    The client retransmits a request with exponential backoff until a reply arrives or the timeout
    expires. The server may therefore receive a request twice, which matters only if requests have
    side effects.

    The client drops datagrams from other addresses. With a ``match`` or a ``key``, it recognizes
    which request a reply belongs to, and all requests share one port. With neither, only the port
    identifies the request, so each request in flight has its own. After a request that was
    retransmitted, was cancelled or got no reply, no client in this process sends from the same port
    to the same server for twice the timeout, or for 30 s if that is longer. If that leaves no port
    for a new request, the new request fails at once with ``EADDRNOTAVAIL``: with the usual 28,232
    ports, this happens at more than 941 retransmitted, cancelled or unanswered requests per second.
    So a late reply can be mistaken for the reply to another request only if it arrives even later
    than that, or if another process used the port before.

    The network may also duplicate a reply. So even if the first attempt was answered, the client
    does not reuse the port until it has used 31 others, or the timeout has passed. For its first
    256 requests, and permanently once it has seen a duplicate, it also leaves each port unused for
    the timeout or for ``4 * (SRTT + 4 * RTTVAR)``, whichever is shorter. Once it has seen a
    duplicate, it leaves each port unused for at least 100 ms. A duplicate that arrives later can be
    mistaken for the reply to another request. A ``match`` or ``key`` prevents this.

    **Waits.** The first wait is derived from the round-trip time, measured as in RFC 6298: ``SRTT +
    max(50 ms, 4 * RTTVAR)``, but at most half the timeout, or ``SRTT + 50 ms`` if that is longer.
    Before the first measurement, it is one eighth of the timeout with the default arguments, and at
    most 1 s. A retransmission doubles the first wait of later requests, within the same limit,
    until a request that was sent only once is answered. The later waits divide the rest of the
    timeout in proportion to the backoff: a request with the default arguments is sent at 0, 125,
    375 and 875 ms without a measurement, and at about 0, 50, 321 and 864 ms to a nearby server. The
    client skips a retransmission that could not be answered in time.

    Any number of threads may use a client at once. After ``fork``, a child process may use it too,
    and gets its own sockets. Close the client when you are done, or use it in a ``with`` statement.

    :param address: The server's address: ``(host, port)``, or an ``AF_UNIX`` path or abstract name.
        A host name is resolved once, by the constructor, to an IPv4 address if it has one.
    :param timeout: The deadline for the whole request, in seconds.
    :param retries: The maximum number of retransmissions within the timeout.
    :param backoff: The ratio of each later wait to the one before it.
    :param jitter: The maximum random extension of a wait, as a fraction of it. It keeps clients
        that failed together from retrying together.
    :param match: A function that says whether a datagram answers a request: ``match(request, reply)
        -> bool``. It may be called often. With it, the client uses one socket for all requests, and
        :meth:`request_many` is several times faster.
    :param key: A function that returns what a request and its reply have in common, such as a
        number in their headers: ``key(data) -> hashable``. Prefer it to a ``match`` if the protocol
        allows it: the client immediately finds the request that a reply belongs to, however many
        are in flight. Requests that :meth:`request_many` has in flight must have different keys.
    :param retry_refused: Whether to retry if there is no server, in case it is about to start, or
        to raise :class:`ConnectionRefusedError` at once. Other ICMP errors never end a request.
    :param family: ``AF_INET6`` or ``AF_INET``, for a name that has both kinds of addresses.
    :param spin: How long a wait polls before it sleeps, in seconds; see
        :attr:`tomada.socket.socket.spin`.
    :param proxy_from: The address ``(host, port)`` of a client on whose behalf to send, as a load
        balancer does: each request begins with a PROXY protocol header (version 2) that contains
        this address. Use it with servers that trust this machine (``Server(proxy=…)``), and in
        tests. Cannot be combined with ``dtls``.
    :param dtls: A :class:`tomada.dtls.Context` of ``PROTOCOL_DTLS_CLIENT``: requests and replies
        are then encrypted. Each of the client's sockets has its own session; the handshake counts
        towards the first request's timeout.
    :param server_hostname: The host name or address that the server's certificate must match. By
        default, the host of ``address``.
    :raises socket.gaierror: The host has no address.
    :raises TypeError: An argument has the wrong type.
    :raises ValueError: An argument is out of range.
    """

    def __init__(  # noqa: PLR0913 - the parameters of a request
        self,
        address: _Address,
        timeout: float = 1.0,
        retries: int = 3,
        *,
        backoff: float = 2.0,
        jitter: float = 0.25,
        match: Callable[[Any, bytes], bool] | None = None,
        key: Callable[[Any], Hashable] | None = None,
        retry_refused: bool = True,
        family: int = 0,
        spin: float = 0.0,
        proxy_from: tuple[str, int] | None = None,
        dtls: DtlsContext | None = None,
        server_hostname: str | None = None,
    ) -> None:
        self._retry = Retry(
            timeout, retries, backoff=backoff, jitter=jitter, retry_refused=bool(retry_refused)
        )
        identity = Identity(match, key)
        options = SocketOptions(gro=False, spin=spin)
        secured = secured_by(dtls, server_hostname, address)
        if secured is not None and proxy_from is not None:
            raise ValueError("proxy_from cannot be combined with dtls")

        def prepare(connection: Connection) -> None:
            options.apply(connection)
            connection.dtls = secured

        found, self._address = resolve(address, family)
        self._header = b"" if proxy_from is None else header_for(proxy_from, self._address)
        self._identity = identity.behind(self._header)
        self._match = self._identity.match
        self._pool = Pool(
            found,
            self._address,
            self._retry,
            tells_apart=self._identity.tells_apart,
            prepare=prepare,
            is_secured=dtls is not None,
        )

    @property
    def address(self) -> _Address:
        """The server's resolved address."""
        return self._address

    def request(self, data: ReadableBuffer) -> bytes:  # noqa: C901, PLR0912 - the common path, in one piece
        """Send a request and return the reply.

        If another thread closes the client, this raises :class:`OSError`.

        :raises TimeoutError: No reply arrived; the message says after how many attempts.
            ``__cause__`` is the last error that cost an attempt: one that an ICMP message reported,
            such as a :class:`ConnectionRefusedError` if there was no server, or one that ended a
            handshake.
        :raises ConnectionRefusedError: There is no server, and ``retry_refused`` is false; with
            ``AF_UNIX``, it may be a :class:`FileNotFoundError`.
        :raises tomada.dtls.DTLSError: The handshake failed, or the server has ended the session
            after each attempt (:exc:`tomada.dtls.DTLSZeroReturnError`).
        :raises OSError: ``EMSGSIZE``: the request is longer than a datagram can be;
            ``EADDRNOTAVAIL``: every free port may still get a late reply; or another error that
            prevents this machine from sending, such as ``ENETUNREACH``.
        :raises Exception: ``match`` or ``key`` raised it, for a datagram from the server or for
            this request.
        """
        started = sent_at = monotonic()
        if self._header:
            data = b"".join((self._header, data))
        pool, match = self._pool, self._match
        idle, wait = pool.idle, pool.wait
        try:
            connection = idle.popleft()
        except IndexError:
            connection = None
        if connection is None or (
            (pool.watched or len(idle) < pool.few) and not pool.admits(connection, started)
        ):
            connection = pool.take_new()
            if connection is None:
                return self._insist(data, started, None)
            # Other threads may have held this one up.
            sent_at = monotonic()
            left = started + self._retry.timeout - sent_at
            wait = min(wait, max(left, SHORTEST_WAIT))
        # The fast path: most requests are answered at the first attempt, so there is as little
        # code as possible between them and the kernel. An idle connection already has the
        # timeout of a first attempt. It receives only from the server: datagrams queued before
        # it was connected are discarded together with late ones.
        refusal: OSError | None = None
        try:
            if connection.wait != wait:
                connection.set_wait(wait)
            reply = connection._exchange(data)  # noqa: SLF001 - made for this purpose
        except TimeoutError:
            pass
        except OSError as error:
            if (lost := connection.session_lost()) is not None:
                refusal = lost
            elif is_from_peer(error):
                refusal = error
            else:
                pool.retire(connection)
                self._explain(error)
                raise
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
                    pool.sample(now - sent_at, now)
                connection.used_at = now
                idle.append(connection)
                return reply
            return self._insist(data, started, connection, rejected=1)
        return self._insist(data, started, connection, refusal)

    def _insist(
        self,
        data: ReadableBuffer,
        started: float,
        connection: Connection | None,
        refusal: OSError | None = None,
        rejected: int = 0,
    ) -> bytes:
        """Make all attempts of a request, or only those after one already sent on a connection."""
        pool, match = self._opened(), self._match
        exchange = Exchange(
            self._retry,
            pool.round_trip,
            started,
            None if match is None else partial(match, data),
        )
        exchange.rejected = rejected
        is_sent = connection is not None
        if connection is None:
            connection = self._take()
        try:
            # The first attempt began with the request, even if some time has passed since.
            exchange.attempt(started)
            if refusal is not None:
                exchange.refuse(refusal)
            while True:
                was_sent = is_sent or self._ask(connection, data, exchange)
                is_sent = False
                reply = self._answer(connection, exchange, was_sent)
                if reply is not None:
                    exchange.complete(monotonic())
                    return reply
                if not exchange.attempt(monotonic()):
                    raise exchange.timed_out(self._address, monotonic())
        except OSError as error:
            self._explain(error)
            raise
        finally:
            # A server that was restarted no longer knows a session that it does not answer in.
            is_doubtful = connection.dtls is not None and not exchange.is_complete
            if exchange.may_reuse_port and not is_doubtful:
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
    def _ask(connection: Connection, data: ReadableBuffer, exchange: Exchange) -> bool:
        """Send a request; return false if it must first wait for a session."""
        was_sent = True
        try:
            connection.ask(data, exchange.due)
        except RefusedError as refused:
            error = refused.args[0]
            was_sent = not is_end_of_session(error)
            exchange.refuse(error, was_sent=was_sent)
        except SecuringError:
            was_sent = False
        except OSError as error:
            if not has_no_room(error):
                raise
            # Treat it as a datagram that was lost in the network.
        exchange.unsent += not was_sent
        return was_sent

    @staticmethod
    def _answer(connection: Connection, exchange: Exchange, was_sent: bool) -> bytes | None:
        # After a refusal the server may be available again at the next attempt, and an ICMP message
        # may be forged. Until then, a reply to the previous attempt is also valid.
        late = 0
        while late < MOST_REPORTS:
            try:
                return connection.answer(exchange.due, exchange.accepts)
            except RefusedError as refused:
                error = refused.args[0]
                exchange.refuse(error, was_sent=was_sent or not is_end_of_session(error))
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
        """Send many requests, several at once; return the replies in the order of the requests.

        Each request gets the whole timeout. With a ``match`` or ``key``, all requests share one
        socket and are sent in batches. Without either, each request in flight has its own port,
        because nothing else reliably identifies its reply. This costs two system calls per request
        and about ``window + 32`` sockets, which the client keeps for the next call.

        :param requests: The requests, as for :meth:`request`. They are read as the window advances.
        :param window: The maximum number of requests in flight. Requests that do not fit into the
            server's receive buffer are dropped and retransmitted later.
        :param errors: With ``"raise"``, the first request that fails ends the call with its
            exception, whose ``index`` says which request it was. With ``"return"``, the exception
            is returned in place of the reply, and the other requests continue.
        :raises TimeoutError: A request was not answered. Other exceptions are as in
            :meth:`request`.
        """
        pool = self._opened()
        if not isinstance(window, int):
            raise TypeError(f"window must be an int, not {window!r}")
        if window < 1:
            raise ValueError(f"window must be 1 or more, not {window}")
        if errors not in {"raise", "return"}:
            raise ValueError(f"errors must be 'raise' or 'return', not {errors!r}")
        if self._header:
            requests = (b"".join((self._header, data)) for data in requests)
        try:
            in_flight = self._identity.in_flight(pool, self._retry, self._address)
            return Pipeline(in_flight, is_raising=errors == "raise").run(requests, window)
        except OSError as error:
            self._explain(error)
            raise

    def _opened(self) -> Pool:
        if self._pool.is_closed:
            raise OSError(errno.EBADF, "the client is closed")
        return self._pool

    def _explain(self, error: BaseException) -> None:
        """Improve the text of an error that a failed send or a closed client caused."""
        if not isinstance(error, OSError):
            return
        if error.errno == errno.EBADF or is_end_of_session(error):
            self._opened()
        advise_on_sending(error, self._address)

    def close(self) -> None:
        """Close the client: requests in other threads raise :class:`OSError`.

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
