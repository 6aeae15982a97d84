"""How a worker exits: `exit`, atexit functions, threads, and buffered files."""

import gzip
import os
import re
import signal
import textwrap

import pytest

from serving import ask, client, server
from support import Child, eventually

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

# Each worker exits with output buffered in every way that Python offers.
PROGRAM = """
import atexit, gzip, logging, logging.handlers, os, signal, sys, tempfile, threading, time, weakref
import tomada

folder = sys.argv[1]

def mark(what, text=""):
    with open(os.path.join(folder, f"{{what}}-{{os.getpid()}}"), "a") as file:
        file.write(text or "x")

def path(name):
    return os.path.join(folder, f"{{name}}-{{os.getpid()}}")

# For the parent only: a worker must do none of this.
parent = os.getpid()
atexit.register(lambda: mark("parent-atexit"))
shared = open(os.path.join(folder, "shared"), "a")
shared.write("parent\\n")
held, held_end = os.pipe()
unread = os.fdopen(held_end, "w")
unread.write("piped once")
directory = tempfile.TemporaryDirectory()
logger = logging.getLogger("app")
memory = logging.handlers.MemoryHandler(1000, target=logging.FileHandler(
    os.path.join(folder, "log"), delay=True))
logger.addHandler(memory)
logger.error("parent's record")
kept = []

class Thing:
    pass

def init():
    kept.append(open(path("file"), "w"))
    kept.append(gzip.open(path("gzip"), "wt"))
    kept[0].write("begun ")
    thing = Thing()
    weakref.finalize(thing, mark, "finalize")
    kept.append(thing)
    atexit.register(mark, "atexit")
    mark("init")

def handle(data, address):
    kept[0].write("handled")
    kept[1].write("packed")
    shared.write(f"worker {{os.getpid()}}\\n")
    logger.error("handled")
    threading.Thread(target=lambda: (time.sleep(0.05), mark("thread"))).start()
    if data == b"leave":
        sys.exit(3)
    return b"%d" % os.getpid()

def exit():
    mark("exit", f"{{os.path.isdir(directory.name)}}")
    if {fails}:
        raise LookupError("on the way out")

server = tomada.Server(("127.0.0.1", 0), handle, workers={workers}, init=init, exit=exit)

def tell():
    server.ready.wait()
    os.write(1, (" ".join(map(str, server.address)) + "\\n").encode())

threading.Thread(target=tell, daemon=True).start()
server.serve_forever()
assert os.path.isdir(directory.name), "a worker has removed its parent's directory"
"""


@pytest.fixture
def serve(interruptible, tmp_path):
    children = []

    def start(workers=2, fails=False):
        program = textwrap.dedent(PROGRAM).format(workers=workers, fails=fails)
        child = Child("-c", program, tmp_path)
        children.append(child)
        host, port = child.line().split()
        return child, (host, int(port))

    yield start
    for child in children:
        child.__exit__()


def marks(folder, what):
    return {int(path.name.rpartition("-")[2]): path for path in folder.glob(f"{what}-*")}


def check_worker(folder, pid, *, handled):
    """Check that all of a worker's output was written exactly once."""
    for what in ("init", "exit", "atexit", "finalize") + ("thread",) * handled:
        text = marks(folder, what)[pid].read_text()
        assert text == ("True" if what == "exit" else "x"), what
    text = marks(folder, "file")[pid].read_text()
    assert text == "begun " + "handled" * handled
    with gzip.open(marks(folder, "gzip")[pid], "rt") as packed:
        assert packed.read() == "packed" * handled


def check_shared(folder, pids):
    lines = (folder / "shared").read_text().splitlines()
    assert lines.count("parent") == 1
    assert {int(line.split()[1]) for line in lines if line != "parent"} == pids
    records = (folder / "log").read_text().splitlines()
    assert records.count("parent's record") == 1
    assert records.count("handled") == len(pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_worker_exits_like_a_python_program(serve, tmp_path, number):
    child, address = serve()
    pid = int(ask(address))
    child.signal(number)
    status, _, errors = child.end()
    assert (status, errors) == (0, "")
    workers = marks(tmp_path, "init")
    assert len(workers) == 2
    for worker in workers:
        check_worker(tmp_path, worker, handled=worker == pid)
    check_shared(tmp_path, {pid})
    assert set(marks(tmp_path, "parent-atexit")) == {child.pid}


def test_replaced_worker_exits_like_a_python_program(serve, tmp_path):
    child, address = serve()
    pid = int(ask(address))
    child.signal(signal.SIGHUP)
    eventually(lambda: len(marks(tmp_path, "atexit")) == 2 and pid in marks(tmp_path, "atexit"))
    child.signal(signal.SIGTERM)
    assert child.end()[0] == 0
    workers = marks(tmp_path, "init")
    assert len(workers) == 4
    for worker in workers:
        check_worker(tmp_path, worker, handled=worker == pid)
    check_shared(tmp_path, {pid})


def test_worker_whose_handler_calls_exit_exits_normally(serve, tmp_path):
    child, address = serve()
    with client(address) as sock:
        sock.send(b"leave")
        eventually(lambda: marks(tmp_path, "atexit"))
    child.signal(signal.SIGTERM)
    assert child.end()[0] == 0
    (pid,) = marks(tmp_path, "thread")
    check_worker(tmp_path, pid, handled=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_exit_function_that_fails_is_logged(serve, tmp_path, workers):
    child, address = serve(workers, fails=True)
    assert ask(address)
    child.signal(signal.SIGTERM)
    status, _, errors = child.end()
    assert status == 0
    assert len(re.findall("LookupError: on the way out", errors)) == workers
    assert len(marks(tmp_path, "atexit")) == workers


def test_exit_runs_once_in_the_servers_thread_after_the_last_datagram():
    seen = []

    def handle(data, _):
        seen.append(data)
        return data

    options = {"init": lambda: seen.append("init"), "exit": lambda: seen.append("exit")}
    with server(handle, **options) as serving, client(serving.address) as sock:
        for number in range(10):
            sock.send(b"%d" % number)
        serving.stop()
        assert [sock.recv(10) for _ in range(10)] == [b"%d" % number for number in range(10)]
    assert seen == ["init", *(b"%d" % number for number in range(10)), "exit"]


def test_exit_does_not_run_if_init_failed():
    def init():
        raise LookupError

    for workers in (1, 2):
        read, write = os.pipe()
        with pytest.raises(LookupError):
            server(
                lambda data, _: data,
                workers=workers,
                init=init,
                exit=lambda write=write: os.write(write, b"x"),
            ).start()
        os.close(write)
        assert os.read(read, 1) == b""
        os.close(read)
