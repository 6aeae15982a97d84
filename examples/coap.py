"""A CoAP server (RFC 7252) with aiocoap, on tomada's event loop: one line differs.

python coap.py --port 5683
aiocoap-client coap://127.0.0.1/time
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt

import aiocoap
from aiocoap import resource

import tomada.asyncio


class Time(resource.Resource):
    """Tells the time."""

    async def render_get(self, request: aiocoap.Message) -> aiocoap.Message:  # noqa: ARG002
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        return aiocoap.Message(payload=now.encode())


class Note(resource.Resource):
    """Stores the text of the last PUT request."""

    def __init__(self) -> None:
        super().__init__()
        self.text = b""

    async def render_get(self, request: aiocoap.Message) -> aiocoap.Message:  # noqa: ARG002
        return aiocoap.Message(payload=self.text)

    async def render_put(self, request: aiocoap.Message) -> aiocoap.Message:
        self.text = request.payload
        return aiocoap.Message(code=aiocoap.CHANGED)


async def main(host: str, port: int) -> None:
    site = resource.Site()
    site.add_resource(["time"], Time())
    site.add_resource(["note"], Note())
    context = await aiocoap.Context.create_server_context(
        site,
        bind=(host, port),
        # This transport uses the loop's datagram endpoints.
        transports=["simplesocketserver"],
    )
    print(f"listening on {host}:{port}", flush=True)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        await context.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5683)
    given = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        tomada.asyncio.run(main(given.host, given.port))  # instead of asyncio.run
