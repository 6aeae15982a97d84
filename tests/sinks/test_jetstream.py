"""The JetStream sink, with a real nats-server that is killed, stopped and full."""

import io
import itertools
import signal
import socket as std
import time

import pytest

import tomada
from brokers import holds, send, settle
from command import Serving
from serving import client, server
from support import Call, eventually

pytest.importorskip("nats")

from tomada._sinks.packing import token
from tomada.sinks import JetStream, Sink, from_url

pytestmark = [
    pytest.mark.thread_unsafe(reason="it runs programs"),
    # nats-py leaves its sockets to the garbage collector when the server is killed.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_each_datagram_is_a_message_with_its_source_and_time(broker):
    sink = JetStream(broker.url, "udp")
    before = time.time_ns()
    with server(sink) as serving, client(serving.address) as sock:
        send(serving, sock, range(3))
        source = "{}:{}".format(*sock.getsockname())
        settle(sink, 3)
        assert serving.stats().received == 3
    messages = broker.messages("udp")
    assert sorted(data for _, _, data in messages) == [b"0", b"1", b"2"]
    for subject, headers, _ in messages:
        assert (subject, headers["Source"]) == ("udp", source)
        assert before <= int(headers["Timestamp-Ns"]) <= time.time_ns()


def test_drain_publishes_everything_that_was_received(broker):
    sink = JetStream(broker.url, "udp")
    with server(sink) as serving, client(serving.address) as sock:
        send(serving, sock, range(500))
    stats = holds(sink, 100_000)
    received = serving.stats().received
    assert (stats.received, stats.published, stats.dropped) == (received, received, 0)
    assert len(broker.messages("udp")) == received


@pytest.mark.parametrize("workers", ["1", "2"])
def test_command_serves_a_sink(broker, workers):
    url = f"{broker.url}?subject=udp"
    with (
        Serving("127.0.0.1:0", "--sink", url, "--workers", workers) as serving,
        client(serving.address) as sock,
    ):
        sock.send(b"one")
        sock.send(b"two")
        serving.signal(signal.SIGTERM)
        status, _, errors = serving.end()
        assert status == 0, errors
    assert {data for _, _, data in broker.messages("udp")} == {b"one", b"two"}


def test_workers_share_the_counters(broker):
    sink = JetStream(broker.url, "udp")
    with server(sink, workers=2) as serving:
        for number in range(20):
            with client(serving.address) as sock:
                send(serving, sock, [number])
        assert settle(sink, 20).published == 20
        serving.replace_workers()
        eventually(lambda: serving.stats().received == 20)
        with client(serving.address) as sock:
            send(serving, sock, range(20, 30))
        settle(sink, 30)
    found = sorted(int(data) for _, _, data in broker.messages("udp"))
    assert found == list(range(30))


def test_key_is_the_last_token_of_the_subject(broker):
    sink = JetStream(broker.url, "udp", key=lambda data, _: data[:1] + b".*")
    with server(sink) as serving, client(serving.address) as sock:
        send(serving, sock, [17, 25])
        settle(sink, 2)
    assert sorted(subject for subject, _, _ in broker.messages("udp")) == ["udp.1__", "udp.2__"]
    sink = JetStream(broker.url, "udp", key="source")
    with server(sink) as serving, client(serving.address) as sock:
        send(serving, sock, [3])
        settle(sink, 1)
    assert broker.messages("udp")[-1][0] == "udp.127_0_0_1"


def test_key_of_the_payload_is_the_last_token_of_the_subject(broker):
    sink = JetStream(broker.url, "udp", key=tomada.key(1, 3))
    sink.open()
    for data in (b"-one-", b"-\x00\xff\x01-", b"-a", b""):
        sink([(data, ("192.0.2.1", 1), None)])
    settle(sink, 4)
    sink.close()
    subjects = {subject for subject, _, _ in broker.messages("udp")}
    assert subjects == {"udp.one", "udp.00ff01", "udp.a", "udp._"}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (b"", "_"),
        (b"a.b c*d>e:f", "a_b_c_d_e_f"),
        ("ação".encode(), "ação"),
        (b"\x00\x01", "0001"),
        (b"\x00\x02", "0002"),
        (b"\xff", "ff"),
        (b"a\nb", "610a62"),
    ],
)
def test_token_of_a_key(key, expected):
    assert token(key) == expected


