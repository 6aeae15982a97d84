"""What is measured: the subjects, the scenarios that each is put through, and the bars."""

from __future__ import annotations

from dataclasses import dataclass

from benches.loads import (
    Ask,
    Echo,
    Endpoints,
    Load,
    Memory,
    Receive,
    RoundTrip,
    Send,
    Subject,
    Timer,
    Work,
)

SIZES = (16, 64, 512, 1200, 8000)
MANY_PEERS = 1000

# How long a tomada socket polls before it sleeps, where a round trip is measured.
SPIN = 0.001


@dataclass(frozen=True)
class Bar:
    """How a subject must compare with another one, in one scenario.

    Of ``"speed"`` and ``"rate"`` it is the least ratio, ``"rate"`` whatever the processor time. Of
    ``"cpu"`` and of latencies it is the greatest ratio, and of ``"bytes"`` the greatest difference.
    """

    subject: str
    reference: str
    limit: float
    metric: str = "speed"


@dataclass(frozen=True)
class Scenario:
    """One table: subjects under one load."""

    name: str
    page: str
    title: str
    load: Load
    subjects: tuple[Subject, ...]
    bars: tuple[Bar, ...] = ()
    # Whose speed the others' is given as a multiple of.
    reference: str = "socket"
    is_quick: bool = False


def limit(name: str, program: str, **options: object) -> Subject:
    return Subject(f"Rust: {name}", "limit", f"loadgen {program}", options)


def peer(name: str, program: str, **options: object) -> Subject:
    return Subject(name, "peer", program, options)


def ours(name: str, program: str, **options: object) -> Subject:
    return Subject(f"tomada: {name}", "tomada", program, options)


def loops(function: str) -> tuple[Subject, ...]:
    """Return the event loops and libraries that have a program with such a function."""
    return (
        peer("asyncio", f"protocols {function}"),
        peer("uvloop", f"protocols {function}", loop="uvloop"),
        peer("aiofastnet", f"protocols {function}", loop="aiofastnet"),
        peer("asyncio-dgram", f"asyncio_dgram {function}"),
        peer("asyncudp", f"asyncudp {function}"),
        peer("anyio", f"anyio {function}"),
        peer("trio", f"trio {function}"),
    )


LOOP = {"module": "tomada", "loop": "tomada"}

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
    *loops("echo"),
    ours("asyncio", "protocols echo", **LOOP, gro=True),
    ours("Endpoint", "endpoints echo", **LOOP, gro=True),
    ours("Server", "servers echo", module="tomada", gro=True),
)


def round_trips() -> tuple[Subject, ...]:
    spin = {"module": "tomada", "spin": SPIN}
    ping = "blocking ping"
    return (
        Subject("Rust: spinning", "limit", "loadgen echo", {"spin": True}, "loadgen pingpong"),
        Subject("socket", "peer", "blocking echo", {}, ping),
        Subject("tomada", "tomada", "blocking echo", {"module": "tomada"}, ping),
        Subject("tomada: spin", "tomada", "blocking echo", spin, ping),
        Subject("tomada: Server, spin", "tomada", "servers echo", spin, ping),
    )


def scenarios() -> tuple[Scenario, ...]:
    return (
        *receiving(),
        *sending(),
        *echoing(),
        *going_there_and_back(),
        *looping(),
        *asking(),
        holding(),
    )


def receiving() -> list[Scenario]:
    bars = (
        Bar("tomada: recv_many, gro", "socket", 6),
        Bar("tomada: recv_many, gro", "Rust: recvmmsg, GRO", 0.25),
        Bar("tomada: recv_batch, gro", "Rust: recvmmsg, GRO", 0.8),
        Bar("tomada: recv_many", "socket", 1.5),
        Bar("tomada: recv_many", "Rust: recvmmsg", 0.8),
        Bar("tomada: asyncio", "asyncio", 80),
        Bar("tomada: asyncio", "uvloop", 8),
        Bar("tomada: asyncio", "aiofastnet", 20),
        Bar("tomada: asyncio, gro off", "asyncio", 15),
        Bar("tomada: asyncio, gro off", "uvloop", 1.5),
        Bar("tomada: asyncio, batches", "tomada: asyncio", 1.3),
        Bar("tomada: Endpoint", "asyncudp", 30),
        Bar("tomada: Server", "socket", 6),
    )
    return [
        Scenario(
            name=f"receive-{size}-{'gso' if gso else 'plain'}",
            page="receive",
            title=f"{size:,} bytes from a sender {'with' if gso else 'without'} GSO",
            load=Receive(size=size, gso=gso),
            subjects=RECEIVERS,
            bars=bars if gso and size == 64 else (),
            is_quick=gso and size == 64,
        )
        for gso in (True, False)
        for size in SIZES
    ]


def sending() -> list[Scenario]:
    bars = {
        64: (
            Bar("tomada: send_many", "socket", 25),
            Bar("tomada: send_batch", "Rust: sendmmsg, GSO", 0.85),
            Bar("tomada: asyncio", "asyncio", 10),
        ),
        1200: (
            Bar("tomada: send_many", "socket", 10),
            Bar("tomada: send_batch", "Rust: sendmmsg, GSO", 0.85),
        ),
    }
    to_one = [
        Scenario(
            name=f"send-{size}",
            page="send",
            title=f"{size:,} bytes to one peer",
            load=Send(size=size),
            subjects=SENDERS,
            bars=bars.get(size, ()),
            is_quick=size == 64,
        )
        for size in SIZES
    ]
    to_many = Scenario(
        name="send-64-many",
        page="send",
        title=f"64 bytes to {MANY_PEERS:,} peers in turn",
        load=Send(size=64, peers=MANY_PEERS),
        # Neighbours go to different peers, so that there is no run to glue together.
        subjects=tuple(subject for subject in SENDERS if "GSO" not in subject.name),
        bars=(Bar("tomada: send_many", "socket", 1.2),),
    )
    return [*to_one, to_many]


