"""An echo server on anyio, which runs on asyncio or on trio: endpoints have one interface on both.

python anyio_echo.py --backend trio --listen 127.0.0.1:1234

It needs anyio and sniffio, and trio for that backend.
"""

from __future__ import annotations

import argparse

import anyio
import sniffio

import tomada.asyncio

# The number of replies that are prepared at the same time.
MOST_TASKS = 100


async def open_on_backend(address: tuple[str, int]) -> tomada.asyncio.Endpoint:
    """Open an endpoint on the running backend."""
    if sniffio.current_async_library() == "trio":
        from tomada.trio import open_endpoint  # noqa: PLC0415 - it needs trio

        return await open_endpoint(address)
    return await tomada.asyncio.open_endpoint(address)


async def main(address: tuple[str, int]) -> None:
    limit = anyio.Semaphore(MOST_TASKS)

    async def reply(data: bytes, sender: tuple[str, int]) -> None:
        async with limit:
            await anyio.sleep(0.01)  # stands in for work
            endpoint.send(data, sender)

    async with await open_on_backend(address) as endpoint, anyio.create_task_group() as tasks:
        print("listening on {}:{}".format(*endpoint.get_extra_info("sockname")), flush=True)
        async for data, sender in endpoint:
            tasks.start_soon(reply, data, sender)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:1234")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    given = parser.parse_args()
    host, port = given.listen.rsplit(":", 1)
    try:
        anyio.run(main, (host, int(port)), backend=given.backend)
    except* KeyboardInterrupt:
        pass
