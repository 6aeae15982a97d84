"""A sink's equations while its engine fails, at random."""

import random
import signal

import pytest

from brokers import IN_HAND, MockKafka, send
from families import length
from serving import client, server
from support import eventually

pytest.importorskip("nats")
pytest.importorskip("confluent_kafka")

from tomada.sinks import JetStream, Kafka

CAPACITY = 60

pytestmark = [
    pytest.mark.thread_unsafe(reason="it runs programs"),
    # nats-py leaves its sockets to the garbage collector when the server is killed.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Nats:
    """A nats-server that is killed, stopped and full."""

    failures = "killed", "stopped", "full", None

    def __init__(self, broker):
        self._broker = broker
        broker.add_stream("small", max_msgs=200, discard="new")
        self.sink = JetStream(broker.url, "small", capacity=CAPACITY, timeout=1)

    def fail(self, failure):
        if failure == "killed":
            self._broker.kill()
        elif failure == "stopped":
            self._broker.signal(signal.SIGSTOP)

    def mend(self, failure):
        if failure == "killed":
            self._broker.start()
        elif failure == "stopped":
            self._broker.signal(signal.SIGCONT)
        if failure != "full":
            self.make_room()

    def make_room(self):
        self._broker.purge("small")


class Brokers:
    """Brokers of Kafka that are down, slow and full."""

    failures = "down", "slow", "full", None

    def __init__(self, brokers):
        self._brokers = brokers
        # They are up again soon after they were down.
        config = {"reconnect.backoff.max.ms": 200}
        self.sink = Kafka(self._brokers.servers, "topic", capacity=CAPACITY, config=config)

    def fail(self, failure):
        if failure == "down":
            self._brokers.kill()
        elif failure == "slow":
            self._brokers.delay(0.2)
        elif failure == "full":
            self._brokers.fill(1000)

    def mend(self, failure):
        if failure == "down":
            self._brokers.start()
        elif failure == "slow":
            self._brokers.delay(0)
        elif failure == "full":
            self.make_room()

    def make_room(self):
        self._brokers.empty()


@pytest.fixture(params=["nats", "kafka"])
def engine(request):
    if request.param == "nats":
        yield Nats(request.getfixturevalue("broker"))
    else:
        with MockKafka() as brokers:
            yield Brokers(brokers)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_datagram_is_accounted_for_through_failures(engine, workers):
    """Let the engine fail at random moments, and check the equations throughout."""
    chance = random.Random(workers)  # noqa: S311 - not for secrets
    sink, sent = engine.sink, 0

    def check():
        stats = sink.stats()
        assert stats.received == stats.published + stats.dropped + stats.in_flight
        assert 0 <= stats.in_flight <= workers * (CAPACITY + IN_HAND)
        return stats

    with (
        server(sink, workers=workers, drain=60) as serving,
        client(serving.address) as first,
        client(serving.address) as second,
    ):
        for _ in range(length(4, 60)):
            failure = chance.choice(engine.failures)
            engine.fail(failure)
            for _ in range(chance.randrange(4)):
                numbers = range(sent, sent + chance.randrange(60))
                send(serving, chance.choice([first, second]), numbers)
                sent = numbers.stop
                eventually(lambda sent=sent: check().received == sent)
            engine.mend(failure)
        eventually(lambda: (engine.make_room(), check().in_flight == 0)[1])
        assert serving.stats().received == sent
        assert serving.stats().kernel_drops == 0
    stats = check()
    assert (stats.received, stats.in_flight) == (sent, 0)
