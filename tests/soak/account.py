"""How many datagrams the public counters explain, and how many remain unexplained."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

# The maximum number of datagrams that the kernel counts as one drop.
LONGEST_RUN = 128
# The maximum number of datagrams that a worker may have received but not counted yet: 64 messages
# of up to 64 datagrams, as the load generator sends them.
IN_HAND = 64 * 64
# The ends of the names of rows that count the same traffic as another row does.
REPLIES, AT_LINK = ": replies", ": link"
COUNTERS = ("received", "refused", "kernel_drops", "filter_drops")


def explained(stats: Any, before: Any = None, *, run: int | None = 1) -> int:
    """Add up the counters of a receiver, as docs/reliability.md does.

    :param before: The counters at the beginning of the round.
    :param run: The number of datagrams that each drop stands for; ``None`` if it varies.
    """
    received, refused, *drops = counts(stats, before).values()
    return received + refused + sum(drops) * (run or 1)


def counts(stats: Any, before: Any = None) -> dict[str, int]:
    return {
        name: getattr(stats, name) - (getattr(before, name) if before is not None else 0)
        for name in COUNTERS
    }


@dataclass
class Account:
    """The senders' and the receiver's counters of datagrams sent to one receiver."""

    sent: int = 0
    # How many of these were sent one by one, not in runs (UDP_SEGMENT).
    singly: int = 0
    received: int = 0
    refused: int = 0
    kernel_drops: int = 0
    filter_drops: int = 0
    lost_with_killed: int = 0
    # Datagrams that are missing without a reason, counted twice, or received but never delivered to
    # the program. The deviations of all rounds are added up, whether too many or too few.
    unexplained: int = 0

    @classmethod
    def of(  # noqa: PLR0913 - each is a counter
        cls,
        sent: int,
        stats: Any,
        before: Any = None,
        *,
        singly: int = 0,
        run: int | None = 1,
        killed: int = 0,
    ) -> Self:
        """Draw up the account of one round; see :func:`explained`.

        :param singly: How many of the datagrams were sent one by one.
        :param killed: How many workers were killed.
        """
        missing = sent - explained(stats, before, run=run)
        found = counts(stats, before)
        if run is None:
            # Each drop explains from one to LONGEST_RUN datagrams.
            more = (found["kernel_drops"] + found["filter_drops"]) * (LONGEST_RUN - 1)
            missing -= min(max(missing, 0), more)
        lost_with_killed = min(max(missing, 0), killed * IN_HAND)
        unexplained = abs(missing - lost_with_killed)
        return cls(sent, singly, *found.values(), lost_with_killed, unexplained)

    def compare(self, delivered: int) -> Self:
        """Compare the number of received datagrams with the number delivered to the program."""
        self.unexplained += abs(self.received - delivered)
        return self

    def add(self, other: Account) -> None:
        """Add the account of another round."""
        for field in fields(self):
            name = field.name
            setattr(self, name, getattr(self, name) + getattr(other, name))
