"""The Kafka sink, with simulated brokers that are down, slow and full."""

import itertools

import pytest

from brokers import MockKafka, holds, send, settle
from serving import client, server
from support import eventually

pytest.importorskip("confluent_kafka")

from tomada.sinks import Kafka

# Brokers are up again soon after they were down.
CONFIG = {"reconnect.backoff.max.ms": 200}

pytestmark = pytest.mark.thread_unsafe(reason="it forks")


@pytest.fixture
def broker():
    with MockKafka() as running:
        yield running


@pytest.mark.parametrize("workers", [1, 2])
def test_broker_that_restarts_gets_everything(broker, workers):
    sink = Kafka(broker.servers, "topic", config=CONFIG)
    numbers = itertools.count()
    with server(sink, workers=workers) as serving, client(serving.address) as sock:

        def exchange(count):
            for _ in range(count):
                send(serving, sock, [next(numbers)])
                holds(sink)

        exchange(30)
        settle(sink, 30)
        broker.kill()
        exchange(30)
        eventually(lambda: holds(sink).in_flight == 30)
        assert holds(sink).published == 30
        broker.start()
        exchange(30)
        stats = settle(sink, 90)
    assert (stats.published, stats.dropped) == (90, 0)
    messages = broker.messages("topic", 90)
    assert sorted(int(data) for _, _, data, _ in messages) == list(range(90))


def test_drain_waits_for_a_broker_that_restarts(broker):
    sink = Kafka(broker.servers, "topic", config=CONFIG, linger=60)
    with server(sink, drain=90) as serving, client(serving.address) as sock:
        send(serving, sock, range(10))
        settle(sink, 10)
        broker.kill()
        send(serving, sock, range(10, 20))
        broker.start()
    stats = holds(sink)
    assert (stats.published, stats.dropped, stats.in_flight) == (20, 0, 0)


def test_slow_broker_gets_what_it_has_acknowledged_and_the_rest_is_dropped(broker):
    sink = Kafka(broker.servers, "topic", capacity=20)
    with server(sink) as serving, client(serving.address) as sock:
        send(serving, sock, range(1))
        settle(sink, 1, 20)
        broker.delay(0.3)
        for number in range(1, 200):
            send(serving, sock, [number])
            holds(sink, 20)
        stats = settle(sink, 200, 20)
        assert stats.published >= 21
        assert stats.published + stats.dropped == 200
    assert broker.count("topic") == stats.published


@pytest.mark.parametrize("pack", [None, "arrow"])
def test_broker_with_a_full_disk_gets_everything_when_it_has_room(broker, pack):
    if pack is not None:
        pytest.importorskip("pyarrow")
    sink = Kafka(broker.servers, "topic", pack=pack)
    with server(sink) as serving, client(serving.address) as sock:
        send(serving, sock, range(10))
        settle(sink, 10)
        broker.fill(10_000)
        for number in range(10, 40):
            send(serving, sock, [number])
            holds(sink)
        stats = holds(sink)
        assert (stats.published, stats.dropped) == (10, 0)
        broker.empty()
        stats = settle(sink, 40)
    assert (stats.published, stats.dropped) == (40, 0)
