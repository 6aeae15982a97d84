"""The strategies of hypothesis, and a protocol that they test."""

import asyncio

from hypothesis import HealthCheck, find, given, settings

import tomada.testing
from tomada.testing import Impairments, network, strategies


@given(strategies.scripts(), strategies.impairments())
def test_all_that_they_generate_is_valid(script, impairments):
    Impairments(script=script)
    network(script=script, to_server=impairments)


@given(strategies.datagrams(20))
def test_datagrams_are_no_longer_than_asked(data):
    assert len(data) <= 20


def transfer(blocks, net, *, is_faulty=False):
    """Send blocks by stop-and-wait, and return what the receiver accepted.

    The fault: the sender takes any acknowledgement for that of its last block.
    """
    accepted = []

    async def receive(endpoint):
        async for data, sender in endpoint:
            if data[0] == len(accepted) % 256:
                accepted.append(data[1:])
            endpoint.send(data[:1], sender)

    async def send(endpoint):
        for number, block in enumerate(blocks):
            is_acknowledged = False
            while not is_acknowledged:
                endpoint.send(bytes([number]) + block)
                try:
                    async with asyncio.timeout(0.5):
                        while not is_acknowledged:
                            data, _ = await endpoint.recv()
                            is_acknowledged = is_faulty or data == bytes([number])
                except TimeoutError:
                    pass

    async def main():
        async with (
            net,
            net.open_endpoint(local_addr=("server", 1)) as server,
            net.open_endpoint(remote_addr=("server", 1)) as client,
        ):
            receiving = asyncio.create_task(receive(server))
            await send(client)
            receiving.cancel()

    tomada.testing.run(main())
    return accepted


BLOCKS = [b"one", b"two", b"three", b"four"]


def harmless(script):
    """Leave out the steps that change bytes, which the protocol has no checksum for."""
    return [step for step in script if not step.startswith(("truncate", "corrupt"))]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(strategies.scripts())
def test_a_correct_protocol_survives_every_script(script):
    assert transfer(BLOCKS, network(script=harmless(script), seed=1)) == BLOCKS


def test_a_duplicate_acknowledgement_fault_is_found_and_shrunk():
    def loses(script):
        net = network(script=harmless(script), seed=1)
        return transfer(BLOCKS, net, is_faulty=True) != BLOCKS

    script = find(strategies.scripts(), loses)
    assert len(harmless(script)) <= 6
    assert loses(script)
