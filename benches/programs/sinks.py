"""Programs that publish received datagrams to NATS JetStream, and count what it acknowledges."""

from __future__ import annotations

import asyncio
import contextlib
import socket as std
import time
from typing import TYPE_CHECKING, Any

from benches.brokers import SUBJECT
from benches.programs.run import Run
from tomada import Server

if TYPE_CHECKING:
    from collections.abc import Callable

# How often the progress of a sink is read, in seconds.
LOOK = 0.01
# How many messages may wait for an acknowledgement.
WINDOW = 256
# How long a program waits for room in the window, in seconds.
STALL = 30
# The maximum number of datagrams that a careful program packs into a message.
MOST = 4096


def jetstream(run: Run) -> None:
    """``tomada.sinks.JetStream``, with the value of ``pack`` from ``--case``."""
    from tomada.sinks import JetStream  # noqa: PLC0415 - only where it is measured

    sink = JetStream(run.url, SUBJECT, pack=run.case, window=WINDOW, linger=1.0)
    sock = run.bind()
    with Server(None, sink, sock=sock, gro=run.gro):
        run.announce_socket(sock)
        while not run.wait_for_end(LOOK):
            run.counter[0] = sink.stats().published


def singly(run: Run) -> None:
    """Receive and publish each datagram by hand, with nats-py."""

    async def forward(sock: std.socket, publish: Any) -> None:
        loop = asyncio.get_running_loop()
        while True:
            data, (host, port) = await loop.sock_recvfrom(sock, 2048)
            headers = {"Source": f"{host}:{port}", "Timestamp-Ns": str(time.time_ns())}
            await publish(data, 1, headers)

    by_hand(run, forward)


def packed(run: Run) -> None:
    """By hand, receive until the queue is empty, and publish record batches with nats-py."""
    from tomada._sinks.packing import record_batch  # noqa: PLC0415 - needs pyarrow

    async def forward(sock: std.socket, publish: Any) -> None:
        loop = asyncio.get_running_loop()
        while True:
            data, address = await loop.sock_recvfrom(sock, 2048)
            rows = [(data, address, time.time_ns())]
            with contextlib.suppress(BlockingIOError):
                while len(rows) < MOST:
                    data, address = sock.recvfrom(2048)
                    rows.append((data, address, time.time_ns()))
            await publish(record_batch(rows), len(rows), None)

    by_hand(run, forward)


def by_hand(run: Run, forward: Callable[[std.socket, Any], Any]) -> None:
    import nats  # noqa: PLC0415 - only where it is measured

    async def main() -> None:
        connection = await nats.connect(run.url)
        stream = connection.jetstream(publish_async_max_pending=WINDOW)
        sock = run.bind()
        sock.setblocking(False)
        acknowledged = 0

        async def publish(payload: bytes, datagrams: int, headers: Any) -> None:
            def count(_: object) -> None:
                nonlocal acknowledged
                acknowledged += datagrams
                run.counter[0] = acknowledged

            future = await stream.publish_async(SUBJECT, payload, headers=headers, wait_stall=STALL)
            future.add_done_callback(count)

        run.announce_socket(sock)
        loop, task = asyncio.get_running_loop(), asyncio.create_task(forward(sock, publish))
        loop.add_reader(0, task.cancel)
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()  # raises its error

    asyncio.run(main())
