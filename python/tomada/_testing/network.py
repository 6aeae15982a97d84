"""A network in memory: datagram endpoints without sockets."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias, Unpack

from tomada import _core
from tomada._address import format_address
from tomada._asyncio.context_managers import Opening
from tomada._testing import seeds
from tomada._testing.impairments import (
    BOTH,
    DIRECTIONS,
    Arrival,
    Direction,
    Fate,
    ImpairmentOptions,
    Impairments,
    PathStats,
    Script,
    Sides,
    Step,
    changed,
    check_log_size,
    check_side,
    fates_of,
    number_of,
    steps_of,
)
from tomada._testing.memory_endpoint import MemoryEndpoint
from tomada._testing.memory_transport import MemoryTransport, Queue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Name: TypeAlias = tuple[str, int]

# The ports that the network chooses (RFC 6335, section 6).
FIRST_FREE_PORT, LAST_PORT = 49152, 65535
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - names in memory
NANOSECONDS = 1_000_000_000


class NetworkFate(NamedTuple):
    """The fate of a datagram in a network."""

    source: Any
    """The address that it was sent from."""
    destination: Any
    """The address that it was sent to."""
    fate: Fate
    """The fate of the datagram on the way."""


class Network:
    """A network in memory: see :func:`tomada.testing.network`."""

    def __init__(
        self,
        sides: Sides,
        *,
        script: Script | None,
        seed: int | None,
        log_size: int,
    ) -> None:
        self._seed = seeds.chosen(seed)
        check_log_size(log_size)
        for name, side in zip(DIRECTIONS, sides, strict=True):
            check_side(name, side)
        self._sides = sides
        # The core's seeds for the two directions of a link.
        self._paths = [
            _core.PathCore((2 * self._seed + number) % (1 << 64), log_size) for number in (0, 1)
        ]
        for path, side in zip(self._paths, sides, strict=True):
            path.set(side)
        # The script of each direction, and the one for both.
        self._scripts = [_Decisions(given) for given in (*(it.script for it in sides), script)]
        # Decides which of several flows goes first.
        self._chance = random.Random(self._seed)  # noqa: S311 - not for secrets
        self._bound: dict[Name, MemoryTransport] = {}
        self._flows: dict[tuple[Name, Name], tuple[int, int]] = {}
        self._pairs: list[tuple[Name, Name]] = []
        # The direction and the pair of each datagram that may still be in the log.
        self._order = deque[tuple[int, int]](maxlen=2 * log_size)
        self._arrived = [0, 0]
        self._next_port = FIRST_FREE_PORT
        self._timer: asyncio.Handle | None = None
        self._timer_due = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._bound)} endpoints, seed={self._seed}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all endpoints and drop datagrams in flight."""
        for transport in list(self._bound.values()):
            transport.abort()
        for path in self._paths:
            path.cut()
        if self._timer is not None:
            self._timer.cancel()

    # Endpoints

    def open_endpoint(
        self, local_addr: Any = None, remote_addr: Any = None, **_options: Any
    ) -> Opening[MemoryEndpoint]:
        """Open an endpoint, like :func:`tomada.asyncio.open_endpoint`.

        It has the interface of :class:`tomada.asyncio.Endpoint`, except for ``socket`` and
        ``recv_datagram``. The network does not look up host names. Without a ``local_addr``, it
        chooses a port on ``127.0.0.1``.

        :raises OSError: ``EADDRINUSE``: another endpoint has the address.
        """
        return Opening(lambda: self._open_endpoint(local_addr, remote_addr))

    async def _open_endpoint(self, local_addr: Any, remote_addr: Any) -> MemoryEndpoint:
        queue = Queue()
        transport = self._make_transport(local_addr, remote_addr)
        transport.start(queue)
        return MemoryEndpoint(self._open_endpoint, transport, queue)

    async def create_datagram_endpoint(
        self,
        protocol_factory: Callable[[], Any],
        local_addr: Any = None,
        remote_addr: Any = None,
        *,
        sock: Any = None,
        **_options: Any,
    ) -> tuple[MemoryTransport, Any]:
        """Create an endpoint, like :meth:`asyncio.loop.create_datagram_endpoint`.

        Socket options are accepted but have no effect. A ``sock`` provides only its addresses, and
        is closed.
        """
        if sock is not None:
            local_addr = sock.getsockname()
            try:
                remote_addr = sock.getpeername()
            except OSError:
                remote_addr = None
            sock.close()
        transport = self._make_transport(local_addr, remote_addr)
        try:
            protocol = protocol_factory()
        except BaseException:
            transport.abort()
            raise
        transport.start(protocol)
        await asyncio.sleep(0)  # until connection_made was called, as with sockets
        return transport, protocol

    def install(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make a loop's ``create_datagram_endpoint`` create endpoints of this network.

        Use this for code that opens its own endpoints.
        """
        loop.create_datagram_endpoint = self.create_datagram_endpoint  # type: ignore[method-assign]

    def _make_transport(self, local_addr: Any, remote_addr: Any) -> MemoryTransport:
        loop = asyncio.get_running_loop()
        local = self._name(local_addr, remote_addr)
        peer = None if remote_addr is None else _key(remote_addr)
        transport = MemoryTransport(self, loop, local, peer)
        self._bound[local] = transport
        return transport

    def _name(self, local_addr: Any, remote_addr: Any) -> Name:
        host, port = ("", 0) if local_addr is None else _key(local_addr)
        if not host:
            is_v6 = remote_addr is not None and ":" in str(remote_addr[0])
            host = "::1" if is_v6 else "127.0.0.1"
        if port:
            if (host, port) in self._bound:
                raise OSError(98, f"address already in use: {format_address((host, port))}")
            return host, port
        for _ in range(FIRST_FREE_PORT, LAST_PORT + 1):
            name = host, self._next_port
            self._next_port += 1
            if self._next_port > LAST_PORT:
                self._next_port = FIRST_FREE_PORT
            if name not in self._bound:
                return name
        raise OSError(98, f"all ports of {host} are in use")

    def forget(self, transport: MemoryTransport) -> None:
        """Free a transport's address."""
        if self._bound.get(transport.name) is transport:
            del self._bound[transport.name]

    # Datagrams

    def carry(
        self, loop: asyncio.AbstractEventLoop, source: Name, destination: Name, data: bytes
    ) -> None:
        """Accept a datagram from a transport."""
        flow, number = self._flow(source, destination)
        step = self._decide(flow, number, data)
        headers = 48 if ":" in destination[0] else 28
        now = int(loop.time() * NANOSECONDS)
        self._paths[number].accept(now, flow, data, headers, step)
        self._order.append((number, flow))
        self._arrange(loop)

    def _flow(self, source: Name, destination: Name) -> tuple[int, int]:
        """Return the number of a pair of addresses, and the direction.

        The address that sent first is the client.
        """
        known = self._flows.get((source, destination))
        if known is None:
            flow = len(self._pairs)
            self._pairs.append((source, destination))
            known = self._flows[source, destination] = flow, 0
            self._flows[destination, source] = flow, 1
        return known

    def _decide(self, flow: int, number: int, data: bytes) -> Step:
        index = self._arrived[number]
        self._arrived[number] += 1
        own = self._scripts[number]
        decisions = self._scripts[BOTH] if own.script is None else own
        return decisions.decide(Arrival(DIRECTIONS[number], flow, index, data))

    def _arrange(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set the timer for the next datagram that is due."""
        due = min((due for path in self._paths if (due := path.next_due()) is not None), default=-1)
        if due < 0 or (self._timer is not None and self._timer_due <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        if due <= int(loop.time() * NANOSECONDS):
            self._timer = loop.call_soon(self._deliver, loop)
        else:
            self._timer = loop.call_at(due / NANOSECONDS, self._deliver, loop)

    def _deliver(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver the datagrams that are due, those of different flows in random order."""
        # The timer may be a little early, because of rounding.
        now = max(int(loop.time() * NANOSECONDS), self._timer_due)
        self._timer = None
        flows: dict[tuple[int, int], deque[bytes]] = {}
        for number, path in enumerate(self._paths):
            while (popped := path.pop(now)) is not None:
                flow, data = popped
                source, destination = self._ends(number, flow)
                if self._receiver(destination) is None:
                    path.undeliver()
                    self._refuse(source, destination)
                    continue
                flows.setdefault((number, flow), deque()).append(data)
        waiting = list(flows)
        while waiting:
            index = self._chance.randrange(len(waiting))
            number, flow = waiting[index]
            source, destination = self._ends(number, flow)
            data = flows[number, flow].popleft()
            if not flows[number, flow]:
                waiting.pop(index)
            receiver = self._receiver(destination)
            if receiver is not None:
                receiver.deliver(data, source, destination)
        self._arrange(loop)

    def _receiver(self, name: Name) -> MemoryTransport | None:
        exact = self._bound.get(name)
        if exact is not None:
            return exact
        wildcards = (self._bound.get((host, name[1])) for host in WILDCARDS)
        return next((transport for transport in wildcards if transport is not None), None)

    def _refuse(self, source: Name, destination: Name) -> None:
        """Tell a connected sender that the address has no endpoint, as an ICMP message does."""
        sender = self._receiver(source)
        if sender is not None and sender.peer == destination:
            sender.fail(ConnectionRefusedError(111, "Connection refused"))

    # Impairments and counters

    @property
    def seed(self) -> int:
        """The seed that determines the fates, and the order of simultaneous datagrams."""
        return self._seed

    def change(
        self,
        *,
        to_server: Impairments | None = None,
        to_client: Impairments | None = None,
        **options: Unpack[ImpairmentOptions],
    ) -> None:
        """Change the impairments, like :meth:`Link.change`."""
        sides, scripts = changed(self._sides, (to_server, to_client), options)
        for number, script in scripts.items():
            self._scripts[number] = _Decisions(script)
        for path, side in zip(self._paths, sides, strict=True):
            path.set(side)
        self._sides = sides

    def cut(self, direction: Direction | None = None) -> None:
        """Cut both directions, or one, like :meth:`Link.cut`."""
        for path in self._chosen(direction):
            path.cut()

    def heal(self, direction: Direction | None = None) -> None:
        """End the cut of both directions, or of one."""
        for path in self._chosen(direction):
            path.heal()

    def _chosen(self, direction: Direction | None) -> Iterable[_core.PathCore]:
        if direction is None:
            return self._paths
        return [self._paths[number_of(direction)]]

    @property
    def log(self) -> list[NetworkFate]:
        """The fates of the datagrams, in the order in which they were sent."""
        logs = [
            fates_of(name, path.log()) for name, path in zip(DIRECTIONS, self._paths, strict=True)
        ]
        result = []
        for number, flow in reversed(self._order):  # backwards: the logs may lack the oldest
            if logs[number]:
                source, destination = self._ends(number, flow)
                result.append(NetworkFate(source, destination, logs[number].pop()))
        return result[::-1]

    def _ends(self, number: int, flow: int) -> tuple[Name, Name]:
        """Return the source and the destination of a pair's datagrams in a direction."""
        client, server = self._pairs[flow]
        return (client, server) if number == 0 else (server, client)

    @property
    def stats(self) -> PathStats:
        """The counters of all datagrams."""
        to_server, to_client = (PathStats(**path.stats()) for path in self._paths)
        return to_server + to_client


class _Decisions:
    """The steps of a script."""

    def __init__(self, script: Script | None) -> None:
        self.script = script
        self._steps = deque[Step]() if script is None or callable(script) else None
        if self._steps is None:
            self._steps = deque(steps_of(script))  # type: ignore[arg-type]

    def decide(self, arrival: Arrival) -> Step:
        if callable(self.script):
            return self.script(arrival)
        return self._steps.popleft() if self._steps else None


def _key(address: Any) -> Name:
    """Return the host and the port of an address."""
    if not isinstance(address, tuple) or len(address) < 2:  # noqa: PLR2004 - a pair
        raise TypeError(f"an address of the network must be (host, port), not {address!r}")
    return str(address[0]), int(address[1])