def echoing() -> list[Scenario]:
    bars = (
        Bar("tomada: asyncio", "asyncio", 5),
        Bar("tomada: asyncio", "uvloop", 1.2),
        Bar("tomada: asyncio", "aiofastnet", 1.5),
        Bar("tomada: Server", "socket", 1.2),
        Bar("tomada: Server", "socketserver", 1.5),
        Bar("tomada: Server", "asyncio", 5),
        Bar("tomada: Server", "Rust: recvmmsg, sendmmsg", 1.3, "cpu"),
    )
    return [
        Scenario(
            name="echo-64",
            page="echo",
            title="64 bytes, 8 clients with 8 requests in flight each",
            load=Echo(),
            subjects=ECHOES,
            bars=bars,
            is_quick=True,
        ),
        Scenario(
            name="echo-1200",
            page="echo",
            title="1,200 bytes, 8 clients with 8 requests in flight each",
            load=Echo(size=1200),
            subjects=ECHOES,
        ),
        Scenario(
            name="echo-64-gso",
            page="echo",
            title="64 bytes, 8 clients that send windows of 32 with GSO",
            load=Echo(in_flight=32, gso=True),
            subjects=ECHOES,
            bars=(Bar("tomada: Server", "socket", 4),),
        ),
    ]


def going_there_and_back() -> list[Scenario]:
    return [
        Scenario(
            name="round-trip",
            page="round-trip",
            title="64 bytes, the same at both ends",
            load=RoundTrip(),
            subjects=round_trips(),
            bars=(
                Bar("tomada: spin", "socket", 0.25, "p50"),
                Bar("tomada: spin", "socket", 0.25, "p99"),
                Bar("tomada: Server, spin", "socket", 0.1, "p99"),
            ),
            is_quick=True,
        ),
        Scenario(
            name="round-trip-loops",
            page="round-trip",
            title="64 bytes, event loops at one end, a client in Rust at the other",
            load=RoundTrip(),
            subjects=(
                peer("socket", "blocking echo"),
                *loops("echo"),
                ours("asyncio", "protocols echo", **LOOP, gro=True),
                ours("Endpoint", "endpoints echo", **LOOP, gro=True),
            ),
            bars=(Bar("tomada: asyncio", "asyncio", 1.0, "p50"),),
        ),
    ]


def looping() -> list[Scenario]:
    loops = (
        peer("asyncio", "protocols endpoints"),
        peer("uvloop", "protocols endpoints", loop="uvloop"),
        ours("asyncio", "protocols endpoints", **LOOP, gro=True),
    )
    return [
        Scenario(
            name="endpoints",
            page="asyncio",
            title="2,000 endpoints on one loop, a datagram to each in turn",
            load=Endpoints(),
            subjects=loops,
            bars=(
                Bar("tomada: asyncio", "asyncio", 2),
                Bar("tomada: asyncio", "asyncio", 0, "bytes"),
            ),
            reference="asyncio",
        ),
        Scenario(
            name="timer",
            page="asyncio",
            title="How late a timer of 10 ms is under a flood of datagrams",
            load=Timer(),
            subjects=(
                peer("asyncio", "protocols timer"),
                peer("uvloop", "protocols timer", loop="uvloop"),
                peer("aiofastnet", "protocols timer", loop="aiofastnet"),
                ours("asyncio", "protocols timer", **LOOP, gro=True),
            ),
            bars=(Bar("tomada: asyncio", "asyncio", 1.0, "p99"),),
        ),
    ]


def asking() -> list[Scenario]:
    return [
        Scenario(
            name="request",
            page="client",
            title="64 bytes, requests one by one and in windows of 32",
            load=Ask(),
            subjects=(
                peer("socket", "clients standard"),
                ours("Client.request", "clients request"),
                ours("Client.request_many", "clients request_many"),
                ours("Client.request_many, match", "clients request_many_matched"),
            ),
            bars=(
                Bar("tomada: Client.request", "socket", 1.0, "rate"),
                Bar("tomada: Client.request_many", "socket", 3, "rate"),
            ),
        ),
        Scenario(
            name="workers",
            page="client",
            title="A handler that computes for 100 µs, by one worker and by two",
            load=Work(),
            subjects=(
                ours("Server", "servers work"),
                ours("Server, 2 workers", "servers work", workers=2),
            ),
            bars=(Bar("tomada: Server, 2 workers", "tomada: Server", 1.7, "rate"),),
        ),
    ]


def holding() -> Scenario:
    return Scenario(
        name="memory",
        page="memory",
        title="10,000 sockets, each having received eight datagrams from four peers",
        load=Memory(),
        subjects=(
            peer("socket", "blocking memory"),
            ours("recvfrom", "blocking memory", module="tomada"),
            ours("recv_many", "batches memory", module="tomada"),
            ours("recv_many, gro", "batches memory", module="tomada", gro=True),
        ),
        bars=(Bar("tomada: recv_many", "socket", 3 * 1024, "bytes"),),
    )
