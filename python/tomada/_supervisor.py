"""The process that starts workers, watches them, and starts them again."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from socket import MSG_DONTWAIT, socket
from typing import Any, NoReturn

from tomada import _core
from tomada._advice import OF_OPENING
from tomada._bell import Bell
from tomada._job import GRACE, Job
from tomada._reports import logger

LARGEST_MESSAGE = 1 << 16

# A worker that dies is started again after so many seconds, twice as many the next time, and so
# on up to the last. One that has lived long enough begins anew.
FIRST_DELAY, LAST_DELAY, LONG_LIFE = 0.1, 5.0, 10.0
# From so many deaths on, the wait is the longest.
MOST_DEATHS = 16
# A worker that cannot start so many times in a row ends the server.
ATTEMPTS = 5
# Should it miss that its parent has died, the supervisor looks after so many seconds.
LOOK = 1.0

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD)


@dataclass
class Worker:
    """One process."""

    pid: int
    pipe: int
    started: float
    ready: bool = False
    error: BaseException | None = None
    retiring: bool = False
    kill_at: float | None = None


class Slot:
    """The place of one worker: the one that is in it, and the one that is to follow."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.worker: Worker | None = None
        self.successor: Worker | None = None
        self.retired: list[Worker] = []
        self.deaths = 0  # in quick succession
        self.failed_starts = 0  # in a row
        self.start_at: float | None = None

    def workers(self) -> list[Worker]:
        """Return every process of this place."""
        current = [worker for worker in (self.worker, self.successor) if worker is not None]
        return current + self.retired


