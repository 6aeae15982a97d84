"""A DNS forwarder over TLS: takes queries by UDP, and asks one server by one encrypted stream.

python dns_over_tls.py --upstream 9.9.9.9:853 --listen 127.0.0.1:5353
python dns_over_tls.py --upstream 192.0.2.53:53 --plain    # DNS over TCP
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import tomada

# How long a query may take, in seconds. Clients retry after a few seconds.
PATIENCE = 5.0
HEADER = 12  # bytes of every message


@dataclass
class Upstream:
    """A stream to a DNS server, with any number of queries under way (RFC 7766, RFC 7858)."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    answers: dict[int, asyncio.Future[bytes]] = field(default_factory=dict)
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    writer: asyncio.StreamWriter | None = None
    reading: asyncio.Task[None] | None = None
    last: int = 0

    async def ask(self, query: bytes) -> bytes:
        """Send a query with an identifier that is free; return the answer with its own."""
        while (number := self.last % 0x10000) in self.answers:
            self.last += 1
        self.last += 1
        answer = self.answers[number] = asyncio.get_running_loop().create_future()
        try:
            writer = await self.open()
            writer.write(len(query).to_bytes(2, "big") + number.to_bytes(2, "big") + query[2:])
            await writer.drain()
            return query[:2] + (await answer)[2:]
        finally:
            del self.answers[number]

    async def open(self) -> asyncio.StreamWriter:
        async with self.opening:
            if self.writer is None or self.writer.is_closing():
                reader, self.writer = await asyncio.open_connection(
                    self.host, self.port, ssl=self.tls
                )
                self.reading = asyncio.create_task(self.read(reader, self.writer))
            return self.writer

    async def read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The server may close the stream at any time. The next query opens another one.
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                length = int.from_bytes(await reader.readexactly(2), "big")
                message = await reader.readexactly(length)
                answer = self.answers.get(int.from_bytes(message[:2], "big"))
                if answer is not None and not answer.done():
                    answer.set_result(message)
        writer.close()

    async def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        if self.reading is not None:
            self.reading.cancel()
            await asyncio.wait([self.reading])


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", type=address, default=("127.0.0.1", 5353))
    parser.add_argument("--upstream", type=address, required=True)
    parser.add_argument("--plain", action="store_true", help="without TLS")
    options = parser.parse_args()

    @contextlib.asynccontextmanager
    async def connected(_server: tomada.Server) -> AsyncIterator[Upstream]:
        tls = None if options.plain else ssl.create_default_context()
        upstream = Upstream(*options.upstream, tls)
        yield upstream
        await upstream.close()

    async def handle(query: bytes, _client: Any) -> bytes | None:
        if len(query) < HEADER or query[2] & 0x80:
            return None  # answering an answer could create an endless loop
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(PATIENCE):
                return await server.state.ask(query)
        return query[:2] + bytes([query[2] | 0x80, 2]) + query[4:]  # SERVFAIL

    server = tomada.Server(options.listen, handle, lifespan=connected)
    with contextlib.suppress(KeyboardInterrupt), server:
        print(f"listening on {server.address[0]}:{server.address[1]}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
