"""Code shared by the suites: programs in other processes, calls in other threads, polling."""

import contextlib
import errno
import itertools
import os
import platform
import select
import signal
import socket as std
import subprocess
import sys
import threading
import time
from pathlib import Path

from peer import DEADLINE, dumps, loads

HELPERS = Path(__file__).parent
PEER = HELPERS / "peer.py"

# The filter of tests that fork while other threads run. Since CPython 3.15, os.fork() raises the
# warning if it is an error, but after the fork.
FORKS = "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"

# The environment for development mode, without asyncio's warnings about slow callbacks.
DEVELOPMENT = {
    "PYTHONDEVMODE": "1",
    "PYTHONPATH": os.pathsep.join(
        filter(None, [str(HELPERS / "development"), os.environ.get("PYTHONPATH")])
    ),
}

# A thread that waits for the interpreter's lock, or for another thread, is in this system call.
FUTEX = {"x86_64": "202", "aarch64": "98"}.get(platform.machine())


def has_lock():
    """Return whether the interpreter's global lock is enabled."""
    return getattr(sys, "_is_gil_enabled", lambda: True)()


# Whether threads can run Python code at the same time.
FREE = not has_lock()

# How often to run a race. Without the global lock, more can go wrong.
RACES = 30 if FREE else 5

# The beginning of the message of the OSError that a call on a closed socket raises.
CLOSED = rf"^\[Errno {errno.EBADF}\] "

_numbers = itertools.count()


def eventually(condition):
    """Poll until the condition holds, and return its value; fail at the deadline."""
    end = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < end, "the condition never held"
        os.sched_yield()
    return value


def open_descriptors():
    """Count the open descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def fill(sender, to):
    """Fill the queue of an ``AF_UNIX`` socket without waiting; return the number of datagrams."""
    timeout = sender.gettimeout()
    sender.setblocking(False)
    for sent in itertools.count():
        try:
            sender.sendto(b"%d" % sent, to)
        except BlockingIOError:
            sender.settimeout(timeout)
            return sent
    raise AssertionError


# Every method of the standard class that receives one datagram.
RECEIVE = {
    "recv": lambda sock: sock.recv(100),
    "recvfrom": lambda sock: sock.recvfrom(100)[0],
    "recv_into": lambda sock: sock.recv_into(bytearray(100)),
    "recvfrom_into": lambda sock: sock.recvfrom_into(bytearray(100))[0],
    "recvmsg": lambda sock: sock.recvmsg(100)[0],
    "recvmsg_into": lambda sock: sock.recvmsg_into([bytearray(100)])[0],
}


def sleeps_in_the_kernel(pid, thread):
    """Return whether a thread waits in a system call, other than for a lock.

    A thread that waits for a lock in the kernel, in mmap(2) or a page fault for example, sleeps
    uninterruptibly: its state is ``D``, not ``S``.
    """
    task = Path(f"/proc/{pid}/task/{thread}")
    call = system_call(task)
    try:
        state = (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False  # the thread has exited
    # Read the call twice: in between, the thread may have moved from one call to another.
    return state == "S" and call not in {"running", "-1", FUTEX} and system_call(task) == call


def system_call(task):
    """Return the number of the system call that a thread is in, if the kernel shows it."""
    try:
        return (task / "syscall").read_text().split()[0]
    except OSError:
        return None


def interrupt():
    """Send SIGUSR1 to the main thread once it waits."""
    main = threading.main_thread()
    eventually(lambda: sleeps_in_the_kernel("self", main.native_id))
    signal.pthread_kill(main.ident, signal.SIGUSR1)


class RefusalError(Exception):
    """An exception for handlers and iterables; it cannot be made from a message alone."""

    def __init__(self, what, why):
        super().__init__(what, why)


class Call(threading.Thread):
    """A call that runs in another thread immediately."""

    def __init__(self, function, *arguments):
        # A daemon, so that a call that never returns fails its test instead of hanging the run.
        super().__init__(daemon=True)
        self._function = lambda: function(*arguments)
        self._result = self._error = None
        self.start()

    def run(self):
        try:
            self._result = self._function()
        except BaseException as error:  # noqa: BLE001 - raised again in the other thread
            self._error = error

    def until_it_waits(self):
        """Wait until the call sleeps in the kernel."""
        eventually(lambda: not self.is_alive() or sleeps_in_the_kernel("self", self.native_id))
        assert self.is_alive(), f"it did not wait: {self._result!r}, {self._error!r}"
        return self

    def is_over(self):
        """Return whether the call has returned; raise its exception if it has failed."""
        return not self.is_alive() and (self.result(), True)[1]

    def result(self, deadline=DEADLINE):
        """Wait for the call to end, and return its result or raise its exception."""
        self.join(deadline)
        assert not self.is_alive(), "the call does not end"
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._result


def together(*functions):
    """Call functions at the same time, each in its own thread, and return their results."""
    barrier = threading.Barrier(len(functions))

    def call(function):
        barrier.wait(DEADLINE)
        return function()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # with a global lock, switch threads often
    try:
        calls = [Call(call, function) for function in functions]
        # The first failure explains why other calls may wait forever.
        eventually(lambda: all(call.is_over() for call in calls))
        return [call.result() for call in calls]
    finally:
        sys.setswitchinterval(interval)


class Child:
    """A Python program in another process, with lines as input and output."""

    def __init__(self, *arguments, program=sys.executable, **options):
        self._process = subprocess.Popen(
            [program, *map(str, arguments)],
            **options,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            # A process group of its own, which includes the processes that it starts.
            process_group=0,
        )
        self._rest = b""

    @property
    def pid(self):
        return self._process.pid

    def line(self, deadline=DEADLINE):
        """Return the next line of output."""
        output = self._process.stdout
        while b"\n" not in self._rest:
            assert select.select([output], [], [], deadline)[0], "the program prints nothing"
            chunk = output.read(1 << 16)
            assert chunk, f"the program has ended:\n{self._process.stderr.read().decode()}"
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def error_line(self):
        """Return the next line of standard error."""
        assert select.select([self._process.stderr], [], [], DEADLINE)[0], "no line of errors"
        return self._process.stderr.readline().decode()

    def tell(self, line):
        self._process.stdin.write(line.encode())

    def until_it_waits(self):
        """Wait until the program's main thread sleeps in the kernel."""
        eventually(lambda: sleeps_in_the_kernel(self.pid, self.pid))

    def signal(self, number):
        self._process.send_signal(number)

    def end(self, deadline=DEADLINE):
        """Wait until the program exits; return its status, remaining output, and errors."""
        output, errors = self._process.communicate(timeout=deadline)
        return self._process.returncode, (self._rest + output).decode(), errors.decode()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self._process.stdout.closed:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.communicate()


