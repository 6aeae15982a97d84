"""Stopping and starting a server while the calling thread holds a lock of ``logging``."""

import signal

import pytest

from serving import HEAD, client, refused
from support import Child, eventually

pytestmark = pytest.mark.usefixtures("interruptible")

# A signal that arrives while the main thread is in a log handler and holds its lock.
INTERRUPTED = """
import logging
{first}
class Interrupted(logging.StreamHandler):
    def emit(self, record):
        super().emit(record)
        if record.getMessage() == "got":
            written.append(record)
        if record.getMessage() == "status":
            {before}
            signal.raise_signal(signal.SIGTERM)

logging.basicConfig(handlers=[Interrupted(sys.stdout)], level=logging.INFO)
blocked = threading.Event()
arrived = threading.Semaphore(0)
entered, written = [], []

def until(number):
    for _ in range(number):
        assert arrived.acquire(timeout=30)

def until_a_handler_waits():
    # A handler is running that can log "got" only when the caller releases the lock.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        while len(entered) == len(written):
            sock.sendto(b"x", address)
            until(1)

def handle(data, _):
    entered.append(data)
    arrived.release()
    {handle}

def leave():
    {leave}

server = tomada.Server(address, handle, workers=workers, drain=0.2, exit=leave)

def act(*_):
    {act}
    say("done")

signal.signal(signal.SIGTERM, act)
"""

STOP = """
server.start()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    for _ in range(100):
        sock.sendto(b"x", address)
logging.info("status")
free(address)
say(server)
blocked.set()
for thread in threading.enumerate():
    if thread.name.startswith("tomada"):
        thread._started.wait()
        thread.join()
sys.stdin.readline()
"""


def text(program, **lines):
    names = ("first", "before", "handle", "leave", "act")
    return HEAD + INTERRUPTED.format(**{name: lines.get(name, "pass") for name in names}) + program


def lines_until(child, last):
    found = []
    while not found or last not in found[-1]:
        found.append(child.line())
    return found


# The number of remaining datagrams depends on how many were received together.
UNANSWERED = """
from tomada._server.context import Context
log = Context.log_unanswered
Context.log_unanswered = lambda self, _, *more: log(self, 7, *more)
"""

LOG = 'logging.info("got")'

CASES = {
    # The handler waits for the lock.
    "handler": (
        {"handle": LOG, "before": "until_a_handler_waits()"},
        "handler has not returned",
    ),
    "slow": ({"handle": "blocked.wait()", "before": "until(1)"}, "handler has not returned"),
    # A log line of the library.
    "unanswered": ({"before": "until(1)", "first": UNANSWERED}, "7 received datagrams unanswered"),
    "exit": ({"leave": "raise LookupError", "before": "until(3)"}, "exit failed at the end"),
    "failing": ({"handle": "raise LookupError", "before": "until(1)"}, "the handler failed"),
}


@pytest.mark.parametrize("case", CASES)
def test_stop_in_a_signal_handler_that_interrupts_logging(case):
    lines, _ = CASES[case]
    with Child("-c", text(STOP, act="server.stop()", **lines), 1) as child:
        assert lines_until(child, "done")
        # The lock is free again.
        assert any("stopped" in line for line in lines_until(child, "<tomada.Server"))
        child.tell("\n")
        status, _, errors = child.end()
        assert status == 0, errors


@pytest.mark.parametrize("case", CASES)
def test_messages_logged_during_stop_are_not_lost(case):
    lines, logged = CASES[case]
    with Child("-c", text(STOP, act="server.stop()", **lines), 1) as child:
        assert lines_until(child, logged)


def test_interrupted_stop_in_a_signal_handler_that_interrupts_logging():
    """An exception interrupts the stop in the signal handler."""
    act = """
    def alarm(*_):
        raise TimeoutError
    signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        server.stop()
    except TimeoutError:
        say("alarm")
"""
    program = text(STOP, act=act, handle=LOG, before="until_a_handler_waits()")
    with Child("-c", program.replace("drain=0.2", "drain=1000"), 1) as child:
        assert "alarm" in lines_until(child, "done")
        assert lines_until(child, "<tomada.Server")


