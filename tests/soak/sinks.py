"""Lanes of sinks: servers that publish to a broker, which is restarted in each round."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import tomada
from benches.brokers import SUBJECT, helpers, nats
from tests.soak.lanes import Accounts, Served
from tests.soak.loads import Load, running
from tomada.sinks import JetStream, Kafka, Sink


class Published(Served):
    """A server with a sink. The broker is down for a third of each round.

    :param engine: The broker, which has the methods ``start`` and ``kill``.
    """

    has_supervisors = False  # but brokers

    # Ends the broker.
    _stack: contextlib.ExitStack

    def __init__(self, name: str, engine: Any, sink: Sink, *loads: Load, **options: Any) -> None:
        super().__init__(name, sink, *loads, **options)
        self._engine, self._sink = engine, sink
        # How often the counters did not add up.
        self._wrong = 0

    def close(self) -> None:
        self._stack.close()

    def round(self, seconds: float) -> Accounts:
        before = self._sink.stats()
        accounts = super().round(seconds)
        after = self._sink.stats()
        account = accounts[self.name]
        account.compare(after.received - before.received)
        account.unexplained += after.in_flight + self._wrong
        self._wrong = 0
        self.deeds["datagrams published by sinks"] += after.published - before.published
        self.deeds["datagrams dropped by sinks"] += after.dropped - before.dropped
        return accounts

    def account(self, server: tomada.Server, seconds: float, killed: int = 0) -> Accounts:
        before = server.stats()
        with running(self.loads, server.address[1], seconds) as end:
            self.pass_time(server, seconds)
            sent = end()
        # A sink that waits for its broker leaves datagrams in the queue; draining receives them.
        server.stop()
        return self.accounts(sent, server.stats(), before, killed=killed)

    def pass_time(self, _server: tomada.Server, seconds: float) -> None:
        self._look(seconds / 3)
        self._engine.kill()
        self._look(seconds / 3)
        self._engine.start()
        self.deeds["engines restarted"] += 1
        self._look(seconds / 3)

    def _look(self, seconds: float) -> None:
        """Check for a while that the sink's counters add up."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            stats = self._sink.stats()
            explained = stats.published + stats.dropped + stats.in_flight
            self._wrong += stats.in_flight < 0 or stats.received != explained
            time.sleep(0.01)


class Nats(Published):
    """NATS JetStream, in record batches or in single messages."""

    def __init__(self, name: str, *loads: Load, run: int | None = 1, **options: Any) -> None:
        self._stack = contextlib.ExitStack()
        engine = self._stack.enter_context(nats(storage="file"))
        sink = JetStream(engine.url, SUBJECT, timeout=1, linger=60, **options)
        super().__init__(name, engine, sink, *loads, run=run, drain=90)


class Brokers(Published):
    """Kafka, with simulated brokers."""

    def __init__(self, name: str, *loads: Load, **options: Any) -> None:
        self._stack = contextlib.ExitStack()
        engine = self._stack.enter_context(helpers().MockKafka())
        config = {"reconnect.backoff.max.ms": 200}
        sink = Kafka(engine.servers, "topic", linger=60, config=config, **options)
        super().__init__(name, engine, sink, *loads, drain=90)
