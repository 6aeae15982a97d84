"""A DNS forwarder with a cache: forwards unknown queries to a server, and stores the answers.

python dns_cache.py --upstream 192.0.2.53:53 --listen 127.0.0.1:5353    # needs dnspython
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import time

import dns.exception
import dns.flags
import dns.message
import dns.rrset

import tomada.asyncio
from tomada.asyncio import Client, open_endpoint

# Anyone may send queries, so the cache and the number of queries in flight must be limited.
MOST_ANSWERS = 10_000
MOST_WAITING = 1_000


def records(message: dns.message.Message) -> list[dns.rrset.RRset]:
    return [*message.answer, *message.authority, *message.additional]


class Forwarder:
    """Answers each client from the cache, or with the answer of the upstream server."""

    def __init__(self, upstream: Client) -> None:
        self.upstream = upstream
        # By query: the answer, its time of arrival, and its lifetime in seconds.
        self.cache: dict[tuple[object, ...], tuple[bytes, float, int]] = {}
        self.waiting = 0

    async def answer(self, wire: bytes) -> bytes | None:
        query = dns.message.from_wire(wire)
        if query.flags & dns.flags.QR or len(query.question) != 1:
            return None  # answering an answer could create an endless loop
        asked = query.question[0]
        question = (asked.name, asked.rdtype, asked.rdclass)
        answer, came, lasts = self.cache.get(question, (b"", 0.0, 0))
        age = int(time.monotonic() - came)
        if age >= lasts:
            answer, age = await self.ask(wire), 0
        response = dns.message.from_wire(answer)
        if response.question != query.question:
            return None
        self.remember(question, answer, response, age)
        for rrset in records(response):
            rrset.ttl -= age
        response.id, response.question = query.id, query.question
        return response.to_wire(max_size=min(query.payload or 512, 65507), prefer_truncation=True)

    def remember(
        self, question: tuple[object, ...], answer: bytes, response: dns.message.Message, age: int
    ) -> None:
        lasts = min((rrset.ttl for rrset in records(response)), default=0)
        if age == 0 and lasts > 0:
            if len(self.cache) >= MOST_ANSWERS:
                del self.cache[next(iter(self.cache))]
            self.cache[question] = answer, time.monotonic(), lasts

    async def ask(self, query: bytes) -> bytes:
        if self.waiting >= MOST_WAITING:
            raise OSError("too many queries wait for an answer")
        self.waiting += 1
        try:
            while True:
                # An unpredictable ID, so that nobody can forge the answer.
                number = secrets.token_bytes(2)
                with contextlib.suppress(ValueError):  # another query in flight has it
                    return await self.upstream.request(number + query[2:])
        finally:
            self.waiting -= 1


async def main(listen: tuple[str, int], upstream: tuple[str, int], patience: float) -> None:
    async def serve(query: bytes, address: tuple[str, int]) -> None:
        # Datagrams that are not queries, and queries without an answer, are ignored; clients retry.
        with contextlib.suppress(dns.exception.DNSException, ValueError, OSError):
            if answer := await forwarder.answer(query):
                server.send(answer, address)

    # The first datagram may be lost. A query and its answer begin with the same ID.
    above = Client(
        upstream, timeout=patience, retries=1, key=lambda data: data[:2], max_in_flight=MOST_WAITING
    )
    async with open_endpoint(listen) as server, above:
        forwarder = Forwarder(above)
        print("listening on {}:{}".format(*server.get_extra_info("sockname")), flush=True)
        async with asyncio.TaskGroup() as tasks:
            async for query, address in server:
                tasks.create_task(serve(query, address))


def address(text: str) -> tuple[str, int]:
    """Parse HOST or HOST:PORT; the port of DNS is 53."""
    host, colon, port = text.rpartition(":")
    return (host, int(port)) if colon else (text, 53)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--upstream", type=address, required=True, help="the server to ask, as HOST or HOST:PORT"
    )
    parser.add_argument("--listen", type=address, default="127.0.0.1:5353")
    parser.add_argument("--timeout", type=float, default=2.0, help="seconds for the server")
    given = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        tomada.asyncio.run(main(given.listen, given.upstream, given.timeout))
