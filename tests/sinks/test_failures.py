"""A sink's equations while its engine fails, at random."""

import random
import signal

import pytest

from brokers import send
from families import length
from serving import client, server
from support import eventually

pytest.importorskip("nats")

from tomada.sinks import JetStream

# At most this many datagrams have just been received and are about to be dropped.
IN_HAND = 64

pytestmark = [
    pytest.mark.thread_unsafe(reason="it runs programs"),
    # nats-py leaves its sockets to the garbage collector when the server is killed.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.mark.parametrize("workers", [1, 2])
def test_every_datagram_is_accounted_for_through_failures(broker, workers):
    """Kill, stop and fill the server at random moments, and check the equations throughout."""
    broker.add_stream("small", max_msgs=200, discard="new")
    chance = random.Random(workers)  # noqa: S311 - not for secrets
    capacity, sent = 60, 0
    sink = JetStream(broker.url, "small", capacity=capacity, timeout=1)

    def check():
        stats = sink.stats()
        assert stats.received == stats.published + stats.dropped + stats.in_flight
        assert stats.in_flight <= workers * (capacity + IN_HAND)
        return stats

    def running(broken):
        if broken == "killed":
            broker.start()
        elif broken == "stopped":
            broker.signal(signal.SIGCONT)

    with (
        server(sink, workers=workers, drain=60) as serving,
        client(serving.address) as first,
        client(serving.address) as second,
    ):
        for _ in range(length(4, 60)):
            failure = chance.choice(["killed", "stopped", "full", None])
            if failure == "killed":
                broker.kill()
            elif failure == "stopped":
                broker.signal(signal.SIGSTOP)
            for _ in range(chance.randrange(4)):
                numbers = range(sent, sent + chance.randrange(60))
                send(serving, chance.choice([first, second]), numbers)
                sent = numbers.stop
                eventually(lambda sent=sent: check().received == sent)
            running(failure)
            if failure != "full":
                broker.purge("small")
        broker.purge("small")
        eventually(lambda: (broker.purge("small"), check().in_flight == 0)[1])
        assert serving.stats().received == sent
        assert serving.stats().kernel_drops == 0
    stats = check()
    assert (stats.received, stats.in_flight) == (sent, 0)
