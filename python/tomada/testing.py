"""Tools for testing UDP programs: networks that lose, delay, duplicate and reorder datagrams.

* :func:`impaired` returns a link between a server and its clients, on real sockets.
* :func:`network` returns a network in memory, for endpoints without sockets.
* :class:`VirtualClock` and :func:`run` skip waits: thirty seconds of retries take milliseconds.

The pytest plug-in provides them as fixtures: ``udp_server``, ``udp_link``, ``udp_network`` and
``udp_clock``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from tomada._testing.impairments import (
    Arrival,
    Fate,
    GilbertElliott,
    Impairments,
    LinkStats,
    PathStats,
    Script,
)
from tomada._testing.link import LOG_SIZE, Link, LinkClient

if TYPE_CHECKING:
    from tomada._testing import strategies
    from tomada._testing.clock import VirtualClock, VirtualClockLoop, run
    from tomada._testing.impairments import RandomImpairments
    from tomada._testing.leaks import assert_no_udp_leaks
    from tomada._testing.memory_endpoint import MemoryEndpoint, MemoryStats
    from tomada._testing.memory_transport import MemoryTransport
    from tomada._testing.network import Network, NetworkFate

__all__ = [
    "Arrival",
    "Fate",
    "GilbertElliott",
    "Impairments",
    "Link",
    "LinkClient",
    "LinkStats",
    "MemoryEndpoint",
    "MemoryStats",
    "MemoryTransport",
    "Network",
    "NetworkFate",
    "PathStats",
    "VirtualClock",
    "VirtualClockLoop",
    "assert_no_udp_leaks",
    "impaired",
    "network",
    "run",
    "strategies",
]

# Imported on first use: a link does not need asyncio.
_MODULES = {
    "MemoryEndpoint": "memory_endpoint",
    "MemoryStats": "memory_endpoint",
    "MemoryTransport": "memory_transport",
    "Network": "network",
    "NetworkFate": "network",
    "VirtualClock": "clock",
    "VirtualClockLoop": "clock",
    "assert_no_udp_leaks": "leaks",
    "run": "clock",
    "strategies": "strategies",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - as above

    module = import_module(f"tomada._testing.{_MODULES[name]}")
    value = globals()[name] = module if name == "strategies" else getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


def impaired(  # noqa: PLR0913 - the properties of a network
    upstream: Any,
    *,
    seed: int | None = None,
    script: Script | None = None,
    to_server: Impairments | None = None,
    to_client: Impairments | None = None,
    listen: Any = None,
    log_size: int = LOG_SIZE,
    **impairments: Unpack[RandomImpairments],
) -> Link:
    """Return a link that sits in front of a server and impairs the datagrams passing through it.

    ``with impaired(server.address, loss=0.1) as link:`` (or ``async with``) starts it. Clients send
    to ``link.address``. As behind a NAT, each client gets a separate port towards the server, and
    the link forwards replies from that port to the client. A native thread forwards the datagrams,
    so this needs neither root nor an event loop.

    **Fates.** The fate of a datagram depends only on the seed, the impairments, its direction, its
    client's number, and its position among that client's datagrams. So in every run with the same
    seed, the same datagrams meet the same fates. This holds for ``loss``, ``delay``, ``jitter``,
    ``reorder``, ``duplicate``, ``corrupt`` and ``truncate``; ``rate`` and ``queue`` also depend on
    timing.

    **Scripts.** A list decides the fates of the link's first datagrams, one after another, in both
    directions; after that, fates are random. Its steps are ``"pass"``, ``"drop"``, ``"delay
    50ms"``, ``"duplicate"``, ``"duplicate 3"`` (three more copies), ``"corrupt"``, ``"truncate
    10"`` (to ten bytes), ``"reorder"``, several of these separated by commas, and ``"default"`` or
    ``None`` for a random fate. A function gets each datagram as an :class:`Arrival` and returns a
    step. The link's thread calls it, so it must be fast and must not wait for a datagram that
    passes through the link. A step replaces the random impairments; ``rate`` and ``mtu`` still
    apply, and so does ``delay`` unless the step has one. In ``to_server`` and ``to_client``, a
    script decides the fates of the datagrams in that direction.

    :param upstream: The server's address: a pair ``(host, port)``, a string ``"host:port"``, or a
        :class:`tomada.Server`.
    :param loss: The impairments of both directions, as documented for :class:`Impairments`.
    :param seed: The seed for the fates, from 0 to 2**64 - 1. By default, each link gets a different
        seed (``link.seed``); with the pytest plug-in, ``--udp-seed`` reproduces it.
    :param to_server: The impairments of datagrams from the clients to the server, in place of those
        above.
    :param to_client: The same for datagrams from the server to the clients.
    :param listen: The address for the clients: by default, any free port on loopback.
    :param log_size: How many fates ``link.log`` keeps for each direction, at 80 bytes each.
    :raises ValueError: A value is outside its range; the message says which.
    :raises OSError: Raised on entering: an address does not exist or cannot be bound.
    """
    sides = _sides(impairments, to_server, to_client)
    return Link(upstream, sides, script=script, seed=seed, listen=listen, log_size=log_size)


def network(
    *,
    seed: int | None = None,
    script: Script | None = None,
    to_server: Impairments | None = None,
    to_client: Impairments | None = None,
    log_size: int = LOG_SIZE,
    **impairments: Unpack[RandomImpairments],
) -> Network:
    """Return a network in memory, for endpoints without sockets on one asyncio loop.

    :meth:`Network.open_endpoint` and :meth:`Network.create_datagram_endpoint` work like their
    counterparts in :mod:`tomada.asyncio` and on an event loop. ``async with network() as net:``
    closes all endpoints at the end. Delays are timers of the loop, so with a :class:`VirtualClock`
    they take no time.

    The arguments are the same as for :func:`impaired`, and the same seed results in the same fates.
    Of two addresses, the one that first sends to the other is the client. When datagrams from
    several clients are due at once, the seed decides which goes first: the same seed gives the same
    order, and other seeds try other orders.

    A datagram to an address without an endpoint is counted as ``unsendable``; if the sender has
    that address as its peer, it gets a :class:`ConnectionRefusedError`.
    """
    from tomada._testing.network import Network  # noqa: PLC0415 - a link does not need asyncio

    sides = _sides(impairments, to_server, to_client)
    return Network(sides, script=script, seed=seed, log_size=log_size)


def _sides(
    options: RandomImpairments, to_server: Impairments | None, to_client: Impairments | None
) -> tuple[Impairments, Impairments]:
    both = Impairments(**options)
    return (both if to_server is None else to_server, both if to_client is None else to_client)
