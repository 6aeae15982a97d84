"""The plan: the scenarios that measure the subjects, and the targets."""

from __future__ import annotations

import sysconfig
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benches import loads, session_loads, wire_loads
from benches.loads import Load, Subject
from benches.subjects import (
    ECHO_LOOPS,
    ECHOES,
    LINKS,
    LOOP,
    ORDINARY,
    RECEIVERS,
    ROUND_TRIPS,
    SENDERS,
    SESSION_CLIENTS,
    SESSION_MEMORY,
    SESSIONS,
    coalescing,
    in_tasks,
    limit,
    on_loops,
    ours,
    peer,
)

SIZES = (16, 64, 512, 1200, 8000)
MANY_PEERS = 1000


@dataclass(frozen=True)
class Bar:
    """The target for a subject, compared with a reference, in one scenario: see targets.toml."""

    subject: str
    reference: str
    limit: float
    metric: str = "speed"


@dataclass(frozen=True)
class Scenario:
    """Subjects under one load: a table, or a row of a table."""

    name: str
    page: str
    title: str
    load: Load
    subjects: tuple[Subject, ...]
    bars: tuple[Bar, ...] = ()
    # The subject whose speed the others' speeds are multiples of.
    reference: str = "socket"
    is_quick: bool = False
    # If set, scenarios with this text are rows of a common table, whose first heading it is.
    rows: str = ""
    needs_root: bool = False
    most_rounds: int = 1000
    # Whether its results can show differences between two builds.
    is_compared: bool = True


