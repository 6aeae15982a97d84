"""The process that starts, watches and restarts workers."""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import time
from socket import MSG_DONTWAIT, socket, socketpair
from typing import TYPE_CHECKING, Any, NoReturn

from tomada import _core
from tomada._advice import OF_OPENING
from tomada._reports import logger
from tomada._server.context import GRACE, Context
from tomada._server.leaving import forget_parent, leave
from tomada._server.messages import Failure, pack
from tomada._server.slots import Slot, Worker
from tomada._server.wakeup import Wakeup
from tomada._server.worker import SIGNALS, work_and_exit

if TYPE_CHECKING:
    from collections.abc import Callable

# The first and the longest delay before a worker is restarted, in seconds: the delay doubles with
# each death. It is reset when a worker dies after at least the third number of seconds.
FIRST_DELAY, LAST_DELAY, LONG_LIFE = 0.1, 5.0, 10.0
# The highest number of deaths to count: the delay reaches its maximum long before.
MOST_DEATHS = 16
# If every worker fails to start this many times in a row, the server ends.
ATTEMPTS = 5
# How long the supervisor waits for its parent to stop the server after asking it to, in seconds.
PATIENCE = 5.0
# Log a worker that takes longer than this to become ready, in seconds.
SLOW = 10.0
# How often the supervisor checks whether its parent has died, and whether a worker has reached one
# of its limits, in seconds.
LOOK = 1.0
# Each worker's limits are a random share of `max_requests` and `max_age`, at least this one, so
# that workers do not reach them at the same time.
LEAST_SHARE = 0.8
# If a worker that has reached a limit cannot be replaced, try again after this time, in seconds.
LATER = 10.0