class Peer(Child):
    """A plain standard-library socket in another process: ``peer.py``."""

    def __init__(self, family, address):
        # Isolated and without site-packages, it cannot import tomada.
        super().__init__("-I", "-S", PEER, int(family), dumps(address))
        self.address = self.answer()

    def ask(self, do, **arguments):
        """Send a command without waiting for the answer."""
        self.tell(dumps({"do": do, **arguments}))

    def answer(self):
        return loads(self.line())

    def do(self, do, **arguments):
        """Send a command, and return the answer."""
        self.ask(do, **arguments)
        return self.answer()


def run(program, *arguments):
    """Run a program from its source, and return its output."""
    with Child("-c", program, *arguments) as child:
        status, output, errors = child.end()
    assert status == 0, errors
    return output


class Kind:
    """A family of addresses: ``AF_INET``, ``AF_INET6``, or ``AF_UNIX`` with paths or names."""

    def __init__(self, name, folder):
        self.name = name
        self.family = getattr(std, name, std.AF_UNIX)
        self.is_unix = self.family == std.AF_UNIX
        self._folder = folder

    def address(self):
        """Return an address to which no socket is bound."""
        if self.name == "path":
            return str(self._folder / str(next(_numbers)))
        if self.name == "abstract":
            return b"\0tomada %d %d" % (os.getpid(), next(_numbers))
        return ("127.0.0.1" if self.family == std.AF_INET else "::1", 0)

    def open(self, module):
        """Open a datagram socket with a deadline."""
        sock = module.socket(self.family, module.SOCK_DGRAM)
        sock.settimeout(DEADLINE)
        return sock

    def bound(self, module):
        """Open a datagram socket with a deadline, bound to a free address."""
        sock = self.open(module)
        sock.bind(self.address())
        return sock


KINDS = ("AF_INET", "AF_INET6", "path", "abstract")
