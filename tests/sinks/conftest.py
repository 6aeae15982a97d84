"""The engine of the sinks' tests."""

import pytest

import skips
from brokers import NatsServer


@pytest.fixture
def broker(tmp_path):
    skips.program("nats-server")
    with NatsServer(tmp_path) as running:
        running.add_stream("udp")
        yield running