class Supervisor:
    """Keeps a worker in every slot, on sockets that it holds open and never reads.

    A worker has the generation that was current when it was forked. SIGHUP begins the next
    generation: workers are replaced, one by one, until all of them have it, or until a new one
    cannot start. A worker that reaches `max_requests` or `max_age` is replaced in the same way.
    """

    def __init__(self, context: Context, channel: socket, mask: set[Any]) -> None:
        self._context = context
        self._channel = channel
        # The signals that the parent had blocked before it blocked all of them for the fork.
        self._mask = mask
        self._parent = os.getppid()
        self._slots = [Slot(number) for number in range(context.settings.cores)]
        self._wanted = 0
        self._is_replacing = False
        self._started = False
        self._live: list[int] = []  # the slots whose workers run, as the parent knows them
        self._stopping = self._is_aborted = False
        self._asked: list[int] = []
        self._is_to_stop = False
        self._stop_at: float | None = None
        self._has_parent = True
        self._failure: Failure | None = None
        self._shown = ""  # the last traceback in the log

    def run_and_exit(self) -> NoReturn:
        """Run until the server ends, then exit without the parent's exit steps."""
        status = 1
        try:
            self._channel.send(pack("pid", pid=os.getpid()))
            signal.set_wakeup_fd(-1)  # the parent's
            forget_parent()
            self._run()
            status = 0
        except BaseException as error:  # noqa: BLE001 - report any exception to the parent
            self._tell("error", Failure.of(error))
            for worker in self._workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
        finally:
            leave(status)

    def _run(self) -> None:
        handlers: dict[int, Callable[..., Any]] = {
            signal.SIGINT: _ignore,  # Ctrl-C reaches all processes; the parent decides
            signal.SIGCHLD: _ignore,
            signal.SIGTERM: self._ask,
            signal.SIGHUP: self._ask,
            signal.SIGQUIT: self._ask,
        }
        wakeup = Wakeup()
        _core.SignalHandlers(handlers, wakeup.fileno_to_write(), wakeup).install()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask - set(SIGNALS))
        for slot in self._slots:
            slot.worker = self._fork(slot)
        while self._workers() or not self._stopping:
            channels = [worker.channel for worker in self._workers()]
            if self._has_parent:
                channels.append(self._channel)
            wakeup.wait(self._patience(), [one.fileno() for one in channels if one])
            self._take_commands()
            for slot in self._slots:
                self._look_after(slot)
            self._replace_next()
            self._replace_used_up()
            if not self._started and all(slot.is_ready for slot in self._slots):
                self._started = True
                self._tell_live()
                self._tell("ready")
            self._tell_live()
        if self._failure is not None:
            self._tell("error", self._failure)

    # Commands

    def _ask(self, number: int, _frame: object) -> None:
        if number == signal.SIGTERM:
            self._is_to_stop = True
        else:
            self._asked.append(number)

    def _ask_parent_to_stop(self) -> None:
        """Ask the parent to stop the server, so that it never looks ready while it refuses."""
        if self._stop_at is None and not self._stopping:
            self._stop_at = time.monotonic() + (PATIENCE if self._has_parent else 0.0)
            self._tell("stop", flags=MSG_DONTWAIT)

    def _take_commands(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._has_parent:
                message = self._channel.recv(1, MSG_DONTWAIT)
                self._has_parent = bool(message) and os.getppid() == self._parent
                self._asked.append(message[0] if message else signal.SIGTERM)
        if self._has_parent and os.getppid() != self._parent:
            self._has_parent = False  # another process may still hold the channel's other end
            self._asked.append(signal.SIGTERM)
        if self._is_to_stop:
            self._is_to_stop = False
            self._ask_parent_to_stop()
        if self._stop_at is not None and self._stop_at <= time.monotonic():
            self._stop_at = None
            self._asked.append(signal.SIGTERM)
        while self._asked:
            number = self._asked.pop(0)
            if number == signal.SIGHUP:
                self._want_others()
            elif number == signal.SIGQUIT:
                self._is_aborted = True
                self._stop(kill_after=0.0)
            else:
                self._stop(kill_after=self._context.settings.drain + GRACE)

    def _want_others(self) -> None:
        if self._stopping:
            return
        self._wanted += 1
        self._is_replacing = True
        for slot in self._slots:
            # The new code may be able to start.
            slot.failed_starts = slot.deaths = 0
            if slot.start_at is not None:
                slot.start_at = time.monotonic()
            successor = slot.successor
            if successor is not None:
                successor.read()
                if not successor.ready:  # it may have loaded code that is now out of date
                    slot.successor = None
                    slot.retired.append(successor)
                    self._end(successor, signal.SIGHUP)

    def _stop(self, kill_after: float) -> None:
        kill_at = time.monotonic() + kill_after
        self._stop_at = None
        if not self._stopping:
            self._stopping = True
            self._is_replacing = False
            self._context.listeners.refuse()
            for worker in self._workers():
                worker.read()
                self._end(worker, signal.SIGTERM)
        for worker in self._workers():
            worker.kill_at = min(kill_at, worker.kill_at or kill_at)
        for slot in self._slots:
            slot.start_at = None

    def _end(self, worker: Worker, number: signal.Signals) -> None:
        """Ask a worker to finish, or kill it if it has not begun anything.

        A worker that is not ready is killed, because `init` may take arbitrarily long. If there is
        a lifespan, the worker may have entered it, so it gets the chance to leave it.
        """
        if not (worker.ready or self._context.settings.lifespan is not None):
            number = signal.SIGKILL
        kill_at = time.monotonic() + self._context.settings.drain + GRACE
        worker.kill_at = min(kill_at, worker.kill_at or kill_at)
        os.kill(worker.pid, number)

    def _tell(
        self, what: str, failure: Failure | None = None, *, flags: int = 0, **more: Any
    ) -> bool:
        with contextlib.suppress(OSError):  # the parent has exited, or does not read
            return self._channel.send(pack(what, failure, **more), flags) > 0
        return False

    def _tell_live(self) -> None:
        """Tell the parent which workers are running, if that has changed."""
        live = [slot.number for slot in self._slots if slot.is_ready]
        if live != self._live and self._tell("live", flags=MSG_DONTWAIT, workers=live):
            self._live = live

    # Workers

    def _workers(self) -> list[Worker]:
        return [worker for slot in self._slots for worker in slot.workers()]

    def _patience(self) -> float:
        times = [slot.start_at for slot in self._slots]
        times.append(self._stop_at)
        times += [worker.kill_at for worker in self._workers()]
        # While a successor starts, no other worker is replaced, so reached limits do not count.
        if not (self._stopping or any(slot.successor for slot in self._slots)):
            workers = [slot.worker for slot in self._slots]
            times += [worker.last_time for worker in workers if worker and worker.ready]
        soonest = min((at for at in times if at is not None), default=None)
        return LOOK if soonest is None else min(LOOK, max(0.0, soonest - time.monotonic()))

    def _look_after(self, slot: Slot) -> None:
        now = time.monotonic()
        for worker in slot.workers():
            worker.read()
            if worker.kill_at is not None and worker.kill_at <= now:
                self._log_overdue(slot, worker)
                os.kill(worker.pid, signal.SIGKILL)
                worker.kill_at = None
            status = worker.reap()
            if status is not None:
                if status == -signal.SIGALRM and worker.kill_at is not None:
                    self._log_overdue(slot, worker)  # its own timer killed it
                self._bury(slot, worker, status)
        self._log_slow(slot, now)
        if slot.worker is not None and slot.worker.ready:
            slot.failed_starts = 0
        if slot.start_at is not None and slot.start_at <= now:
            slot.start_at = None
            try:
                slot.worker = self._fork(slot)
            except OSError as error:  # no descriptor or process is available
                self._restart(slot, f"worker {slot.number} could not be started: {error}")
        if slot.successor is not None and slot.successor.ready and slot.worker is not None:
            self._retire(slot, slot.worker)

    def _log_slow(self, slot: Slot, now: float) -> None:
        for worker in (slot.worker, slot.successor):
            if worker is None or worker.ready or worker.is_slow or not self._started:
                continue
            if worker.started + SLOW <= now and not self._stopping:
                worker.is_slow = True
                logger.warning(
                    "worker %d: the new process (%d) is not ready after %g seconds%s",
                    slot.number,
                    worker.pid,
                    SLOW,
                    ", and no other worker is replaced before it is; SIGHUP starts another one"
                    if worker is slot.successor
                    else "",
                )

    def _log_overdue(self, slot: Slot, worker: Worker) -> None:
        if not self._is_aborted:
            logger.error(
                "worker %d (process %d) has not exited in time: killing it",
                slot.number,
                worker.pid,
            )

    def _bury(self, slot: Slot, worker: Worker, status: int) -> None:
        """Record that a worker has exited, and schedule its replacement."""
        worker.close()
        if worker in slot.retired:
            slot.retired.remove(worker)
            return
        if worker is slot.successor:
            slot.successor = None
            if not self._stopping:
                self._log_traceback(slot, worker.failure)
                logger.error(
                    "worker %d keeps its process: the new one %s",
                    slot.number,
                    worker.cause(status),
                )
                if self._is_replacing:
                    self._end_replacing(has_failed=True)
            return
        slot.worker, slot.successor = slot.successor, None
        if self._stopping:
            return
        what = f"worker {slot.number} (process {worker.pid}) {worker.cause(status)}"
        if slot.worker is not None:
            logger.error("%s; its successor takes over", what)
            return
        if worker.ready and time.monotonic() - worker.started >= LONG_LIFE:
            slot.deaths = 0
        if worker.ready:
            self._context.counters.add_restart(slot.number)
            self._restart(slot, what)
        else:
            failure = worker.failure or Failure("builtins", "RuntimeError", what)
            self._retry(slot, failure, what)

    def _retry(self, slot: Slot, failure: Failure, what: str) -> None:
        """After a failed start, schedule another one, or end the server if all workers fail.

        As long as one worker runs or may still start, the others are tried again, without end: a
        reload may have left code that cannot start. A temporary shortage of memory or descriptors
        does not count as a failed start.
        """
        slot.failed_starts += not _is_shortage(failure)
        if not self._started:
            self._failure = failure
            self._stop(kill_after=self._context.settings.drain + GRACE)
        elif all(_is_hopeless(each) for each in self._slots):
            self._failure = failure
            self._ask_parent_to_stop()
        else:
            if slot.failed_starts < ATTEMPTS:
                self._log_traceback(slot, failure)
            self._restart(slot, what)
            if self._is_replacing:
                self._end_replacing(has_failed=True)

    def _log_traceback(self, slot: Slot, failure: Failure | None) -> None:
        """Log why a worker could not start, unless the last logged traceback is the same."""
        if failure is None or failure.is_for_users or failure.traceback in ("", self._shown):
            return
        self._shown = failure.traceback
        logger.error("worker %d could not start\n%s", slot.number, failure.traceback.rstrip())

    def _restart(self, slot: Slot, what: str) -> None:
        delay = min(LAST_DELAY, FIRST_DELAY * 2**slot.deaths)
        # Limited, so that the power can be converted to a float.
        slot.deaths = min(slot.deaths + 1, MOST_DEATHS)
        slot.start_at = time.monotonic() + delay
        logger.error("%s; restarting it in %g seconds", what, delay)

    def _replace_next(self) -> None:
        """Start one successor at a time.

        A worker that is not ready is replaced, too: it may hang in code that is out of date.
        """
        if not self._is_replacing or any(slot.successor for slot in self._slots):
            return
        for slot in self._slots:
            if slot.worker is not None and slot.worker.generation < self._wanted:
                try:
                    slot.successor = self._fork(slot)
                except OSError as error:
                    logger.error("worker %d keeps its process: %s", slot.number, error)
                    self._end_replacing(has_failed=True)
                return
        if all(slot.is_ready for slot in self._slots):
            self._end_replacing()

    def _end_replacing(self, *, has_failed: bool = False) -> None:
        self._is_replacing = False
        self._tell("replaced", flags=MSG_DONTWAIT, has_failed=has_failed)

    def _replace_used_up(self) -> None:
        """Start the successor of a worker that has reached a limit, one at a time."""
        if self._stopping or any(slot.successor for slot in self._slots):
            return
        now = time.monotonic()
        for slot in self._slots:
            worker = slot.worker
            if worker is None or not worker.ready:
                continue
            if worker.last_time <= now or worker.last_received <= self._received(slot):
                worker.last_time, worker.last_received = now + LATER, math.inf
                try:
                    slot.successor = self._fork(slot)
                except OSError as error:
                    logger.error("worker %d keeps its process: %s", slot.number, error)
                return

    def _received(self, slot: Slot) -> int:
        return self._context.counters.received(slot.number)

    def _retire(self, slot: Slot, worker: Worker) -> None:
        """Let a worker finish the datagrams it has received; its successor receives new ones."""
        slot.worker, slot.successor = slot.successor, None
        slot.retired.append(worker)
        self._end(worker, signal.SIGHUP)
        logger.info("worker %d: a new process has taken over", slot.number)

    def _fork(self, slot: Slot) -> Worker:
        ours, theirs = socketpair()
        ours.setblocking(False)
        # The child must not run its parent's signal handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        supervisor = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            try:
                for worker in self._workers():
                    worker.close()
                ours.close()
                self._channel.close()
                work_and_exit(self._context, slot.number, supervisor, theirs)
            finally:
                leave(1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        theirs.close()
        worker = Worker(pid, ours, time.monotonic(), self._wanted)
        if self._context.settings.max_age is not None:
            worker.last_time = worker.started + self._context.settings.max_age * _share()
        if self._context.settings.max_requests is not None:
            worker.last_received = (
                self._received(slot) + max(1, self._context.settings.max_requests) * _share()
            )
        return worker


def _share() -> float:
    return random.uniform(LEAST_SHARE, 1.0)  # noqa: S311 - not a secret


def _is_hopeless(slot: Slot) -> bool:
    """Whether a slot will probably not get a worker: it fails again and again, or it hangs."""
    hangs = slot.worker is not None and slot.worker.is_slow and not slot.is_ready
    return hangs or slot.failed_starts >= ATTEMPTS


def _is_shortage(failure: Failure) -> bool:
    return failure.is_memory or failure.errno in OF_OPENING


def _ignore(*_: object) -> None:
    pass
