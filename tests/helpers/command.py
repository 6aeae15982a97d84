"""Run the command line in separate processes."""

import contextlib
import os
import pty
import re
import select
import socket as std
import struct
import subprocess
import sys
import threading

from peer import DEADLINE
from support import Child


def run(*arguments, stdin=b"", **options):
    """Run a command to its end; return its status, output and errors as text."""
    command = [sys.executable, "-m", "tomada", *map(str, arguments)]
    ended = subprocess.run(
        command, input=stdin, capture_output=True, timeout=2 * DEADLINE, check=False, **options
    )
    return ended.returncode, ended.stdout.decode(), ended.stderr.decode()


def at(address):
    """Format an address as a command-line argument."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class OnTerminal:
    """A command whose standard error, and optionally standard output, is a terminal."""

    def __init__(self, *arguments, output=subprocess.PIPE):
        self._screen, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tomada", *map(str, arguments)],
            stdout=theirs if output is None else output,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        )
        os.close(theirs)
        self.shown = ""

    def until(self, text):
        """Wait until the terminal has shown a text."""
        self.until_matching(re.escape(text))

    def until_matching(self, pattern):
        """Wait until the text that the terminal has shown matches a pattern."""
        while not re.search(pattern, self.shown):
            assert select.select([self._screen], [], [], DEADLINE)[0], self.shown
            self.shown += os.read(self._screen, 1 << 16).decode(errors="replace")

    def end(self):
        """Wait until the command exits; return its status, and everything that was shown."""
        status = self.process.wait(DEADLINE)
        with contextlib.suppress(OSError):  # the terminal's other end is closed
            while chunk := os.read(self._screen, 1 << 16):
                self.shown += chunk.decode(errors="replace")
        return status, self.shown

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        if self.process.stdout is None or not self.process.stdout.closed:
            self.process.communicate()
        os.close(self._screen)


class Echo(threading.Thread):
    """A plain socket that echoes datagrams, except those that a function rejects."""

    def __init__(self, answers=lambda _data: True):
        super().__init__(daemon=True)
        self._sock = std.socket(std.AF_INET, std.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 0))
        self.address = self._sock.getsockname()
        self.received = []
        self._answers = answers
        self._is_ending = False
        self.start()

    def run(self):
        while True:
            data, sender = self._sock.recvfrom(1 << 16)
            if self._is_ending:
                return
            self.received.append(data)
            if self._answers(data):
                self._sock.sendto(data, sender)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._is_ending = True
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
            sock.sendto(b"", self.address)
        self.join()
        self._sock.close()


class Listening(Child):
    """Start ``tomada listen``, and return once it listens."""

    def __init__(self, *arguments, **options):
        super().__init__("-m", "tomada", "listen", *arguments, **options)
        # Messages for people go to standard error.
        self.said = self._process.stderr.readline().decode()
        assert self.said.startswith("listening on "), self.said
        self.where = self.said.split()[2].rstrip(";")
        host, _, port = self.where.rpartition(":")
        self.address = (host.strip("[]"), int(port)) if port.isdecimal() else self.where


def captured(path):
    """Read a capture: the times, in nanoseconds, and the packets."""
    data = path.read_bytes()
    magic, major, minor, _, _, longest, link = struct.unpack_from("=IHHiIII", data)
    assert (magic, major, minor, link) == (0xA1B23C4D, 2, 4, 101)
    found, place = [], 24
    while place < len(data):
        seconds, nanoseconds, length, full = struct.unpack_from("=IIII", data, place)
        assert length == full <= longest
        place += 16
        found.append((seconds * 10**9 + nanoseconds, data[place : place + length]))
        place += length
    assert place == len(data)
    return found


class Serving(Child):
    """Start ``tomada serve``, and return once it serves."""

    def __init__(self, *arguments, command=("-m", "tomada", "serve"), **options):
        super().__init__(*command, *arguments, **options)
        said = self._process.stderr.readline().decode()
        found = re.match(r"serving (.*):(\d+) \(process (\d+)\); Ctrl-C ends it$", said)
        assert found, said + self._process.stderr.read().decode()
        assert int(found[3]) == self.pid
        self.address = found[1].strip("[]"), int(found[2])
