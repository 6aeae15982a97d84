"""A closed-loop load: a fixed number of datagrams in flight, each reply sends the next request."""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tomada._cli.common import Address, CommandError, family_and_name
from tomada._cli.dtls import secure

if TYPE_CHECKING:
    from tomada._cli.dtls import Secured

# The run and the number of a datagram, to distinguish late replies from expected ones.
LABEL = struct.Struct("=QQ")

# Latencies are stored with this many significant bits: an error below one percent.
BITS = 7
LONGEST_POLL = 0.05
NANOSECONDS = 10**9


class Histogram:
    """Counts durations in nanoseconds. Its memory is constant, so a run may have any length."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.total = 0

    def add(self, time_ns: int) -> None:
        shift = max(time_ns.bit_length() - BITS, 0)
        rounded = time_ns >> shift << shift
        self._counts[rounded] = self._counts.get(rounded, 0) + 1
        self.total += 1

    def quantile(self, share: float) -> int | None:
        """Return the time that a share of all times does not exceed; ``None`` if there are none.

        :param share: 0.5 for the median; 0 for the minimum, 1 for the maximum.
        """
        wanted, seen = max(share * self.total, 1), 0
        for value in sorted(self._counts):
            seen += self._counts[value]
            if seen >= wanted:
                return value
        return None

    def doubling(self) -> list[tuple[int, int]]:
        """Return how many durations lie between each power of two and the next, in order."""
        powers: dict[int, int] = {}
        for value, times in self._counts.items():
            power = 1 << value.bit_length() - 1 if value else 0
            powers[power] = powers.get(power, 0) + times
        if not powers:
            return []
        found, power, last = [], min(powers), max(powers)
        while power <= last:
            found.append((power, powers.get(power, 0)))
            power = power << 1 or 1
        return found


@dataclass
class Result:
    """The measurements of a load."""

    seconds: float = 0.0
    sent: int = 0
    received: int = 0
    lost: int = 0
    refused: int = 0
    late: int = 0
    latency: Histogram = field(default_factory=Histogram)

    @property
    def rate(self) -> float:
        return self.received / self.seconds if self.seconds else 0.0

    @property
    def loss(self) -> float:
        """The share of requests that were not answered in time."""
        return self.lost / (self.lost + self.received) if self.lost else 0.0


class Line:
    """One socket of the load, and its datagrams in flight, by number, oldest first."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.asked: dict[int, int] = {}


class Load:
    """Sends requests to an echo server for some time.

    :param clients: The number of sockets.
    :param window: The number of datagrams in flight on each socket.
    :param size: The length of each datagram in bytes, at least 16.
    :param timeout: The time in seconds after which a datagram counts as lost and is replaced by
        another one; with encryption, also how long a handshake may take.
    :param secured: To encrypt: the context of the sockets' sessions, and the server's name.
    """

    def __init__(  # noqa: PLR0913 - the options of a load
        self,
        address: Address,
        *,
        clients: int = 1,
        window: int = 1,
        size: int = 64,
        timeout: float = 1.0,
        secured: Secured | None = None,
    ) -> None:
        self._family, self._name = family_and_name(address)
        self._clients = clients
        self._window = window
        self._size = size
        self._padding = bytes(max(size - LABEL.size, 0))
        self._timeout = timeout
        self._timeout_ns = round(timeout * NANOSECONDS)
        self._secured = secured
        self._run = int.from_bytes(os.urandom(8))
        self._number = 0
        self.result = Result()

    def run(self, seconds: float, progress: Callable[[float], None] = lambda _: None) -> Result:
        """Send requests for a number of seconds, then wait for the last replies.

        :param progress: Called about ten times per second with the elapsed time in seconds.
        """
        result = self.result
        lines: list[Line] = []
        by_number = {}
        poll = select.epoll()
        started = time.monotonic_ns()
        try:
            for _ in range(self._clients):
                line = Line(self._open())
                lines.append(line)
                by_number[line.sock.fileno()] = line
                poll.register(line.sock.fileno(), select.EPOLLIN)
            started = time.monotonic_ns()  # handshakes do not count
            end = started + round(seconds * NANOSECONDS)
            shown = started
            for line in lines:
                self._ask(line, self._window)
            while True:
                for number, _ in poll.poll(LONGEST_POLL):
                    self._take(by_number[number], is_open=time.monotonic_ns() < end)
                now = time.monotonic_ns()
                if now - shown > NANOSECONDS // 10:
                    shown = now
                    for line in lines:
                        self._expire(line, now, is_open=now < end)
                    progress(min((now - started) / NANOSECONDS, seconds))
                if now >= end and not any(line.asked for line in lines):
                    break
        finally:
            result.seconds = (self._last - started) / NANOSECONDS if result.received else seconds
            poll.close()
            for line in lines:
                line.sock.close()
        return result

    _last = 0

    def _open(self) -> Any:
        from tomada import socket

        sock = socket.socket(self._family, socket.SOCK_DGRAM)
        try:
            if self._family == socket.AF_UNIX:
                sock.bind("")
            sock.connect(self._name)
            sock = secure(sock, self._secured, self._timeout)
            self._check_room(sock)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        return sock

    def _check_room(self, sock: Any) -> None:
        session = getattr(sock, "session", None)
        if session is not None and session.max_datagram_size < self._size:
            most = session.max_datagram_size
            raise CommandError(f"a DTLS record carries at most {most:,} bytes, not {self._size:,}")

    def _ask(self, line: Line, count: int) -> None:
        numbers = range(self._number, self._number + count)
        self._number += count
        datagrams = [LABEL.pack(self._run, number) + self._padding for number in numbers]
        now = time.monotonic_ns()
        line.asked.update(dict.fromkeys(numbers, now))
        # Treat datagrams that cannot be sent as lost: they are counted when their timeout ends.
        failed = line.sock.send_many(datagrams, errors="continue")
        self.result.sent += count - len(failed)
        self.result.refused += sum(isinstance(e, ConnectionRefusedError) for _, e in failed)

    def _take(self, line: Line, *, is_open: bool) -> None:
        result, asked = self.result, line.asked
        try:
            datagrams = line.sock.recv_many()
        except BlockingIOError:
            return
        except ConnectionRefusedError:
            result.refused += 1
            return
        except BrokenPipeError:  # ESHUTDOWN
            raise CommandError("the server has ended the DTLS session") from None
        now = time.monotonic_ns()
        answered = 0
        for data, _ in datagrams:
            run, number = LABEL.unpack_from(data) if len(data) >= LABEL.size else (None, -1)
            when = asked.pop(number, None) if run == self._run else None
            if when is None:
                result.late += 1
                continue
            answered += 1
            result.latency.add(now - when)
        if answered:
            result.received += answered
            self._last = now
            if is_open:
                self._ask(line, answered)

    def _expire(self, line: Line, now: int, *, is_open: bool) -> None:
        """Count requests that have waited too long as lost, and send new ones in their place."""
        lost = [number for number, when in line.asked.items() if now - when > self._timeout_ns]
        for number in lost:
            del line.asked[number]
        self.result.lost += len(lost)
        if lost and is_open:
            self._ask(line, len(lost))