# Name, page, title, load and subjects of each table.
PLAIN = "8 clients with 8 requests in flight each"
TABLES: tuple[tuple[str, str, str, Load, tuple[Subject, ...]], ...] = (
    *(
        (
            f"receive-{size}-{'gso' if gso else 'plain'}",
            "receive",
            f"{size:,} bytes from a sender {'with' if gso else 'without'} GSO",
            loads.Receive(size=size, gso=gso),
            RECEIVERS,
        )
        for gso in (True, False)
        for size in SIZES
    ),
    *(
        (
            f"peers-{rate // 1000}k",
            "peers",
            f"64 peers, {rate:,} datagrams per second in all",
            loads.Peers(rate=rate),
            (*ORDINARY, *coalescing(200e-6)),
        )
        for rate in (10_000, 50_000, 200_000)
    ),
    *(
        (
            f"peers-{peers}",
            "peers",
            f"{peers:,} peers, as fast as they can",
            loads.Peers(peers=peers),
            (*ORDINARY, *coalescing(100e-6)),
        )
        for peers in (250, 10_000)
    ),
    (
        "peers-list",
        "peers",
        "Lists of datagrams, from 8 and from 10,000 peers",
        loads.Peers(),
        tuple(
            ours(f"recv_many, {peers:,} peers", "batches recv_many", module="tomada", peers=peers)
            for peers in (8, 10_000)
        ),
    ),
    *(
        (f"send-{size}", "send", f"{size:,} bytes to one peer", loads.Send(size=size), SENDERS)
        for size in SIZES
    ),
    (
        "send-64-many",
        "send",
        f"64 bytes to {MANY_PEERS:,} peers in turn",
        loads.Send(peers=MANY_PEERS),
        # Consecutive datagrams go to different peers, so they cannot leave as a run.
        tuple(subject for subject in SENDERS if "GSO" not in subject.name),
    ),
    ("echo-64", "echo", f"64 bytes, {PLAIN}", loads.Echo(), ECHOES),
    ("echo-1200", "echo", f"1,200 bytes, {PLAIN}", loads.Echo(size=1200), ECHOES),
    (
        "echo-64-gso",
        "echo",
        "64 bytes, 8 clients that send windows of 32 with GSO",
        loads.Echo(in_flight=32, gso=True),
        ECHOES,
    ),
    (
        "tasks-echo",
        "tasks",
        f"An async handler that replies at once; {PLAIN}",
        loads.Echo(),
        in_tasks("echo"),
    ),
    (
        "tasks-wait",
        "tasks",
        "An async handler that waits for 10 ms; 1,000 requests in flight",
        loads.Echo(in_flight=125),
        in_tasks("wait"),
    ),
    ("round-trip", "round-trip", "64 bytes, the same at both ends", loads.RoundTrip(), ROUND_TRIPS),
    (
        "round-trip-loops",
        "round-trip",
        "64 bytes, event loops at one end, a client in Rust at the other",
        loads.RoundTrip(),
        (peer("socket", "blocking echo"), *ECHO_LOOPS),
    ),
    (
        "endpoints",
        "asyncio",
        "2,000 endpoints on one loop, a datagram to each in turn",
        loads.Endpoints(),
        (
            *on_loops("endpoints", "asyncio", "uvloop"),
            ours("asyncio", "protocols endpoints", **LOOP, gro=True),
        ),
    ),
    (
        "opening",
        "asyncio",
        "Open an endpoint on the loopback address, and close it",
        loads.Operate(),
        (
            *on_loops("opening", "asyncio", "uvloop"),
            ours("asyncio", "protocols opening", loop="tomada"),
            ours("asyncio, uvloop", "protocols opening", loop="tomada-auto"),
        ),
    ),
    (
        "timer",
        "asyncio",
        "How late a timer of 10 ms is under a flood of datagrams",
        loads.Timer(),
        (
            *on_loops("timer", "asyncio", "uvloop", "aiofastnet"),
            ours("asyncio", "protocols timer", **LOOP, gro=True),
        ),
    ),
    (
        "request",
        "client",
        "64 bytes, requests one by one and in windows of 32",
        loads.Ask(),
        (
            peer("socket", "clients standard"),
            ours("Client.request", "clients request"),
            ours("Client.request_many", "clients request_many"),
            ours("Client.request_many, match", "clients request_many_matched"),
        ),
    ),
    *(
        (
            f"tasks-{tasks}-{'late' if delay else 'at-once'}",
            "client",
            f"64 bytes, {tasks:,} tasks on one socket, replies {when}",
            loads.Tasks(tasks=tasks, delay=delay),
            (
                peer("asyncio, by hand", "tasks multiplexer", loop="asyncio"),
                peer("uvloop, by hand", "tasks multiplexer", loop="uvloop"),
                ours("Endpoint.request", "tasks endpoint", loop="tomada"),
                ours("asyncio.Client", "tasks client", loop="tomada"),
                ours("asyncio.Client, uvloop", "tasks client", loop="uvloop"),
                ours("futures alone", "tasks futures", loop="tomada"),
                # Each of this client's sockets has room for its replies. A server that replies at
                # once has too little room for all requests at the same time.
                *((limit("all in flight", "load", clients=8, window=tasks // 8),) if delay else ()),
            ),
        )
        for tasks, delay, when in (
            (1000, 0.0, "at once"),
            (1000, 0.001, "after 1 ms"),
            (50, 0.001, "after 1 ms"),
        )
    ),
    (
        "workers",
        "client",
        "A handler that computes for 100 µs, by one worker and by two",
        loads.Work(),
        (ours("Server", "servers work"), ours("Server, 2 workers", "servers work", workers=2)),
    ),
    (
        "threads",
        "client",
        "The same handler, by one thread and by two",
        loads.Work(),
        (ours("Server", "servers work"), ours("Server, 2 threads", "servers work", threads=2)),
    ),
    (
        "link-round-trip",
        "link",
        "64 bytes, one request in flight",
        loads.RelayedRoundTrip(),
        LINKS,
    ),
    ("link-rate", "link", "64 bytes, 300,000 datagrams per second", loads.Relayed(), LINKS),
    (
        "link-delay",
        "link",
        "The error of a delay of 10 ms, for a datagram per millisecond",
        loads.Delayed(),
        LINKS[1:],
    ),
    *(
        (
            f"sessions-{size}",
            "dtls",
            f"{size:,} bytes, {MANY_PEERS:,} sessions, 256 requests in flight",
            session_loads.Sessions(size=size, sessions=MANY_PEERS),
            SESSIONS,
        )
        for size in (64, 1200)
    ),
    (
        "handshakes",
        "dtls",
        "Full handshakes, 16 at a time",
        session_loads.Handshakes(),
        SESSIONS,
    ),
    (
        "session-request",
        "dtls",
        "64 bytes, a client of a server in Rust, one request at a time",
        session_loads.AskSession(),
        SESSION_CLIENTS,
    ),
    (
        "session-memory",
        "dtls",
        "Memory of 10,000 idle sessions",
        session_loads.SessionMemory(),
        SESSION_MEMORY,
    ),
    (
        "publish",
        "sinks",
        "64 bytes, from a sender with GSO into a stream of NATS JetStream in memory",
        loads.Publish(),
        (
            peer("nats-py", "sinks singly"),
            peer("nats-py, packed", "sinks packed"),
            ours("JetStream", "sinks jetstream", gro=True),
            ours("JetStream, pack", "sinks jetstream", gro=True, case="arrow"),
        ),
    ),
    (
        "memory",
        "memory",
        "10,000 sockets, each having received eight datagrams from four peers",
        loads.Memory(),
        (
            peer("socket", "blocking memory"),
            ours("recvfrom", "blocking memory", module="tomada"),
            ours("recv_many", "batches memory", module="tomada"),
            ours("recv_many, gro", "batches memory", module="tomada", gro=True),
        ),
    ),
)
# The subjects that others are compared with, unless that is the plain socket.
REFERENCES = {
    "peers-list": "tomada: recv_many, 8 peers",
    "endpoints": "asyncio",
    "opening": "asyncio",
    "tasks-echo": "asyncio",
    "tasks-wait": "asyncio",
    "tasks-1000-at-once": "asyncio, by hand",
    "tasks-1000-late": "asyncio, by hand",
    "tasks-50-late": "asyncio, by hand",
    "link-round-trip": "no link",
    "link-rate": "no link",
    "link-delay": "plain asyncio",
    "sessions-64": "asyncio, pyOpenSSL",
    "sessions-1200": "asyncio, pyOpenSSL",
    "handshakes": "asyncio, pyOpenSSL",
    "publish": "nats-py",
}
# Only without the GIL do threads run Python code at the same time.
FREE_THREADED = {"threads"}
QUICK = {"receive-64-gso", "send-64", "echo-64", "round-trip"}


def scenarios() -> tuple[Scenario, ...]:
    targets = tomllib.loads(Path(__file__).with_name("targets.toml").read_text())
    bars = {
        name: tuple(Bar(**bar) for bar in scenario["targets"])
        for name, scenario in targets["scenarios"].items()
    }
    tables = (
        Scenario(
            *table,
            bars=bars.get(table[0], ()),
            reference=REFERENCES.get(table[0], "socket"),
            is_quick=table[0] in QUICK,
        )
        for table in TABLES
        if table[0] not in FREE_THREADED or sysconfig.get_config_var("Py_GIL_DISABLED")
    )
    calls = (call(f"call-{n}", *least) for n, least in enumerate(targets["calls"].items(), 1))
    checks = (
        check(f"refuse-{n}", *target) for n, target in enumerate(targets["checks"].items(), 1)
    )
    return (*tables, wire(bars["wire"]), *calls, *checks, flood(bars["flood"]))


def call(name: str, case: str, least: float) -> Scenario:
    """Plan a call, on the standard library's socket and on tomada's."""
    program = "calls beside_thread" if "thread" in case else "calls one"
    subjects = (
        Subject("standard", "peer", program, {"case": case}),
        Subject("tomada", "tomada", program, {"case": case, "module": "tomada"}),
    )
    bars = (Bar("tomada", "standard", least, "call_ns"),)
    return Scenario(name, "per-call", case, loads.Call(), subjects, bars, rows="call")


def check(name: str, case: str, most: float) -> Scenario:
    """Plan a guard that refuses everything with one check, beside a receiver without a guard."""
    load, options = loads.Refuse(spoofs="one source" not in case), {"module": "tomada"}
    subjects = (
        Subject("recvmmsg", "limit", "loadgen limit-recv"),
        Subject("guard", "tomada", "guards refuse", {"case": case, **options}),
    )
    bars = (Bar("guard", "recvmmsg", most, "cpu_ns"),)
    # A datagram that the kernel drops costs only a few nanoseconds: too few to compare.
    others: dict[str, Any] = {"rows": "refused", "needs_root": True, "is_compared": most > 1}
    return Scenario(name, "guard", case, load, subjects, bars, **others)


def wire(bars: tuple[Bar, ...]) -> Scenario:
    return Scenario(
        "wire",
        "peers",
        "A plain sender over veth, with NAPI GRO: 64 bytes, 200,000 per second",
        wire_loads.Wire(),
        (
            peer("socket", "blocking recvfrom"),
            ours("recv_many", "batches recv_many", module="tomada"),
            ours("recv_many, gro", "batches recv_many", module="tomada", gro=True),
        ),
        bars,
        needs_root=True,
    )


def flood(bars: tuple[Bar, ...]) -> Scenario:
    return Scenario(
        "flood",
        "guard",
        "Flood from forged addresses",
        loads.Strangers(),
        (ours("Guard", "guards reply", module="tomada"),),
        bars,
        needs_root=True,
        most_rounds=1,
        is_compared=False,
    )
