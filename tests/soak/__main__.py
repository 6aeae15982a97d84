"""The soak: ``python -m tests.soak``.

Processes with servers, event loops and sockets get all kinds of traffic at once, while sockets are
opened and closed, workers replaced and killed, receives cancelled and requests refused. After each
round, the public counters of senders and receivers must account for every datagram, and memory,
descriptors and threads must not have grown.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import shutil
import sys
import threading
import time
from collections import Counter, defaultdict
from dataclasses import asdict
from importlib import metadata, util
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from benches import suite
from benches.children import Child, ChildFailed
from tests.soak import report
from tests.soak.account import AT_LINK, REPLIES, Account
from tests.soak.watch import IS_FREE_THREADED, SELF, Growth, Sample, growth

# The process that needs nats-server and the client libraries of NATS and Kafka.
SINKS = "sinks"
# The kind of traffic in each of these processes.
PROGRAMS = {
    "servers": "server",
    "workers": "server",
    "killed": "server",
    "endpoints": "asyncio",
    "plain": "socket",
    "links": "server",
    "tasks": "server",
    SINKS: "server",
}
# So that the memory in use includes Python's small objects. Free-threaded Python cannot take their
# memory from malloc.
ENVIRONMENTS = {} if IS_FREE_THREADED else {SINKS: {"PYTHONMALLOC": "malloc"}}
# How long a process may be silent, beyond the length of a round.
SILENCE = 120.0
# How much longer the run may take to reach the number of datagrams, in seconds.
OVERTIME = 2 * SILENCE
# A process with fewer samples is too young to judge its growth.
FEW = 8
# How many samples of a process are kept.
MOST = 10
# The growth of memory that is allowed, in bytes.
MEMORY = 2 << 20


class Soak:
    """The accounts and samples of all processes so far."""

    def __init__(self) -> None:
        self.lanes: dict[str, Account] = {}
        self.programs: dict[str, str] = {}
        self.deeds: Counter[str] = Counter()
        self.samples: dict[tuple[str, str, int], list[Sample]] = defaultdict(list)
        self.failures: list[str] = []
        self._lock = threading.Lock()

    def listen(self, program: str, child: Child, patience: float, over: threading.Event) -> None:
        """Process a child's lines until it exits."""
        try:
            while True:
                self._take(program, child.line(patience))
        except ChildFailed as failure:
            # If the child was told to end, the end of its output is not a failure.
            if not over.is_set():
                self.failures.append(f"{program} {failure}")
                over.set()

    def _take(self, program: str, facts: dict[str, Any]) -> None:
        with self._lock:
            for name, counts in facts["accounts"].items():
                self.lanes.setdefault(name, Account()).add(Account(**counts))
                self.programs[name] = program
            self.deeds.update(facts["deeds"])
            for found in facts["samples"]:
                sample = Sample(**found)
                self.samples[program, sample.process, sample.pid].append(sample)

    def shares(self) -> Counter[str]:
        """Return how many datagrams each kind received, and how many were sent one by one."""
        shares = Counter(dict.fromkeys([*PROGRAMS.values(), "all", "singly"], 0))
        with self._lock:
            for name, account in self.lanes.items():
                if name.endswith((REPLIES, AT_LINK)):
                    continue
                shares[PROGRAMS[self.programs[name]]] += account.received
                shares["all"] += account.sent
                shares["singly"] += account.singly
        return shares

    def counts(self) -> dict[str, dict[str, int]]:
        with self._lock:
            return {name: asdict(self.lanes[name]) for name in sorted(self.lanes)}

    def growths(self) -> list[Growth]:
        """Return the growth of each process; of several workers, the one that grew most."""
        found: dict[str, Growth] = {}
        with self._lock:
            for (program, process, _), samples in self.samples.items():
                name = program if process == SELF else f"{program}: {process}"
                new = growth(name, samples)
                old = found.get(name)
                # Replaced processes have few samples each.
                longer = old is None or new.samples >= FEW > old.samples
                if longer or (old and new.samples >= FEW and new.rss_growth > old.rss_growth):
                    found[name] = new
        return list(found.values())


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    soak, over, started = Soak(), threading.Event(), time.monotonic()
    with contextlib.ExitStack() as stack:
        children = {
            program: stack.enter_context(
                Child(
                    f"tests.soak.programs {program}",
                    0,
                    options.seconds + OVERTIME + SILENCE * 2,
                    environment=ENVIRONMENTS.get(program, {}),
                    round=options.round,
                )
            )
            for program in PROGRAMS
            if program != SINKS or options.sinks
        }
        listeners = [
            threading.Thread(
                target=soak.listen, args=(program, child, options.round + SILENCE, over)
            )
            for program, child in children.items()
        ]
        for listener in listeners:
            listener.start()
        watch(soak, over, started + options.seconds, options.datagrams, console)
        over.set()
        for child in children.values():
            child.tell_to_end()
        for listener in listeners:
            listener.join()
        for program, child in children.items():
            try:
                child.result(SILENCE)
            except ChildFailed as failure:
                soak.failures.append(f"{program} {failure}")
    return results(soak, options, time.monotonic() - started)


