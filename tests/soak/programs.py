"""The processes of the soak: lanes of traffic in rounds, and a line of JSON after each round."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import util
from typing import Any

import tomada
import tomada.asyncio
from benches.programs.run import Run
from tests.soak import loops, sockets
from tests.soak.account import Account
from tests.soak.lanes import (
    Accounts,
    Counting,
    Kept,
    Killed,
    Lane,
    Served,
    echo,
    echo_short,
)
from tests.soak.links import Linked
from tests.soak.loads import ask, ask_in_sessions, blast
from tests.soak.proxies import Proxied
from tests.soak.tasks import Async, Clients, Given, Trio, Unix
from tests.soak.watch import IS_FREE_THREADED, look_around
from tomada import _core

# The number of datagrams that the load generator sends as one run.
RUN = 64
# The option of mallopt(3).
M_ARENA_MAX = -8
# The source of the datagrams that the kernel's filter drops.
DENIED = "127.0.0.9"
SMALL_BUFFER = 16_384
HAS_DTLS = hasattr(_core, "DtlsContext")


def servers(run: Run) -> None:
    """Servers without workers, opened and closed in each round."""
    guard = tomada.Guard(rate=20_000, max_size=100, deny=[DENIED])
    batch: dict[str, Any] = {"takes": "batch"}
    lanes: list[Lane] = [
        Served("server, runs", Counting(), blast(200_000, gso=True), run=RUN, **batch),
        Served("server, echo of runs", echo, ask(window=32, gso=True), run=32),
        Served("server, echo", Counting(echoes=True), ask(clients=4), **batch),
        Served(
            "server, guarded",
            Counting(),
            blast(30_000),
            blast(10_000, size=200),
            blast(10_000, source=DENIED),
            guard=guard,
            **batch,
        ),
        Served("server, overrun", echo_short, blast(60_000, size=512), rcvbuf=SMALL_BUFFER),
        Proxied("server behind a proxy"),
    ]
    if IS_FREE_THREADED:
        lanes.append(Served("server, threads", echo, ask(clients=4), threads=2))
    in_threads(run, *lanes)


def workers(run: Run) -> None:
    """Two workers, replaced one by one, of a server that is never closed."""
    loads = ask(clients=4), ask(clients=4), blast(50_000, size=512, gso=True)
    # Each worker gets datagrams of every kind, so it is warmed up after one round.
    options: dict[str, Any] = {"workers": 2, "steering": "random"}
    in_threads(run, Kept("server, workers replaced", echo_short, *loads, run=None, **options))


def killed(run: Run) -> None:
    """Servers that lose one of their two workers."""
    in_threads(run, Killed("server, a worker killed", echo, ask(clients=4), workers=2))


def links(run: Run) -> None:
    """Links, and DTLS sessions with and without them."""
    lanes: list[Lane] = [Linked("server behind a link", blast(20_000))]
    if HAS_DTLS:
        from tests.soak import sessions

        context = sessions.new_server_context()
        lanes += [
            Served("server, DTLS", echo, ask_in_sessions(), dtls=context),
            sessions.Asking("DTLS clients behind a link"),
            sessions.Wrapped("DTLS sockets"),
        ]
    in_threads(run, *lanes)


def tasks(run: Run) -> None:
    """Async handlers, clients and endpoints on loops of their own, and given sockets."""
    lanes: list[Lane] = [
        Async("server, async handler", ask(clients=4)),
        Given("server, given socket", ask(clients=4)),
        Unix("server, AF_UNIX"),
        Clients("asyncio's clients"),
    ]
    if util.find_spec("trio") is not None:
        lanes.append(Trio("trio, echo", ask(clients=4)))
    in_threads(run, *lanes)


def sinks(run: Run) -> None:
    """Servers that publish to brokers, which are restarted in each round."""
    from tests.soak.sinks import Brokers, Nats  # these need the brokers' client libraries

    # glibc has an arena for each of several threads. The free memory between what little is in use
    # stays in each of them. In one arena, it is used again.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    in_threads(
        run,
        # The broker is down for so long that the sink's queue fills up.
        Nats("sink, JetStream", blast(1000), capacity=500),
        Nats("sink, JetStream, packed", blast(50_000, gso=True), run=RUN, pack="arrow"),
        Brokers("sink, Kafka", blast(3000), capacity=2000),
    )


def endpoints(run: Run) -> None:
    """Transports and endpoints on one loop."""
    # GRO is on from the start, because only then does the kernel count a dropped run as one.
    runs: dict[str, Any] = {"gro": True, "run": RUN}
    lanes: list[loops.AsyncLane] = [
        loops.Transport("transport, runs", loops.Sink, blast(100_000, gso=True), **runs),
        loops.Transport(
            "transport, batches of runs", loops.Batches, blast(150_000, gso=True), **runs
        ),
        loops.Transport("transport, echo", loops.Echo, ask(clients=4)),
        loops.Transport(
            "transport, guarded", loops.Sink, blast(20_000), guard=tomada.Guard(rate=5000)
        ),
        loops.Endpoint("endpoint, cancelled", blast(30_000)),
        loops.Asking("endpoints that ask"),
    ]
    if HAS_DTLS:
        from tests.soak.sessions import new_server_context

        context = new_server_context()
        lanes.append(
            loops.Transport("transport, DTLS", loops.Echo, ask_in_sessions(), dtls=context)
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
    """Run the rounds of all lanes at the same time, until told to end."""
    prepare(run)
    while not run.is_stopped:
        if len(lanes) == 1:
            tell(lanes, [lanes[0].round(run.round)])  # may fork, so run it without other threads
            continue
        with ThreadPoolExecutor(len(lanes)) as pool:
            rounds = list(pool.map(lambda lane: lane.round(run.round), lanes))
        tell(lanes, rounds)
    for lane in lanes:
        lane.close()


async def on_loop(run: Run, lanes: Sequence[loops.AsyncLane]) -> None:
    prepare(run)
    # So few threads that the first round starts all of them, and later rounds show no growth.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    while not run.is_stopped:
        tell(lanes, await asyncio.gather(*(lane.round(run.round) for lane in lanes)))


def prepare(run: Run) -> None:
    run.use_all_cores()
    run.watch_for_end()


def tell(lanes: Sequence[Lane], rounds: Iterable[Accounts]) -> None:
    """Print the accounts of a round, and samples of the processes, which are idle now."""
    accounts: dict[str, Account] = {}
    for found in rounds:
        accounts.update(found)
    deeds: Counter[str] = Counter()
    for lane in lanes:
        deeds.update(lane.deeds)
        lane.deeds.clear()
    # Reference cycles are not leaks.
    gc.collect()
    has_supervisors = all(lane.has_supervisors for lane in lanes)
    facts = {
        "accounts": {name: asdict(account) for name, account in accounts.items()},
        "deeds": deeds,
        "samples": [asdict(sample) for sample in look_around(has_supervisors=has_supervisors)],
    }
    print(json.dumps(facts), flush=True)
