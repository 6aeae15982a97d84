"""The loads of DTLS: sessions, handshakes, and requests in a session."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benches.children import Child, Look
from benches.loads import (
    SINK_BUFFER,
    Load,
    Sample,
    Subject,
    Window,
    cores,
    resident,
    share_lost,
    speed,
    watch,
)

# How long a thousand handshakes may take, in seconds.
HANDSHAKES = 30


@dataclass(frozen=True)
class Sessions(Load):
    """Clients with a DTLS session each, and a server that echoes the data of every record."""

    sessions: int = 1000

    def measure(self, subject: Subject, window: Window) -> Sample:
        patient = Window(window.seconds, window.warmup + HANDSHAKES)
        with identity() as certificate:
            files = {"certificate": certificate, "rcvbuf": SINK_BUFFER}
            with self.start(subject, patient, **files) as server:
                target = {"port": server.line()["port"], "size": self.size}
                sessions = {"clients": self.sessions}
                with Child(
                    "loadgen dtls-load", cores()[0], patient.lifetime, **target, **sessions
                ) as clients:
                    clients.line(HANDSHAKES)
                    sample = watch(server, clients, window)
                    found = clients.stop()
                server.stop()
        return sample | {"lost": share_lost(found["sent"], found["sent"] - found["losses"])}


@dataclass(frozen=True)
class SessionMemory(Load):
    """A server with many idle DTLS sessions."""

    sessions: int = 10_000
    metrics = ("session_bytes",)

    def measure(self, subject: Subject, window: Window) -> Sample:
        patient = Window(window.seconds, window.warmup + 4 * HANDSHAKES)
        sizes = []
        with identity() as certificate, contextlib.ExitStack() as stack:
            server = stack.enter_context(self.start(subject, patient, certificate=certificate))
            target = {"port": server.line()["port"], "window": 1}
            # The first sessions include memory that is allocated only once.
            for sessions in (self.sessions // 10 + 1, self.sessions):
                clients = Child(
                    "loadgen dtls-load", cores()[0], patient.lifetime, clients=sessions, **target
                )
                stack.enter_context(clients).line(3 * HANDSHAKES)
                stack.enter_context(paused(clients))  # otherwise, they would keep sending requests
                sizes.append(resident(server))
        return {"session_bytes": (sizes[1] - sizes[0]) / self.sessions}


@dataclass(frozen=True)
class Handshakes(Load):
    """Clients that make full DTLS handshakes, a few at a time, and a server."""

    at_once: int = 16
    metrics = ("rate", "cpu_ns", "busy")
    unit = "handshake"

    def measure(self, subject: Subject, window: Window) -> Sample:
        with (
            identity() as certificate,
            self.start(subject, window, certificate=certificate) as server,
        ):
            target = {"port": server.line()["port"], "window": self.at_once}
            with Child("loadgen dtls-handshakes", cores()[0], window.lifetime, **target) as clients:

                def look() -> Look:
                    return replace(server.look(), count=clients.count)

                clients.wait_until_counting()
                time.sleep(window.warmup)
                before = look()
                time.sleep(window.seconds)
                clients.wait_until_counting(beyond=before.count)
                sample = speed(before, look())
                clients.stop()
            server.stop()
        return sample


@dataclass(frozen=True)
class AskSession(Load):
    """A client that sends one request at a time to a DTLS server in Rust."""

    metrics = ("rate", "busy")
    unit = "request"

    def measure(self, subject: Subject, window: Window) -> Sample:
        with (
            identity() as certificate,
            Child(
                "loadgen dtls-echo", cores()[0], window.lifetime, certificate=certificate
            ) as server,
        ):
            with self.start(subject, window, port=server.line()["port"]) as client:
                sample = watch(client, client, window)
                client.stop()
            server.stop()
        return sample


@contextlib.contextmanager
def paused(child: Child) -> Iterator[None]:
    """Pause a program while the block runs."""
    os.kill(child.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(child.pid, signal.SIGCONT)


@contextlib.contextmanager
def identity() -> Iterator[str]:
    """Create a file with a certificate and its key, of the fastest kind."""
    with tempfile.TemporaryDirectory() as directory:
        key, certificate = Path(directory, "key"), Path(directory, "certificate")
        kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=localhost")
        command = ("openssl", "req", "-x509", "-nodes", *kind, "-keyout", key, "-out", certificate)
        subprocess.run(command, check=True, capture_output=True)
        both = Path(directory, "both")
        both.write_text(certificate.read_text() + key.read_text())
        yield str(both)
