"""The plan: subjects, the scenarios that measure them, and the targets."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benches import loads, session_loads
from benches.loads import Load, Subject

SIZES = (16, 64, 512, 1200, 8000)
MANY_PEERS = 1000

# How long a tomada socket polls before it sleeps, where a round trip is measured.
SPIN = 0.001


@dataclass(frozen=True)
class Bar:
    """The target for a subject, compared with a reference, in one scenario: see targets.toml."""

    subject: str
    reference: str
    limit: float
    metric: str = "speed"


@dataclass(frozen=True)
class Scenario:
    """Subjects under one load: a table, or a row of one."""

    name: str
    page: str
    title: str
    load: Load
    subjects: tuple[Subject, ...]
    bars: tuple[Bar, ...] = ()
    # The others' speed is given as a multiple of its speed.
    reference: str = "socket"
    is_quick: bool = False
    # Scenarios of one kind are rows of a common table: the heading of their titles.
    rows: str = ""
    needs_root: bool = False
    most_rounds: int = 1000
    # Whether it shows differences between two builds.
    is_compared: bool = True


def limit(name: str, program: str, **options: object) -> Subject:
    return Subject(f"Rust: {name}", "limit", f"loadgen {program}", options)


def peer(name: str, program: str, **options: object) -> Subject:
    return Subject(name, "peer", program, options)


def ours(name: str, program: str, **options: object) -> Subject:
    return Subject(f"tomada: {name}", "tomada", program, options)


def on_loops(function: str, *names: str) -> tuple[Subject, ...]:
    """Return the event loops that run a function of ``protocols``."""
    return tuple(peer(name, f"protocols {function}", loop=name) for name in names)


def loops(function: str) -> tuple[Subject, ...]:
    """Return the event loops and libraries that have a program with such a function."""
    program = f"libraries {function}"
    return (
        *on_loops(function, "asyncio", "uvloop", "aiofastnet"),
        peer("asyncio-dgram", program, library="asyncio_dgram"),
        peer("asyncudp", program, library="asyncudp"),
        peer("anyio", program, library="anyio"),
        peer("trio", program, library="trio", loop="trio"),
    )


LOOP = {"module": "tomada", "loop": "tomada"}
ECHO_LOOPS = (
    *loops("echo"),
    ours("asyncio", "protocols echo", **LOOP, gro=True),
    ours("Endpoint", "endpoints echo", **LOOP, gro=True),
)

RECEIVERS = (
    limit("recvfrom", "limit-recv", single=True),
    limit("recvmmsg", "limit-recv"),
    limit("recvmmsg, GRO", "limit-recv", gro=True),
    peer("socket", "blocking recvfrom"),
    peer("socket, recv_into", "blocking recv_into"),
    ours("recvfrom", "blocking recvfrom", module="tomada"),
    ours("recv_many", "batches recv_many", module="tomada"),
    ours("recv_many, gro", "batches recv_many", module="tomada", gro=True),
    ours("recv_batch", "batches recv_batch", module="tomada"),
    ours("recv_batch, gro", "batches recv_batch", module="tomada", gro=True),
    *loops("receive"),
    ours("asyncio, gro off", "protocols receive", **LOOP),
    ours("asyncio", "protocols receive", **LOOP, gro=True),
    ours("asyncio, batches", "protocols receive_batches", **LOOP, gro=True),
    ours("Endpoint", "endpoints receive", **LOOP, gro=True),
    ours("Endpoint, recv_many", "endpoints receive_many", **LOOP, gro=True),
    ours("Server", "servers receive", module="tomada", gro=True),
)

# How a program receives from many peers, each in the way that is usual for it.
ORDINARY = (
    limit("recvfrom", "limit-recv", single=True),
    limit("recvmmsg", "limit-recv"),
    peer("socket", "blocking recvfrom"),
    ours("recvfrom", "blocking recvfrom", module="tomada"),
    ours("recv_many", "batches recv_many", module="tomada"),
    ours("Server", "servers receive", module="tomada", gro=True),
    *on_loops("receive", "asyncio", "uvloop"),
    ours("asyncio", "protocols receive", **LOOP, gro=True),
)

SENDERS = (
    limit("sendto", "limit-send", mode="sendto"),
    limit("sendmmsg", "limit-send", mode="sendmmsg"),
    limit("sendmmsg, GSO", "limit-send", mode="gso"),
    peer("socket", "blocking sendto"),
    ours("sendto", "blocking sendto", module="tomada"),
    ours("send_many", "batches send_many", module="tomada"),
    ours("send_batch", "batches send_batch", module="tomada"),
    *loops("send"),
    ours("asyncio", "protocols send", **LOOP),
)

ECHOES = (
    limit("recvmmsg, sendmmsg", "echo"),
    limit("the same, GRO, GSO", "echo", offload=True),
    peer("socket", "blocking echo"),
    peer("socketserver", "servers standard"),
    ours("recvfrom, sendto", "blocking echo", module="tomada"),
    ours("recv_many, send_many", "batches echo_many", module="tomada"),
    ours("the same, gro", "batches echo_many", module="tomada", gro=True),
    ours("recv_batch, send_batch, gro", "batches echo_batch", module="tomada", gro=True),
    *ECHO_LOOPS,
    ours("Server", "servers echo", module="tomada", gro=True),
)

# Async handlers, beside protocols that start a task for each datagram.
TASKS = {"module": "tomada", "gro": True}


def in_tasks(function: str) -> tuple[Subject, ...]:
    return (
        *on_loops(f"{function}_in_tasks", "asyncio", "uvloop"),
        ours("Server", f"servers {function}_in_tasks", loop="tomada", **TASKS),
        ours("Server, asyncio", f"servers {function}_in_tasks", loop="asyncio", **TASKS),
        ours("Server, uvloop", f"servers {function}_in_tasks", loop="uvloop", **TASKS),
    )


# A round trip has the same program at both ends.
SPINNING = {"module": "tomada", "spin": SPIN}
ROUND_TRIPS = (
    Subject("Rust: spinning", "limit", "loadgen echo", {"spin": True}, "loadgen pingpong"),
    *(
        Subject(name, group, program, options, "blocking ping")
        for name, group, program, options in (
            ("socket", "peer", "blocking echo", {}),
            ("tomada", "tomada", "blocking echo", {"module": "tomada"}),
            ("tomada: spin", "tomada", "blocking echo", SPINNING),
            ("tomada: Server, spin", "tomada", "servers echo", SPINNING),
        )
    ),
)

LINKS = (
    peer("no link", "links direct"),
    peer("plain asyncio", "links plain"),
    ours("impaired", "links link"),
)

SESSIONS = (
    limit("openssl, recvmmsg, sendmmsg", "dtls-echo"),
    peer("trio", "sessions trio"),
    peer("asyncio, pyOpenSSL", "sessions pyopenssl"),
    ours("Server", "sessions server", module="tomada", gro=True),
)
SESSION_CLIENTS = (
    limit("openssl", "dtls-pingpong"),
    ours("Client.request", "sessions client"),
)
SESSION_MEMORY = (
    limit("openssl", "dtls-echo", lean=True),
    ours("Server", "sessions server", module="tomada"),
)

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
            ORDINARY,
        )
        for rate in (10_000, 50_000, 200_000)
    ),
    *(
        (
            f"peers-{peers}",
            "peers",
            f"{peers:,} peers, as fast as they can",
            loads.Peers(peers=peers),
            ORDINARY,
        )
        for peers in (250, 10_000)
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
                # Each of its sockets has room for its replies. The server that replies at once has
                # too little for its requests.
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
# The subjects that others are compared with, where that is not the plain socket.
REFERENCES = {
    "endpoints": "asyncio",
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
    )
    calls = (call(f"call-{n}", *least) for n, least in enumerate(targets["calls"].items(), 1))
    checks = (
        check(f"refuse-{n}", *target) for n, target in enumerate(targets["checks"].items(), 1)
    )
    return (*tables, *calls, *checks, flood(bars["flood"]))


def call(name: str, case: str, least: float) -> Scenario:
    """Plan a call, on a socket of the standard library and on one of tomada's."""
    program = "calls beside_thread" if "thread" in case else "calls one"
    subjects = (
        Subject("standard", "peer", program, {"case": case}),
        Subject("tomada", "tomada", program, {"case": case, "module": "tomada"}),
    )
    bars = (Bar("tomada", "standard", least, "call_ns"),)
    return Scenario(name, "per-call", case, loads.Call(), subjects, bars, rows="call")


def check(name: str, case: str, most: float) -> Scenario:
    """Plan a check of a guard that refuses everything, beside a receiver without a guard."""
    load, options = loads.Refuse(spoofs="one source" not in case), {"module": "tomada"}
    subjects = (
        Subject("recvmmsg", "limit", "loadgen limit-recv"),
        Subject("guard", "tomada", "guards refuse", {"case": case, **options}),
    )
    bars = (Bar("guard", "recvmmsg", most, "cpu_ns"),)
    # The few nanoseconds that a datagram costs which the kernel drops are not worth comparing.
    others: dict[str, Any] = {"rows": "refused", "needs_root": True, "is_compared": most > 1}
    return Scenario(name, "guard", case, load, subjects, bars, **others)


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
