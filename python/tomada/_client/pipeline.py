"""Clients with many requests in flight."""

from __future__ import annotations

import contextlib
import copy
import errno
import heapq
import os
import select
from collections import deque
from itertools import count, islice, repeat
from time import monotonic
from typing import TYPE_CHECKING, Any

from tomada._client.connection import LONGEST, Connection, RefusedError, has_no_room
from tomada._client.exchange import Exchange, is_refusal
from tomada._client.pool import LEAST_IDLE, MOST_IDLE, Pool
from tomada._client.ports import NoPortError
from tomada._peer_errors import is_from_peer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from socket import _Address

    from _typeshed import ReadableBuffer

    from tomada._client.retry import Retry

# The number of datagrams to receive in one batch.
MANY = 64

# How long to receive replies before retrying requests that found a queue full, in seconds.
ROOM_WAIT = 1e-3


class Group:
    """Requests that are sent and retransmitted together."""

    __slots__ = ("exchange", "indices", "left")

    def __init__(self, exchange: Exchange, indices: Sequence[int]) -> None:
        self.exchange = exchange
        self.indices = indices
        #: The number of requests that are still in flight, and not in another group.
        self.left = len(indices)


class Pipeline:
    """Keeps up to a window of requests in flight, each with its own attempts and deadline.

    Subclasses send the requests and match each reply to its request.
    """

    def __init__(self, pool: Pool, retry: Retry, address: _Address) -> None:
        self._pool = pool
        self._retry = retry
        self._address = address
        # The requests in flight by index, oldest first, each with its group.
        self._in_flight: dict[int, tuple[ReadableBuffer, Group]] = {}
        self._results: list[Any] = []
        # A heap of attempts: when each is due, a unique number to break ties, and its group.
        self._due: list[tuple[float, int, Group]] = []
        self._numbers = count()
        # Requests that were not sent because a queue on the way was full. Only receiving makes
        # room: the server may itself be waiting for this client to read its replies.
        self._unsent: list[int] = []
        self._refusal: OSError | None = None
        self._is_raising = True

    def run(
        self, requests: Iterable[ReadableBuffer], window: int, *, is_raising: bool
    ) -> list[Any]:
        """Send all requests; return the reply or exception of each, in the same order."""
        self._is_raising = is_raising
        source = iter(requests)
        try:
            while True:
                fresh = list(islice(source, window - len(self._in_flight)))
                if fresh:
                    self._start(fresh)
                elif not self._in_flight:
                    return self._results
                if self._in_flight:
                    self._await(window)
        finally:
            self._close()

    def _start(self, requests: list[ReadableBuffer]) -> None:
        if any(issubclass(kind, tuple) for kind in set(map(type, requests))):
            # The send call would interpret it as a datagram and its address.
            raise TypeError("a bytes-like object is required, not 'tuple'")
        first = len(self._results)
        indices = range(first, first + len(requests))
        self._results += [None] * len(requests)
        exchange = Exchange(self._retry, self._pool.round_trip, monotonic())
        group = Group(exchange, indices)
        self._in_flight.update(zip(indices, zip(requests, repeat(group)), strict=True))
        self._attempt(group)

    def _attempt(self, group: Group) -> None:
        """Make the next attempt; if there is none left, fail the requests."""
        exchange = group.exchange
        if exchange.attempt(monotonic()):
            self._schedule(group)
            self._send(group.indices)
            return
        exchange.refusal = self._refusal
        for index in group.indices:
            self._fail(index, exchange.timed_out(self._address, monotonic()))

    def _schedule(self, group: Group) -> None:
        heapq.heappush(self._due, (group.exchange.due, next(self._numbers), group))

    def _left(self, group: Group) -> list[int]:
        """Return the requests of a group that have no reply yet, and are not in another group."""
        in_flight = self._in_flight
        return [i for i in group.indices if i in in_flight and in_flight[i][1] is group]

    def _await(self, window: int) -> None:
        """Receive replies until the next attempt is due, then make it."""
        in_flight, due = self._in_flight, self._due
        while not due[0][2].left:
            heapq.heappop(due)
        until = due[0][0]
        if self._unsent:
            self._receive(min(until, monotonic() + ROOM_WAIT))
            unsent, self._unsent = dict.fromkeys(self._unsent), []
            self._send([index for index in unsent if index in in_flight])
        else:
            self._receive(until)
        if monotonic() < until:
            return
        # A reply that came while this process was held up has come in time.
        for _ in range(window):
            if not self._receive(until):
                break
        while due and due[0][0] <= until:
            _, _, group = heapq.heappop(due)
            group.indices = self._left(group)
            if group.indices:
                self._attempt(group)

    def _complete(self, index: int, reply: bytes, now: float) -> None:
        _, group = self._in_flight.pop(index)
        group.left -= 1
        if not group.exchange.is_complete:  # only the first reply of the group gives a sample
            group.exchange.complete(now)
        self._results[index] = reply
        self._refusal = None

    def _refused(self, indices: Sequence[int], error: OSError) -> None:
        """Take note that attempts are lost, as :meth:`Exchange.refuse` does."""
        if is_refusal(error) and not self._retry.retry_refused:
            for index in indices:
                self._fail(index, error)
            return
        self._refusal = error
        if error.errno == errno.EMSGSIZE:
            self._send_ahead(indices, error)

    def _send_ahead(self, indices: Sequence[int], error: OSError) -> None:
        """Make the next attempt of requests at once, apart from what was sent with them."""
        together: dict[Group, list[int]] = {}
        for index in indices:
            together.setdefault(self._in_flight[index][1], []).append(index)
        for group, own in together.items():
            apart = Group(copy.copy(group.exchange), own)
            apart.exchange.refuse(error)
            if apart.exchange.due < group.exchange.due:
                group.left -= len(own)
                for index in own:
                    self._in_flight[index] = self._in_flight[index][0], apart
                self._schedule(apart)

    def _fail(self, index: int, error: OSError) -> None:
        if self._is_raising or self._pool.is_closed:
            error.index = index  # type: ignore[attr-defined]
            raise error
        self._give_up(index)
        _, group = self._in_flight.pop(index)
        group.left -= 1
        self._results[index] = error

    def _not_sent(self, index: int, error: OSError) -> None:
        if has_no_room(error):
            self._unsent.append(index)
            # Move it behind the requests that can be answered, in case another request is equal.
            self._in_flight[index] = self._in_flight.pop(index)
        elif is_refusal(error):
            self._refused([index], error)
        else:
            self._fail(index, error)

    def _send(self, indices: Sequence[int]) -> None:
        """Send or retransmit requests, without waiting for room."""
        raise NotImplementedError

    def _receive(self, until: float) -> bool:
        """Wait for datagrams until a moment; return whether any arrived."""
        raise NotImplementedError

    def _give_up(self, index: int) -> None:
        """Stop expecting a reply."""

    def _close(self) -> None:
        """Return the connections to the pool."""
        raise NotImplementedError


