"""Async handlers: tasks on an event loop, which end in order."""

import asyncio
import contextlib
import contextvars
import socket as std
import sys
import threading
import time

import pytest

import tomada
import tomada.asyncio
from peer import DEADLINE
from serving import Gate, ask, client, server, until_refused
from support import Call, eventually
from traffic import numbered, send_run

every_loop = pytest.mark.parametrize("loop", ["tomada", "asyncio", "uvloop"])


async def shout(data, _address):
    await asyncio.sleep(0)
    return data.upper()


@every_loop
@pytest.mark.parametrize(
    "workers", [1, pytest.param(2, marks=pytest.mark.thread_unsafe(reason="it forks"))]
)
def test_async_handler_replies(loop, workers):
    with server(shout, loop=loop, workers=workers) as serving:
        with client(serving.address) as sock:
            for data in numbered(100):
                sock.send(b"a" + data)
            replies = sorted(sock.recv(100) for _ in range(100))
        assert replies == [b"A" + data for data in numbered(100)]
        stats = eventually(lambda: (stats := serving.stats()).sent == 100 and stats)
        assert (stats.received, stats.handler_errors, stats.cancelled) == (100, 0, 0)
        assert stats.handler_time > 0


@every_loop
@pytest.mark.parametrize("takes", ["data", "datagram", "batch"])
def test_async_handler_takes_what_a_synchronous_one_takes(loop, takes):
    async def handle(*arguments):
        await asyncio.sleep(0)
        if takes == "data":
            data, address = arguments
            return b"%s %d" % (data, address[1])
        if takes == "datagram":
            (datagram,) = arguments
            return b"%s %d" % (datagram.data, datagram.address[1])
        (batch,) = arguments
        return [b"%s %d" % (data, address[1]) for data, address in batch]

    with server(handle, takes=takes, loop=loop) as serving, client(serving.address) as sock:
        port = sock.getsockname()[1]
        for _ in range(3):
            sock.send(b"x")
        assert {sock.recv(100) for _ in range(3)} == {b"x %d" % port}


def test_server_uses_the_loop_that_it_was_given():
    kinds = []

    class Loop(tomada.asyncio.EventLoop):
        pass

    async def handle(data, _):
        kinds.append(type(asyncio.get_running_loop()))
        return data

    for loop in (None, "tomada", "asyncio", Loop):
        with server(handle, loop=loop) as serving:
            assert ask(serving.address) == b"ping"
    assert kinds == [
        tomada.asyncio.EventLoop,
        tomada.asyncio.EventLoop,
        asyncio.SelectorEventLoop,
        Loop,
    ]


def test_synchronous_handler_runs_on_a_loop_if_there_is_one():
    done = []

    async def later(data):
        done.append(data)

    def handle(data, _):
        asyncio.get_running_loop().create_task(later(data))
        return data

    with server(handle, loop="tomada") as serving:
        assert ask(serving.address) == b"ping"
        eventually(lambda: done == [b"ping"])


@every_loop
def test_requests_are_handled_at_the_same_time(loop):
    gate, count = Gate(), 200

    async def handle(data, _):
        await gate.wait()
        return data

    with server(handle, loop=loop) as serving, client(serving.address) as sock:
        for data in numbered(count):
            sock.send(data)
        eventually(lambda: gate.inside == count)
        before = serving.stats()
        gate.open()
        assert sorted(sock.recv(100) for _ in range(count)) == numbered(count)
        stats = eventually(lambda: (stats := serving.stats()).sent == count and stats)
        # They have ended in one turn of the loop, and leave together.
        assert stats.send_calls - before.send_calls < count / 10


@every_loop
def test_max_concurrency_leaves_the_rest_to_the_kernel_and_drops_are_counted(loop):
    gate, count = Gate(), 2000

    async def handle(data, _):
        await gate.wait()
        return data

    options = {"max_concurrency": 10, "rcvbuf": 16384, "loop": loop}
    with server(handle, **options) as serving, client(serving.address) as sock:
        for data in numbered(count, 100):
            sock.send(data)
        eventually(lambda: gate.inside == 10)
        dropped = eventually(lambda: serving.stats().kernel_drops)
        gate.open()
        for _ in range(count - dropped):
            sock.recv(200)
        stats = eventually(lambda: (stats := serving.stats()).sent == count - dropped and stats)
        assert stats.received + stats.kernel_drops == count
        assert gate.most == 10