def test_arrow_record_batches(broker):
    ipc = pytest.importorskip("pyarrow.ipc")
    sink = JetStream(broker.url, "udp", pack="arrow")
    with server(sink, ("::", 0)) as serving:
        ports = set()
        for number in range(50):
            with client(("127.0.0.1", serving.address[1])) as sock:
                ports.add(sock.getsockname()[1])
                send(serving, sock, [number])
        stats = settle(sink, 50)
    rows = []
    for _, _, data in broker.messages("udp"):
        rows += ipc.open_stream(io.BytesIO(data)).read_all().to_pylist()
    assert stats.published == len(rows) == 50
    assert sorted(int(row["data"]) for row in rows) == list(range(50))
    assert {row["host"] for row in rows} == {"::ffff:127.0.0.1"}
    assert {row["port"] for row in rows} == ports
    assert all(abs(row["timestamp_ns"] - time.time_ns()) < 120e9 for row in rows)


def test_arrow_messages_fit_into_the_servers_limit(broker):
    pytest.importorskip("pyarrow")
    sink = JetStream(broker.url, "udp", pack="arrow")
    rows = [(bytes(60_000), ("192.0.2.1", 1), 5)] * 50  # 3 MB
    sink.open()
    sink(rows)
    assert settle(sink, 50).published == 50
    sink.close()
    assert len(broker.messages("udp")) >= 3


@pytest.mark.parametrize("workers", [1, 2])
def test_broker_that_restarts_gets_everything(broker, workers):
    sink = JetStream(broker.url, "udp", timeout=1)
    numbers = itertools.count()
    with server(sink, workers=workers) as serving, client(serving.address) as sock:

        def exchange(count):
            for _ in range(count):
                send(serving, sock, [next(numbers)])
                holds(sink, 200_000)

        exchange(50)
        settle(sink, 50)
        broker.kill()
        exchange(50)
        eventually(lambda: sink.stats().in_flight == 50)
        broker.start()
        exchange(50)
        stats = settle(sink, 150)
    assert (stats.published, stats.dropped) == (150, 0)
    assert sorted(int(data) for _, _, data in broker.messages("udp")) == list(range(150))


def test_broker_that_is_down_at_the_start_gets_everything_later(broker):
    broker.kill()
    sink = JetStream(broker.url, "udp")
    with server(sink) as serving, client(serving.address) as sock:
        send(serving, sock, range(10))
        eventually(lambda: sink.stats().in_flight == 10)
        broker.start()
        assert settle(sink, 10).published == 10


def test_memory_is_bounded_and_drops_are_counted(broker):
    broker.signal(signal.SIGSTOP)
    sink = JetStream(broker.url, "udp", capacity=100)
    with server(sink) as serving, client(serving.address) as sock:
        for number in range(400):
            send(serving, sock, [number])
            holds(sink, 100)
        eventually(lambda: holds(sink, 100).dropped == 300)
        stats = holds(sink, 100)
        assert (stats.in_flight, stats.dropped) == (100, 300)
        broker.signal(signal.SIGCONT)
        stats = settle(sink, 400, 100)
        assert (stats.published, stats.dropped) == (100, 300)
    found = sorted(int(data) for _, _, data in broker.messages("udp"))
    assert found == list(range(100)), "the oldest are kept"


def test_full_stream_is_retried_until_it_has_room(broker):
    broker.add_stream("small", max_msgs=10, discard="new")
    sink = JetStream(broker.url, "small", capacity=30)
    with server(sink) as serving, client(serving.address) as sock:
        send(serving, sock, range(20))
        eventually(lambda: holds(sink, 30).published == 10)
        eventually(lambda: holds(sink, 30).in_flight == 10)
        broker.purge("small")
        assert settle(sink, 20, 30).published == 20


def test_close_gives_up_after_linger_and_counts(broker, caplog):
    broker.kill()
    sink = JetStream(broker.url, "udp", linger=0.2)
    with server(sink) as serving, client(serving.address) as sock:
        send(serving, sock, range(7))
        eventually(lambda: sink.stats().received == 7)
    stats = holds(sink, 100)
    assert (stats.published, stats.dropped, stats.in_flight) == (0, 7, 0)
    assert "dropped 7 datagrams" in caplog.text


def test_message_that_is_too_long_is_dropped_and_counted(broker):
    sink = JetStream(broker.url, "udp")
    sink.open()
    sink([(bytes(2 << 20), ("192.0.2.1", 1), None), (b"fits", ("192.0.2.1", 1), None)])
    stats = settle(sink, 2)
    sink.close()
    assert (stats.published, stats.dropped) == (1, 1)


