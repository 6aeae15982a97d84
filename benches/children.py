"""The measured processes: each is started on its own core, watched, and always ended."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

ROOT = Path(__file__).resolve().parents[1]
LOADGEN = ROOT / "benches/loadgen/target/release/loadgen"

# How long a program may take to start, and to end when told to, in seconds.
PATIENCE = 10.0


class ChildFailed(Exception):  # noqa: N818 - a possible outcome of a measurement
    """A program failed; the text is its last line."""


@dataclass(frozen=True)
class Look:
    """The progress of a process at one moment."""

    time_ns: int
    cpu_ns: int
    # How long it waited for its core while other processes ran there.
    delay_ns: int
    count: int


class Child:
    """A running program of the benchmarks.

    :param program: ``loadgen`` and a command, or a module of ``benches.programs`` and a function.
    :param python: The interpreter for a module, which imports the tomada installed there.
    :param namespace: The name of the network namespace to run it in.
    :param environment: Further environment variables.
    """

    def __init__(  # noqa: PLR0913 - the ways to run a program
        self,
        program: str,
        core: int,
        seconds: float,
        python: str | None = None,
        namespace: str | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        **options: object,
    ) -> None:
        words = program.split()
        if words[0] == "loadgen":
            command = [str(LOADGEN), *words[1:]]
        else:
            command = [python or sys.executable, "-m", "benches.programs", *words]
        if namespace is not None:
            command = ["ip", "netns", "exec", namespace, *command]
        counter = os.memfd_create("counter")
        os.truncate(counter, 8)
        self._counter = memoryview(mmap.mmap(counter, 8)).cast("Q")
        given = {"core": core, "seconds": seconds, "counter": counter, **options}
        for name, value in given.items():
            if value is not False:
                command.append(f"--{name}")
                values = value if isinstance(value, tuple) else (value,)
                command.extend(() if value is True else map(str, values))
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the exit
        self._output = b""
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            pass_fds=[counter],
            env={**os.environ, **(environment or {})},
            # Ctrl-C must reach only the driver, which ends its children.
            process_group=0,
        )
        os.close(counter)
        self._cpu_clock = ~self._process.pid << 3 | 2  # as clock_getcpuclockid(3) computes it

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def count(self) -> int:
        """The number of datagrams that it has processed."""
        return self._counter[0]

    def look(self) -> Look:
        """Read its counter, and the CPU time that the kernel attributes to it."""
        schedules = [
            path.read_text() for path in Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        ]
        delay = sum(int(schedule.split()[1]) for schedule in schedules)
        cpu = time.clock_gettime_ns(self._cpu_clock)
        return Look(time.perf_counter_ns(), cpu, delay, self.count)

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Stop the process while the block runs."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def line(self, patience: float = PATIENCE) -> dict[str, Any]:
        """Wait for the next line that it prints."""
        while b"\n" not in self._output:
            if not self._read(patience):
                raise self._failure("ended early" if self._process.poll() else "says nothing")
        line, self._output = self._output.split(b"\n", 1)
        return dict(json.loads(line))

    def go_on(self) -> None:
        """Let it continue: write an empty line to its input."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def wait_until_counting(self, beyond: int = 0) -> None:
        """Wait until it has processed more than ``beyond`` datagrams."""
        deadline = time.monotonic() + PATIENCE
        while self.count <= beyond:
            if self._process.poll() is not None:
                raise self._failure("ended early")
            if time.monotonic() > deadline:
                raise self._failure("counts nothing")
            time.sleep(0.005)

    def tell_to_end(self) -> None:
        """Tell it to end, by closing its input."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def stop(self, patience: float = PATIENCE) -> dict[str, Any]:
        """Tell it to end, and return its last line of output."""
        self.tell_to_end()
        return self.result(patience)

    def result(self, seconds: float) -> dict[str, Any]:
        """Wait until it ends, and return its last line of output."""
        deadline = time.monotonic() + seconds
        while self._read(deadline - time.monotonic()):
            pass
        try:
            status = self._process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise self._failure("does not end") from None
        if status:
            raise self._failure(f"ended with {status}")
        lines = self._output.split(b"\n")[:-1]
        return dict(json.loads(lines[-1])) if lines else {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self._errors.close()

    def _read(self, seconds: float) -> bool:
        """Read some output; return false at its end, or after the timeout."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        if not select.select([pipe], [], [], max(0, seconds))[0]:
            return False
        data = os.read(pipe, 65536)
        self._output += data
        return bool(data)

    def _failure(self, what: str) -> ChildFailed:
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        # Of a traceback, the last line; of a usage message, the first.
        reason = said[0] if said[:1] and said[0].startswith("loadgen:") else said[-1:]
        return ChildFailed(f"{what}: {''.join(reason)}" if said else what)


def memory(pid: int) -> dict[str, int]:
    """Return the fields of ``/proc/PID/smaps_rollup`` in bytes: unlike ``statm``, it is exact."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name.rstrip(":"): int(size) * 1024 for name, size, *_ in map(str.split, lines)}
