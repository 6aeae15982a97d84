"""The lifespan of workers: entered before the first datagram, left once after the last one."""

import asyncio
import contextlib
import contextvars
import os
import signal
import textwrap
import threading

import pytest

from peer import DEADLINE
from serving import Load, ask, client, refused, server, until_refused
from support import Call, Child, eventually

forking = pytest.param(2, marks=pytest.mark.thread_unsafe(reason="it forks"))
runs_programs = pytest.mark.thread_unsafe(reason="it runs programs")
each_number_of_workers = pytest.mark.parametrize("workers", [1, forking])
each_kind = pytest.mark.parametrize("kind", ["sync", "async"])


def answer(data, _address):
    return data


async def answer_later(data, _address):
    await asyncio.sleep(0)
    return data


HANDLERS = {"sync": answer, "async": answer_later}


def of_kind(kind, enter, leave=lambda: None):
    """Make a lifespan of two functions."""

    @contextlib.contextmanager
    def lifespan(serving):
        value = enter(serving)
        yield value
        leave()

    @contextlib.asynccontextmanager
    async def lifespan_on_loop(serving):
        await asyncio.sleep(0)
        with lifespan(serving) as value:
            yield value
        await asyncio.sleep(0)

    return {"sync": lifespan, "async": lifespan_on_loop}[kind]


@each_kind
@pytest.mark.parametrize("handler", ["sync", "async"])
def test_lifespan_encloses_the_datagrams(kind, handler):
    steps = []

    def note(data, address):
        steps.append(data.decode())
        return HANDLERS[handler](data, address)

    async def note_later(data, address):
        return await note(data, address)

    lifespan = of_kind(kind, lambda _: steps.append("enter"), lambda: steps.append("leave"))
    options = {"init": lambda: steps.append("init"), "exit": lambda: steps.append("exit")}
    handle = note if handler == "sync" else note_later
    with server(handle, lifespan=lifespan, **options) as serving:
        assert steps == ["init", "enter"]
        assert ask(serving.address) == b"ping"
    assert steps == ["init", "enter", "ping", "leave", "exit"]


@each_kind
@each_number_of_workers
@pytest.mark.parametrize("handler", ["sync", "async"])
def test_state_is_the_lifespans_value(kind, workers, handler):
    def reply(_data, _address):
        return b"%d %s" % (os.getpid(), serving.state["name"])

    async def reply_later(data, address):
        await asyncio.sleep(0)
        return await asyncio.to_thread(reply, data, address)

    lifespan = of_kind(kind, lambda it: {"name": b"%d of %d" % (os.getpid(), it.address[1])})
    handle = reply if handler == "sync" else reply_later
    serving = server(handle, lifespan=lifespan, workers=workers)
    with serving:
        pid, _, name = ask(serving.address).partition(b" ")
        assert name == b"%s of %d" % (pid, serving.address[1])
        assert (int(pid) == os.getpid()) == (workers == 1)
        if workers > 1:
            with pytest.raises(RuntimeError, match="no state is available here"):
                _ = serving.state
    with pytest.raises(RuntimeError, match="no state is available here"):
        _ = serving.state


@each_kind
@each_number_of_workers
def test_exception_on_entering_is_raised_by_start(kind, workers):
    def enter(_):
        raise LookupError("no database")

    with pytest.raises(LookupError, match="no database"):
        server(answer, lifespan=of_kind(kind, enter), workers=workers).start()


@each_kind
def test_exception_on_leaving_is_logged_and_exit_runs(kind, caplog):
    steps = []

    def leave():
        raise LookupError("on the way out")

    lifespan = of_kind(kind, lambda _: None, leave)
    with server(answer, lifespan=lifespan, exit=lambda: steps.append("exit")) as serving:
        assert ask(serving.address) == b"ping"
    assert steps == ["exit"]
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.message == "lifespan failed at the end of a worker"
    assert str(record.exc_info[1]) == "on the way out"


@each_kind
@pytest.mark.parametrize("where", ["lifespan", "exit"])
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
def test_exception_on_leaving_that_is_not_an_error_is_logged(kind, where, error, caplog):
    def leave():
        raise error

    options = {"lifespan": of_kind(kind, lambda _: None, leave)} if where == "lifespan" else {}
    if where == "exit":
        options["exit"] = leave
    serving = server(answer, **options)
    serving.start()
    assert ask(serving.address) == b"ping"
    end = Call(serving.serve_forever)
    serving.stop()
    if isinstance(error, asyncio.CancelledError):
        end.result()
    else:
        with pytest.raises(type(error)):
            end.result()
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.message == f"{where} failed at the end of a worker"
    assert record.exc_info[1] is error