def test_max_concurrency_applies_to_coalesced_datagrams():
    gate = Gate()

    async def handle(data, _):
        await gate.wait()
        return data

    with server(handle, max_concurrency=3) as serving, client(serving.address) as sock:
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as sender:
            sender.settimeout(DEADLINE)
            sender.bind(("127.0.0.1", 0))
            send_run(sender, serving.address, b"".join(numbered(40)), 8)
            eventually(lambda: gate.inside == 3)
            gate.open()
            assert sorted(sender.recv(100) for _ in range(40)) == numbered(40)
        sock.send(b"afterwards")
        assert sock.recv(100) == b"afterwards"
    assert gate.most == 3


@every_loop
def test_replies_leave_from_the_address_that_was_asked(loop):
    with server(shout, ("0.0.0.0", 0), loop=loop) as serving:
        port = serving.address[1]
        for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
            assert ask((host, port)) == b"PING"  # the socket is connected: others do not arrive


async def echo_later(data, _address):
    await asyncio.sleep(0)
    return data


async def echo_at_once(data, _address):
    return data


def echo(data, _address):
    return data


@pytest.mark.parametrize("handle", [echo_later, echo_at_once, echo])
def test_unix_servers_on_a_loop_retry_replies_to_a_full_peer(unix, handle):
    with server(handle, unix.address(), loop="tomada") as serving, unix.bound(std) as sock:
        for data in numbered(100):
            sock.sendto(data, serving.address)
        assert sorted(sock.recv(100) for _ in range(100)) == numbered(100)


@every_loop
def test_task_has_asyncios_tools(loop):
    async def part(data):
        await asyncio.sleep(0)
        return data

    async def handle(data, _):
        assert asyncio.current_task() in asyncio.all_tasks()
        async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as group:
            parts = [group.create_task(part(data[at : at + 1])) for at in range(len(data))]
        joined = b"".join(part.result() for part in parts)
        return await asyncio.to_thread(joined.upper)

    with server(handle, loop=loop) as serving:
        assert ask(serving.address, b"in parts") == b"IN PARTS"


def test_each_call_has_a_context_of_its_own():
    variable = contextvars.ContextVar("variable", default="nothing")

    async def handle(data, _):
        before = variable.get()
        variable.set(data.decode())
        await asyncio.sleep(0)
        return f"{before} {variable.get()}".encode()

    with server(handle) as serving:
        for name in (b"one", b"two"):
            assert ask(serving.address, name) == b"nothing " + name


@every_loop
def test_context_of_a_call_that_sends_does_not_reach_others(loop):
    variable = contextvars.ContextVar("variable", default="nothing")
    gate, found = Gate(), []

    async def handle(data, address):
        found.append(variable.get())
        if data in (b"ends", b"sends"):
            await gate.wait()
        if data == b"sends":
            variable.set("a secret")
            serving.sendto(b"first", address)
            await asyncio.sleep(0.05)
        return data

    serving = server(handle, loop=loop, max_concurrency=2)
    with serving, client(serving.address) as sock:
        for data in (b"ends", b"sends", b"third", b"fourth"):
            sock.send(data)
        eventually(lambda: gate.inside == 2)
        gate.open()
        assert sorted(sock.recv(100) for _ in range(5)) == sorted(
            [b"ends", b"sends", b"first", b"third", b"fourth"]
        )
    assert found == ["nothing"] * 4


@every_loop
def test_calls_while_stopping_have_the_context_of_the_lifespan(loop):
    variable = contextvars.ContextVar("variable", default="nothing")
    found, is_inside, gate = [], threading.Event(), threading.Event()

    @contextlib.asynccontextmanager
    async def lifespan(_server):
        variable.set("set")
        yield

    async def handle(_data, _address):
        found.append(variable.get())
        is_inside.set()
        gate.wait(DEADLINE)  # blocks the loop

    with (
        server(handle, loop=loop, lifespan=lifespan) as serving,
        client(serving.address) as sock,
    ):
        for data in numbered(5):
            sock.send(data)
        assert is_inside.wait(DEADLINE)
        stop = Call(serving.stop)
        until_refused(sock)
        gate.set()
        stop.result()
    assert set(found) == {"set"}


