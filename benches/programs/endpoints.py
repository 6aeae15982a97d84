"""tomada's Endpoint: ``async for data, address in endpoint``, ``endpoint.send()``."""

from __future__ import annotations

from benches.programs.loops import start
from benches.programs.run import CHUNK, Run
from tomada.asyncio import Endpoint, open_endpoint


async def bind(run: Run) -> Endpoint:
    sock = run.bind()
    endpoint = await open_endpoint(sock=sock, gro=run.gro)
    run.announce_socket(sock)
    return endpoint


def receive(run: Run) -> None:
    async def main() -> None:
        async with await bind(run) as endpoint:
            received, counter = 0, run.counter
            async for _data, _address in endpoint:
                received += 1
                if not received % len(CHUNK):
                    counter[0] = received

    start(run, main)


def receive_many(run: Run) -> None:
    async def main() -> None:
        async with await bind(run) as endpoint:
            receive, counter = endpoint.recv_many, run.counter
            while True:
                datagrams = await receive(1024)
                for _data, _address in datagrams:
                    pass
                counter[0] += len(datagrams)

    start(run, main)


def echo(run: Run) -> None:
    async def main() -> None:
        async with await bind(run) as endpoint:
            echoed, send, counter = 0, endpoint.send, run.counter
            async for data, address in endpoint:
                send(data, address)
                echoed += 1
                if not echoed % len(CHUNK):
                    counter[0] = echoed

    start(run, main)
