"""Each impairment happens as often as it should: to 1,000,000 datagrams in the long form.

The seeds are fixed, so the results are too, and no test fails now and then. The bounds are those
that 99.9 % of all seeds meet. ``TOMADA_LONG=1`` selects the long form, which takes about a minute
for each impairment.
"""

import itertools
import math

import pytest

from families import length
from linked import plain, until
from tomada import _core
from tomada.testing import GilbertElliott, Impairments, impaired

MILLION = 1_000_000
# No batch is larger than a receive buffer, whatever the machine does.
BATCH = 100
# Standard deviations that 99.9 % of a normal distribution are within.
DEVIATIONS = 3.29


def within(count, total, share):
    """Whether a count is within the bounds of a binomial distribution."""
    return abs(count - total * share) <= DEVIATIONS * math.sqrt(total * share * (1 - share)) + 1


SAME = itertools.repeat(b"x" * 20)


def run(total, datagrams=SAME, **options):
    """Send datagrams through a link; return the counters, and the fates.

    Each datagram that leaves the link arrives: the server counts it, too.
    """
    fates, arrived = [], 0
    with (
        plain() as server,
        plain() as client,
        impaired(server.getsockname(), seed=1, log_size=BATCH, **options) as link,
    ):
        client.connect(link.address)
        for sent in range(BATCH, total + 1, BATCH):
            for data in itertools.islice(datagrams, BATCH):
                client.send(data)
            until(lambda sent=sent: link.stats.to_server.received == sent)
            until(lambda: link.stats.to_server.queued == 0)
            fates.extend((fate.dropped, fate.delay) for fate in link.log)
            for _ in range(link.stats.to_server.sent - arrived):
                server.recv(2000)
                arrived += 1
        stats = link.stats
        assert stats.kernel_drops == 0
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.recv(2000)
    path = stats.to_server
    assert path.received == total
    assert arrived == path.sent == total + path.duplicated - path.dropped
    return path, fates


SHARES = {"loss": 0.05, "duplicate": 0.02, "corrupt": 0.03, "truncate": 0.04, "reorder": 0.01}
COUNTERS = {
    "loss": "lost",
    "duplicate": "duplicated",
    "corrupt": "corrupted",
    "truncate": "truncated",
    "reorder": "reordered",
}


@pytest.mark.parametrize("name", SHARES)
def test_a_share_is_within_binomial_bounds(name):
    total = length(5_000, MILLION)
    path, _ = run(total, **{name: SHARES[name]})
    assert within(getattr(path, COUNTERS[name]), total, SHARES[name])
    others = [getattr(path, counter) for other, counter in COUNTERS.items() if other != name]
    assert others == [0] * len(others)


def test_shares_together_are_within_binomial_bounds():
    total = length(5_000, MILLION)
    path, _ = run(total, **SHARES)
    assert within(path.lost, total, SHARES["loss"])
    passed = total - path.lost
    for name, counter in COUNTERS.items():
        if name != "loss":
            assert within(getattr(path, counter), passed, SHARES[name]), name


def test_bursts_are_those_of_the_model():
    """The share that is lost, and the bursts, of a chain with two states.

    The variance of a chain's mean is that of independent draws, times (1 + c) / (1 - c), where c is
    its correlation from one datagram to the next: 1 - p - r. A burst's length is geometric.
    """
    total = length(5_000, MILLION)
    model = GilbertElliott.bursts(loss=0.2, length=5)
    path, fates = run(total, loss=model)
    share, correlation = 0.2, 1 - model.p - model.r
    variance = total * share * (1 - share) * (1 + correlation) / (1 - correlation)
    assert abs(path.lost - total * share) <= DEVIATIONS * math.sqrt(variance)
    lost = [dropped == "lost" for dropped, _ in fates]
    bursts = [sum(1 for _ in burst) for is_lost, burst in itertools.groupby(lost) if is_lost]
    assert sum(bursts) == path.lost
    deviation = math.sqrt(1 - model.r) / model.r / math.sqrt(len(bursts))
    assert abs(sum(bursts) / len(bursts) - 1 / model.r) <= DEVIATIONS * deviation


def test_jitter_is_uniform():
    """The test of Kolmogorov and Smirnov, with its bound of 99.9 %."""
    total = length(5_000, MILLION)
    path, fates = run(total, delay=0.002, jitter=0.001)
    delays = sorted(delay for _, delay in fates)
    assert delays[0] >= 0.001
    assert delays[-1] <= 0.003
    distance = max(
        abs((delay - 0.001) / 0.002 - number / total) for number, delay in enumerate(delays, 1)
    )
    assert distance <= 1.95 / math.sqrt(total)
    assert path.delayed == total


def test_an_mtu_drops_exactly_the_longer_ones():
    total = length(5_000, MILLION)
    sizes = [(number * 7919) % 1400 for number in range(total)]
    path, _ = run(total, (b"x" * size for size in sizes), mtu=1028)
    assert path.too_long == sum(size > 1000 for size in sizes)
    assert path.sent_bytes == sum(size for size in sizes if size <= 1000)


def test_a_rate_and_its_queue_are_exact():
    """On a clock of the test: a model of the queue, written apart, drops the same datagrams."""
    total, rate, queue = length(20_000, MILLION), 8e6, 10
    path = _core.PathCore(1, total)
    path.set(Impairments(rate=rate, queue=queue))
    draws = itertools.accumulate(itertools.repeat(1), lambda x, _: x * 48_271 % 2_147_483_647)
    now, free_at, waiting, expected, left = 0, 0, [], [], []

    def leave(now):
        while (due := path.next_due()) is not None and due <= now:
            assert path.pop(due) is not None
            left.append(due)

    for draw in itertools.islice(draws, total):
        size = draw % 1000
        now += draw // 1000 % 900_000  # nanoseconds; 500 bytes take 500,000
        waiting = [end for end in waiting if end > now]
        leave(now)
        path.accept(now, 0, bytes(size), 28)
        if len(waiting) <= queue:  # one is on the line, the others wait
            free_at = max(free_at, now) + size * 1000
            waiting.append(free_at)
            expected.append(free_at)
        counts = path.stats()
        assert counts["queued"] <= queue + 1
        assert counts["queued"] == len(expected) - len(left)
    leave(1 << 62)
    assert left == expected
    counts = path.stats()
    assert counts["queue_full"] == total - len(expected) > total / 50
    assert (counts["queued"], counts["sent"]) == (0, len(expected))