class Matched(Pipeline):
    """Uses one connection for all requests: sends in batches, and ``match`` sorts the replies."""

    def __init__(
        self,
        match: Callable[[Any, bytes], bool],
        pool: Pool,
        retry: Retry,
        address: _Address,
    ) -> None:
        super().__init__(pool, retry, address)
        self._match = match
        self._connection = pool.take()

    def _send(self, indices: Sequence[int]) -> None:
        in_flight = self._in_flight
        failed = self._connection.ask_many([in_flight[index][0] for index in indices])
        for offset, error in failed:
            self._not_sent(indices[offset], error)

    def _receive(self, until: float) -> bool:
        connection, in_flight, match = self._connection, self._in_flight, self._match
        connection.wait_until(until)
        try:
            datagrams = connection.recv_many(MANY)
        except (TimeoutError, BlockingIOError):
            return False
        except OSError as error:
            if not is_from_peer(error):
                raise
            # Only its length tells which request the error may be about.
            indices = list(in_flight)
            if error.errno == errno.EMSGSIZE:
                indices = [i for i in indices if connection.exceeds_path(in_flight[i][0])]
            self._refused(indices, error)
            return True
        now = monotonic()
        server = None  # the tuple that the server's datagrams of this batch share
        for data, sender in datagrams:
            if sender is not server:
                if sender != connection.peer:
                    continue
                server = sender
            for index, (request, _) in in_flight.items():
                if match(request, data):
                    self._complete(index, data, now)
                    break
        return True

    def _close(self) -> None:
        self._pool.put(self._connection)


