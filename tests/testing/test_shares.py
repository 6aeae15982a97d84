"""Each impairment happens as often as it should: 1,000,000 datagrams in the long form."""

import contextlib
import math

from families import length
from linked import assert_balanced, plain, until
from tomada.testing import impaired


def within(count, total, share):
    """Whether a count is within the binomial bounds that 99.9 % of runs are within."""
    return abs(count - total * share) <= 3.3 * math.sqrt(total * share * (1 - share)) + 1


def test_each_share_is_within_binomial_bounds():
    """The seed is fixed, so the result is: it does not fail now and then."""
    total = length(20_000)
    shares = {"duplicate": 0.02, "corrupt": 0.03, "truncate": 0.04, "reorder": 0.01}
    with (
        plain() as server,
        plain() as client,
        impaired(server.getsockname(), loss=0.05, seed=1, **shares) as link,
    ):
        server.settimeout(0)
        for sent in range(1, total + 1):
            client.sendto(b"x" * 20, link.address)
            if sent % 50 == 0:  # no faster than the link receives, whatever the machine does
                until(lambda sent=sent: link.stats.to_server.received == sent)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        server.recv(1000)
        until(lambda: link.stats.to_server.queued == 0)
        stats = link.stats
    path = stats.to_server
    assert (path.received, stats.kernel_drops) == (total, 0)
    assert within(path.lost, total, 0.05)
    passed = total - path.lost
    for name, count in (
        ("duplicate", path.duplicated),
        ("corrupt", path.corrupted),
        ("truncate", path.truncated),
        ("reorder", path.reordered),
    ):
        assert within(count, passed, shares[name]), name
    assert_balanced(stats)