@each_kind
def test_lifespan_that_hangs_on_leaving_is_named_and_does_not_keep_the_server(kind, caplog):
    is_over = threading.Event()
    lifespan = of_kind(kind, lambda _: None, is_over.wait)
    with server(answer, lifespan=lifespan, drain=0.05) as serving:
        assert ask(serving.address) == b"ping"
        serving.stop()
        is_over.set()
    assert "the end of a worker (lifespan, exit, or a thread of its event loop) has" in caplog.text


def test_handlers_see_the_context_of_the_lifespan():
    variable = contextvars.ContextVar("variable")

    @contextlib.asynccontextmanager
    async def lifespan(_):
        variable.set(b"set on entering")
        yield

    async def handle(_data, _address):
        await asyncio.sleep(0)
        return variable.get()

    with server(handle, lifespan=lifespan) as serving:
        assert ask(serving.address) == b"set on entering"


def test_tasks_of_the_lifespan_run_beside_the_handler():
    ticks = []

    async def tick():
        while True:
            ticks.append(1)
            await asyncio.sleep(0.001)

    @contextlib.asynccontextmanager
    async def lifespan(_):
        async with asyncio.TaskGroup() as group:
            task = group.create_task(tick())
            yield
            task.cancel()

    # A synchronous handler, too: the lifespan's loop calls it.
    for handler in (answer, answer_later):
        ticks.clear()
        with server(handler, lifespan=lifespan) as serving:
            assert ask(serving.address) == b"ping"
            eventually(lambda: len(ticks) > 10)


def test_task_group_that_fails_ends_the_server_after_the_calls_under_way():
    is_called, release = asyncio.Event(), threading.Event()

    async def fail():
        await is_called.wait()
        raise LookupError("the background task failed")

    @contextlib.asynccontextmanager
    async def lifespan(_):
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            yield

    async def handle(data, _):
        is_called.set()
        await asyncio.to_thread(release.wait, DEADLINE)
        return data

    serving = server(handle, lifespan=lifespan)
    serving.start()
    with client(serving.address) as sock:
        sock.send(b"ping")
        end = Call(serving.serve_forever)
        eventually(is_called.is_set)
        release.set()
        assert sock.recv(100) == b"ping"
        with pytest.raises(ExceptionGroup) as found:
            end.result()
    assert str(found.value.exceptions[0]) == "the background task failed"


@pytest.mark.parametrize("handler", ["sync", "async"])
def test_handler_that_exits_leaves_the_lifespan(handler):
    steps = []

    def leave(*_):
        raise SystemExit(3)

    async def leave_later(*_):
        await asyncio.sleep(0)
        raise SystemExit(3)

    lifespan = of_kind("sync", lambda _: steps.append("enter"), lambda: steps.append("leave"))
    handle = leave if handler == "sync" else leave_later
    serving = server(handle, lifespan=lifespan)
    serving.start()
    end = Call(serving.serve_forever)
    with client(serving.address) as sock:
        sock.send(b"x")
        with pytest.raises(SystemExit):
            end.result()
    assert steps == ["enter", "leave"]


@pytest.mark.parametrize(
    ("lifespan", "complaint"),
    [
        (3, "lifespan must be callable or None, not int"),
        ((lambda _: (yield)), r"a generator function: decorate it with contextlib\.contextm"),
    ],
)
def test_invalid_lifespan_is_rejected_at_once(lifespan, complaint):
    with pytest.raises(TypeError, match=complaint):
        server(answer, lifespan=lifespan)


def test_lifespan_of_another_kind_is_rejected():
    async def coroutine(_):
        pass

    async def generator(_):
        yield

    with pytest.raises(TypeError, match="lifespan is a coroutine function: make it a generator"):
        server(answer, lifespan=coroutine)
    with pytest.raises(TypeError, match=r"decorate it with contextlib\.asynccontextmanager"):
        server(answer, lifespan=generator)
    with pytest.raises(TypeError, match="lifespan must return a context manager, not dict"):
        server(answer, lifespan=lambda _: {}).start()