def watch(soak: Soak, over: threading.Event, until: float, wanted: int, console: Console) -> None:
    """Show progress until the time is up and enough datagrams have been sent."""

    def table() -> Any:
        return report.rich_table("traffic", report.TRAFFIC, report.traffic(soak.counts()))

    with Live(console=console, auto_refresh=False) as live:
        while not over.wait(1):
            if console.is_terminal:
                live.update(table(), refresh=True)
            late = time.monotonic() - until
            if late > OVERTIME or (late > 0 and soak.shares()["all"] >= wanted):
                return


def results(soak: Soak, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    counts, growths = soak.counts(), soak.growths()
    machine = suite.machine()
    missed = list(dict.fromkeys(soak.failures))
    if (sent := soak.shares()["all"]) < options.datagrams:
        missed.append(f"only {sent:,} of {options.datagrams:,} datagrams were sent")
    missed += [
        f"{name}: {found['unexplained']:,} datagrams unexplained"
        for name, found in counts.items()
        if found["unexplained"]
    ]
    for found in growths:
        if found.samples < FEW:
            continue
        grown = {"memory": found.rss_growth, "memory in use": found.in_use_growth or 0}
        missed += [
            f"{found.process}: {what} grew by {more:,} bytes"
            for what, more in grown.items()
            if more > options.memory
        ]
        for name in ("descriptors", "threads"):
            if (more := getattr(found, f"{name}_growth")) > 0:
                missed.append(f"{found.process}: {more} {name} more")
    return {
        "command": options.command,
        "measured_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds),
        "machine": {
            "tomada": metadata.version("tomada"),
            **{name: machine[name] for name in ("CPython", "Linux", "processor", "cores")},
        },
        "bar": options.memory,
        "shares": dict(soak.shares()),
        "missed": missed,
        "lanes": counts,
        "deeds": dict(soak.deeds),
        "processes": [asdict(found) for found in growths],
        "samples": [
            {"program": program, **asdict(sample)}
            for (program, _, _), samples in soak.samples.items()
            for sample in samples[:: len(samples) // MOST + 1]
        ],
    }


def main() -> int:
    options = parser().parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    found = run(options, console)
    report.show(found, console)
    shares = found["shares"]
    console.print(f"{shares['all']:,} datagrams in {found['seconds']} s")
    if not options.sinks:
        console.print("without sinks, which need nats-server, nats-py and confluent-kafka")
    for reason in found["missed"]:
        console.print(f"missed: {reason}")
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(found, indent=1) + "\n")
    console.print(f"all samples are in {options.results}")
    if options.directory is not None and shares["all"]:
        report.write_into(options.directory / "reliability.md", report.section(found))
        console.print(f"written to {options.directory}")
    return bool(found["missed"])


def has_engines() -> bool:
    """Return whether the programs and libraries that the sinks need are installed."""
    libraries = map(util.find_spec, ("nats", "confluent_kafka"))
    return shutil.which("nats-server") is not None and all(libraries)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="the minimum duration in seconds")
    parser.add_argument(
        "--datagrams",
        type=int,
        default=0,
        help="the minimum number of datagrams that are sent",
    )
    parser.add_argument("--round", type=float, default=4, help="the duration of a round in seconds")
    parser.add_argument("--memory", type=int, default=MEMORY, help="the allowed growth in bytes")
    parser.add_argument(
        "--sinks",
        action=argparse.BooleanOptionalAction,
        default=has_engines(),
        help="with sinks, whose engines restart; by default, if these are installed",
    )
    parser.add_argument("--directory", type=Path, help="the folder of its page")
    parser.add_argument("--results", type=Path, default=Path("target/soak.json"))
    parser.add_argument("--command", default="make soak", help="the command line for the page")
    return parser


if __name__ == "__main__":
    sys.exit(main())
