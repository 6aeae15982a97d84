"""Loads that arrive through a pair of network devices between two namespaces."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from benches.children import Child
from benches.loads import RECEIVE_BUFFER, Load, Sample, Subject, Window, cores, watch

SENDER, RECEIVER = "10.78.0.1", "10.78.0.2"
# Without TSO in the sender's device, the receiver's device polls, and coalesces the packets that it
# finds (NAPI). It defers its interrupt by this timeout, in nanoseconds, and for this number of
# polls: see the kernel's napi.rst.
SETTINGS = {"gro_flush_timeout": 200_000, "napi_defer_hard_irqs": 2}


@dataclass(frozen=True)
class Wire(Load):
    """A plain sender of single datagrams, and a program behind a device that coalesces."""

    rate: int = 200_000
    metrics = ("cpu_ns", "rate", "busy", "lost")

    def measure(self, subject: Subject, window: Window) -> Sample:
        with devices() as (here, there):
            receiving = {"rcvbuf": RECEIVE_BUFFER, "host": RECEIVER, "namespace": there}
            with self.start(subject, window, **receiving) as receiver:
                port = receiver.line()["port"]
                target = {"host": RECEIVER, "port": port, "size": self.size, "rate": self.rate}
                sending = {"peers": 1, "namespace": here, **target}
                with Child("loadgen peers", cores()[0], window.lifetime, **sending) as sender:
                    sample = watch(receiver, sender, window)
                return sample | receiver.stop()


@contextlib.contextmanager
def devices() -> Iterator[tuple[str, str]]:
    """Create two connected namespaces, and yield their names."""
    names = tuple(f"tomada-{os.getpid()}-{end}" for end in ("sender", "receiver"))
    here, there = names
    with contextlib.ExitStack() as stack:
        for name in names:
            command("ip", "netns", "add", name)
            stack.callback(command, "ip", "netns", "delete", name)
        pair = ("link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", there)
        inside(here, "ip", *pair)
        for name, address in ((here, SENDER), (there, RECEIVER)):
            inside(name, "ip", "address", "add", f"{address}/24", "dev", "wire")
            inside(name, "ip", "link", "set", "wire", "up")
        inside(here, "ethtool", "-K", "wire", "tso", "off")
        inside(there, "ethtool", "-K", "wire", "gro", "on")
        for setting, value in SETTINGS.items():
            inside(there, "sh", "-c", f"echo {value} > /sys/class/net/wire/{setting}")
        yield here, there


def inside(namespace: str, *words: str) -> None:
    command("ip", "netns", "exec", namespace, *words)


def command(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
