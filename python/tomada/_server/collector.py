"""A server's counters as Prometheus metrics."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest, multiprocess
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tomada._address import format_address
from tomada._core import ServerCounters

if TYPE_CHECKING:
    from tomada.server import Server

# Names that differ from the counter's: by Prometheus's conventions, they include the unit.
NAMES = {"handler_time": "handler_seconds"}
# The metric of each counter, the counter, and its description. The histogram of batch sizes already
# counts the calls, so they have no counters of their own.
COUNTERS = [
    (f"tomada_server_{NAMES.get(name, name)}", name, text)
    for name, text in ServerCounters.descriptions().items()
    if name not in ("receive_calls", "send_calls")
]
# The name that version 0.1 used, kept until 0.3.
COUNTERS.append(
    (
        "tomada_server_handler_time",
        "handler_time",
        "Deprecated, and removed in 0.3: use tomada_server_handler_seconds_total.",
    )
)
# The reasons why a guard refuses datagrams: the names of counters in GuardStats.
REASONS = ("denied", "oversized", "over_rate", "over_ceiling", "over_amplification")
GUARD = "tomada_guard_refused", "Datagrams that the guard refused, by reason."
STATES = ("created", "starting", "running", "draining", "stopped")
SINK = {
    name: f"Datagrams that the sink has {name}." for name in ("received", "published", "dropped")
}
IN_FLIGHT = "tomada_sink_in_flight", "Datagrams that the sink has neither published nor dropped."
STATE = "tomada_server_state", "The state of the server: 1 for the current one."
WORKERS = "tomada_server_workers", "Workers that are running."
RELOADED = (
    "tomada_server_last_reload_successful",
    "Whether the last replacement of the workers succeeded.",
)
# How many times to try to read the workers' metrics, and the wait between attempts, in seconds.
ATTEMPTS, RETRY = 100, 0.01
# The variable that names the directory in which prometheus-client shares the metrics of several
# processes, and the names of its files for the gauges of live ones.
DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
OF_LIVE = re.compile(r"gauge_live\w*_(\d+)\.db")


class ServerCollector(Collector):
    """Exports a server's :meth:`~tomada.Server.stats` to Prometheus, summed over all workers.

    Register it in the process that started the server, and serve the registry with
    ``prometheus_client``, for example with ``start_http_server(8000)``::

        with tomada.Server(("0.0.0.0", 1234), handle, workers=4) as server:
            tomada.metrics.ServerCollector(server)

    Each metric has the label ``address``: the server's address. The counters are named
    ``tomada_server_received_total`` and so on; ``tomada_server_batch_size`` is a histogram of the
    number of datagrams per receive; ``tomada_server_state`` has a label for each state;
    ``tomada_server_workers`` is the number of workers that are running; and
    ``tomada_server_last_reload_successful`` is 0 after workers could not be replaced. A guard
    adds ``tomada_guard_refused_total`` with the label ``reason``, and a sink
    ``tomada_sink_received_total``, ``…_published_total``, ``…_dropped_total`` and
    ``tomada_sink_in_flight``.

    :param registry: The registry to register with, or ``None``.
    """

    def __init__(self, server: Server, registry: CollectorRegistry | None = REGISTRY) -> None:
        self._server = server
        if registry is not None:
            registry.register(self)

    def describe(self) -> Iterator[Metric]:
        """Return the metrics without values: the server may not have been started yet."""
        for metric, _, text in COUNTERS:
            yield CounterMetricFamily(metric, text)
        for gauge in (STATE, WORKERS, RELOADED):
            yield GaugeMetricFamily(*gauge)
        yield CounterMetricFamily(*GUARD)
        for name, text in SINK.items():
            yield CounterMetricFamily(f"tomada_sink_{name}", text)
        yield GaugeMetricFamily(*IN_FLIGHT)
        yield HistogramMetricFamily("tomada_server_batch_size", "Datagrams in one batch.")

    def collect(self) -> Iterator[Metric]:
        """Return the current metrics; before the server is started, without values."""
        try:
            stats, address = self._server.stats(), format_address(self._server.address)
        except RuntimeError:  # the server was not started
            yield from self.describe()
            return
        # An AF_UNIX path is bytes. A byte that is not text would make the whole scrape fail.
        labels = [address.encode(errors="replace").decode()]
        for metric, name, text in COUNTERS:
            counter = CounterMetricFamily(metric, text, labels=["address"])
            counter.add_metric(labels, getattr(stats, name))
            yield counter
        state = GaugeMetricFamily(*STATE, labels=["address", "state"])
        for each in STATES:
            state.add_metric([*labels, each], each == self._server.status)
        yield state
        life = self._server._life  # noqa: SLF001 - our own class
        for gauge, value in (
            (WORKERS, len(life.live_workers)),
            (RELOADED, not life.has_failed_to_replace),
        ):
            family = GaugeMetricFamily(*gauge, labels=["address"])
            family.add_metric(labels, value)
            yield family
        guard = self._server.guard
        if guard is not None:
            refused, why = CounterMetricFamily(*GUARD, labels=["address", "reason"]), guard.stats()
            for reason in REASONS:
                refused.add_metric([*labels, reason], getattr(why, reason))
            yield refused
        yield from self._of_sink(labels)
        histogram = HistogramMetricFamily(
            "tomada_server_batch_size", "Datagrams in one batch.", labels=["address"]
        )
        buckets, total = [], 0
        for size, batches in stats.batch_sizes.items():
            total += batches
            buckets.append((str(float(size)), total))
        buckets[-1] = ("+Inf", total)
        histogram.add_metric(labels, buckets, sum_value=stats.received)
        yield histogram

    def _of_sink(self, labels: list[str]) -> Iterator[Metric]:
        """Return the metrics of the sink, if any, from one snapshot of its counters."""
        if self._server.sink is None:
            return
        stats = self._server.sink.stats()
        for name, text in SINK.items():
            counter = CounterMetricFamily(f"tomada_sink_{name}", text, labels=["address"])
            counter.add_metric(labels, getattr(stats, name))
            yield counter
        gauge = GaugeMetricFamily(*IN_FLIGHT, labels=["address"])
        gauge.add_metric(labels, stats.in_flight)
        yield gauge


class _Everything(Collector):
    """The metrics of a server, and those that its handlers created."""

    def __init__(self, server: Server, others: CollectorRegistry) -> None:
        self._server, self._others = server, others

    def collect(self) -> Iterator[Metric]:
        names = set()
        for metric in _all_of(self._others):
            names.add(metric.name)
            yield metric
        for metric in ServerCollector(self._server, None).collect():
            if metric.name not in names:  # unless the program has registered a collector
                yield metric


def _all_of(registry: CollectorRegistry) -> list[Metric]:
    """Return the metrics of a registry; retry while a worker is still creating its file."""
    for _ in range(ATTEMPTS - 1):
        try:
            return list(registry.collect())
        except struct.error:  # the file has no content yet
            time.sleep(RETRY)
    return list(registry.collect())


def exposition(server: Server) -> str:
    """Return the text that Prometheus scrapes: the metrics of a server and of its handlers.

    Handlers in several processes share their metrics through ``PROMETHEUS_MULTIPROC_DIR``.
    """
    others = REGISTRY
    directory = os.environ.get(DIRECTORY)
    if directory:
        _forget_dead(directory)
        others = CollectorRegistry()
        multiprocess.MultiProcessCollector(others)  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    registry.register(_Everything(server, others))
    return generate_latest(registry).decode()


def _forget_dead(directory: str) -> None:
    """Drop the live gauges of processes that have exited."""
    for name in os.listdir(directory):  # noqa: PTH208 - names are enough
        found = OF_LIVE.fullmatch(name)
        if found is not None and not Path(f"/proc/{found[1]}").exists():
            with contextlib.suppress(FileNotFoundError):
                (Path(directory) / name).unlink()
