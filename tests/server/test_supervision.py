"""Workers die, stop responding, fail to start or are replaced, in any order, until a stop."""

import contextlib
import errno
import os
import signal
import socket as std
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import tomada
from families import length
from serving import ask
from support import Call, eventually
from tomada._server import supervisor

pytestmark = pytest.mark.thread_unsafe(reason="it forks")


class FailingOs:
    """A replacement for the supervisor's module ``os``, whose fork fails while a file exists."""

    def __init__(self, flag):
        self._flag = flag

    def __getattr__(self, name):
        return getattr(os, name)

    def fork(self):
        if self._flag.exists():
            raise OSError(errno.EAGAIN, "no process is left")
        return os.fork()


def children(pid):
    with contextlib.suppress(OSError):
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    return []


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


class Supervision(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        self._no_init, self._no_fork = folder / "init", folder / "fork"
        self._patches = pytest.MonkeyPatch()
        self._patches.setattr(supervisor, "os", FailingOs(self._no_fork))
        for delay, seconds in (("FIRST_DELAY", 0.01), ("LAST_DELAY", 0.05)):
            self._patches.setattr(supervisor, delay, seconds)
        self._others = set(children(os.getpid()))
        self._seen, self._stopped = set(), set()
        self._was_stopped = self._is_halted = False

    @initialize(init_fails=st.sampled_from([False, False, False, True]))
    def start(self, init_fails):
        def init():
            if self._no_init.exists():
                raise LookupError("not now")

        if init_fails:
            self._no_init.touch()
        self._server = tomada.Server(
            ("127.0.0.1", 0), lambda data, _: data, workers=2, init=init, drain=0.5
        )
        try:
            self._server.start()
        except LookupError:
            assert init_fails
            self._was_stopped = True
            self._no_init.unlink()
        else:
            assert not init_fails
        self._address = self._server.address
        self._note()

    def _note(self):
        """Remember all processes of the server."""
        for pid in self._supervisors():
            self._seen |= {pid, *children(pid)}

    def _workers(self):
        self._note()
        return [
            pid for pid in sorted(self._seen) if is_alive(pid) and pid not in self._supervisors()
        ]

    def _supervisors(self):
        return set(children(os.getpid())) - self._others

    # Preconditions may depend on earlier rules, but not on their results: the same choices must
    # lead to the same rules.
    is_running = precondition(lambda self: not self._was_stopped)

    @is_running
    @rule(
        which=st.integers(0, 3),
        number=st.sampled_from([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP]),
    )
    def harm_a_worker(self, which, number):
        self._is_halted = self._is_halted or number == signal.SIGSTOP
        workers = self._workers()
        if workers:
            pid = workers[which % len(workers)]
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            if number == signal.SIGSTOP:
                self._stopped.add(pid)

    @precondition(lambda self: self._is_halted)
    @rule()
    def let_workers_go_on(self):
        for pid in self._stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._stopped.clear()
        self._is_halted = False

    @is_running
    @rule()
    def replace(self):
        self._note()
        self._server.replace_workers()

    @rule(what=st.sampled_from(["_no_init", "_no_fork"]), is_broken=st.booleans())
    def break_or_mend(self, what, is_broken):
        if is_broken:
            getattr(self, what).touch()
        else:
            getattr(self, what).unlink(missing_ok=True)

    @is_running
    @precondition(lambda self: not self._is_halted)
    @rule()
    def answers(self):
        """Make a request and expect a reply, unless too many starts have failed."""
        self._no_init.unlink(missing_ok=True)
        self._no_fork.unlink(missing_ok=True)

        def is_answered():
            if not self._server.ready.is_set():
                return True
            with contextlib.suppress(TimeoutError, ConnectionRefusedError):
                return ask(self._address, timeout=0.2) == b"ping"
            return False

        eventually(is_answered)

    @rule()
    def stop_from_threads(self):
        self._note()
        calls = [Call(self._server.stop) for _ in range(2)]
        for call in calls:
            call.result()
        self._was_stopped = True

    @rule()
    def stop_from_a_signal(self):
        self._note()
        before = signal.signal(signal.SIGUSR1, lambda *_: self._server.stop())
        try:
            signal.raise_signal(signal.SIGUSR1)
        finally:
            signal.signal(signal.SIGUSR1, before)
        self._was_stopped = True

    @invariant()
    def nothing_outlives_it(self):
        if hasattr(self, "_server") and self._was_stopped:
            self._check_nothing_left()

    def _check_nothing_left(self):
        assert not self._server.ready.is_set()
        assert "stopped" in repr(self._server)
        eventually(lambda: not any(is_alive(pid) for pid in self._seen))
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
            sock.bind(self._address)

    def teardown(self):
        try:
            if hasattr(self, "_server"):
                self._note()
                Call(self._server.stop).result()
                self._check_nothing_left()
        finally:
            for pid in filter(is_alive, self._seen):
                os.kill(pid, signal.SIGKILL)
            self._patches.undo()
            self._folder.cleanup()


TestSupervision = Supervision.TestCase
TestSupervision.settings = settings(
    max_examples=length(12, 200),
    stateful_step_count=length(12, 30),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
