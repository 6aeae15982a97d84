"""Handlers that end the program: only their own datagram goes unanswered."""

import asyncio
import contextlib
import socket as std
import threading
import time

import pytest

from serving import Gate, ask, client, server
from support import Call, eventually
from tomada import _core, socket
from traffic import numbered, send_run

EXITS = [SystemExit(3), KeyboardInterrupt("3")]
# Equally long, so that they can be sent as a run, which the kernel delivers as one message: the
# worker receives all of them at once.
DATAGRAMS = numbered(40)
FATAL = DATAGRAMS[5]


def handler(kind, error=EXITS[0], fatal=(FATAL,)):
    """Make a handler that returns its datagram, or raises an exception for some datagrams."""

    def handle(data, _address):
        if data in fatal:
            raise error
        return data

    async def handle_in_task(data, address):
        return handle(data, address)

    async def handle_later(data, address):
        await asyncio.sleep(0.001)
        return handle(data, address)

    return {"sync": handle, "sync on a loop": handle, "task": handle_in_task}.get(
        kind, handle_later
    )


KINDS = {
    "sync": {},
    "sync on a loop": {"loop": "asyncio"},
    "task": {},
    "sleeping": {},
    "sleeping, 4 at a time": {"max_concurrency": 4},
    "sleeping, 1 at a time": {"max_concurrency": 1},
}
forking = pytest.param(2, marks=pytest.mark.thread_unsafe(reason="it forks"))
each_number_of_workers = pytest.mark.parametrize("workers", [1, forking])
every_kind = pytest.mark.parametrize("kind", KINDS)
every_exit = pytest.mark.parametrize("error", EXITS, ids=lambda error: type(error).__name__)


def replies_to_a_run(sock, count):
    """Send all datagrams as one run, and receive a number of replies."""
    send_run(sock, sock.getpeername(), b"".join(DATAGRAMS), len(DATAGRAMS[0]))
    return sorted(sock.recv(100) for _ in range(count))


def others(*fatal):
    return [data for data in DATAGRAMS if data not in fatal]


def counts(serving):
    stats = serving.stats()
    return stats.received, stats.sent, stats.handler_errors, stats.cancelled


@pytest.mark.thread_unsafe(reason="it forks")
@every_kind
@every_exit
def test_worker_whose_handler_exits_answers_the_other_datagrams_of_its_run(kind, error):
    with (
        server(handler(kind, error), workers=2, **KINDS[kind]) as serving,
        client(serving.address) as sock,
    ):
        assert replies_to_a_run(sock, 39) == others(FATAL)
        eventually(lambda: serving.stats().restarts == 1)
        assert counts(serving) == (40, 39, 1, 0)
        sock.send(b"after")
        assert sock.recv(100) == b"after"


@every_kind
@every_exit
def test_thread_whose_handler_exits_answers_the_other_datagrams_and_says_why_it_stops(
    kind, error, caplog
):
    serving = server(handler(kind, error), **KINDS[kind])
    serving.start()
    end = Call(serving.serve_forever)
    with client(serving.address) as sock:
        assert replies_to_a_run(sock, 39) == others(FATAL)
        with pytest.raises(type(error), match="3"):
            end.result()
    assert counts(serving) == (40, 39, 1, 0)
    (line,) = [record.message for record in caplog.records]
    assert line == f"the handler has raised {error!r}: the server stops"


@each_number_of_workers
@pytest.mark.parametrize("is_async", [False, True])
def test_batch_handler_that_exits_loses_only_its_batch(workers, is_async):
    def handle(batch):
        if batch[0][0] == b"exit":
            raise SystemExit(3)
        return [data for data, _ in batch]

    async def handle_later(batch):
        await asyncio.sleep(0)
        return handle(batch)

    chosen = handle_later if is_async else handle
    serving = server(chosen, takes="batch", workers=workers)
    serving.start()
    with client(serving.address) as sock:
        sock.send(b"exit")
        if workers == 1:
            eventually(lambda: serving.status == "stopped")
        else:
            eventually(lambda: serving.stats().restarts == 1)
            assert replies_to_a_run(sock, 40) == DATAGRAMS
    serving.stop()
    assert serving.stats().handler_errors == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_thread_whose_handler_exits_answers_the_datagrams_in_its_queue(is_async):
    gate = Gate()
    is_open, is_inside = threading.Event(), threading.Event()

    def handle(data, _):
        if data == FATAL:
            is_inside.set()
            is_open.wait()
            raise SystemExit(3)
        return data

    async def handle_later(data, _):
        if data == FATAL:
            await gate.wait()
            raise SystemExit(3)
        return data

    serving = server(handle_later if is_async else handle, max_concurrency=1)
    serving.start()
    end = Call(serving.serve_forever)
    with client(serving.address) as sock:
        sock.send(FATAL)
        eventually(lambda: gate.inside if is_async else is_inside.is_set())
        for data in others(FATAL):
            sock.send(data)
        (gate.open if is_async else is_open.set)()
        assert [sock.recv(100) for _ in range(39)] == others(FATAL)
        with pytest.raises(SystemExit):
            end.result()
    assert counts(serving) == (40, 39, 1, 0)


