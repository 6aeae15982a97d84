"""The impairments of a link, and the fates of datagrams."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self, SupportsIndex, TypeAlias, TypedDict

from tomada import _core

Direction: TypeAlias = Literal["to_server", "to_client"]
DIRECTIONS: tuple[Direction, Direction] = ("to_server", "to_client")


def number_of(direction: Direction) -> int:
    """Return a direction's number."""
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be 'to_server' or 'to_client', not {direction!r}")
    return DIRECTIONS.index(direction)


@dataclass(frozen=True, slots=True)
class GilbertElliott:
    """Loss in bursts: the Gilbert–Elliott model, a Markov chain with two states.

    Before each datagram, a burst begins with probability ``p``, or ends with probability ``r``. The
    network loses the share ``bad`` of the datagrams within a burst, and the share ``good`` outside
    one. These are the arguments ``p``, ``r``, ``1-h`` and ``1-k`` of ``netem``'s ``loss gemodel``
    (:manpage:`tc-netem(8)`).
    """

    p: float
    r: float
    bad: float = 1.0
    good: float = 0.0

    @classmethod
    def bursts(cls, loss: float, length: float) -> Self:
        """Return the model that loses the share ``loss`` in bursts of ``length`` datagrams.

        :param loss: A share, at least 0 and less than 1.
        :param length: The average number of datagrams in a burst, at least 1.
        :raises ValueError: An argument is outside its range, or no frequency of bursts results in
            that loss.
        """
        if not (0 <= loss < 1 and 1 <= length < math.inf):
            raise ValueError("loss must be a share below 1, and length at least 1")
        r = 1 / length
        p = r * loss / (1 - loss)
        if p > 1:
            raise ValueError(f"bursts of {length:g} datagrams cannot lose a share of {loss:g}")
        return cls(p, r)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A datagram whose fate a script's function decides."""

    direction: Direction
    """``"to_server"`` or ``"to_client"``."""
    client: int
    """The client's number, from 0, in the order in which the clients appeared."""
    index: int
    """The datagram's position in its direction, from 0."""
    data: bytes
    """The payload."""


Step: TypeAlias = str | None
Script: TypeAlias = Sequence[Step] | Callable[[Arrival], Step]


class RandomImpairments(TypedDict, total=False):
    """The fields of :class:`Impairments` that leave datagrams to chance."""

    loss: float | GilbertElliott
    delay: float
    jitter: float
    reorder: float
    duplicate: float
    corrupt: float
    truncate: float
    rate: float | None
    queue: int | None
    mtu: int | None


class ImpairmentOptions(RandomImpairments, total=False):
    """The fields of :class:`Impairments`."""

    script: Script | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Impairments:
    """The impairments of one direction. The default passes datagrams unchanged.

    A datagram that is not lost passes the bottleneck (``rate``) and is then delayed (``delay``).

    :param loss: The share of datagrams that are lost, from 0 to 1, or a :class:`GilbertElliott` for
        bursts.
    :param delay: How long a datagram takes, in seconds.
    :param jitter: The maximum deviation from ``delay`` in either direction, in seconds, uniformly
        distributed. A delay is never negative. Datagrams whose delays differ can overtake each
        other.
    :param reorder: The share of datagrams that the client's next datagram overtakes. If none
        follows within 50 ms, the delayed one arrives then.
    :param duplicate: The share of datagrams that arrive twice. Each copy has its own jitter.
    :param corrupt: The share of datagrams in which one bit is flipped. The checksum matches the
        changed bytes.
    :param truncate: The share of datagrams that are truncated, by between one byte and their whole
        length.
    :param rate: Payload bits per second. ``None`` sets no limit.
    :param queue: How many datagrams may wait because of the rate; any more are dropped. The default
        is 1,000.
    :param mtu: The longest IP packet in bytes: 28 more than the payload over IPv4, and 48 more over
        IPv6. Longer packets are dropped without an ICMP message.
    :param script: Decides the fates of the first datagrams, or of all of them: see
        :func:`tomada.testing.impaired`.
    :raises ValueError: A value is outside its range; the message says which.
    """

    loss: float | GilbertElliott = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    truncate: float = 0.0
    rate: float | None = None
    queue: int | None = None
    mtu: int | None = None
    script: Script | None = None

    def __post_init__(self) -> None:
        if self.queue is not None and self.rate is None:
            raise ValueError("queue needs a rate")
        _core.PathCore(0, 0).set(self)
        if self.script is not None and not callable(self.script):
            steps_of(self.script)


def steps_of(script: Sequence[Step]) -> list[Step]:
    """Check a script's steps and return them.

    A single string is a mistake, and so is an iterator, which the check would use up.
    """
    if isinstance(script, str) or not isinstance(script, Sequence):
        raise TypeError(f"script must be a list of steps, or a function, not {script!r}")
    steps = list(script)
    _core.PathCore.check_steps(steps)
    return steps


Sides: TypeAlias = tuple[Impairments, Impairments]


def check_side(name: Direction, side: Impairments) -> None:
    """Check the impairments of a direction."""
    if not isinstance(side, Impairments):
        raise TypeError(f"{name} must be Impairments, not {side!r}")


