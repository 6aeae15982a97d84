"""Fixtures for tests of load balancers."""

import contextlib

import pytest

from balanced import BACK, CLIENT, FRONT, SERVER, Machines


@pytest.fixture
def machines(network):
    client, balancer, server = (network.namespace() for _ in range(3))
    client.join("front", balancer, "front", [f"{CLIENT}/24"], [f"{FRONT}/24"])
    balancer.join("back", server, "back", [f"{BACK}/24"], [f"{SERVER}/24"])
    server.command("ip", "route", "add", "default", "via", BACK)
    with contextlib.ExitStack() as stack:
        yield Machines(client, balancer, server, stack)
