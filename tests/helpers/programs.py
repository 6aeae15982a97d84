"""Programs that a test talks to through their standard input and output."""

import contextlib
import socket as std
import subprocess
import threading

from support import eventually


class Program:
    """A running program, whose output is collected."""

    def __init__(self, *command):
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.output = b""
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self):
        while chunk := self._process.stdout.read1(4096):
            self.output += chunk

    def expect(self, text):
        """Wait until the program has printed a text."""

        def is_there():
            # Check this first: once the program has ended, all of its output is there.
            has_ended = not self._reading.is_alive()
            return text in self.output or has_ended

        eventually(is_there)
        assert text in self.output, self.output.decode(errors="replace")

    def write(self, data):
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._reading.join()
        self._process.stdout.close()


def free_port(following=0):
    """Return a free UDP port of 127.0.0.1 that is followed by ``following`` free ports."""
    while True:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(std.socket(std.AF_INET, std.SOCK_DGRAM))
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                for other in range(1, following + 1):
                    sock = stack.enter_context(std.socket(std.AF_INET, std.SOCK_DGRAM))
                    sock.bind(("127.0.0.1", port + other))
            except (OSError, OverflowError):
                continue
            return port
