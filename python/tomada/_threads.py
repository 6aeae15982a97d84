"""A server's threads in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from tomada._advice import start_thread
from tomada._job import GRACE, Job
from tomada._reports import logger


class Threads:
    """One thread for each core of a server."""

    def __init__(self, job: Job, on_end: Callable[[], None]) -> None:
        self._job = job
        self._on_end = on_end
        self._threads = [
            threading.Thread(
                target=self._run, args=(worker,), name=f"tomada.Server-{worker}", daemon=True
            )
            for worker in range(job.workers)
        ]
        self._started = [threading.Event() for _ in self._threads]
        self._lock = threading.Lock()
        self._running = len(self._threads)
        self.error: BaseException | None = None

    @property
    def ended(self) -> bool:
        """Whether no datagram is handled any more, or not by all threads."""
        return self.error is not None or self._running == 0

    @property
    def is_own_thread(self) -> bool:
        """Whether the calling thread is one that stopping waits for."""
        return threading.current_thread() in self._threads

    def start(self) -> None:
        """Start the threads, and return when each is ready, or raise what keeps it from it."""
        for number, thread in enumerate(self._threads):
            try:
                start_thread(thread)
            except OSError:
                with self._lock:
                    self._running -= len(self._threads) - number
                self._threads = self._threads[:number]
                self.stop()
                raise
        for started in self._started:
            started.wait()
        if self.error is not None:
            self.stop()
            raise self.error

    def _run(self, worker: int) -> None:
        core = self._job.cores[worker]
        try:
            core.prepare()
            if self._job.init is not None:
                self._job.init()
            self._started[worker].set()
            self._job.tell_left(core.run())
        except BaseException as error:  # noqa: BLE001 - it is raised where the server is waited for
            self.error = error
            for other in self._job.cores:
                other.stop(0.0)
        finally:
            self._started[worker].set()  # after the error, for who looks at it then
            with self._lock:
                self._running -= 1
            self._on_end()

    def replace(self) -> None:
        """Do nothing: threads have nothing to be replaced for."""

    def stop(self) -> None:
        """Answer what is queued, and end the threads.

        A handler that does not return cannot be ended. Its thread is left behind.
        """
        job = self._job
        job.listeners.refuse()
        job.listeners.unglue()
        for core in job.cores:
            core.stop(job.drain)
        end = time.monotonic() + job.drain + GRACE
        for thread in self._threads:
            if thread is threading.current_thread():
                continue  # the handler itself stops its server, and returns after that
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                logger.error(
                    "the handler has not returned %g seconds after the server was to stop; its "
                    "thread is left behind",
                    job.drain + GRACE,
                )

    def abort(self) -> None:
        """End without answering anything more."""
        for core in self._job.cores:
            core.stop(0.0)