class Supervisor:
    """Keeps a worker in every place, on sockets that it holds open and never reads."""

    def __init__(self, job: Job, channel: socket) -> None:
        self._job = job
        self._channel = channel
        self._parent = os.getppid()
        self._slots = [Slot(number) for number in range(job.workers)]
        self._to_replace: list[Slot] = []
        self._started = False
        self._stopping = False
        self._asked: list[int] = []
        self._has_parent = True
        self._error: BaseException | None = None

    def run_and_exit(self) -> NoReturn:
        """Run until all is done, and end the process without what belongs to the parent's end."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)  # the parent's
            self._run()
            status = 0
        except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is to know
            self._tell("error", error)
            for worker in self._workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
        finally:
            leave(status)

    def _run(self) -> None:
        handlers: dict[int, Callable[..., Any]] = {
            signal.SIGINT: _ignore,  # Ctrl-C goes to all processes; the parent decides
            signal.SIGCHLD: _ignore,
            signal.SIGTERM: self._ask,
            signal.SIGHUP: self._ask,
            signal.SIGQUIT: self._ask,
        }
        with Bell() as bell, bell.rung_by(handlers):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            for slot in self._slots:
                slot.worker = self._fork(slot)
            while self._workers() or not self._stopping:
                pipes = [worker.pipe for worker in self._workers() if worker.pipe >= 0]
                if self._has_parent:
                    pipes.append(self._channel.fileno())
                bell.wait(self._patience(), pipes)
                self._take_commands()
                for slot in self._slots:
                    self._look_after(slot)
                self._replace_next()
                if not self._started and all(s.worker and s.worker.ready for s in self._slots):
                    self._started = True
                    self._tell("ready", None)
        if self._error is not None:
            self._tell("error", self._error)

    # What it is told

    def _ask(self, number: int, _frame: object) -> None:
        self._asked.append(number)

    def _take_commands(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._has_parent:
                message = self._channel.recv(1, MSG_DONTWAIT)
                self._has_parent = bool(message) and os.getppid() == self._parent
                self._asked.append(message[0] if message else signal.SIGTERM)
        if self._has_parent and os.getppid() != self._parent:
            self._has_parent = False  # whoever has a copy of the channel's other end
            self._asked.append(signal.SIGTERM)
        while self._asked:
            number = self._asked.pop(0)
            if number == signal.SIGHUP:
                self._to_replace = list(self._slots)
            elif number == signal.SIGQUIT:
                self._stop(kill_after=0.0)
            else:
                self._stop(kill_after=self._job.drain + GRACE)

    def _stop(self, kill_after: float) -> None:
        kill_at = time.monotonic() + kill_after
        if not self._stopping:
            self._stopping = True
            self._to_replace.clear()
            self._job.listeners.refuse()
            for worker in self._workers():
                os.kill(worker.pid, signal.SIGTERM)
        for worker in self._workers():
            worker.kill_at = min(kill_at, worker.kill_at or kill_at)
        for slot in self._slots:
            slot.start_at = None

    def _tell(self, what: str, detail: Any) -> None:
        with contextlib.suppress(OSError):  # the parent is gone
            self._channel.send(pack(what, detail))

    # What becomes of workers

    def _workers(self) -> list[Worker]:
        return [worker for slot in self._slots for worker in slot.workers()]

    def _patience(self) -> float:
        times = [slot.start_at for slot in self._slots]
        times += [worker.kill_at for worker in self._workers()]
        soonest = min((at for at in times if at is not None), default=None)
        return LOOK if soonest is None else min(LOOK, max(0.0, soonest - time.monotonic()))

    def _look_after(self, slot: Slot) -> None:
        now = time.monotonic()
        for worker in slot.workers():
            _read(worker)
            if worker.kill_at is not None and worker.kill_at <= now:
                logger.error(
                    "worker %d (process %d) has not ended in time: killing it",
                    slot.number,
                    worker.pid,
                )
                os.kill(worker.pid, signal.SIGKILL)
                worker.kill_at = None
            status = _reap(worker)
            if status is not None:
                self._bury(slot, worker, status)
        if slot.worker is not None and slot.worker.ready:
            slot.failed_starts = 0
        if slot.start_at is not None and slot.start_at <= now:
            slot.start_at = None
            try:
                slot.worker = self._fork(slot)
            except OSError as error:  # no descriptor or no process is left
                self._restart(slot, f"worker {slot.number} could not be started: {error}")
        if slot.successor is not None and slot.successor.ready and slot.worker is not None:
            self._retire(slot, slot.worker)

    def _bury(self, slot: Slot, worker: Worker, status: int) -> None:
        """Take note of a worker's end, and see to another one."""
        _close(worker)
        if worker in slot.retired:
            slot.retired.remove(worker)
            return
        if worker is slot.successor:
            slot.successor = None
            if not self._stopping:
                logger.error(
                    "worker %d keeps its process: the new one %s",
                    slot.number,
                    _cause(worker, status),
                )
                self._to_replace.clear()
            return
        slot.worker, slot.successor = slot.successor, None
        if self._stopping:
            return
        what = f"worker {slot.number} (process {worker.pid}) {_cause(worker, status)}"
        if slot.worker is not None:
            logger.error("%s; its successor was at hand", what)
            return
        if time.monotonic() - worker.started >= LONG_LIFE:
            slot.deaths = 0
        if worker.ready:
            self._job.counters.add_restart(slot.number)
            self._restart(slot, what)
        else:
            self._retry(slot, worker.error or RuntimeError(what), what)

    def _retry(self, slot: Slot, error: BaseException, what: str) -> None:
        """See to another worker after one could not start; after too many, end the server.

        What only the machine lacks, for as long as that lasts, is no reason to end.
        """
        slot.failed_starts += not _is_shortage(error)
        if not self._started or slot.failed_starts == ATTEMPTS:
            self._error = error
            self._stop(kill_after=self._job.drain + GRACE)
        else:
            self._restart(slot, what)

    def _restart(self, slot: Slot, what: str) -> None:
        delay = min(LAST_DELAY, FIRST_DELAY * 2**slot.deaths)
        # The power must stay a number that a float can be multiplied with.
        slot.deaths = min(slot.deaths + 1, MOST_DEATHS)
        slot.start_at = time.monotonic() + delay
        logger.error("%s; another one starts in %g seconds", what, delay)

    def _replace_next(self) -> None:
        """Start one successor at a time."""
        if any(slot.successor for slot in self._slots):
            return
        while self._to_replace:
            slot = self._to_replace.pop(0)
            if slot.worker is not None and slot.worker.ready:
                try:
                    slot.successor = self._fork(slot)
                except OSError as error:
                    logger.error("worker %d keeps its process: %s", slot.number, error)
                    self._to_replace.clear()
                return

    def _retire(self, slot: Slot, worker: Worker) -> None:
        """Let a worker finish what it has received. Its successor takes what comes."""
        slot.worker, slot.successor = slot.successor, None
        slot.retired.append(worker)
        worker.kill_at = time.monotonic() + self._job.drain + GRACE
        os.kill(worker.pid, signal.SIGHUP)
        logger.info("worker %d: a new process has taken over", slot.number)

    def _fork(self, slot: Slot) -> Worker:
        read, write = os.pipe()
        os.set_blocking(read, False)
        # A signal must not find the child with the handlers of its parent.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        supervisor = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            os.close(read)
            os.close(write)
            raise
        if pid == 0:
            status = 1
            try:
                os.close(read)
                self._channel.close()
                status = work(self._job, slot.number, supervisor, write)
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException as error:  # noqa: BLE001 - as in any process, it ends it
                with contextlib.suppress(OSError):
                    os.write(write, pack("error", error))
                logger.exception("worker %d ends with an exception", slot.number)
            finally:
                leave(status)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.close(write)
        return Worker(pid, read, time.monotonic())