# A program whose workers note when they enter and leave, and which requests they have answered, in
# files with buffers.
PROGRAM = """
import asyncio, contextlib, os, signal, sys, threading, time
import tomada

folder, kind, slow = sys.argv[1], sys.argv[2], float(sys.argv[3])

def path(name):
    return os.path.join(folder, f"{name}-{os.getpid()}")

@contextlib.contextmanager
def lifespan(server):
    time.sleep(slow)
    with open(path("life"), "a") as file:
        file.write("entered\\n")
    requests = open(path("requests"), "w")
    yield requests
    with open(path("life"), "a") as file:
        file.write("left\\n")

@contextlib.asynccontextmanager
async def lifespan_on_loop(server):
    with lifespan(server) as requests:
        yield requests
        await asyncio.sleep(0.01)

def handle(data, address):
    if data == b"exit":
        raise SystemExit(3)
    server.state.write(data.decode() + "\\n")
    return b"%d " % os.getpid() + data

async def handle_later(data, address):
    if data == b"hang":
        os.write(1, b"hanging\\n")
        await asyncio.get_running_loop().create_future()
    await asyncio.sleep(0.002)
    return handle(data, address)

options = {"lifespan": lifespan, "workers": 2, "steering": "random"}
if kind == "async":
    options["lifespan"] = lifespan_on_loop
if len(sys.argv) > 4:
    options |= eval(sys.argv[4])
server = tomada.Server(("127.0.0.1", 0), handle_later if kind == "async" else handle, **options)

def tell():
    server.ready.wait()
    os.write(1, (" ".join(map(str, server.address)) + "\\n").encode())

threading.Thread(target=tell, daemon=True).start()
signal.signal(signal.SIGUSR1, lambda *_: server.stop())
server.serve_forever()
"""


@pytest.fixture
def serve(interruptible, tmp_path):
    with contextlib.ExitStack() as stack:

        def start(kind, slow=0, options=None):
            arguments = [tmp_path, kind, slow] + ([] if options is None else [options])
            return stack.enter_context(Child("-c", textwrap.dedent(PROGRAM), *arguments))

        yield start


def address_of(child):
    host, port = child.line().split()
    return host, int(port)


def lives(folder):
    """Return what each worker has noted of its life, by process."""
    return {
        int(path.name.rpartition("-")[2]): path.read_text().split() for path in folder.glob("life*")
    }


def written(folder, without=None):
    """Return how many requests are in the files of all workers but one."""
    return sum(
        path.read_text().count("\n")
        for path in folder.glob("requests-*")
        if path.name != f"requests-{without}"
    )


@runs_programs
@each_kind
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=["TERM", "INT", "stop()"]
)
def test_end_under_load_leaves_each_lifespan_once(serve, tmp_path, kind, workers, number):
    child = serve(kind, options=f"{{'workers': {workers}}}")
    with Load(address_of(child), clients=6) as load:
        eventually(lambda: load.answered > 100)
        child.signal(number)
        load.join()
    status, _, errors = child.end()
    assert (status, errors) == (0, "")
    assert (load.lost, load.refused) == (0, 6)
    found = lives(tmp_path)
    assert len(found) == workers
    assert set(map(tuple, found.values())) == {("entered", "left")}
    assert written(tmp_path) == load.answered  # buffered output is on disk


@runs_programs
@each_kind
def test_reload_under_load_leaves_each_lifespan_once_and_loses_nothing(serve, tmp_path, kind):
    child = serve(kind)
    with Load(address_of(child), clients=6) as load:
        eventually(lambda: len(load.replies) == 2)
        child.signal(signal.SIGHUP)
        eventually(lambda: len(load.replies) == 4)
        child.signal(signal.SIGTERM)
        load.join()
    assert child.end()[0] == 0
    found = lives(tmp_path)
    assert len(found) == 4
    assert set(map(tuple, found.values())) == {("entered", "left")}
    assert load.lost == 0
    assert written(tmp_path) == load.answered  # buffered output is on disk


@runs_programs
@each_kind
def test_replaced_and_crashed_workers_leave_each_lifespan_once(serve, tmp_path, kind):
    child = serve(kind)
    with Load(address_of(child), clients=6, timeout=2) as load:
        eventually(lambda: len(load.replies) == 2)
        child.signal(signal.SIGHUP)
        eventually(lambda: len(load.replies) == 4)
        victim = int(max(load.replies, key=int))
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: len(load.replies) == 5)
        child.signal(signal.SIGTERM)
        load.join()
    assert child.end()[0] == 0
    found = lives(tmp_path)
    assert len(found) == 5
    assert found.pop(victim) == ["entered"]  # it was killed
    assert set(map(tuple, found.values())) == {("entered", "left")}
    assert load.lost <= 6  # requests that the victim had received, one of each client
    # Only the victim's buffered output is lost.
    others = load.answered - load.replies[b"%d" % victim]
    # A reply may have come after its client had stopped waiting.
    assert others <= written(tmp_path, without=victim) <= others + load.lost