def test_message_that_the_stream_never_accepts_does_not_stop_the_others(broker):
    broker.add_stream("small", max_msg_size=100)
    sink = JetStream(broker.url, "small", window=2)
    sink.open()
    sink([(bytes(200), ("192.0.2.1", 1), None)] * 2)
    sink([(b"fits", ("192.0.2.1", 1), None)] * 3)
    stats = settle(sink, 5)
    sink.close()
    assert (stats.published, stats.dropped) == (3, 2)


@pytest.mark.parametrize("wrong", [b"\xff", b"x" * 5000])
def test_key_that_cannot_be_used_drops_only_its_datagram(broker, wrong):
    sink = JetStream(broker.url, "udp", key=lambda data, _: data.decode())
    sink.open()
    sink([(data, ("192.0.2.1", 1), None) for data in (b"1", wrong, b"2")])
    stats = settle(sink, 3)
    sink.close()
    assert (stats.published, stats.dropped) == (2, 1)


@pytest.mark.parametrize("key", [None, "source"])
def test_source_with_a_path_that_is_not_utf8(broker, key):
    sink = JetStream(broker.url, "udp", key=key)
    sink.open()
    sink([(b"x", "/run/\udcff", None)])
    assert settle(sink, 1).published == 1
    sink.close()


def test_open_while_another_thread_closes():
    sink = JetStream("nats://127.0.0.1:1", "udp", linger=0.2)
    sink.open()
    closing = Call(sink.close)
    eventually(lambda: sink._is_closing)  # noqa: SLF001 - nothing else tells
    sink.open()
    closing.result()
    sink.close()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"subject": "a.*"}, ValueError),
        ({"subject": ""}, ValueError),
        ({"subject": "a", "pack": "json"}, ValueError),
        ({"subject": "a", "key": 5}, TypeError),
        ({"subject": "a", "capacity": 0}, ValueError),
        ({"subject": "a", "window": 0}, ValueError),
        ({"subject": "a", "linger": float("nan")}, ValueError),
    ],
)
def test_wrong_options(options, error):
    with pytest.raises(error):
        JetStream("nats://127.0.0.1:1", **options)


def test_credentials_of_a_url():
    sink = from_url("nats://a:1?subject=s&credentials=/run/user.creds&key=source")
    assert sink._options == {"user_credentials": "/run/user.creds"}  # noqa: SLF001 - it has no reader


def test_publishing_that_fails_is_repeated_ever_less_often(caplog):
    class Failing(Sink):
        calls = 0

        def _publish(self):
            self.calls += 1
            raise LookupError("no such engine")

        def _wake(self):
            pass

    sink = Failing(None, None, 10, 60)
    sink.open()
    eventually(lambda: sink.calls >= 3)
    sink.close()  # at once, not after the pause
    assert caplog.text.count("LookupError: no such engine") == sink.calls


def test_server_with_a_sink_has_no_takes():
    with pytest.raises(ValueError, match="omit takes"):
        server(JetStream("nats://127.0.0.1:1", "x"), takes="batch")


def test_init_and_exit_still_run(broker):
    calls = []
    sink = JetStream(broker.url, "udp")
    with server(sink, init=lambda: calls.append("init"), exit=lambda: calls.append("exit")):
        assert calls == ["init"]
    assert calls == ["init", "exit"]


def test_init_that_fails_closes_the_sink(broker):
    def fail():
        raise LookupError("this one")

    with pytest.raises(LookupError, match="this one"):
        server(JetStream(broker.url, "udp"), init=fail).start()


def test_handler_of_timed_batches_gets_the_kernels_time():
    batches = []
    with server(batches.append, takes="timed") as serving, client(serving.address) as sock:
        before = time.time_ns()
        sock.send(b"x")
        eventually(lambda: batches)
        ((data, address, timestamp),) = batches[0]
        assert (data, address) == (b"x", sock.getsockname())
        assert before <= timestamp <= time.time_ns()


def test_handler_of_timed_batches_replies():
    with (
        server(lambda batch: [data for data, _, _ in batch], takes="timed") as serving,
        client(serving.address) as sock,
    ):
        sock.send(b"x")
        assert sock.recv(10) == b"x"


def test_source_without_an_address(broker, unix):
    sink = JetStream(broker.url, "udp")
    with (
        tomada.Server(unix.address(), sink) as serving,
        std.socket(std.AF_UNIX, std.SOCK_DGRAM) as sock,
    ):
        sock.sendto(b"x", serving.address)
        settle(sink, 1)
    assert broker.messages("udp")[0][2] == b"x"
