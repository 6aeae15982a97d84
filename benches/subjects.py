"""The subjects of the plan: the measured programs."""

from __future__ import annotations

from benches.loads import Subject

# How long a tomada socket polls before it sleeps in a measured round trip, in seconds.
SPIN = 0.001


def limit(name: str, program: str, **options: object) -> Subject:
    return Subject(f"Rust: {name}", "limit", f"loadgen {program}", options)


def peer(name: str, program: str, **options: object) -> Subject:
    return Subject(name, "peer", program, options)


def ours(name: str, program: str, **options: object) -> Subject:
    return Subject(f"tomada: {name}", "tomada", program, options)


def on_loops(function: str, *names: str) -> tuple[Subject, ...]:
    """Return subjects that run a function of ``protocols`` on event loops."""
    return tuple(peer(name, f"protocols {function}", loop=name) for name in names)


def loops(function: str) -> tuple[Subject, ...]:
    """Return the event loops and libraries whose programs have this function."""
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

# Programs that receive from many peers, each in its usual way.
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


def coalescing(seconds: float) -> tuple[Subject, ...]:
    """Return ways to receive from many peers that collect datagrams before they return."""
    options = {"coalesce": seconds}
    return (
        limit("recvmmsg, coalesce", "limit-recv", **options),
        ours("recv_many, coalesce", "batches recv_many", module="tomada", **options),
        ours("Server, coalesce", "servers receive", module="tomada", gro=True, **options),
        ours("asyncio, coalesce", "protocols receive", **LOOP, gro=True, **options),
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

# Async handlers, to compare with protocols that start a task for each datagram.
TASKS = {"module": "tomada", "gro": True}


def in_tasks(function: str) -> tuple[Subject, ...]:
    return (
        *on_loops(f"{function}_in_tasks", "asyncio", "uvloop"),
        ours("Server", f"servers {function}_in_tasks", loop="tomada", **TASKS),
        ours("Server, asyncio", f"servers {function}_in_tasks", loop="asyncio", **TASKS),
        ours("Server, uvloop", f"servers {function}_in_tasks", loop="uvloop", **TASKS),
    )


# In a round trip, both ends run the same program.
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
