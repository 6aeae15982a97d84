"""A DNS forwarder with a cache: asks a server for what it does not know, and remembers the answer.

python dns_cache.py --upstream 192.0.2.53:53 --listen 127.0.0.1:5353
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import struct
import time
from collections.abc import Iterator

import tomada.asyncio
from tomada.asyncio import Endpoint, open_endpoint

HEADER = struct.Struct("!HHHHHH")
ENTRY = struct.Struct("!HHIH")  # type, class, time to live, length of data
POINTER = 0xC0  # from here on, a length is a pointer to elsewhere (RFC 1035, 4.1.4)
OPT = 41  # no record, though it looks like one (RFC 6891)


def skip_name(message: bytes, place: int) -> int:
    while length := message[place]:
        if length >= POINTER:
            return place + 2
        place += 1 + length
    return place + 1


def question(message: bytes) -> bytes:
    """Return name, type and class of what is asked."""
    return message[HEADER.size : skip_name(message, HEADER.size) + 4].lower()


def lifetimes(message: bytes) -> Iterator[tuple[int, int]]:
    """Go through the records: where each one's time to live stands, and what it is."""
    _, _, questions, *records = HEADER.unpack_from(message)
    place = HEADER.size
    for _ in range(questions):
        place = skip_name(message, place) + 4
    for _ in range(sum(records)):
        place = skip_name(message, place)
        kind, _, lasts, length = ENTRY.unpack_from(message, place)
        if kind != OPT:
            yield place + 4, lasts
        place += ENTRY.size + length


class Forwarder:
    """Answers from the cache, or by asking upstream; each answer goes to whoever asked."""

    def __init__(self, upstream: Endpoint, patience: float) -> None:
        self.upstream, self.patience = upstream, patience
        # By question: the answer, when it came, and how many seconds it holds.
        self.cache: dict[bytes, tuple[bytes, float, int]] = {}
        self.waiting: dict[int, asyncio.Future[bytes]] = {}
        # Numbers that nobody can guess, and none twice at a time, so that no answer is forged.
        self.numbers = (n for n in iter(lambda: secrets.randbits(16), -1) if n not in self.waiting)

    async def receive(self) -> None:
        async for answer, _ in self.upstream:
            number = int.from_bytes(answer[:2], "big")
            if (future := self.waiting.get(number)) and not future.done():
                future.set_result(answer)

    async def answer(self, query: bytes) -> bytes:
        asked = question(query)
        answer, came, lasts = self.cache.get(asked, (b"", 0.0, 0))
        age = int(time.monotonic() - came)
        if age < lasts:
            aged = bytearray(answer)
            for place, seconds in lifetimes(answer):
                struct.pack_into("!I", aged, place, seconds - age)
            return query[:2] + bytes(aged[2:])
        answer = await self.ask(query)
        times = [seconds for _, seconds in lifetimes(answer)]
        self.cache[asked] = answer, time.monotonic(), min(times, default=0)
        return query[:2] + answer[2:]

    async def ask(self, query: bytes) -> bytes:
        number = next(self.numbers)
        self.waiting[number] = answer = asyncio.get_running_loop().create_future()
        try:
            for _ in range(2):  # the network may lose the first
                self.upstream.send(number.to_bytes(2, "big") + query[2:])
                if (await asyncio.wait([answer], timeout=self.patience / 2))[0]:
                    return answer.result()
            raise TimeoutError
        finally:
            del self.waiting[number]


async def main(listen: tuple[str, int], upstream: tuple[str, int], patience: float) -> None:
    async def serve(query: bytes, address: tuple[str, int]) -> None:
        # What is no query, or has no answer, gets none; who asked will ask again.
        with contextlib.suppress(IndexError, struct.error, TimeoutError):
            server.send(await forwarder.answer(query), address)

    async with open_endpoint(listen) as server, open_endpoint(remote_addr=upstream) as above:
        forwarder = Forwarder(above, patience)
        print("listening on {}:{}".format(*server.get_extra_info("sockname")), flush=True)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(forwarder.receive())
            async for query, address in server:
                tasks.create_task(serve(query, address))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream", required=True, help="the server to ask, as HOST:PORT")
    parser.add_argument("--listen", default="127.0.0.1:5353")
    parser.add_argument("--timeout", type=float, default=2.0, help="seconds for the server")
    given = parser.parse_args()
    own, above = (text.rsplit(":", 1) for text in (given.listen, given.upstream))
    with contextlib.suppress(KeyboardInterrupt):
        tomada.asyncio.run(main((own[0], int(own[1])), (above[0], int(above[1])), given.timeout))
