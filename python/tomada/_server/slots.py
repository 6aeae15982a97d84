"""The worker processes of a supervisor, and their state."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import dataclass
from socket import MSG_NOSIGNAL, socket

from tomada._server.messages import LARGEST_MESSAGE, Failure, unpack
from tomada._server.worker import GO


@dataclass
class Worker:
    """A worker process."""

    pid: int
    channel: socket | None  # until the worker has sent its message
    started: float
    generation: int
    # When to replace it: at this time, or once its slot has received this number of datagrams.
    last_time: float = math.inf
    last_received: float = math.inf
    ready: bool = False  # and the supervisor has told it to serve
    message: bytes = b""
    failure: Failure | None = None
    kill_at: float | None = None
    is_slow: bool = False  # whether a slow start was logged

    def read(self) -> None:
        """Read the worker's only message: that it is ready, or why it cannot start.

        A worker receives nothing until the supervisor answers this message. So a worker that is not
        ``ready`` yet can be killed without losing datagrams.
        """
        if self.channel is None:
            return
        try:
            while part := self.channel.recv(LARGEST_MESSAGE):
                self.message += part
                if part.endswith(b"\n"):
                    what, self.failure, _ = unpack(self.message)
                    self.ready = what == "ready"
                    self.channel.send(GO, MSG_NOSIGNAL)
                    break
        except BlockingIOError:
            return
        except OSError:
            pass  # the worker was killed; its exit status says so
        self.close()

    def close(self) -> None:
        """Close the channel."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def reap(self) -> int | None:
        """Return the exit code (negative for a signal), or None while the process runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return None
        self.read()
        return os.waitstatus_to_exitcode(status)

    def cause(self, status: int) -> str:
        """Return why the process exited, for the log."""
        if self.failure is not None:
            return f"could not start: {self.failure}"
        if status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        return f"ended with status {status}"


class Slot:
    """One of the server's workers: its current process, and the successor if there is one."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.worker: Worker | None = None
        self.successor: Worker | None = None
        self.retired: list[Worker] = []
        self.deaths = 0  # in a row, without a long life in between
        self.failed_starts = 0  # in a row
        self.start_at: float | None = None

    @property
    def is_ready(self) -> bool:
        """Whether there is a worker that receives."""
        return self.worker is not None and self.worker.ready

    def workers(self) -> list[Worker]:
        """Return every process of this slot."""
        current = [worker for worker in (self.worker, self.successor) if worker is not None]
        return current + self.retired
