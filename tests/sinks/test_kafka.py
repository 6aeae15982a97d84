"""The Kafka sink, with librdkafka's simulated brokers."""

import io
import itertools
import time

import pytest

from serving import client, server
from support import eventually

pytest.importorskip("confluent_kafka")

from brokers import MockKafka, send
from tomada.sinks import Kafka, from_url

pytestmark = pytest.mark.thread_unsafe(reason="librdkafka's threads outlive a test")


@pytest.fixture(scope="module")
def broker():
    with MockKafka() as running:
        yield running


def settled(sink, received):
    def check():
        stats = sink.stats()
        assert stats.received == stats.published + stats.dropped + stats.in_flight
        return stats.received == received and not stats.in_flight and stats

    return eventually(check)


def test_each_datagram_is_a_message_with_its_source_and_time(broker):
    sink = Kafka(broker.servers, "single", key="source")
    with server(sink) as serving, client(serving.address) as sock:
        send(serving, sock, range(20))
        source = "{}:{}".format(*sock.getsockname()).encode()
        assert settled(sink, 20).published == 20
    messages = broker.messages("single", 20)
    assert [data for _, _, data, _ in messages] == [b"%d" % number for number in range(20)]
    assert {key for key, _, _, _ in messages} == {b"127.0.0.1"}
    assert len({partition for *_, partition in messages}) == 1, "one key, one partition"
    for _, headers, _, _ in messages:
        assert headers["Source"] == source
        assert abs(int(headers["Timestamp-Ns"]) - time.time_ns()) < 120e9


def test_drain_publishes_everything_that_was_received(broker):
    sink = Kafka(broker.servers, "drained", key=lambda data, _: data[-1:])
    with server(sink, workers=2) as serving, client(serving.address) as sock:
        send(serving, sock, range(300))
    stats = sink.stats()
    assert (stats.received, stats.published, stats.dropped) == (300, 300, 0)
    assert len({partition for *_, partition in broker.messages("drained", 300)}) > 1


def test_arrow_record_batches_by_key(broker):
    ipc = pytest.importorskip("pyarrow.ipc")
    sink = Kafka(broker.servers, "packed", pack="arrow", key=lambda data, _: data[:1])
    rows = [(b"%d" % number, ("192.0.2.1", 7), number) for number in range(10, 40)]
    sink.open()
    sink(rows)
    settled(sink, 30)
    sink.close()
    found = {}
    for key, _, data, _ in broker.messages("packed", 3):
        found[key] = ipc.open_stream(io.BytesIO(data)).read_all().to_pylist()
    assert sorted(found) == [b"1", b"2", b"3"]
    assert [*itertools.chain(*found.values())] == [
        {"data": data, "host": "192.0.2.1", "port": 7, "timestamp_ns": stamp}
        for key in found
        for data, _, stamp in rows
        if data[:1] == key
    ]


def test_broker_that_is_down_keeps_up_to_the_capacity_and_counts_the_rest():
    sink = Kafka("127.0.0.1:1", "topic", capacity=50, linger=0.2)
    with server(sink) as serving, client(serving.address) as sock:
        send(serving, sock, range(80))
        eventually(lambda: sink.stats().dropped == 30)
        stats = sink.stats()
        assert (stats.in_flight, stats.dropped, stats.published) == (50, 30, 0)
    stats = sink.stats()
    assert (stats.in_flight, stats.dropped, stats.published) == (0, 80, 0)


def test_message_that_is_too_long_is_dropped_and_counted(broker):
    sink = Kafka(broker.servers, "long")
    sink.open()
    sink([(bytes(2 << 20), ("192.0.2.1", 1), None), (b"fits", ("192.0.2.1", 1), None)])
    stats = settled(sink, 2)
    sink.close()
    assert (stats.published, stats.dropped) == (1, 1)


def test_from_url(broker):
    sink = from_url(f"kafka://{broker.servers}?topic=url&key=source&capacity=9")
    assert isinstance(sink, Kafka)
    sink.open()
    sink([(b"x", ("192.0.2.1", 1), None)] * 10)
    assert sink.stats().dropped == 1
    sink.close()
    assert sink.stats().published == 9


def test_from_url_settings_of_librdkafka(broker):
    sink = from_url(f"kafka://{broker.servers}?topic=set&compression.type=lz4&key=1,2")
    sink.open()
    sink([(b"abcd", ("192.0.2.1", 1), None)])
    assert settled(sink, 1).published == 1
    sink.close()
    assert [key for key, *_ in broker.messages("set", 1)] == [b"bc"]


def test_wrong_settings_of_librdkafka_are_errors_at_once(capfd):
    with pytest.raises(ValueError, match='for Kafka: No such configuration property: "colour"'):
        Kafka("127.0.0.1:1", "topic", config={"colour": "red"})
    with pytest.raises(ValueError, match="for Kafka: "):
        Kafka("127.0.0.1:1", "topic", config={"acks": "many"})
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://a?topic=x", "is not a sink"),
        ("kafka:///?topic=x", "is not a sink"),
        ("kafka://a:1", "lacks its topic"),
        ("nats://a:1?topic=x", "lacks its subject"),
        ("kafka://a:1?topic=x&window=5", "'window'"),
        ("kafka://a:1?topic=x&colour=red", "'colour'"),
        ("kafka://a:1?topic=x&capacity=many", "many"),
        ("kafka://a:1?topic=x&pack=json", "json"),
        ("kafka://a:1?topic=x&no.such=1", "no.such"),
        ("kafka://user:hunter2@a:1?topic=x", "set sasl.username"),
        ("kafka://a:1?topic=x&key=4", "key must be source or OFFSET,LENGTH, not '4'"),
        ("kafka://a:1?topic=x&key=0,0", "length must be from 1 to 64"),
        ("nats://user:hunter2@a:1", "'nats://a:1' lacks its subject"),
        ("nats://user:hunter2@a:1?subject=s&password=hunter2&x=1", "'password'"),
        ("nats://user:hunter2@a:1?subject=s&window=many", "window of 'nats://a:1': "),
        ("mqtt://user:hunter2@a:1", "'mqtt://a:1' is not a sink"),
    ],
)
def test_from_url_wrong(url, message):
    with pytest.raises(ValueError, match=message) as raised:
        from_url(url)
    assert "hunter2" not in str(raised.value)
