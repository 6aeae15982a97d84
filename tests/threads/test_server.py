"""One server used by many threads: its own, those of its clients, those that read and stop it."""

import contextlib
import itertools
import threading

import pytest

import tomada
from serving import Load, client, server
from support import DEADLINE, RACES, eventually, together
from tomada import socket

THREADS = 3

pytestmark = [
    pytest.mark.usefixtures("unlocked"),
    pytest.mark.thread_unsafe(reason="it starts threads itself"),
]


def upper(data, _):
    return data.upper()


def watch(serving, is_over, *others):
    """Call everything that reads a server's state, repeatedly; its counters never decrease."""
    last = serving.stats()
    while not is_over():
        stats = serving.stats()
        for name in ("received", "sent", "received_bytes", "sent_bytes", "receive_calls"):
            assert getattr(stats, name) >= getattr(last, name)
        assert sum(stats.batch_sizes.values()) <= serving.stats().receive_calls
        assert str(serving.address[1]) in repr(serving)
        for other in others:
            other()
        last = stats


@pytest.fixture(params=["address", "sock"])
def place(request, inet):
    """Make the arguments of a server: with a socket for each thread, or one for all."""
    if request.param == "sock":
        with inet.bound(socket) as sock:
            yield {"address": None, "sock": sock}
    else:
        yield {"address": inet.address()}


def test_threads_reply_to_every_request_while_others_read_the_counters(place):
    called = itertools.count()

    def handle(data, _):
        next(called)
        return data.upper()

    with server(handle, threads=THREADS, **place) as serving:
        with Load(serving.address, check=lambda request, reply: reply == request) as load:
            enough = 100 * RACES

            def is_over():
                return load.answered >= enough

            together(*[lambda: watch(serving, is_over)] * 3)
        stats = serving.stats()
        eventually(lambda: serving.stats().sent == load.answered)
        assert (load.lost, load.refused, load.wrong) == (0, 0, 0)
        assert stats.received == next(called) == load.answered
        assert (stats.kernel_drops, stats.handler_errors, stats.send_errors) == (0, 0, 0)
        assert sum(stats.batch_sizes.values()) == stats.receive_calls


@pytest.mark.parametrize("stoppers", [1, 3])
def test_stopping_under_load_replies_to_or_refuses_every_request(stoppers):
    for _ in range(max(2, RACES // 5)):
        with server(upper, threads=THREADS) as serving, Load(serving.address) as load:
            eventually(lambda load=load: load.answered > 20)
            together(
                *[serving.stop] * stoppers,
                lambda serving=serving: watch(serving, lambda: not serving.ready.is_set()),
            )
            load.join()
        assert load.lost == 0
        assert load.refused == 4
        assert serving.stats().sent == load.answered


def test_handlers_in_several_threads_may_stop_their_server():
    for _ in range(max(2, RACES // 5)):

        def handle(data, _):
            if data == b"stop":
                serving.stop()
            return data

        with server(handle, threads=THREADS) as serving, contextlib.ExitStack() as stack:
            socks = [stack.enter_context(client(serving.address)) for _ in range(8)]
            together(*(lambda sock=sock: sock.send(b"stop") for sock in socks))
            eventually(lambda serving=serving: not serving.ready.is_set())
        assert serving.stats().handler_errors == 0


def test_stop_during_start_stops_the_server():
    for _ in range(RACES):
        serving = server(upper)

        def start(serving=serving):
            with contextlib.suppress(RuntimeError):
                serving.start()

        together(start, serving.stop, serving.stop)
        # Either stop came first, and nothing started; or it ended what had started.
        assert not serving.ready.is_set()
        serving.stop()
        with pytest.raises(RuntimeError):
            serving.start()


def test_server_stopped_before_its_start_does_not_start():
    serving = server(upper)
    serving.stop()
    with pytest.raises(RuntimeError, match="stopped before it was started"):
        serving.start()
    serving.serve_forever()
    serving.stop()


def test_serve_forever_uses_the_start_of_a_subclass():
    class Announced(tomada.Server):
        def start(self):
            super().start()
            announced.append(self.address)
            self.stop()

    announced = []
    serving = Announced(("127.0.0.1", 0), upper)
    serving.serve_forever()
    assert announced == [serving.address]


def test_sendto_in_threads_beside_the_handlers(inet):
    each = 20 * RACES

    def handle(_, address):
        serving.sendto(b"from the handler", address)
        return b"reply"

    with server(handle, threads=THREADS) as serving:
        with inet.bound(socket) as sock:
            sock.settimeout(DEADLINE)
            room = threading.Semaphore(60)

            def send():
                for _ in range(each):
                    assert room.acquire(timeout=DEADLINE)
                    serving.sendto(b"from a thread", sock.getsockname())

            def ask():
                for _ in range(each):
                    assert room.acquire(timeout=DEADLINE)
                    assert room.acquire(timeout=DEADLINE)
                    sock.sendto(b"x", serving.address)

            def count():
                found = {b"from a thread": 0, b"from the handler": 0, b"reply": 0}
                for _ in range(5 * each):
                    found[sock.recv(100)] += 1
                    room.release()
                return found

            *_, found = together(send, send, send, ask, count)
        assert found == {
            b"from a thread": 3 * each,
            b"from the handler": each,
            b"reply": each,
        }
        eventually(lambda: serving.stats().sent == 5 * each)


def test_guard_shared_by_threads_counts_every_datagram():
    guard = tomada.Guard(max_size=10, rate=1e6, kernel_filter=False)
    count = 60 * RACES
    with server(upper, threads=THREADS, guard=guard) as serving:

        def send():
            with client(serving.address) as sock:
                for number in range(count):
                    sock.send(b"x" * 11)
                    sock.send(b"y" * 10)
                    assert sock.recv(100) == b"Y" * 10
                    if number % 20 == 0:
                        guard.validate("127.0.0.1")

        def ask():
            last = 0
            while (stats := guard.stats()).admitted < 4 * count:
                assert stats.refused == stats.oversized
                assert stats.admitted >= last
                last = stats.admitted
                repr(guard)

        together(send, send, send, send, ask, ask)
        stats = guard.stats()
        assert (stats.admitted, stats.oversized) == (4 * count, 4 * count)
        assert serving.stats().received == 4 * count


def test_metrics_are_collected_while_threads_serve():
    metrics = pytest.importorskip("prometheus_client")
    from tomada.metrics import ServerCollector

    registry = metrics.CollectorRegistry()
    with server(upper, threads=THREADS) as serving, Load(serving.address) as load:
        ServerCollector(serving, registry)

        def collect():
            last = 0.0
            while load.answered < 20 * RACES:
                value = registry.get_sample_value(
                    "tomada_server_received_total",
                    {"address": f"127.0.0.1:{serving.address[1]}"},
                )
                assert value >= last
                last = value

        together(collect, collect)
