"""Links between a client and a server that pass everything: what they cost."""

from __future__ import annotations

import asyncio
from typing import Any

from benches.programs.run import Run
from tomada.testing import impaired


def direct(run: Run) -> None:
    """No link: the client talks to the server."""
    run.announce(port=run.port)
    run.wait_for_end()


def link(run: Run) -> None:
    """``tomada.testing.impaired`` without impairments."""
    with impaired(("127.0.0.1", run.port), log_size=0) as passing:
        run.announce(port=passing.address[1])
        run.wait_for_end()


class Front(asyncio.DatagramProtocol):
    """The clients' side of a link in plain asyncio."""

    def __init__(self, port: int) -> None:
        self.server = "127.0.0.1", port
        self.backs: dict[Any, Any] = {}

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        back = self.backs.get(addr)
        if back is None:
            self.backs[addr] = [data]
            self.task = asyncio.ensure_future(self.open(addr))
        elif isinstance(back, list):
            back.append(data)
        else:
            back.sendto(data)

    async def open(self, client: Any) -> None:
        """Open a client's socket towards the server."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: Back(self.transport, client), remote_addr=self.server
        )
        for data in self.backs[client]:
            transport.sendto(data)
        self.backs[client] = transport


class Back(asyncio.DatagramProtocol):
    """The server's side, for one client."""

    def __init__(self, front: Any, client: Any) -> None:
        self.front = front
        self.client = client

    def datagram_received(self, data: bytes, addr: Any) -> None:  # noqa: ARG002
        self.front.sendto(data, self.client)


def plain(run: Run) -> None:
    """Pass datagrams with the standard library alone."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: Front(run.port), local_addr=("127.0.0.1", 0)
        )
        run.announce(port=transport.get_extra_info("sockname")[1])
        await asyncio.to_thread(run.wait_for_end)

    asyncio.run(main())