def check_log_size(size: int) -> None:
    """Check the size of a log."""
    if not isinstance(size, SupportsIndex):
        raise TypeError(f"log_size must be a number of fates, not {size!r}")
    if size < 0:
        raise ValueError(f"log_size must be at least 0, not {size}")


# The scope of a script is the number of a direction, or this, for both directions.
BOTH = len(DIRECTIONS)


def changed(
    before: Sides,
    given: tuple[Impairments | None, Impairments | None],
    options: ImpairmentOptions,
) -> tuple[Sides, dict[int, Script | None]]:
    """Return the impairments after a change, and the scripts that it replaces."""
    scripts: dict[int, Script | None] = {}
    if "script" in options:
        # A new script for both directions also replaces those for single directions.
        scripts = dict.fromkeys(range(BOTH)) | {BOTH: options["script"]}
        Impairments(script=options["script"])  # raises if it is invalid
        options = {**options, "script": None}
    sides = [replace(side, **options) for side in before]
    for number, side in enumerate(given):
        if side is not None:
            check_side(DIRECTIONS[number], side)
            sides[number] = side
            scripts[number] = side.script
    return (sides[0], sides[1]), scripts


def function_of(script: Callable[[Arrival], Step]) -> Callable[[int, int, int, bytes], Step]:
    """Return a function for the core that calls a script's function."""

    def decide(direction: int, client: int, index: int, data: bytes) -> Step:
        return script(Arrival(DIRECTIONS[direction], client, index, data))

    return decide


@dataclass(frozen=True, slots=True)
class Fate:
    """The fate of a datagram. Two fates are equal if the same thing happened to both datagrams."""

    direction: Direction
    """``"to_server"`` or ``"to_client"``."""
    client: int
    """The client's number, from 0, in the order in which the clients appeared."""
    index: int
    """The datagram's position among those of its client and direction, from 0."""
    size: int
    """Its length in bytes when it arrived at the link."""
    dropped: str | None
    """Why it did not arrive: ``"lost"``, ``"scripted"``, ``"cut"``, ``"queue_full"``,
    ``"too_long"``, ``"rebound"`` or ``"unsendable"``. ``None`` if it has arrived or is still
    queued."""
    copies: int
    """How many copies have arrived, or are queued."""
    delay: float
    """The delay of the first copy in seconds, without the time in the queue."""
    corrupted: int | None
    """The number of the bit that was flipped."""
    truncated: int | None
    """The length that it was truncated to."""
    reordered: bool
    """Whether it was delayed so that the next datagram could overtake it."""
    time: float = field(compare=False)
    """When it arrived at the link, in seconds since the link's start."""


def fates_of(direction: Direction, records: list[tuple[Any, ...]]) -> list[Fate]:
    """Return the core's records as fates."""
    return [Fate(direction, *record) for record in records]


@dataclass(frozen=True, slots=True)
class PathStats:
    """The counters of one direction.

    At any time, ``received + duplicated == sent + dropped + queued``.
    """

    received: int = 0
    """Datagrams that arrived at the link."""
    received_bytes: int = 0
    """Their payload bytes."""
    sent: int = 0
    """Datagrams that left the link, duplicates included."""
    sent_bytes: int = 0
    """Their payload bytes."""
    duplicated: int = 0
    """Copies that the link made."""
    corrupted: int = 0
    """Datagrams in which a bit was flipped."""
    truncated: int = 0
    """Datagrams that were truncated."""
    reordered: int = 0
    """Datagrams delayed so that the next one could overtake them."""
    delayed: int = 0
    """Datagrams with a delay."""
    queued: int = 0
    """Datagrams in flight."""
    lost: int = 0
    """Dropped: lost by chance (or in a burst)."""
    scripted: int = 0
    """Dropped by a script."""
    cut: int = 0
    """Dropped because the direction was cut, or the link stopped."""
    queue_full: int = 0
    """Dropped because too many were waiting, or those in flight took 256 MiB of memory."""
    too_long: int = 0
    """Dropped because they were longer than the MTU."""
    rebound: int = 0
    """Dropped because they were for a port that a client had before :meth:`Link.rebind`."""
    unsendable: int = 0
    """Dropped because the kernel refused to send them; in a network, because nobody had bound the
    address."""

    @property
    def dropped(self) -> int:
        """Dropped datagrams, for any reason."""
        return (
            self.lost
            + self.scripted
            + self.cut
            + self.queue_full
            + self.too_long
            + self.rebound
            + self.unsendable
        )

    def __add__(self, other: PathStats) -> PathStats:
        names = [item.name for item in fields(self)]
        return PathStats(*(getattr(self, name) + getattr(other, name) for name in names))


@dataclass(frozen=True, slots=True)
class LinkStats:
    """The counters of a link."""

    to_server: PathStats
    """Datagrams from the clients to the server."""
    to_client: PathStats
    """Datagrams from the server to the clients."""
    kernel_drops: int
    """Datagrams that the kernel dropped because the link could not receive them in time."""
    server_icmp_errors: int
    """ICMP errors returned for datagrams to the server, such as port unreachable."""
    client_icmp_errors: int
    """ICMP errors returned for datagrams to clients."""
