"""A link: a thread that forwards datagrams between clients and a server, and impairs them."""

from __future__ import annotations

import heapq
import socket as _std
from typing import TYPE_CHECKING, Any, NamedTuple, Self, Unpack

from tomada import _core
from tomada._address import format_address, parse_address
from tomada._testing import seeds
from tomada._testing.impairments import (
    BOTH,
    DIRECTIONS,
    Direction,
    Fate,
    ImpairmentOptions,
    Impairments,
    LinkStats,
    PathStats,
    Script,
    Sides,
    changed,
    check_log_size,
    check_side,
    fates_of,
    function_of,
    number_of,
    steps_of,
)

if TYPE_CHECKING:
    from tomada.server import Server

# How many fates of each direction a link remembers.
LOG_SIZE = 1_000_000


class LinkClient(NamedTuple):
    """A client that sends through a link."""

    number: int
    """The client's number, from 0, in the order in which the clients appeared."""
    address: Any
    """The client's own address."""
    outside: Any
    """The address that the server sees."""


class Link:
    """A link between clients and a server: see :func:`tomada.testing.impaired`."""

    def __init__(  # noqa: PLR0913 - the options of a link
        self,
        upstream: Any,
        sides: Sides,
        *,
        script: Script | None,
        seed: int | None,
        listen: Any = None,
        log_size: int = LOG_SIZE,
        captures: bool = False,
    ) -> None:
        self._upstream = upstream
        self._sides = sides
        self._script = script
        self._listen = listen
        self._log_size = log_size
        self._captures = captures
        self._core: _core.LinkCore | None = None
        self._seed = seeds.chosen(seed)
        check_log_size(log_size)
        for name, side in zip(DIRECTIONS, sides, strict=True):
            check_side(name, side)
        if script is not None and not callable(script):
            steps_of(script)

    def __repr__(self) -> str:
        state = "not started" if self._core is None else format_address(self._core.address)
        return f"<{type(self).__name__} {state}, seed={self._seed}>"

    def start(self) -> None:
        """Open the link's socket and start its thread. Entering a ``with`` block does this.

        :raises OSError: The address cannot be bound.
        :raises RuntimeError: The link was started before.
        """
        if self._core is not None:
            raise RuntimeError("a link can be started only once: create another one")
        family, upstream = _resolve(self._upstream)
        if not upstream[1]:
            raise ValueError("the server's address needs a port, not 0")
        host = "127.0.0.1" if family == _std.AF_INET else "::1"
        listen = (host, 0) if self._listen is None else _resolve(self._listen, family)[1]
        self._core = _core.LinkCore(
            family,
            listen,
            upstream,
            self._seed,
            self._log_size,
            self._sides,
            _scripts_of({0: self._sides[0].script, 1: self._sides[1].script, BOTH: self._script}),
            self._captures,
        )

    def close(self) -> None:
        """Stop the link and close its sockets. Leaving a ``with`` block does this.

        This begins with a :meth:`cut`: the link first forwards the datagrams that have arrived and
        are due, then drops those that are still in flight and counts them as ``cut``. :attr:`log`
        and :attr:`stats` remain available. Closing again does nothing. If a script's function calls
        this, the link stops when that function returns, and the next :meth:`close` waits for that.

        :raises BaseException: The first exception that a script's function raised.
        :raises OSError: ``EMFILE``: a client's datagrams were dropped (``unsendable``) because
            there was no descriptor for its port. Raise the limit (``ulimit -n``), or use fewer
            clients: each takes a descriptor.
        """
        if self._core is not None:
            self._core.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.close()
        except BaseException:
            if kind is None:
                raise  # otherwise the block's own exception says more

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *args: object) -> None:
        self.__exit__(*args)

    @property
    def _running(self) -> _core.LinkCore:
        if self._core is None:
            raise RuntimeError("the link is not started: write with impaired(...) as link")
        return self._core

    @property
    def address(self) -> Any:
        """The address that clients send to instead of the server's."""
        return self._running.address

    @property
    def seed(self) -> int:
        """The seed for the fates."""
        return self._seed

    @property
    def to_server(self) -> Impairments:
        """The current impairments of datagrams from the clients to the server."""
        return self._sides[0]

    @property
    def to_client(self) -> Impairments:
        """The current impairments of datagrams from the server to the clients."""
        return self._sides[1]

    def change(
        self,
        *,
        to_server: Impairments | None = None,
        to_client: Impairments | None = None,
        **options: Unpack[ImpairmentOptions],
    ) -> None:
        """Change the impairments of datagrams that arrive later.

        The old impairments apply to each datagram that arrived before this returns, and the new
        ones to those that arrive later. Datagrams in flight keep their fates and delays.

        Options that you do not pass stay as they are. ``to_server`` and ``to_client`` replace all
        options of a direction, including its script.

        A ``script`` replaces the rest of the previous script, and of any script for a single
        direction. A list begins with the next datagram that arrives, in either direction; ``None``
        or an empty list leaves all datagrams to chance. A list in ``to_server`` or ``to_client``
        begins with the next datagram in that direction. If you change only other options, the
        current list continues.

        :raises ValueError: A value is outside its range; nothing was changed.
        """
        sides, scripts = changed(self._sides, (to_server, to_client), options)
        self._running.change(sides, _scripts_of(scripts))
        self._sides = sides

    def cut(self, direction: Direction | None = None) -> None:
        """Cut both directions, or one, until :meth:`heal`.

        When this returns, nothing passes through the link any longer. Datagrams that arrived
        earlier and were already due to leave the link have left. Those that are still in flight
        (delayed, reordered, or queued because of a rate) and those that arrive later are dropped,
        and count as ``cut``.

        This waits for the link's thread, and so for any script function that the thread is calling.
        The function itself may also call this method, :meth:`heal`, :meth:`rebind` and
        :meth:`change`: they take effect when it returns, beginning with the datagram that it was
        called for.
        """
        self._running.cut(_chosen(direction))

    def heal(self, direction: Direction | None = None) -> None:
        """End the cut of both directions, or of one.

        When this returns, every datagram that arrived earlier has been dropped, and those that
        arrive later pass.
        """
        self._running.heal(_chosen(direction))

    def rebind(self) -> None:
        """Change the port from which the server sees each client, as a NAT does after a pause.

        When this returns, :attr:`clients` has the new ports. Datagrams that arrived earlier and
        were already due to leave the link have left from the old ports; those that are still on
        their way to the server leave from the new ones. Replies that arrive at an old port later
        are dropped and count as ``rebound``.

        :raises OSError: ``EMFILE``: there is no descriptor for another port. The clients that
            appeared last keep their ports.
        """
        self._running.rebind()

    @property
    def log(self) -> list[Fate]:
        """The fates of the datagrams, in the order in which they arrived at the link.

        The log keeps the latest ``log_size`` fates for each direction. With the same seed, each
        client's fates in each direction are the same in every run, as long as the client sends the
        same datagrams and receives the same number. The order among several clients, or between the
        two directions, depends on timing. To compare runs, sort by ``(fate.client, fate.direction,
        fate.index)``.
        """
        core = self._running
        both = [fates_of(name, core.log(number)) for number, name in enumerate(DIRECTIONS)]
        return list(heapq.merge(*both, key=lambda fate: fate.time))

    @property
    def stats(self) -> LinkStats:
        """The counters. They are exact, however long the link runs."""
        core = self._running
        to_server, to_client = (PathStats(**core.stats(number)) for number in (0, 1))
        server_errors, client_errors = core.icmp_errors()
        return LinkStats(to_server, to_client, core.kernel_drops(), server_errors, client_errors)

    @property
    def clients(self) -> list[LinkClient]:
        """The clients, each with the address that the server sees."""
        return [LinkClient(*client) for client in self._running.clients()]

    def take_captured(self) -> tuple[list[tuple[int, Any, Any, bytes]], int]:
        """Return the datagrams on both sides since the last call, and how many were discarded.

        Each comes with its time in nanoseconds since 1970 UTC, its source, its destination and its
        bytes.
        """
        return self._running.take_captured()