def work(job: Job, number: int, supervisor: int, pipe: int) -> int:
    """Be a worker until told to end; return the exit status."""
    job.worker, job.supervisor = os.getpid(), supervisor
    job.cores.clear()
    core = job.add_core(number)

    def drain(*_: object) -> None:
        # The kernel ends the process where its handler does not return, and nobody else is left.
        signal.setitimer(signal.ITIMER_REAL, job.drain + GRACE)
        job.listeners.unglue()
        core.stop(job.drain)

    def retire(*_: object) -> None:
        core.stop()

    handlers: dict[int, Any] = {
        signal.SIGINT: _ignore,
        signal.SIGTERM: drain,
        signal.SIGHUP: retire,
        signal.SIGQUIT: signal.SIG_DFL,
        signal.SIGCHLD: signal.SIG_DFL,
        signal.SIGALRM: signal.SIG_DFL,
    }
    with Bell() as bell, bell.rung_by(handlers):
        _core.end_with_parent(signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        if os.getppid() != supervisor:
            return 1  # it died before it could be asked to tell
        core.prepare()
        if job.init is not None:
            job.init()
        os.write(pipe, pack("ready", None))
        os.close(pipe)
        job.tell_left(core.run(bell.fileno()))
        return 0


def leave(status: int) -> NoReturn:
    """End a forked process, with what it has printed but nothing of its parent's."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


def pack(what: str, detail: Any) -> bytes:
    """Put a message for another process; an exception that cannot travel goes as its text."""
    if isinstance(detail, BaseException):
        text = "".join(traceback.format_exception(detail))
        detail.add_note(f"In the worker:\n\n{text}")
        try:
            message = pickle.dumps((what, detail))
            pickle.loads(message)  # noqa: S301 - some exceptions only fail here
        except Exception:  # noqa: BLE001 - whatever it is about this exception
            message = b""
        if message and len(message) <= LARGEST_MESSAGE:
            return message
        detail = RuntimeError(text[-LARGEST_MESSAGE // 2 :])
    return pickle.dumps((what, detail))


def _read(worker: Worker) -> None:
    if worker.pipe < 0:
        return
    try:
        message = os.read(worker.pipe, LARGEST_MESSAGE)
    except BlockingIOError:
        return
    if message:
        what, detail = pickle.loads(message)  # noqa: S301 - from a process forked from this one
        if what == "ready":
            worker.ready = True
        else:
            worker.error = detail
    _close(worker)


def _close(worker: Worker) -> None:
    if worker.pipe >= 0:
        os.close(worker.pipe)
        worker.pipe = -1


def _reap(worker: Worker) -> int | None:
    """Return the exit code of a process that has ended; a signal's number is negative."""
    pid, status = os.waitpid(worker.pid, os.WNOHANG)
    if pid == 0:
        return None
    _read(worker)
    return os.waitstatus_to_exitcode(status)


def _cause(worker: Worker, status: int) -> str:
    if worker.error is not None:
        return f"could not start: {worker.error!r}" if not worker.ready else repr(worker.error)
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def _is_shortage(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno in OF_OPENING
    )


def _ignore(*_: object) -> None:
    pass