@pytest.mark.parametrize("workers", [1, 2])
def test_start_in_a_signal_handler_that_interrupts_logging(workers):
    program = text(
        """
logging.info("status")
with tomada.Client(address, timeout=10) as client:
    say(client.request(b"x"))
server.stop()
free(address)
""",
        handle="return data",
        act="server.start()",
    )
    with Child("-c", program, workers) as child:
        status, output, errors = child.end()
    assert status == 0, errors
    assert "done\n" in output
    assert "b'x'\n" in output


def test_failed_start_in_a_signal_handler_that_interrupts_logging():
    program = text(
        """
logging.info("status")
sys.stdin.readline()
""",
        act="""
    try:
        taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        taken.bind(address)
        server.start()
    except OSError as error:
        say(error)
""",
    )
    with Child("-c", program, 2) as child:
        assert any("in use" in line for line in lines_until(child, "done"))


def test_stop_in_a_signal_handler_does_not_wait_for_a_blocked_keeper():
    """Nothing can block stop() for ever, not even a finalizer that happens to run in the keeper."""
    program = (
        HEAD
        + """
from tomada._server import lifecycle
lifecycle.PATIENCE = 0.5
server = tomada.Server(address, lambda data, _: data, drain=0)
held = threading.Lock()
held.acquire()
server.start()
refuse = server._run.context.listeners.refuse
server._run.context.listeners.refuse = lambda: held.acquire() and refuse()

def act(*_):
    server.stop()
    say("done", server)
    held.release()

signal.signal(signal.SIGTERM, act)
signal.raise_signal(signal.SIGTERM)
server.stop()
free(address)
say(server)
"""
    )
    with Child("-c", program, 1) as child:
        assert "draining" in child.line()
        assert "stopped" in child.line()
        status, _, errors = child.end()
    assert status == 0, errors
    assert "has not closed its sockets" in errors


# A server whose handler does not return while datagrams of the same batch remain.
HELD = (
    HEAD
    + """
import logging
logging.basicConfig(stream=sys.stdout, level=logging.INFO)
sent, held, going = threading.Event(), threading.Event(), threading.Event()

def handle(data, _):
    if data == b"first":
        sent.wait()
    else:
        held.set()
        going.wait()
        time.sleep(0.05)  # so that the server is told to stop before the last datagram

def ask():
    server.ready.wait()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"first", address)
        for _ in range(50):
            sock.sendto(b"x", address)
    sent.set()
    held.wait()
    say("held")

server = tomada.Server(address, handle, drain=1000)
threading.Thread(target=ask, daemon=True).start()
"""
)


def test_abort_logs_why_datagrams_have_no_reply():
    program = """
def alarm(*_):
    raise TimeoutError

server.start()
held.wait()
signal.signal(signal.SIGALRM, alarm)
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    server.stop()
except TimeoutError:
    going.set()
    sys.stdin.readline()
"""
    with Child("-c", HELD + program, 1) as child:
        line = lines_until(child, "unanswered")[-1]
    assert "because an exception has ended the draining" in line


def test_second_signal_during_serve_forever_logs_why_datagrams_have_no_reply():
    program = """
try:
    server.serve_forever()
except KeyboardInterrupt:
    going.set()
    sys.stdin.readline()
"""
    with Child("-c", HELD + "say(address[1])" + program, 1) as child:
        address = "127.0.0.1", int(child.line())
        lines_until(child, "held")
        child.signal(signal.SIGINT)
        with client(address, 0.05) as sock:
            eventually(lambda: refused(sock))
        child.signal(signal.SIGTERM)
        line = lines_until(child, "unanswered")[-1]
    assert "because an exception has ended the draining" in line
