"""A link: a thread that forwards datagrams between clients and a server, and impairs them."""

from __future__ import annotations

import heapq
import socket as _std
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self, Unpack

from tomada import _core
from tomada._address import format_address, parse_address
from tomada._testing import seeds
from tomada._testing.impairments import (
    DIRECTIONS,
    Direction,
    Fate,
    ImpairmentOptions,
    Impairments,
    LinkStats,
    PathStats,
    Script,
    fates_of,
    function_of,
    steps_of,
)

if TYPE_CHECKING:
    from tomada.server import Server

# How many fates of each direction a link remembers.
LOG_SIZE = 1_000_000


class LinkClient(NamedTuple):
    """A client of a link."""

    number: int
    """From 0, in the order in which the clients appeared."""
    address: Any
    """Its own address."""
    outside: Any
    """The address that the server sees."""


class Link:
    """A link between clients and a server: see :func:`tomada.testing.impaired`."""

    def __init__(  # noqa: PLR0913 - the options of a link
        self,
        upstream: Any,
        sides: tuple[Impairments, Impairments],
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
        if script is not None and not callable(script):
            _core.PathCore(0, 0).set_script(steps_of(script))

    def __repr__(self) -> str:
        state = "not started" if self._core is None else format_address(self._core.address)
        return f"<{type(self).__name__} {state}, seed={self._seed}>"

    def start(self) -> None:
        """Open the link's socket, and start its thread. Entering a ``with`` block does this.

        :raises OSError: The address cannot be bound.
        :raises RuntimeError: The link was started before.
        """
        if self._core is not None:
            raise RuntimeError("a link can be started once: create another one")
        family, upstream = _resolve(self._upstream)
        host = "127.0.0.1" if family == _std.AF_INET else "::1"
        listen = (host, 0) if self._listen is None else _resolve(self._listen, family)[1]
        self._core = _core.LinkCore(
            family,
            listen,
            upstream,
            self._seed,
            self._log_size,
            self._sides,
            (_script_of(self._sides[0].script), _script_of(self._sides[1].script)),
            _script_of(self._script),
            self._captures,
        )

    def close(self) -> None:
        """Stop the link, and close its sockets. Leaving the ``with`` block does this.

        Datagrams that are still queued are dropped, and count as ``cut``. :attr:`log` and
        :attr:`stats` stay readable. Closing twice does nothing. If a script's function calls this,
        the link stops after that call, and the next :meth:`close` waits for it.

        :raises BaseException: The first exception that a script's function has raised.
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
        """The seed that fates are drawn from."""
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
        """Change the impairments of datagrams that arrive from now on.

        Options that are not given stay as they are. ``to_server`` and ``to_client`` replace all
        options of a direction.

        :raises ValueError: A value is outside its range, or a script is a function, which cannot be
            changed.
        """
        before = self._sides
        sides = [
            replace(side, **options) if given is None else given
            for side, given in zip(before, (to_server, to_client), strict=True)
        ]
        for number, side in enumerate(sides):
            old = before[number].script
            replaced = self._script if old is None else old
            if side.script is not old and (callable(side.script) or callable(replaced)):
                raise ValueError(
                    "a script that is a function cannot be set later: pass it to impaired()"
                )
        for number, side in enumerate(sides):
            self._running.set(number, side)
            if side.script is not before[number].script:
                self._running.set_script(number, steps_of(side.script or []))  # type: ignore[arg-type]
        self._sides = (sides[0], sides[1])

    def cut(self, direction: Direction | None = None) -> None:
        """Cut both directions, or one: drop datagrams in flight and later ones.

        After this returns, nothing arrives until :meth:`heal`.
        """
        for number in _numbers(direction):
            self._running.cut(number)

    def heal(self, direction: Direction | None = None) -> None:
        """End the cut of both directions, or of one."""
        for number in _numbers(direction):
            self._running.heal(number)

    def rebind(self) -> None:
        """Change the port from which the server sees each client, as a NAT does after a pause.

        Each client's next datagram comes from the new port. Replies to an old port are dropped and
        counted (``rebound``).
        """
        self._running.rebind()

    @property
    def log(self) -> list[Fate]:
        """The fates of the datagrams, in the order in which they arrived at the link.

        The log keeps the latest ``log_size`` of each direction.
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

        Each has its time in nanoseconds since 1970 UTC, its source, its destination and its bytes.
        """
        return self._running.take_captured()


def _script_of(script: Script | None) -> Any:
    if script is None:
        return None
    return function_of(script) if callable(script) else steps_of(script)


def _numbers(direction: Direction | None) -> Iterable[int]:
    if direction is None:
        return range(len(DIRECTIONS))
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be 'to_server' or 'to_client', not {direction!r}")
    return [DIRECTIONS.index(direction)]


def _resolve(address: Server | tuple[Any, ...] | str, family: int = 0) -> tuple[int, Any]:
    """Return the family and the name of a server or an address."""
    where = getattr(address, "address", address)
    if isinstance(where, str):
        where = parse_address(where)
    if not isinstance(where, tuple):
        raise TypeError(f"a link needs an address of IPv4 or IPv6, not {where!r}")
    host, port = where[:2]
    found = _std.getaddrinfo(host, port, family, _std.SOCK_DGRAM)
    chosen = min(found, key=lambda info: info[0] != _std.AF_INET)
    # A wildcard address is where a server listens; this machine reaches it by loopback.
    name = chosen[4]
    if family == 0 and name[0] in {"0.0.0.0", "::"}:  # noqa: S104 - nothing is bound to it
        name = ("127.0.0.1" if name[0] == "0.0.0.0" else "::1", *name[1:])  # noqa: S104
    return chosen[0], name