@runs_programs
@each_kind
@pytest.mark.parametrize("victim", ["supervisor", "program"])
def test_killed_parent_of_the_workers_leaves_each_lifespan_once(serve, tmp_path, kind, victim):
    child = serve(kind)
    with Load(address_of(child), clients=6, timeout=5) as load:
        eventually(lambda: len(load.replies) == 2)
        (supervisor,) = children_of(child.pid)
        os.kill(supervisor if victim == "supervisor" else child.pid, signal.SIGKILL)
        load.join()
    status, _, errors = child.end()
    if victim == "supervisor":
        assert status == 1
        assert "the supervisor of the workers has ended with status -9" in errors
    found = lives(tmp_path)
    assert len(found) == 2
    assert set(map(tuple, found.values())) == {("entered", "left")}
    assert (load.lost, load.refused) == (0, 6)
    assert written(tmp_path) == load.answered


@runs_programs
def test_workers_whose_supervisor_was_killed_refuse_new_datagrams(serve):
    child = serve("sync")
    address = address_of(child)
    (supervisor,) = children_of(child.pid)
    child.signal(signal.SIGSTOP)  # so the program does not refuse them
    os.kill(supervisor, signal.SIGKILL)
    with client(address, timeout=0.1) as sock:
        eventually(lambda: refused(sock))
    child.signal(signal.SIGCONT)
    assert child.end()[0] == 1


@runs_programs
@each_kind
def test_worker_whose_handler_exits_under_load_leaves_its_lifespan(serve, tmp_path, kind):
    child = serve(kind)
    address = address_of(child)
    with Load(address, clients=6, timeout=5) as load, client(address) as sock:
        eventually(lambda: len(load.replies) == 2)
        sock.send(b"exit")
        eventually(lambda: len(load.replies) == 3)
        child.signal(signal.SIGTERM)
        load.join()
    status, _, errors = child.end()
    assert status == 0
    assert "ended with status 3; restarting it" in errors
    found = lives(tmp_path)
    assert len(found) == 3
    assert set(map(tuple, found.values())) == {("entered", "left")}
    assert load.lost <= 6  # requests that the worker had received together, one of each client
    assert load.answered <= written(tmp_path) <= load.answered + load.lost


@runs_programs
@each_kind
def test_worker_that_is_to_stop_while_it_enters_leaves_too(serve, tmp_path, kind):
    child = serve(kind, slow=0.3)
    eventually(lambda: len(os.listdir(f"/proc/{child.pid}/task")) > 1)  # noqa: PTH208
    eventually(lambda: children_of(children_of(child.pid)[:1]))
    child.signal(signal.SIGTERM)
    assert child.end()[0] == 0
    assert set(map(tuple, lives(tmp_path).values())) <= {("entered", "left")}


def children_of(pids):
    """Return the processes that were forked by others."""
    found = []
    for pid in [pids] if isinstance(pids, int) else pids:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
                with open(f"/proc/{pid}/task/{task}/children") as file:  # noqa: PTH123
                    found += map(int, file.read().split())
    return found


@runs_programs
@each_kind
@pytest.mark.parametrize("options", ["{'max_requests': 50}", "{'max_age': 0.5}"])
def test_worker_that_reaches_its_limit_is_replaced_without_losing_requests(
    serve, tmp_path, kind, options
):
    child = serve(kind, options=options)
    with Load(address_of(child), clients=4) as load:
        eventually(lambda: len(load.replies) >= 4)
        child.signal(signal.SIGTERM)
        load.join()
    assert child.end()[0] == 0
    assert load.lost == 0
    assert len(lives(tmp_path)) >= 4
    assert set(map(tuple, lives(tmp_path).values())) == {("entered", "left")}
    assert written(tmp_path) == load.answered


@runs_programs
def test_calls_that_hang_are_cancelled_before_the_lifespan_is_left(serve, tmp_path):
    child = serve("async", options="{'drain': 0.2}")
    with client(address_of(child)) as sock:
        sock.send(b"hang")
        assert child.line() == "hanging"
        child.signal(signal.SIGTERM)
        status, _, errors = child.end()
    assert status == 0
    assert "stopped with 1 received datagrams unanswered" in errors
    assert set(map(tuple, lives(tmp_path).values())) == {("entered", "left")}


@runs_programs
def test_second_signal_while_tasks_drain_ends_the_server_at_once(serve, tmp_path):
    child = serve("async", options="{'drain': 600}")
    with client(address_of(child)) as sock:
        sock.send(b"hang")
        assert child.line() == "hanging"
        child.signal(signal.SIGTERM)
        until_refused(sock)  # so the first signal is handled
        child.signal(signal.SIGTERM)
        status, _, errors = child.end()
    assert status == -signal.SIGINT
    assert "KeyboardInterrupt" in errors
    # The worker of the hanging call was killed.
    assert sorted(map(len, lives(tmp_path).values())) in ([1, 1], [1, 2])
