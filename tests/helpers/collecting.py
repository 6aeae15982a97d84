"""Ways to receive many datagrams, which collect if ``coalesce`` is set; each returns payloads."""

import pytest

from tomada import Batch


def recv_batch(sock):
    batch = Batch()
    sock.recv_batch(batch)
    return [bytes(data) for data, _ in batch]


TAKE = {
    "recv_many": lambda sock: [data for data, _ in sock.recv_many()],
    "recv_datagrams": lambda sock: [datagram.data for datagram in sock.recv_datagrams()],
    "recv_batch": recv_batch,
}

every_take = pytest.mark.parametrize("take", TAKE.values(), ids=TAKE)


async def endpoint_recv_batch(endpoint):
    batch = Batch()
    await endpoint.recv_batch(batch)
    return [bytes(data) for data, _ in batch]


async def endpoint_recv_many(endpoint):
    return [data for data, _ in await endpoint.recv_many()]


every_endpoint_take = pytest.mark.parametrize(
    "take", [endpoint_recv_many, endpoint_recv_batch], ids=["recv_many", "recv_batch"]
)
