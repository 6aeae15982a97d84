"""A server's states, and stopping it from signal handlers, other threads, and its own threads."""

import math
import os
import re
import signal
import textwrap

import pytest

from serving import HEAD, client, members, refused, server
from support import Call, Child, eventually

pytestmark = [
    pytest.mark.usefixtures("interruptible"),
    pytest.mark.thread_unsafe(reason="it runs programs"),
]


@pytest.fixture
def program():
    children = []

    def start(text, *arguments):
        children.append(Child("-c", HEAD + textwrap.dedent(text), *arguments))
        return children[-1]

    yield start
    for child in children:
        child.__exit__()


def ended(child):
    status, output, errors = child.end()
    assert status == 0, errors
    assert members(child.pid) == []
    return output.splitlines(), errors


# A server whose `init` never returns.
STARTING = """
def init():
    say("init")
    time.sleep(1000)

server = tomada.Server(address, lambda data, _: data, workers=workers, init=init)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_stop_in_a_signal_handler_that_interrupts_start(program, workers):
    child = program(
        STARTING
        + """
signal.signal(signal.SIGTERM, lambda *_: (server.stop(), say("asked")))
try:
    server.start()
except RuntimeError as error:
    say(error)
server.stop()
free(address)
""",
        workers,
    )
    assert child.line() == "init"
    child.signal(signal.SIGTERM)
    lines, errors = ended(child)
    lines = [line for line in lines if line != "init"]
    assert lines == ["asked", "the server was stopped while it was starting; make another one"]
    assert (workers > 1) or "init has not returned" in errors


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_while_serve_forever_starts_does_not_wait_for_init(program, workers, number):
    child = program(STARTING + "server.serve_forever()\nfree(address)\nsay('over')\n", workers)
    assert child.line() == "init"
    child.signal(number)
    lines, _ = ended(child)
    assert lines[-1] == "over"


@pytest.mark.parametrize("workers", [1, 2])
def test_start_that_raises_leaves_no_worker_and_no_port(program, workers):
    child = program(
        STARTING
        + """
def alarm(*_):
    raise TimeoutError("too slow")

signal.signal(signal.SIGALRM, alarm)
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    server.start()
except TimeoutError as error:
    say(error)
free(address)
server.stop()
say(server)
try:
    server.start()
except RuntimeError as error:
    say(error)
sys.stdin.readline()
""",
        workers,
    )
    eventually(lambda: child.line() == "too slow")
    assert "stopped" in child.line()
    assert child.line() == "a server can be started only once: create another one"
    assert members(child.pid) == [child.pid]
    child.tell("\n")
    ended(child)


# A server whose handler never returns, so that draining would wait for it.
DRAINING = """
def handle(data, _):
    say("called")
    time.sleep(1000)

server = tomada.Server(address, handle, workers=workers, drain={drain})
server.start()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.sendto(b"x", address)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_stop_in_a_signal_handler_that_interrupts_a_draining_stop(program, workers):
    child = program(
        DRAINING.format(drain=0.5)
        + """
signal.signal(signal.SIGTERM, lambda *_: (server.stop(), say("asked")))
say("stopping")
server.stop()
free(address)
""",
        workers,
    )
    seen = {child.line(), child.line()}
    assert seen == {"called", "stopping"}
    child.signal(signal.SIGTERM)
    lines, _ = ended(child)
    # A signal that arrives before the handler is installed would end the program.
    assert lines == ["asked"]


@pytest.mark.parametrize("workers", [1, 2])
def test_stop_that_raises_leaves_no_worker_and_no_port(program, workers):
    child = program(
        DRAINING.format(drain=1000)
        + """
signal.signal(signal.SIGINT, signal.default_int_handler)
say(address[1])
try:
    server.stop()
except KeyboardInterrupt:
    say("interrupted")
free(address)
server.stop()
say(server)
sys.stdin.readline()
""",
        workers,
    )
    port = max(child.line(), child.line(), key=str.isdecimal)
    with client(("127.0.0.1", int(port)), 0.05) as sock:
        eventually(lambda: refused(sock))  # stop() has begun
    child.signal(signal.SIGINT)
    eventually(lambda: child.line() == "interrupted")  # the handler may be called meanwhile
    assert "stopped" in child.line()
    assert members(child.pid) == [child.pid]
    child.tell("\n")
    ended(child)


@pytest.mark.parametrize("workers", [1, 2])
def test_serve_forever_ends_the_server_after_another_exception(program, workers):
    child = program(
        """
        def alarm(*_):
            raise TimeoutError("enough")

        signal.signal(signal.SIGALRM, alarm)
        server = tomada.Server(address, lambda data, _: data, workers=workers)
        threading.Thread(target=lambda: (server.ready.wait(), say("ready")), daemon=True).start()
        try:
            server.serve_forever()
        except TimeoutError as error:
            say(error, server)
        free(address)
        """,
        workers,
    )
    assert child.line() == "ready"
    child.signal(signal.SIGALRM)
    lines, _ = ended(child)
    assert re.fullmatch(r"enough <.* stopped>", lines[-1])


@pytest.mark.parametrize("workers", [1, 2])
def test_signal_handler_may_wait_for_a_thread_that_stops_the_server(program, workers):
    child = program(
        STARTING
        + """
def stop(*_):
    thread = threading.Thread(target=server.stop)
    thread.start()
    thread.join()
    say("joined")

signal.signal(signal.SIGTERM, stop)
try:
    server.start()
except RuntimeError as error:
    say(error)
free(address)
""",
        workers,
    )
    assert child.line() == "init"
    child.signal(signal.SIGTERM)
    lines, _ = ended(child)
    assert "joined" in lines


@pytest.mark.parametrize("workers", [1, 2])
def test_stopped_supervisor_process_is_killed_with_its_workers(program, workers):
    child = program(
        """
        from tomada._server import processes
        processes.GRACE = 0.1
        server = tomada.Server(address, lambda *_: b"%d" % os.getppid(), workers=2, drain=0)
        server.start()
        with tomada.Client(address, timeout=10) as client:
            supervisor = int(client.request(b"who"))
        os.kill(supervisor, signal.SIGSTOP)
        server.stop()
        free(address)
        say("free")
        """,
        workers,
    )
    assert ended(child)[0] == ["free"]


@pytest.mark.parametrize("drain", [math.inf, 1e10, 1e30, 1e308])
@pytest.mark.parametrize("workers", [1, 2])
def test_drain_may_be_very_long(workers, drain):
    read, write = os.pipe()

    def handle(data, _):
        if data == b"0":
            os.read(read, 1)
        return data

    queued = [b"%d" % number for number in range(50)]
    with server(handle, workers=workers, drain=drain) as serving, client(serving.address) as sock:
        for data in queued:
            sock.send(data)
        call = Call(serving.stop)
        with client(serving.address, 0.05) as other:
            eventually(lambda: refused(other))
        os.write(write, b"x")
        call.result()
        assert [sock.recv(10) for _ in queued] == queued
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("drain", [math.nan, -1, -math.inf])
def test_drain_must_be_a_number(drain):
    with pytest.raises(ValueError, match="drain must be"):
        server(lambda data, _: data, drain=drain)
