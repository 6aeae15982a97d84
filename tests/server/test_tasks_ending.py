"""Async handlers that fail, hang, exit, or are under way when the server stops."""

import asyncio
import contextlib
import threading
import time

import pytest

from peer import DEADLINE
from serving import Gate, Load, client, server
from support import Call, eventually
from traffic import numbered

every_loop = pytest.mark.parametrize("loop", ["tomada", "asyncio", "uvloop"])


@every_loop
@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        (LookupError("broken"), "broken"),
        ("text", "handle: a handler returns a bytes-like object, or None for no reply, not str"),
        (3, "handle: a handler returns a bytes-like object, or None for no reply, not int"),
        (b"x" * 70_000, "a reply of 70000 bytes is too long"),
        (asyncio.CancelledError(), ""),
    ],
    ids=["raises", "text", "number", "long", "cancelled"],
)
def test_failed_call_is_counted_and_logged_and_others_go_on(loop, result, complaint, caplog):
    async def handle(data, _):
        await asyncio.sleep(0)
        if data == b"good":
            return data
        if isinstance(result, BaseException):
            raise result
        return result

    with server(handle, loop=loop) as serving, client(serving.address) as sock:
        sock.send(b"bad")
        eventually(lambda: serving.stats().handler_errors == 1)
        sock.send(b"good")
        assert sock.recv(100) == b"good"
        assert serving.stats().cancelled == 0
    (record,) = [record for record in caplog.records if "handler failed" in record.message]
    assert "with a datagram from 127.0.0.1:" in record.message
    assert complaint in str(record.exc_info[1])
    if complaint.startswith("handle"):
        assert "test_failed_call" in str(record.exc_info[1])  # the qualified name


@every_loop
def test_stopping_completes_the_calls_under_way(loop):
    gate = Gate()

    async def handle(data, _):
        await gate.wait()
        return data

    with server(handle, loop=loop, max_concurrency=5) as serving, client(serving.address) as sock:
        for data in numbered(20):
            sock.send(data)
        eventually(lambda: gate.inside == 5)
        stop = Call(serving.stop)
        eventually(lambda: "draining" in repr(serving))
        gate.open()
        stop.result()
        # Those that were in the kernel's queue, too.
        assert sorted(sock.recv(100) for _ in range(20)) == numbered(20)
        assert serving.stats().cancelled == 0


@every_loop
def test_calls_are_cancelled_at_the_end_of_the_drain_and_counted(loop, caplog):
    gate, cleaned = Gate(), []

    async def handle(_data, _address):
        try:
            await gate.wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(1)

    with server(handle, loop=loop, drain=0.05) as serving, client(serving.address) as sock:
        for data in numbered(7):
            sock.send(data)
        eventually(lambda: gate.inside == 7)
        serving.stop()
        stats = serving.stats()
    assert (len(cleaned), stats.cancelled, stats.handler_errors) == (7, 7, 0)
    (line,) = [record.message for record in caplog.records if "unanswered" in record.message]
    assert line.startswith("stopped with 7 received datagrams unanswered, because draining took")


def test_cancelled_batch_counts_its_datagrams():
    gate = Gate()

    async def handle(_batch):
        await gate.wait()

    with server(handle, takes="batch", drain=0.05) as serving, client(serving.address) as sock:
        for data in numbered(7):
            sock.send(data)
        eventually(lambda: serving.stats().received == 7)
        serving.stop()
        assert serving.stats().cancelled == 7


@every_loop
def test_task_that_refuses_to_be_cancelled_does_not_keep_the_server(loop, caplog):
    is_over = threading.Event()

    async def handle(_data, _address):
        while not is_over.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                is_asked.set()

    is_asked = threading.Event()
    with server(handle, loop=loop, drain=0.05) as serving:
        with client(serving.address) as sock:
            sock.send(b"x")
            eventually(lambda: serving.stats().received == 1)
        begun = time.monotonic()
        serving.stop()
        assert time.monotonic() - begun < DEADLINE
        assert serving.stats().cancelled == 1
        is_over.set()
    assert is_asked.is_set()
    assert "1 received datagrams unanswered" in caplog.text


@pytest.mark.thread_unsafe(reason="it forks")
@every_loop
@pytest.mark.parametrize("takes", ["data", "batch"])
def test_worker_with_a_task_that_refuses_to_be_cancelled_counts_it_before_it_is_killed(loop, takes):
    async def handle(*_):
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    with server(handle, takes=takes, workers=2, loop=loop, drain=0.05) as serving:
        with client(serving.address) as sock:
            for data in numbered(7):
                sock.send(data)
            eventually(lambda: serving.stats().received == 7)
        serving.stop()
        assert serving.stats().cancelled == 7


@every_loop
def test_stopping_under_load_answers_or_refuses_every_request(loop):
    async def handle(data, _):
        await asyncio.sleep(0.001)
        return data

    with server(handle, loop=loop) as serving, Load(serving.address, clients=6) as load:
        eventually(lambda: load.answered > 200)
        serving.stop()
        load.join()
        assert (load.lost, load.refused) == (0, 6)
        assert serving.stats().received == load.answered


@every_loop
def test_handler_that_exits_ends_the_server_after_the_other_calls(loop):
    gate = Gate()

    async def handle(data, _):
        if data == b"exit":
            await asyncio.sleep(0)
            raise SystemExit(3)
        await gate.wait()
        return data

    serving = server(handle, loop=loop)
    serving.start()
    with client(serving.address) as sock:
        sock.send(b"first")
        eventually(lambda: gate.inside == 1)
        sock.send(b"exit")
        end = Call(serving.serve_forever)
        gate.open()
        assert sock.recv(100) == b"first"
        with pytest.raises(SystemExit) as found:
            end.result()
    assert found.value.code == 3


def test_handler_that_stops_its_loop_ends_the_server_with_an_error():
    async def handle(_data, _address):
        asyncio.get_running_loop().stop()

    serving = server(handle)
    serving.start()
    end = Call(serving.serve_forever)
    with client(serving.address) as sock:
        sock.send(b"x")
        with pytest.raises(RuntimeError, match="stopped before Future completed"):
            end.result()