@every_kind
@each_number_of_workers
def test_handler_that_exits_for_each_datagram_handles_all_and_ends(kind, workers):
    serving = server(handler(kind, fatal=DATAGRAMS), workers=workers, **KINDS[kind])
    serving.start()
    end = Call(serving.serve_forever)
    with client(serving.address) as sock:
        replies_to_a_run(sock, 0)
        if workers == 1:
            with pytest.raises(SystemExit, match="3"):
                end.result()
        else:
            eventually(lambda: serving.stats().restarts == 1)
            assert ask(serving.address) == b"ping"
            serving.stop()
            end.result()
    stats = serving.stats()
    assert (stats.received - stats.sent, stats.handler_errors) == (40, 40)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("fatal", [DATAGRAMS[:1], DATAGRAMS], ids=["one", "all"])
def test_handler_that_exits_and_is_slow_ends_after_the_drain_time(is_async, fatal, caplog):
    quick = handler("sync", fatal=fatal)

    def handle(data, address):
        time.sleep(0.05)
        return quick(data, address)

    async def handle_later(data, address):
        await asyncio.sleep(0.05)
        return quick(data, address)

    chosen = handle_later if is_async else handle
    serving = server(chosen, max_concurrency=1, drain=0.1)
    serving.start()
    end = Call(serving.serve_forever)
    with client(serving.address) as sock:
        replies_to_a_run(sock, 0)
        with pytest.raises(SystemExit):
            end.result()
    (line,) = [record.message for record in caplog.records if "unanswered" in record.message]
    stats = serving.stats()
    unanswered = stats.received - stats.sent - stats.handler_errors
    assert line == (
        f"stopped with {unanswered} received datagrams unanswered, because draining took longer "
        "than 0.1 seconds (drain=)"
    )
    assert stats.received == 40
    assert unanswered > 0


@contextlib.contextmanager
def queued():
    """Open a socket that has received all datagrams."""
    with (
        socket.socket(std.AF_INET, std.SOCK_DGRAM) as sock,
        std.socket(std.AF_INET, std.SOCK_DGRAM) as sender,
    ):
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(std.IPPROTO_UDP, socket.UDP_GRO, 1)
        send_run(sender, sock.getsockname(), b"".join(DATAGRAMS), len(DATAGRAMS[0]))
        yield sock


def test_retiring_ends_when_its_time_is_over():
    seen, exits, counters = [], [], _core.ServerCounters(1)

    def handle(data, _):
        seen.append(data)
        time.sleep(0.02)
        raise SystemExit(len(seen))

    def retire(error):
        exits.append(error)
        core.retire(0.05)

    with queued() as sock:
        core = _core.ServerCore(sock, handle, "data", counters, 0, print)
        left = core.run(None, retire)
    assert 0 < left < 40
    assert seen == DATAGRAMS[: 40 - left]
    assert [error.code for error in exits] == list(range(1, 41 - left))
    assert counters.stats(0, 0).received == 40


def test_retiring_does_not_prolong_draining():
    with queued() as sock:
        core = _core.ServerCore(sock, lambda *_: None, "data", _core.ServerCounters(1), 0, print)
        core.stop(0.0)
        core.retire(1000.0)
        assert core.time_left == 0
        core.stop(1000.0)
        assert core.time_left > 0


@pytest.mark.parametrize("loop", ["tomada", "asyncio", "uvloop"])
def test_loop_that_fails_is_named_as_the_cause_of_unanswered_datagrams(loop, caplog):
    async def handle(data, _):
        await asyncio.sleep(0.001)
        if data == FATAL:
            asyncio.get_running_loop().stop()
        return data

    serving = server(handle, loop=loop, max_concurrency=4)
    serving.start()
    end = Call(serving.serve_forever)
    with client(serving.address) as sock:
        replies_to_a_run(sock, 0)
        with pytest.raises(RuntimeError, match="stopped before Future completed"):
            end.result()
    lines = [record.message for record in caplog.records]
    stats = serving.stats()
    assert lines[0] == (
        f"stopped with {stats.received - stats.sent} received datagrams unanswered, because "
        f"serving has failed: {RuntimeError('Event loop stopped before Future completed.')!r}"
    )
    assert lines[1:] == ["a worker has failed: the server stops"]
    assert stats.received == 40
