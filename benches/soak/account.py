"""What became of datagrams, and what is left unexplained."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

# The most datagrams that the kernel drops as one.
LONGEST_RUN = 128
# The most datagrams that a worker has in hand: 64 messages of up to 64 datagrams as the load
# generator sends them. One that is killed may not have counted them yet.
IN_HAND = 64 * 64


@dataclass
class Account:
    """What became of the datagrams that were sent to one place.

    All of it comes out of public counters: those of the senders, and ``stats()``.
    """

    sent: int = 0
    # Of these, how many came one by one: the others in runs, which are one send (UDP_SEGMENT).
    singly: int = 0
    received: int = 0
    refused: int = 0
    kernel_drops: int = 0
    # What was lost with workers that were killed; and how many were.
    lost_with_killed: int = 0
    killed: int = 0
    # Missing without a reason, counted twice, or received and never handed to the program: in all
    # rounds, whether too many or too few.
    unexplained: int = 0

    @classmethod
    def of(  # noqa: PLR0913 - each is a number that somebody has counted
        cls,
        sent: int,
        stats: Any,
        before: Any = None,
        *,
        singly: int = 0,
        run: int | None = 1,
        killed: int = 0,
    ) -> Self:
        """Draw up the account of one round.

        :param stats: The counters at its end; ``before``, those at its beginning.
        :param singly: How many were sent one by one.
        :param run: How many datagrams a drop stands for; ``None`` if they differ.
        :param killed: How many workers were killed.
        """
        counts = {
            name: getattr(stats, name) - (getattr(before, name) if before is not None else 0)
            for name in ("received", "refused", "kernel_drops")
        }
        drops = counts["kernel_drops"]
        rest = sent - counts["received"] - counts["refused"]
        # As many as the drops account for, where that is not certain.
        dropped = drops * run if run else min(max(rest, drops), drops * LONGEST_RUN)
        missing = rest - dropped
        lost_with_killed = min(max(missing, 0), killed * IN_HAND)
        unexplained = abs(missing - lost_with_killed)
        return cls(sent, singly, *counts.values(), lost_with_killed, killed, unexplained)

    def compare(self, delivered: int) -> Self:
        """Compare what was received with how much of it came into the hands of the program."""
        self.unexplained += abs(self.received - delivered)
        return self

    def add(self, other: Account) -> None:
        """Add the account of another round."""
        for field in fields(self):
            name = field.name
            setattr(self, name, getattr(self, name) + getattr(other, name))