def test_task_that_waits_for_nothing_ends_at_once():
    """From Python 3.12 on, such a task is not even scheduled."""
    calls = []

    async def handle(data, _):
        asyncio.get_running_loop().call_soon(calls.append, "next turn")
        calls.append(asyncio.current_task().get_coro().__qualname__.rpartition(".")[2])
        return data

    with server(handle) as serving:
        assert ask(serving.address) == b"ping"
        eventually(lambda: len(calls) == 2)
        assert serving._run.context.cores[0].under_way == 0  # noqa: SLF001 - nothing public tells
    assert calls == ["handle", "next turn"]


def test_task_factory_of_the_loop_is_respected():
    made = []

    def factory(loop, coroutine, **options):
        made.append(coroutine.__qualname__)
        return asyncio.Task(coroutine, loop=loop, **options)

    def make():
        loop = tomada.asyncio.EventLoop()
        loop.set_task_factory(factory)
        return loop

    with server(shout, loop=make) as serving:
        assert ask(serving.address) == b"PING"
    assert "shout" in made


@every_loop
def test_debug_mode_finds_nothing_to_complain_about(loop, monkeypatch, caplog):
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    modes = []

    async def handle(data, address):
        modes.append(asyncio.get_running_loop().get_debug())
        serving.sendto(b"first", address)
        await asyncio.sleep(0)
        return data

    serving = server(handle, loop=loop)
    with serving, client(serving.address) as sock:
        sock.send(b"second")
        assert {sock.recv(100), sock.recv(100)} == {b"first", b"second"}
    assert modes == [True]
    assert [record for record in caplog.records if record.name == "tomada"] == []


@every_loop
def test_sendto_from_tasks_leaves_with_the_replies(loop):
    gate = Gate()

    async def more(address):
        await gate.wait()
        for data in numbered(50):
            serving.sendto(data, address)

    async def handle(data, address):
        tasks.append(asyncio.create_task(more(address)))
        return data

    tasks = []
    serving = server(handle, loop=loop)
    with serving, client(serving.address) as sock:
        sock.send(b"ping")
        assert sock.recv(100) == b"ping"
        eventually(lambda: gate.inside == 1)
        before = serving.stats()
        gate.open()
        assert [sock.recv(100) for _ in range(50)] == numbered(50)
        stats = eventually(lambda: (stats := serving.stats()).sent == 51 and stats)
        assert stats.send_calls - before.send_calls < 10


def test_timers_of_the_loop_are_on_time_during_a_flood():
    """A drain is bounded in each turn of the loop."""
    late, is_over = [], threading.Event()

    async def watch():
        while not is_over.is_set():
            begun = time.monotonic()
            await asyncio.sleep(0.01)
            late.append(time.monotonic() - begun)

    async def handle(_data, _address):
        if not late:
            late.append(0)
            tasks.append(asyncio.create_task(watch()))

    tasks = []
    with server(handle) as serving, client(serving.address) as sock:
        while len(late) < 20:
            try:
                sock.send(b"x")
            except ConnectionRefusedError:
                break
        is_over.set()
    assert len(late) >= 20


def test_threads_have_a_loop_each(unlocked):
    loops = set()
    gate = threading.Barrier(2)

    async def handle(data, _):
        loops.add(asyncio.get_running_loop())
        return data

    def init():
        gate.wait(DEADLINE)

    with server(handle, threads=2, init=init) as serving:
        eventually(lambda: ask(serving.address) == b"ping" and len(loops) == 2)


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        ({"loop": "libuv"}, ValueError, "loop must be one of 'tomada', 'asyncio', 'uvloop', or"),
        ({"loop": 3}, TypeError, "loop must be a name, a function or None, not int"),
        ({"max_concurrency": 0}, ValueError, "max_concurrency must be at least 1, not 0"),
        ({"max_requests": 5}, ValueError, "max_requests replaces worker processes: pass workers"),
        ({"max_requests": 0, "workers": 2}, ValueError, "max_requests must be positive, not 0"),
        ({"max_age": -1, "workers": 2}, ValueError, "max_age must be positive, not -1"),
        ({"max_age": float("nan"), "workers": 2}, ValueError, "max_age must be positive, not nan"),
    ],
)
def test_invalid_options(options, error, complaint):
    with pytest.raises(error, match=complaint):
        server(shout, **options)


def test_loop_whose_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="loop='uvloop' needs a package: pip install"):
        server(shout, loop="uvloop")
