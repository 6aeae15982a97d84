"""Requests in flight that share a socket: a match or a key tells which request a reply answers."""

from __future__ import annotations

import errno
from time import monotonic
from typing import TYPE_CHECKING, Any

from tomada._advice import without_batch
from tomada._client.connection import SecuringError
from tomada._client.exchange import is_end_of_session, is_refusal
from tomada._client.in_flight import InFlight
from tomada._peer_errors import is_from_peer

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from socket import _Address, _RetAddress

    from _typeshed import ReadableBuffer

    from tomada._client.connection import Connection
    from tomada._client.in_flight import Group
    from tomada._client.pool import Pool
    from tomada._client.retry import Retry

# The number of datagrams to receive in one batch.
MANY = 64


class Shared(InFlight):
    """Uses one connection for all requests, and sends in batches.

    Subclasses find the request that a reply answers.
    """

    def __init__(self, pool: Pool, retry: Retry, address: _Address) -> None:
        super().__init__(pool, retry, address)
        self.connection: Connection = pool.take()
        # When the last datagrams were received.
        self._heard_at = 0.0
        #: Called with an exception that the user's function raised for a datagram from the server.
        self.mistaken: Callable[[Exception], object] = _raise

    def _find(self, data: bytes) -> int | None:
        """Return the index of the request that a datagram answers."""
        raise NotImplementedError

    def _send(self, indices: Sequence[int]) -> None:
        requests = list(map(self.requests.__getitem__, indices))
        try:
            failed = self.connection.ask_many(requests)
        except TypeError as wrong:  # one of them is not a bytes-like object
            offset = getattr(wrong, "index", None)
            if offset is not None:
                wrong.index = indices[offset]  # type: ignore[attr-defined]
            raise
        unsecured, end = [], None
        for offset, error in failed:
            if isinstance(error, SecuringError):
                self._wait_for_session(self.connection, indices[offset])
            elif is_end_of_session(error):
                unsecured.append(indices[offset])
                end = error
            else:
                self._not_sent(indices[offset], without_batch(error))
        if end is not None:
            self._refused(unsecured, end, was_sent=False)

    def _send_at_last(self, connection: Connection, indices: Sequence[int]) -> None:  # noqa: ARG002 - the only one
        self._send(indices)

    def receive(self, until: float) -> bool:
        """Wait for datagrams until a given time; return whether any arrived."""
        connection = self.connection
        if self.securing:
            return self._secure(connection, until)
        connection.wait_until(until)
        try:
            datagrams = connection.recv_many(MANY)
        except (TimeoutError, BlockingIOError):
            return False
        except OSError as error:
            self._lost(error)
            return True
        self._heard_at = monotonic()
        replies: dict[int, bytes] = {}
        try:
            self._take_replies(datagrams, replies)
        finally:  # also if the user's function raises
            if replies:
                self._complete(replies, self._heard_at)
        self._has_lost_session()  # a receive reports only what it finds after the last reply
        return True

    def _take_replies(
        self, datagrams: Sequence[tuple[bytes, _RetAddress]], replies: dict[int, bytes]
    ) -> None:
        """Find the replies among datagrams, and take their requests out of `requests`."""
        requests, find = self.requests, self._find
        server = None  # the tuple that all of the server's datagrams in this batch share
        for data, sender in datagrams:
            if sender is not server:
                if sender != self.connection.peer:
                    continue
                server = sender
            try:
                index = find(data)
            except Exception as error:  # noqa: BLE001 - whatever the user's function raises
                self.rejected += 1
                self.refusal = error
                self.mistaken(error)
                continue
            if index is None:
                self.rejected += 1
                self.unexpected += 1
            else:
                replies[index] = data
                del requests[index]
                self.refusal = None

    def _has_lost_session(self) -> bool:
        """Return whether the session has ended; if so, make the next attempts at once."""
        connection = self.connection
        if connection.dtls is None or connection.peer is None:
            return False
        lost = connection.session_lost()
        if lost is not None:
            self._refused(list(self.requests), lost)
        return lost is not None

    def _connection_of(self, index: int) -> Connection | None:  # noqa: ARG002 - the only one
        return self.connection

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is something to receive."""
        return self.connection.number

    def _lost(self, error: OSError) -> None:
        """Handle the end of the session, or an ICMP message about some of the requests.

        The message does not say which: only a request's length can tell.

        :raises OSError: The error is local, not about the server.
        """
        if self._has_lost_session() or self.connection.is_unsecured(error):
            return
        if not is_from_peer(error):
            raise error
        indices: list[int] = []
        if error.errno == errno.EMSGSIZE:
            sent = self.requests.items()
            indices = [i for i, data in sent if self.connection.exceeds_path(data)]
        elif is_refusal(error):
            indices = list(self.requests)
        self._refused(indices, error)

    def _unanswered(self, group: Group) -> None:
        # If nothing has arrived since, the server may have been restarted and have lost the
        # session.
        if self.connection.dtls is not None and self._heard_at < group.sent_at:
            self.connection.end_session()

    def close(self) -> None:
        """Return the connection to the pool."""
        self.pool.put(self.connection)


class Matched(Shared):
    """Finds the request of a reply with a function that compares the two."""

    def __init__(
        self,
        match: Callable[[Any, bytes], bool],
        pool: Pool,
        retry: Retry,
        address: _Address,
    ) -> None:
        super().__init__(pool, retry, address)
        self._match = match

    def _find(self, data: bytes) -> int | None:
        match = self._match
        for index, request in self.requests.items():
            if match(request, data):
                return index
        return None


class Keyed(Shared):
    """Finds the request of a reply at once, by the key that the two have in common."""

    def __init__(
        self,
        key_of_request: Callable[[Any], Hashable],
        key: Callable[[bytes], Hashable],
        pool: Pool,
        retry: Retry,
        address: _Address,
    ) -> None:
        super().__init__(pool, retry, address)
        self._key_of_request = key_of_request
        self._key = key
        self._by_key: dict[Hashable, int] = {}
        self._keys: dict[int, Hashable] = {}

    def expect(self, index: int, data: ReadableBuffer) -> None:
        """Store the key of a request.

        :raises ValueError: Another request under way has the same key.
        """
        key = self._key_of_request(data)
        if self._by_key.setdefault(key, index) != index:
            raise ValueError(
                f"another request with the key {key!r} is in flight: use a different key, or "
                "wait for its reply"
            )
        self._keys[index] = key

    def expect_all(self, requests: dict[int, Any]) -> None:
        """Store the keys of many requests."""
        for index, data in requests.items():
            self.expect(index, data)

    def _find(self, data: bytes) -> int | None:
        key = self._key(data)
        index = self._by_key.get(key)
        if index is None or index not in self.requests:
            return None  # late, a duplicate, or unrelated; or its request was not sent yet
        del self._by_key[key]
        del self._keys[index]
        return index

    def _stop_expecting(self, index: int) -> None:
        key = self._keys.get(index)
        if self._by_key.get(key) == index:
            del self._by_key[key]
        self._keys.pop(index, None)


def _raise(error: Exception) -> None:
    raise error
