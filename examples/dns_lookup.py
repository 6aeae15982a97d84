"""Looks up many names at once: all queries share one socket, and each answer finds its query.

python dns_lookup.py --server 192.0.2.53:53 www.example.org ftp.example.org    # needs dnspython
xargs python dns_lookup.py --server 192.0.2.53:53 --type AAAA < names.txt
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib

import dns.exception
import dns.message
import dns.rdatatype

import tomada.asyncio
from tomada.asyncio import Client

# Only 65,536 queries can have different IDs, and most of those must be free to find one quickly.
MOST_IN_FLIGHT = 1_000


class Resolver:
    """Asks one server."""

    def __init__(self, server: tuple[str, int], timeout: float) -> None:
        # A query and its answer begin with the same ID.
        self.client = Client(server, timeout=timeout, key=lambda data: data[:2])
        self.turns = asyncio.Semaphore(MOST_IN_FLIGHT)

    async def resolve(self, name: str, kind: str) -> list[str]:
        """Return the records of a name.

        :raises TimeoutError: The server does not answer.
        :raises DNSException: The name or the answer makes no sense.
        """
        query = dns.message.make_query(name, kind, use_edns=True)
        async with self.turns:
            while True:
                with contextlib.suppress(KeyInUseError):
                    reply = await self.ask(query.to_wire())
                    break
                query.id = dns.message.make_query(name, kind).id
        answer = dns.message.from_wire(reply)
        if not query.is_response(answer):
            raise dns.exception.DNSException(f"the answer is to another query than {name}")
        wanted = dns.rdatatype.from_text(kind)
        return [str(item) for rrset in answer.answer if rrset.rdtype == wanted for item in rrset]

    async def ask(self, wire: bytes) -> bytes:
        try:
            return await self.client.request(wire)
        except ValueError as error:
            raise KeyInUseError from error


class KeyInUseError(Exception):
    """Another query in flight has the same ID."""


async def main(resolver: Resolver, names: list[str], kind: str) -> None:

    async def look_up(name: str) -> str:
        try:
            return f"{name}: {' '.join(await resolver.resolve(name, kind)) or 'nothing'}"
        except (dns.exception.DNSException, OSError) as error:
            return f"{name}: {error}"

    async with resolver.client:
        for line in await asyncio.gather(*map(look_up, names)):
            print(line)


def address(text: str) -> tuple[str, int]:
    """Parse HOST or HOST:PORT; the port of DNS is 53."""
    host, colon, port = text.rpartition(":")
    return (host, int(port)) if colon else (text, 53)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--server", type=address, required=True, help="as HOST or HOST:PORT")
    parser.add_argument("--type", default="A")
    parser.add_argument("--timeout", type=float, default=2.0)
    given = parser.parse_args()
    resolver = Resolver(given.server, given.timeout)
    tomada.asyncio.run(main(resolver, given.names, given.type))