class Separate(Pipeline):
    """Uses a connection for each request: the port identifies the request of a reply."""

    def __init__(self, pool: Pool, retry: Retry, address: _Address) -> None:
        super().__init__(pool, retry, address)
        # All connections by descriptor, and the requests that were sent over them.
        self._connections: dict[int, Connection] = {}
        self._asked: dict[int, int] = {}
        # By request: its connection, and whether it was sent more than once.
        self._own: dict[int, Connection] = {}
        self._repeated: set[int] = set()
        self._free: deque[Connection] = deque()
        self._epoll = select.epoll()
        # The epoll does not report connections that another thread closes.
        self._closing = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._epoll.register(self._closing, select.EPOLLIN)
            pool.add_waker(self._wake)
        except BaseException:
            self._epoll.close()
            os.close(self._closing)
            raise

    def _wake(self) -> None:
        os.eventfd_write(self._closing, 1)

    def _send(self, indices: Sequence[int]) -> None:
        free, own, in_flight = self._free, self._own, self._in_flight
        if not self._pool.watched:
            self._borrow(len(indices) + LEAST_IDLE - 1 - len(free))
        if free:
            self._drop_late()
        for index in indices:
            connection = own.get(index)
            if connection is not None:
                self._repeated.add(index)
            elif len(free) >= LEAST_IDLE and not self._pool.watched:
                # The request has it at once: an exception leaves it with an owner.
                connection = own[index] = free.popleft()
                self._asked[connection.number] = index
            else:
                try:
                    connection = self._assign(index)
                except NoPortError as error:
                    self._fail(index, error)
                    continue
            try:
                connection.send(in_flight[index][0])
            except OSError:
                self._send_slowly(connection, index)

    def _borrow(self, count: int) -> None:
        """Add idle connections of the pool to the free ones; they have rested longer than those."""
        borrowed = self._pool.take_idle(count) if count > 0 else []
        self._free.extendleft(reversed(borrowed))
        for connection in borrowed:
            self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        connection.set_wait(0.0)
        self._connections[connection.number] = connection
        self._epoll.register(connection.number, select.EPOLLIN)

    def _drop_late(self) -> None:
        """Discard datagrams that have arrived on idle connections."""
        for number, _ in self._epoll.poll(0):
            if number not in self._asked and number != self._closing:
                self._late(self._connections[number])

    def _late(self, connection: Connection) -> None:
        """Discard datagrams that have arrived on an idle connection."""
        self._pool.look_for_duplicate(connection)
        connection.empty()

    def _assign(self, index: int) -> Connection:
        """Give a request a free connection that has rested for long enough, or another one."""
        free, pool = self._free, self._pool
        if free and pool.has_rested(free[0], len(free) - 1, monotonic()):
            connection = self._own[index] = free.popleft()
            if pool.watched:
                pool.look_for_duplicate(connection)
        else:
            if len(free) > MOST_IDLE:
                self._discard(free.popleft())
            connection = self._own[index] = pool.take()
            self._watch(connection)
        self._asked[connection.number] = index
        return connection

    def _discard(self, connection: Connection) -> None:
        del self._connections[connection.number]
        with contextlib.suppress(OSError):  # the client was just closed
            self._epoll.unregister(connection.number)
        self._pool.discard(connection)

    def _send_slowly(self, connection: Connection, index: int) -> None:
        """Send a request alone, because its connection is new or its batched send failed."""
        try:
            connection.ask(self._in_flight[index][0], 0.0)
        except RefusedError as refused:
            self._refused([index], refused.args[0])
        except OSError as error:
            self._not_sent(index, error)

    def _receive(self, until: float) -> bool:
        events = self._epoll.poll(max(until - monotonic(), 0.0), MANY)
        if self._pool.sample_due != self._pool.round_trip.sample_due:
            self._pool.adapt()
        now = monotonic()
        asked, connections = self._asked, self._connections
        for number, _ in events:
            index = asked.get(number)
            if index is None:
                if number == self._closing:
                    raise OSError(errno.EBADF, "the client is closed")
                self._late(connections[number])
                continue
            connection = connections[number]
            try:
                reply = connection.recv(LONGEST)
            except BlockingIOError:
                continue
            except OSError as error:
                if is_from_peer(error):
                    self._refused([index], error)
                else:
                    self._fail(index, error)
                continue
            if connection.peer is not None:  # connected, so the server sent it
                connection.used_at = now
                self._complete(index, reply, now)
                self._release(index, is_answered=True)
        return bool(events)

    def _release(self, index: int, *, is_answered: bool) -> None:
        """Take the connection from a request; it is free if no late reply can arrive."""
        connection, pool = self._own.pop(index), self._pool
        del self._asked[connection.number]
        if is_answered and index not in self._repeated:
            if pool.watched:
                pool.watched = max(pool.watched - 1, 0)  # the epoll watches idle connections
            self._free.append(connection)
        else:
            self._repeated.discard(index)
            del self._connections[connection.number]
            with contextlib.suppress(OSError):  # the client was just closed
                self._epoll.unregister(connection.number)
            pool.retire(connection)

    def _give_up(self, index: int) -> None:
        if index in self._own:
            self._release(index, is_answered=False)

    def _close(self) -> None:
        self._pool.remove_waker(self._wake)
        self._epoll.close()
        os.close(self._closing)
        self._pool.put(*self._free)
        for connection in self._own.values():
            self._pool.retire(connection)
