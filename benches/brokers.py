"""The tests' message brokers, for the benchmarks and the soak."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benches.children import ROOT, ChildFailed

# The subject, which is also the name of its stream.
SUBJECT = "udp"
# Beyond this many bytes, the stream discards its oldest messages.
LARGEST = 256 << 20


def helpers() -> Any:
    """Return the tests' module that starts brokers."""
    folder = str(ROOT / "tests/helpers")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module("brokers")


@contextlib.contextmanager
def nats(core: int | None = None, storage: str = "memory") -> Iterator[Any]:
    """Run a nats-server with a stream, on one core or on any."""
    usable, brokers = os.sched_getaffinity(0), helpers()
    if brokers.tools.find("nats-server") is None:
        raise ChildFailed("there is no nats-server: run make test-tools")
    with tempfile.TemporaryDirectory() as folder:
        if core is not None:
            os.sched_setaffinity(0, {core})  # the server inherits it
        try:
            server = brokers.NatsServer(Path(folder))
        finally:
            os.sched_setaffinity(0, usable)
        with server:
            server.add_stream(SUBJECT, storage=storage, max_bytes=LARGEST, discard="old")
            yield server