def _scripts_of(scripts: dict[int, Script | None]) -> list[tuple[int, Any]]:
    """Return scripts for the core."""
    return [
        (number, script if script is None or not callable(script) else function_of(script))
        for number, script in scripts.items()
    ]


def _chosen(direction: Direction | None) -> tuple[bool, bool]:
    """Return whether each direction is selected."""
    if direction is None:
        return True, True
    return number_of(direction) == 0, number_of(direction) == 1


def _resolve(address: Server | tuple[Any, ...] | str, family: int = 0) -> tuple[int, Any]:
    """Return the family and the numeric form of an address, or of a server's address."""
    where = getattr(address, "address", address)
    if isinstance(where, str):
        where = parse_address(where)
    if not isinstance(where, tuple) or len(where) < 2:  # noqa: PLR2004 - a pair
        raise TypeError(f"a link needs an address of IPv4 or IPv6, not {where!r}")
    host, port, *scope = where
    found = _std.getaddrinfo(host, port, family, _std.SOCK_DGRAM)
    chosen = min(found, key=lambda info: info[0] != _std.AF_INET)
    # A server may listen on a wildcard address; clients on this machine reach it over loopback.
    name = chosen[4]
    if chosen[0] == _std.AF_INET6 and scope:
        name = (*name[:2], *scope)
    if family == 0 and name[0] in {"0.0.0.0", "::"}:  # noqa: S104 - nothing is bound to it
        name = ("127.0.0.1" if name[0] == "0.0.0.0" else "::1", *name[1:])  # noqa: S104
    return chosen[0], name
