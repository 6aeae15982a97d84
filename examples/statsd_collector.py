"""A statsd collector: adds up the metrics that programs send, and prints them periodically.

python statsd_collector.py --listen 127.0.0.1:8125 --every 10
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict

from tomada import socket

# Anyone can send any metric, so lines and memory are limited. A line beyond a limit counts as bad.
MAX_LINE = 256
MAX_KEPT = 200_000


class Metrics:
    """The counters, timers and sets since the last report, and the latest gauges."""

    def __init__(self) -> None:
        self.counters: dict[str, float] = defaultdict(float)
        self.gauges: dict[str, float] = defaultdict(float)
        self.timings: dict[str, list[float]] = defaultdict(list)
        self.sets: dict[str, set[str]] = defaultdict(set)
        self.fresh: set[str] = set()  # the gauges that were set since the last report
        self.values = self.bad = 0

    def take(self, line: str) -> None:
        """Parse and add a line such as ``requests:1|c|@0.1``."""
        try:
            name, _, rest = line.partition(":")
            value, kind, *more = rest.split("|")
            rate = float(more[0].removeprefix("@")) if more else 1.0
            if not (len(line) <= MAX_LINE and line.isprintable() and self.has_room(kind, name)):
                self.bad += 1
            elif kind == "c":
                self.counters[name] += float(value) / rate
            elif kind == "g":
                is_relative = value[0] in "+-"
                self.gauges[name] = float(value) + (self.gauges[name] if is_relative else 0)
                self.fresh.add(name)
            elif kind in {"ms", "h"}:
                took = float(value)  # convert first, so that a bad value leaves no empty list
                self.timings[name].append(took)
                self.values += 1
            elif kind == "s":
                self.sets[name].add(value)
                self.values += 1
            else:
                self.bad += 1
        except (ValueError, IndexError, ZeroDivisionError):
            self.bad += 1

    def has_room(self, kind: str, name: str) -> bool:
        if (kind == "c" and name in self.counters) or (kind == "g" and name in self.gauges):
            return True
        return len(self.counters) + len(self.gauges) + self.values < MAX_KEPT

    def report(self) -> None:
        for name, value in sorted(self.counters.items()):
            print(f"{name} {value:g}")
        for name, value in sorted(self.gauges.items()):
            print(f"{name} = {value:g}")
        for name, values in sorted(self.timings.items()):
            median, most = statistics.median(values), max(values)
            print(f"{name} n={len(values)} median={median:g} max={most:g} ms")
        for name, members in sorted(self.sets.items()):
            print(f"{name} {len(members)} different")
        if self.bad:
            print(f"{self.bad} lines that are not metrics")
        if len(self.gauges) > MAX_KEPT // 2:
            for name in self.gauges.keys() - self.fresh:
                del self.gauges[name]
        self.counters.clear()
        self.timings.clear()
        self.sets.clear()
        self.fresh.clear()
        self.values = self.bad = 0


def collect(sock: socket.socket, every: float) -> None:
    metrics, dropped = Metrics(), 0
    due = time.monotonic() + every
    try:
        print("listening on {}:{}".format(*sock.getsockname()), flush=True)
        while True:
            sock.settimeout(max(due - time.monotonic(), 0.001))
            try:
                for data, _ in sock.recv_many(1024):
                    for line in data.decode(errors="replace").splitlines():
                        metrics.take(line)
            except TimeoutError:
                pass
            if time.monotonic() >= due:
                metrics.report()
                due += every
    except KeyboardInterrupt:
        metrics.report()
    finally:
        if dropped := sock.stats().kernel_drops:
            print(f"the kernel dropped {dropped} datagrams: the figures are too low")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:8125")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between reports")
    given = parser.parse_args()
    host, _, port = given.listen.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as collector:
        collector.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
        collector.bind((host, int(port)))
        collect(collector, given.every)
