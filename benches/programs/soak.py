"""The processes of the soak: lanes of traffic in rounds, and a line of JSON after each round."""

from __future__ import annotations

import asyncio
import gc
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import tomada
import tomada.asyncio
from benches.programs.run import Run
from benches.soak import loops, sockets
from benches.soak.account import Account
from benches.soak.lanes import (
    Accounts,
    Counting,
    Kept,
    Killed,
    Lane,
    Served,
    echo,
    echo_short,
)
from benches.soak.loads import ask, blast
from benches.soak.watch import look_around

# The length of a run of the load generator's.
RUN = 64
SMALL_BUFFER = 16_384


def servers(run: Run) -> None:
    """Servers of one process, each opened and closed again and again."""
    guard = tomada.Guard(rate=20_000, max_size=100, deny=["192.0.2.0/24"])
    batch: dict[str, Any] = {"takes": "batch"}
    in_threads(
        run,
        Served("server, runs", Counting(), blast(200_000, gso=True), run=RUN, **batch),
        Served("server, echo of runs", echo, ask(window=32, gso=True), run=32),
        Served("server, echo", Counting(echoes=True), ask(clients=4), **batch),
        Served(
            "server, guarded",
            Counting(),
            blast(30_000),
            blast(10_000, size=200),
            guard=guard,
            **batch,
        ),
        Served("server, overrun", echo_short, blast(60_000, size=512), rcvbuf=SMALL_BUFFER),
    )


def workers(run: Run) -> None:
    """Two workers, replaced one by one, of a server that is never closed."""
    loads = ask(clients=4), ask(clients=4), blast(50_000, size=512, gso=True)
    # Each worker gets some of everything, and so is warm after a round.
    options: dict[str, Any] = {"workers": 2, "steering": "random"}
    in_threads(run, Kept("server, workers replaced", echo_short, *loads, run=None, **options))


def killed(run: Run) -> None:
    """Servers that lose one of two workers."""
    in_threads(run, Killed("server, a worker killed", echo, ask(clients=4), workers=2))


def endpoints(run: Run) -> None:
    """Transports and endpoints on one loop."""
    lanes = (
        loops.Transport("transport, runs", loops.Sink, blast(100_000, gso=True), run=RUN),
        loops.Transport(
            "transport, batches of runs", loops.Batches, blast(150_000, gso=True), run=RUN
        ),
        loops.Transport("transport, echo", loops.Echo, ask(clients=4)),
        loops.Transport(
            "transport, guarded", loops.Sink, blast(20_000), guard=tomada.Guard(rate=5000)
        ),
        loops.Endpoint("endpoint, cancelled", blast(30_000)),
        loops.Asking("endpoints that ask"),
    )
    tomada.asyncio.run(on_loop(run, lanes))


def plain(run: Run) -> None:
    """Sockets and clients."""
    runs = blast(150_000, gso=True)
    ways = sockets.one, sockets.many, sockets.with_metadata, sockets.into_batch()
    in_threads(
        run,
        sockets.Receiver("socket, all ways", ways, blast(40_000)),
        sockets.Receiver(
            "socket, batches of runs", (sockets.into_batch(),), runs, gro=True, run=RUN
        ),
        sockets.Sender("socket, sending", 100_000),
        sockets.Churn("sockets, misused"),
        sockets.Asking("clients"),
    )


def in_threads(run: Run, *lanes: Lane) -> None:
    """Put lanes through rounds, all at once, until told to end."""
    prepare(run)
    while not run.is_stopped:
        if len(lanes) == 1:
            tell(lanes, [lanes[0].round(run.round)])  # which may fork, best without threads
            continue
        with ThreadPoolExecutor(len(lanes)) as pool:
            rounds = list(pool.map(lambda lane: lane.round(run.round), lanes))
        tell(lanes, rounds)
    for lane in lanes:
        lane.close()


async def on_loop(run: Run, lanes: Sequence[loops.AsyncLane]) -> None:
    prepare(run)
    # As few that the first round has need of all.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    while not run.is_stopped:
        tell(lanes, await asyncio.gather(*(lane.round_on_loop(run.round) for lane in lanes)))


def prepare(run: Run) -> None:
    # Nothing is measured here that would want a core of its own.
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    run.watch_for_end()


def tell(lanes: Sequence[Lane], rounds: Iterable[Accounts]) -> None:
    """Print what a round has found, and what the processes have now that all is quiet."""
    accounts: dict[str, Account] = {}
    for found in rounds:
        accounts.update(found)
    deeds: Counter[str] = Counter()
    for lane in lanes:
        deeds.update(lane.deeds)
        lane.deeds.clear()
    # What only the collector of cycles frees is no leak.
    gc.collect()
    facts = {
        "accounts": {name: asdict(account) for name, account in accounts.items()},
        "deeds": deeds,
        "samples": [asdict(sample) for sample in look_around(os.getpid())],
    }
    print(json.dumps(facts), flush=True)
